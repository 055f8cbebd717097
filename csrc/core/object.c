/* Score and selection objects: creation from the caller's numbers, shape, reading, freeing. */
#include "object.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot create the object as %zu bytes must be available", bytes);
}

kv_object *kv_find_object(kvf_cache *cache, uint32_t id, uint32_t kind, const char *action, kv_err err) {
    kv_object *object = kv_ids_get(&cache->objects, id);
    if (object != NULL && object->kind == kind) return object;
    kv_fail(err, KVF_ERR_ARG, "Cannot %s as the object must be live %s: id %u", action,
            kind == KV_SCORES ? "scores" : "selection", id);
    return NULL;
}

/* ---- Making ---- */

static int32_t check_size(uint32_t n_head, uint64_t n, kv_err err) {
    if (n_head == 0 || n_head > KV_MAX_HEAD) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create the object as n_head must be between 1 and %u: %u", KV_MAX_HEAD,
                       n_head);
    }
    if (n > KV_MAX_ELEMENT) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create the object as it must have at most %u elements: %llu", KV_MAX_ELEMENT,
                       (unsigned long long)n);
    }
    return KVF_OK;
}

kv_object *kv_scores_new(kvf_cache *cache, uint32_t n_head, uint32_t n_row, int32_t *status, kv_err err) {
    const uint64_t n = (uint64_t)n_head * n_row;
    *status = check_size(n_head, n, err);
    if (*status != KVF_OK) return NULL;
    kv_object *object = calloc(1, sizeof *object);
    if (object != NULL) {
        object->kind = KV_SCORES;
        object->n_head = n_head;
        object->n_row = n_row;
        object->values = be_alloc(cache->dev, (n == 0 ? 1 : (size_t)n) * sizeof(float));
    }
    if (object == NULL || object->values == NULL) {
        free(object);
        *status = no_memory((size_t)n * sizeof(float), err);
        return NULL;
    }
    return object;
}

/* Gives an object of longest heads its heads' lengths. */
static kv_object *set_lens(kvf_cache *cache, kv_object *object, const uint32_t *lens, int32_t *status, kv_err err) {
    object->lens = malloc(object->n_head * sizeof *lens);
    if (object->lens != NULL) {
        memcpy(object->lens, lens, object->n_head * sizeof *lens);
        return object;
    }
    *status = no_memory(object->n_head * sizeof *lens, err);
    kv_object_destroy(cache, object);
    return NULL;
}

kv_object *kv_scores_like(kvf_cache *cache, const kv_object *in, int32_t *status, kv_err err) {
    kv_object *object = kv_scores_new(cache, in->n_head, in->n_row, status, err);
    return object == NULL || in->lens == NULL ? object : set_lens(cache, object, in->lens, status, err);
}

kv_object *kv_scores_of_layer(kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t less, int32_t *status,
                              kv_err err) {
    uint32_t *lens = malloc(s->n_stored_head * sizeof *lens), most = 0;
    bool equal = true;
    if (lens == NULL) {
        *status = no_memory(s->n_stored_head * sizeof *lens, err);
        return NULL;
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        lens[h] = rows > less ? rows - less : 0;
        equal = equal && lens[h] == lens[0];
        most = lens[h] > most ? lens[h] : most;
    }
    kv_object *object = kv_scores_new(cache, s->n_stored_head, most, status, err);
    if (object != NULL && !equal) object = set_lens(cache, object, lens, status, err);
    free(lens);
    return object;
}

int32_t kv_scores_pad(kvf_cache *cache, const kv_object *scores, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; scores->lens != NULL && h < scores->n_head && status == KVF_OK; h++) {
        if (scores->lens[h] == scores->n_row) continue;
        status = be_scores_fill(cache->dev, scores->values + (size_t)h * scores->n_row, 1, scores->n_row, scores->lens[h],
                                scores->n_row, -INFINITY, err);
    }
    return status;
}

kv_object *kv_selection_new(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, int32_t *status, kv_err err) {
    uint64_t n = 0;
    if (n_head <= KV_MAX_HEAD) {
        for (uint32_t h = 0; h < n_head; h++) n += counts[h];
    }
    *status = check_size(n_head, n, err);
    if (*status != KVF_OK) return NULL;
    kv_object *object = calloc(1, sizeof *object);
    if (object != NULL) {
        object->kind = KV_SELECTION;
        object->n_head = n_head;
        object->n_row = (uint32_t)n;
        object->counts = malloc(n_head * sizeof *counts);
        object->ends = calloc(n_head, sizeof *counts);
        object->rows = be_alloc(cache->dev, (n == 0 ? 1 : (size_t)n) * sizeof *object->rows);
    }
    if (object == NULL || object->counts == NULL || object->ends == NULL || object->rows == NULL) {
        kv_object_destroy(cache, object);
        *status = no_memory((size_t)n * sizeof(uint32_t), err);
        return NULL;
    }
    memcpy(object->counts, counts, n_head * sizeof *counts);
    return object;
}

void kv_object_destroy(kvf_cache *cache, kv_object *object) {
    if (object == NULL) return;
    be_free(cache->dev, object->values);
    be_free(cache->dev, object->rows);
    free(object->counts);
    free(object->ends);
    free(object->lens);
    free(object);
}

int32_t kv_object_publish(kvf_cache *cache, kv_object *object, int32_t status, kv_err err) {
    if (status == KVF_OK) {
        const uint32_t id = kv_ids_add(&cache->objects, object);
        if (id != 0) return (int32_t)id;
        status = kv_fail(err, KVF_ERR_MEMORY, "Cannot create the object as at most %u may be live: %u", KV_MAX_ID,
                         cache->objects.n_live);
    }
    kv_object_destroy(cache, object);
    return status;
}

static int32_t scores_create(kvf_cache *cache, uint32_t n_head, uint32_t n_row, const float *values, kv_err err) {
    int32_t status;
    kv_object *object = kv_scores_new(cache, n_head, n_row, &status, err);
    if (object == NULL) return status;
    const size_t bytes = (size_t)n_head * n_row * sizeof *values;
    if (bytes > 0) {
        float *zeros = values == NULL ? calloc(bytes, 1) : NULL;
        if (values == NULL && zeros == NULL) {
            status = no_memory(bytes, err);
        } else {
            status = be_upload(cache->dev, object->values, values == NULL ? zeros : values, bytes, err);
        }
        free(zeros);
    }
    return kv_object_publish(cache, object, status, err);
}

int32_t kvf_scores_create(kvf_cache *cache, uint32_t n_head, uint32_t n_row, const float *values, char *text,
                          uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "create scores", err);
    if (status != KVF_OK) return status;
    status = scores_create(cache, n_head, n_row, values, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t selection_create(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, const uint32_t *rows,
                                kv_err err) {
    if (counts == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot create a selection as counts must not be NULL");
    int32_t status;
    kv_object *object = kv_selection_new(cache, n_head, counts, &status, err);
    if (object == NULL) return status;
    if (object->n_row > 0 && rows == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot create a selection as rows must not be NULL: %u entries", object->n_row);
    }
    size_t at = 0;
    for (uint32_t h = 0; h < n_head && status == KVF_OK; h++) {
        for (uint32_t i = 0; i < counts[h]; i++) {
            const uint32_t row = rows[at + i];
            if (row >= KV_MAX_TOKEN || (i > 0 && row <= rows[at + i - 1])) {
                status = kv_fail(err, KVF_ERR_ARG,
                                 "Cannot create a selection as each list must ascend and stay below %u: %u at entry %u of head %u",
                                 KV_MAX_TOKEN, row, i, h);
                break;
            }
            object->ends[h] = row + 1;
        }
        at += counts[h];
    }
    if (status == KVF_OK && object->n_row > 0) {
        status = be_upload(cache->dev, object->rows, rows, (size_t)object->n_row * sizeof *rows, err);
    }
    return kv_object_publish(cache, object, status, err);
}

int32_t kvf_selection_create(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, const uint32_t *rows,
                             char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "create a selection", err);
    if (status != KVF_OK) return status;
    status = selection_create(cache, n_head, counts, rows, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Reading and freeing ---- */

int32_t kvf_object_free(kvf_cache *cache, uint32_t object, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "free the object", err);
    if (status != KVF_OK) return status;
    kv_object *item = kv_ids_remove(&cache->objects, object);
    if (item == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot free the object as it must be live: id %u", object);
    } else {
        kv_object_destroy(cache, item);
    }
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_object_shape(kvf_cache *cache, uint32_t object, uint32_t *shape, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the object's shape", err);
    if (status != KVF_OK) return status;
    const kv_object *item = kv_ids_get(&cache->objects, object);
    if (item == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot read the object's shape as it must be live: id %u", object);
    } else if (shape == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot read the object's shape as shape must not be NULL");
    } else {
        shape[0] = item->kind == KV_SCORES ? 0 : 1;
        shape[1] = item->n_head;
        shape[2] = item->n_row;
    }
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_read(kvf_cache *cache, uint32_t scores, float *values, uint32_t n_value, kv_err err) {
    const kv_object *object = kv_find_object(cache, scores, KV_SCORES, "read the scores", err);
    if (object == NULL) return KVF_ERR_ARG;
    const uint32_t n = object->n_head * object->n_row; /* at most KV_MAX_ELEMENT */
    if (n_value < n || (values == NULL && n > 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the scores as %u elements must be given: %u", n,
                       values == NULL ? 0 : n_value);
    }
    if (n == 0) return KVF_OK;
    const int32_t status = kv_scores_pad(cache, object, err);
    return status != KVF_OK ? status : be_download(cache->dev, values, object->values, (size_t)n * sizeof *values, err);
}

int32_t kvf_scores_read(kvf_cache *cache, uint32_t scores, float *values, uint32_t n_value, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the scores", err);
    if (status != KVF_OK) return status;
    status = scores_read(cache, scores, values, n_value, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t selection_read(kvf_cache *cache, uint32_t selection, uint32_t *counts, uint32_t n_head, uint32_t *rows,
                              uint32_t n_row, kv_err err) {
    const kv_object *object = kv_find_object(cache, selection, KV_SELECTION, "read the selection", err);
    if (object == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head < object->n_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the selection as counts must have %u elements: %u", object->n_head,
                       counts == NULL ? 0 : n_head);
    }
    if (n_row < object->n_row || (rows == NULL && object->n_row > 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the selection as rows must have %u elements: %u", object->n_row,
                       rows == NULL ? 0 : n_row);
    }
    memcpy(counts, object->counts, object->n_head * sizeof *counts);
    const size_t bytes = (size_t)object->n_row * sizeof *rows;
    return bytes == 0 ? KVF_OK : be_download(cache->dev, rows, object->rows, bytes, err);
}

int32_t kvf_selection_read(kvf_cache *cache, uint32_t selection, uint32_t *counts, uint32_t n_head, uint32_t *rows,
                           uint32_t n_row, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the selection", err);
    if (status != KVF_OK) return status;
    status = selection_read(cache, selection, counts, n_head, rows, n_row, err);
    kv_leave(cache->dev);
    return status;
}
