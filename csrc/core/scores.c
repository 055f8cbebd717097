/* Score and selection objects, and the actions on a layer's rows. */
#include <stdlib.h>
#include <string.h>

#include "entry.h"

kv_object *kv_find_object(kvf_cache *cache, uint32_t id, uint32_t kind, kv_err err) {
    if (id >= 1 && id <= cache->cap_object && cache->object[id - 1].kind != KV_FREE) {
        kv_object *o = &cache->object[id - 1];
        if (kind == KV_FREE || o->kind == kind) return o;
    }
    kv_fail(err, KVF_ERR_ARG, "Cannot use object as it must be live %s: id is %u",
            kind == KV_SCORES ? "scores" : kind == KV_SELECTION ? "selection" : "scores or selection", id);
    return NULL;
}

void kv_object_clear(kvf_cache *cache, kv_object *o) {
    be_free(cache->dev, o->values);
    be_free(cache->dev, o->rows);
    free(o->counts);
    *o = (kv_object){0};
}

/* A new object of that shape; pointers to other objects are invalid afterwards. */
static kv_object *object_make(kvf_cache *cache, uint32_t kind, uint32_t n_head, uint32_t n_row, uint32_t *id, kv_err e) {
    if (n_head < 1 || n_head > 1024 || n_row > 1u << 26) {
        kv_fail(e, KVF_ERR_ARG, "Cannot make object as heads must be from 1 to 1024 and rows <= 2^26: they are %u and %u",
                n_head, n_row);
        return NULL;
    }
    uint32_t slot = 0;
    while (slot < cache->cap_object && cache->object[slot].kind != KV_FREE) slot++;
    if (slot == cache->cap_object) {
        const uint32_t cap = slot == 0 ? 16 : slot * 2;
        kv_object *grown = cap <= KV_MAX_OBJECT ? realloc(cache->object, cap * sizeof *grown) : NULL;
        if (grown == NULL) {
            kv_fail(e, KVF_ERR_MEMORY, "Cannot make object as at most %u may live: %u do", KV_MAX_OBJECT, slot);
            return NULL;
        }
        memset(grown + slot, 0, (cap - slot) * sizeof *grown);
        cache->object = grown;
        cache->cap_object = cap;
    }
    kv_object *o = &cache->object[slot];
    *o = (kv_object){.n_head = n_head, .n_row = n_row};
    const bool scores = kind == KV_SCORES;
    const size_t bytes = (scores ? (size_t)n_head : 1) * n_row * 4;
    void *data = be_alloc(cache->dev, bytes > 0 ? bytes : 4);
    if (scores) {
        o->values = data;
    } else {
        o->rows = data;
        o->counts = calloc(n_head, sizeof *o->counts);
    }
    if (data == NULL || (!scores && o->counts == NULL)) {
        kv_object_clear(cache, o);
        kv_fail(e, KVF_ERR_MEMORY, "Cannot make object as memory ran out: %zu bytes needed", bytes);
        return NULL;
    }
    o->kind = kind;
    *id = slot + 1;
    return o;
}

/* The id of an object whose content was computed with `status`; frees it on failure. */
static int32_t object_done(kvf_cache *cache, uint32_t id, int32_t status) {
    if (status == KVF_OK) return (int32_t)id;
    kv_object_clear(cache, &cache->object[id - 1]);
    return status;
}

static int32_t object_free(kvf_cache *cache, uint32_t id, kv_err e) {
    kv_object *o = kv_find_object(cache, id, KV_FREE, e);
    if (o == NULL) return KVF_ERR_ARG;
    kv_object_clear(cache, o);
    return KVF_OK;
}

int32_t kvf_object_free(kvf_cache *cache, uint32_t object, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, object_free(cache, object, e));
}

static int32_t object_shape(kvf_cache *cache, uint32_t id, uint32_t *shape, kv_err e) {
    const kv_object *o = kv_find_object(cache, id, KV_FREE, e);
    if (o == NULL) return KVF_ERR_ARG;
    if (shape == NULL) return kv_fail(e, KVF_ERR_ARG, "Cannot read shape as a buffer must be given");
    shape[0] = o->kind == KV_SELECTION;
    shape[1] = o->n_head;
    shape[2] = o->n_row;
    return KVF_OK;
}

int32_t kvf_object_shape(kvf_cache *cache, uint32_t object, uint32_t *shape, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, object_shape(cache, object, shape, e));
}

static int32_t scores_read(kvf_cache *cache, uint32_t id, float *values, uint32_t n_value, kv_err e) {
    const kv_object *o = kv_find_object(cache, id, KV_SCORES, e);
    if (o == NULL) return KVF_ERR_ARG;
    const size_t n = (size_t)o->n_head * o->n_row;
    if (n == 0) return KVF_OK;
    if (values == NULL || n_value < n) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read scores as the buffer must hold %zu numbers: it holds %u", n, n_value);
    }
    return be_download(cache->dev, values, o->values, n * sizeof *values, e);
}

int32_t kvf_scores_read(kvf_cache *cache, uint32_t scores, float *values, uint32_t n_value, char *err,
                        uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_read(cache, scores, values, n_value, e));
}

static int32_t selection_read(kvf_cache *cache, uint32_t id, uint32_t *counts, uint32_t n_head, uint32_t *rows,
                              uint32_t n_row, kv_err e) {
    const kv_object *o = kv_find_object(cache, id, KV_SELECTION, e);
    if (o == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head < o->n_head || n_row < o->n_row || (o->n_row > 0 && rows == NULL)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read selection as the buffers must hold %u and %u numbers: they hold %u and %u",
                       o->n_head, o->n_row, n_head, n_row);
    }
    memcpy(counts, o->counts, o->n_head * sizeof *counts);
    return o->n_row == 0 ? KVF_OK : be_download(cache->dev, rows, o->rows, o->n_row * sizeof *rows, e);
}

int32_t kvf_selection_read(kvf_cache *cache, uint32_t selection, uint32_t *counts, uint32_t n_head, uint32_t *rows,
                           uint32_t n_row, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, selection_read(cache, selection, counts, n_head, rows, n_row, e));
}

/* ---- Scores ---- */

static int32_t scores_create(kvf_cache *cache, uint32_t n_head, uint32_t n_row, const float *values, kv_err e) {
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SCORES, n_head, n_row, &id, e);
    if (o == NULL) return KVF_ERR_ARG;
    const size_t n = (size_t)n_head * n_row;
    if (n == 0) return (int32_t)id;
    const int32_t status = values != NULL ? be_upload(cache->dev, o->values, values, n * sizeof *values, e)
                                          : be_scores_fill(cache->dev, o->values, n_head, n_row, 0, n_row, 0.0f, e);
    return object_done(cache, id, status);
}

int32_t kvf_scores_create(kvf_cache *cache, uint32_t n_head, uint32_t n_row, const float *values, char *err,
                          uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_create(cache, n_head, n_row, values, e));
}

/* The sequence, if the layer exists and holds rows that can be scored. */
static kv_sequence *find_layer(kvf_cache *cache, uint32_t id, uint32_t layer, kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return NULL;
    if (layer < cache->config.n_layer) return s;
    kv_fail(e, KVF_ERR_ARG, "Cannot use layer as it must be below %u: it is %u", cache->config.n_layer, layer);
    return NULL;
}

/* Whether the layer still holds exactly the prompt rows that were observed. */
static int32_t check_observed(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, kv_err e) {
    if (s->observe == NULL) return kv_fail(e, KVF_ERR_STATE, "Cannot score rows as observations must be there");
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        if (rows == s->observe->n_token) continue;
        return kv_fail(e, KVF_ERR_STATE, "Cannot score rows of layer %u as all %u prompt rows must be there: head %u has %u",
                       layer, s->observe->n_token, h, rows);
    }
    (void)cache;
    return KVF_OK;
}

static int32_t scores_window(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t flags,
                             uint32_t reduce, kv_err e) {
    kv_sequence *s = find_layer(cache, sequence, layer, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (flags > 7 || reduce > KVF_SUM) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot score rows as flags must be <= 7 and reduce <= 2: they are %u and %u", flags,
                       reduce);
    }
    const int32_t observed = check_observed(cache, s, layer, e);
    if (observed != KVF_OK) return observed;
    if (window < 1 || window > s->observe->n_window || s->observe->window_q[layer] == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot score rows as window must be from 1 to the %u recorded queries: it is %u",
                       s->observe->n_window, window);
    }
    const uint32_t n_row = s->observe->n_token - (flags & KVF_WINDOW_ALL_ROWS ? 0 : window);
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SCORES, s->n_stored_head, n_row, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    if (n_row == 0) return (int32_t)id;
    return object_done(cache, id, be_scores_window(cache, s, layer, window, flags, reduce, o->values, n_row, e));
}

int32_t kvf_scores_window(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t flags,
                          uint32_t reduce, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_window(cache, sequence, layer, window, flags, reduce, e));
}

static int32_t scores_mass(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t mass, uint32_t reduce,
                           kv_err e) {
    kv_sequence *s = find_layer(cache, sequence, layer, e);
    if (s == NULL) return KVF_ERR_ARG;
    const int32_t observed = check_observed(cache, s, layer, e);
    if (observed != KVF_OK) return observed;
    if (mass >= s->observe->n_mass || reduce > KVF_SUM ||
        s->observe->mass[(size_t)layer * s->observe->n_mass + mass] == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot score rows as mass must be one of the %u recorded and reduce <= 2: they are %u and %u",
                       s->observe->n_mass, mass, reduce);
    }
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SCORES, s->n_stored_head, s->observe->n_token, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    return object_done(cache, id, be_scores_mass(cache, s, layer, mass, reduce, o->values, s->observe->n_token, e));
}

int32_t kvf_scores_mass(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t mass, uint32_t reduce, char *err,
                        uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_mass(cache, sequence, layer, mass, reduce, e));
}

static int32_t scores_norm(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t what, kv_err e) {
    kv_sequence *s = find_layer(cache, sequence, layer, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (what > 1) return kv_fail(e, KVF_ERR_ARG, "Cannot take norms as what must be 0 or 1: it is %u", what);
    const uint32_t rows = kv_table_of(s, layer, 0)->rows;
    for (uint32_t h = 1; h < s->n_stored_head; h++) {
        if (kv_table_of(s, layer, h)->rows == rows) continue;
        return kv_fail(e, KVF_ERR_STATE, "Cannot take norms as all heads must hold %u rows: head %u holds %u", rows, h,
                       kv_table_of(s, layer, h)->rows);
    }
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SCORES, s->n_stored_head, rows, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        status = be_scores_norm(cache, kv_table_of(s, layer, h), what, o->values + (size_t)h * rows, e);
    }
    return object_done(cache, id, status);
}

int32_t kvf_scores_norm(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t what, char *err,
                        uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_norm(cache, sequence, layer, what, e));
}

/* A new object of the shape of scores `id`; *from and the result are valid until the next object is made. */
static kv_object *like(kvf_cache *cache, uint32_t id, const kv_object **from, uint32_t *made, kv_err e) {
    const kv_object *x = kv_find_object(cache, id, KV_SCORES, e);
    if (x == NULL) return NULL;
    kv_object *o = object_make(cache, KV_SCORES, x->n_head, x->n_row, made, e);
    *from = &cache->object[id - 1];
    return o;
}

static int32_t scores_pool(kvf_cache *cache, uint32_t scores, uint32_t kind, uint32_t width, kv_err e) {
    if (kind > 1 || width % 2 == 0) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot pool scores as kind must be 0 or 1 and width odd: they are %u and %u", kind,
                       width);
    }
    const kv_object *x;
    uint32_t id = 0;
    kv_object *o = like(cache, scores, &x, &id, e);
    if (o == NULL) return KVF_ERR_ARG;
    return object_done(cache, id, be_scores_pool(cache->dev, x->values, o->values, x->n_head, x->n_row, kind, width, e));
}

int32_t kvf_scores_pool(kvf_cache *cache, uint32_t scores, uint32_t kind, uint32_t width, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_pool(cache, scores, kind, width, e));
}

static int32_t scores_affine(kvf_cache *cache, uint32_t scores, float a, float b, kv_err e) {
    const kv_object *x;
    uint32_t id = 0;
    kv_object *o = like(cache, scores, &x, &id, e);
    if (o == NULL) return KVF_ERR_ARG;
    return object_done(cache, id, be_scores_affine(cache->dev, x->values, o->values, (size_t)x->n_head * x->n_row, a, b, e));
}

int32_t kvf_scores_affine(kvf_cache *cache, uint32_t scores, float a, float b, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_affine(cache, scores, a, b, e));
}

static int32_t scores_combine(kvf_cache *cache, uint32_t a, uint32_t b, uint32_t what, kv_err e) {
    const kv_object *y = kv_find_object(cache, b, KV_SCORES, e);
    if (y == NULL) return KVF_ERR_ARG;
    const kv_object *x = kv_find_object(cache, a, KV_SCORES, e);
    if (x == NULL) return KVF_ERR_ARG;
    if (what > 1 || x->n_head != y->n_head || x->n_row != y->n_row) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot combine scores as their shapes must be equal: [%u, %u] and [%u, %u]", x->n_head,
                       x->n_row, y->n_head, y->n_row);
    }
    uint32_t id = 0;
    kv_object *o = like(cache, a, &x, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    y = &cache->object[b - 1];
    return object_done(cache, id,
                       be_scores_combine(cache->dev, x->values, y->values, o->values, (size_t)x->n_head * x->n_row, what, e));
}

int32_t kvf_scores_combine(kvf_cache *cache, uint32_t a, uint32_t b, uint32_t what, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_combine(cache, a, b, what, e));
}

static int32_t scores_fill(kvf_cache *cache, uint32_t scores, uint32_t first, uint32_t end, float value, kv_err e) {
    const kv_object *x = kv_find_object(cache, scores, KV_SCORES, e);
    if (x == NULL) return KVF_ERR_ARG;
    if (first > end || end > x->n_row) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot fill scores as rows must lie within %u: they are %u to %u", x->n_row, first,
                       end);
    }
    uint32_t id = 0;
    kv_object *o = like(cache, scores, &x, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    const size_t bytes = (size_t)x->n_head * x->n_row * sizeof(float);
    int32_t status = bytes > 0 ? be_copy(cache->dev, o->values, x->values, bytes, e) : KVF_OK;
    if (status == KVF_OK && first < end) {
        status = be_scores_fill(cache->dev, o->values, o->n_head, o->n_row, first, end, value, e);
    }
    return object_done(cache, id, status);
}

int32_t kvf_scores_fill(kvf_cache *cache, uint32_t scores, uint32_t first, uint32_t end, float value, char *err,
                        uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_fill(cache, scores, first, end, value, e));
}

static int32_t scores_concentrate(kvf_cache *cache, uint32_t scores, uint32_t count, kv_err e) {
    const kv_object *x = kv_find_object(cache, scores, KV_SCORES, e);
    if (x == NULL) return KVF_ERR_ARG;
    if (count > x->n_row) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot concentrate scores as count must be <= %u: it is %u", x->n_row, count);
    }
    uint32_t id = 0;
    kv_object *o = like(cache, scores, &x, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    return object_done(cache, id, be_scores_concentrate(cache->dev, x->values, o->values, x->n_head, x->n_row, count, e));
}

int32_t kvf_scores_concentrate(kvf_cache *cache, uint32_t scores, uint32_t count, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_concentrate(cache, scores, count, e));
}

static int32_t scores_random(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer, kv_err e) {
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SCORES, n_head, n_row, &id, e);
    if (o == NULL) return KVF_ERR_ARG;
    if (n_row == 0) return (int32_t)id;
    return object_done(cache, id, be_scores_random(cache->dev, o->values, n_head, n_row, seed, layer, e));
}

int32_t kvf_scores_random(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer, char *err,
                          uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_random(cache, n_head, n_row, seed, layer, e));
}

/* ---- Selections ---- */

static int32_t selection_create(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, const uint32_t *rows,
                                kv_err e) {
    if (n_head < 1 || n_head > 1024 || counts == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot make selection as heads must be from 1 to 1024: there are %u", n_head);
    }
    uint64_t n = 0;
    for (uint32_t h = 0; h < n_head; h++) n += counts[h];
    if (n > 1u << 26 || (n > 0 && rows == NULL)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot make selection as at most 2^26 rows must be given");
    }
    uint32_t bound = 0;
    for (uint32_t h = 0, at = 0; h < n_head; at += counts[h++]) {
        for (uint32_t i = 0; i < counts[h]; i++) {
            if (rows[at + i] >= 1u << 26 || (i > 0 && rows[at + i] <= rows[at + i - 1])) {
                return kv_fail(e, KVF_ERR_ARG, "Cannot make selection as rows must ascend: entry %u of head %u is %u", i, h,
                               rows[at + i]);
            }
            if (rows[at + i] >= bound) bound = rows[at + i] + 1;
        }
    }
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SELECTION, n_head, (uint32_t)n, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    o->bound = bound;
    memcpy(o->counts, counts, n_head * sizeof *counts);
    return object_done(cache, id, n == 0 ? KVF_OK : be_upload(cache->dev, o->rows, rows, n * sizeof *rows, e));
}

int32_t kvf_selection_create(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, const uint32_t *rows, char *err,
                             uint32_t err_cap) {
    KV_CACHE_CALL(cache, selection_create(cache, n_head, counts, rows, e));
}

static int32_t select_top(kvf_cache *cache, uint32_t scores, const uint32_t *counts, uint32_t n_head, kv_err e) {
    const kv_object *x = kv_find_object(cache, scores, KV_SCORES, e);
    if (x == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head != x->n_head) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot select rows as each of the %u heads must have a count: there are %u", x->n_head,
                       n_head);
    }
    uint64_t n = 0;
    for (uint32_t h = 0; h < n_head; h++) {
        if (counts[h] > x->n_row) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot select rows as counts must be <= %u: head %u has %u", x->n_row, h, counts[h]);
        }
        n += counts[h];
    }
    if (n > 1u << 26) return kv_fail(e, KVF_ERR_ARG, "Cannot select rows as at most 2^26 may be chosen");
    uint32_t id = 0;
    kv_object *o = object_make(cache, KV_SELECTION, n_head, (uint32_t)n, &id, e);
    if (o == NULL) return KVF_ERR_MEMORY;
    x = &cache->object[scores - 1];
    o->bound = x->n_row;
    memcpy(o->counts, counts, n_head * sizeof *counts);
    const int32_t status =
        n == 0 ? KVF_OK : be_select_top(cache->dev, x->values, n_head, x->n_row, o->counts, o->rows, e);
    return object_done(cache, id, status);
}

int32_t kvf_select_top(kvf_cache *cache, uint32_t scores, const uint32_t *counts, uint32_t n_head, char *err,
                       uint32_t err_cap) {
    KV_CACHE_CALL(cache, select_top(cache, scores, counts, n_head, e));
}

static int32_t scores_share(kvf_cache *cache, uint32_t scores, uint32_t total, uint32_t *counts, uint32_t n_head,
                            kv_err e) {
    const kv_object *x = kv_find_object(cache, scores, KV_SCORES, e);
    if (x == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head < x->n_head || total > (uint64_t)x->n_head * x->n_row) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot share scores as total must be <= %u * %u: it is %u", x->n_head, x->n_row, total);
    }
    return be_scores_share(cache->dev, x->values, x->n_head, x->n_row, total, counts, e);
}

int32_t kvf_scores_share(kvf_cache *cache, uint32_t scores, uint32_t total, uint32_t *counts, uint32_t n_head,
                         char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, scores_share(cache, scores, total, counts, n_head, e));
}

/* ---- Actions ---- */

static int32_t retain(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                      uint32_t last, kv_err e) {
    kv_sequence *s = find_layer(cache, sequence, layer, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->prefill != NULL && s->prefill->projected && s->prefill->next_layer == layer) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot retain rows of layer %u as its attention must have run", layer);
    }
    const kv_object *o = NULL;
    if (selection != 0) {
        o = kv_find_object(cache, selection, KV_SELECTION, e);
        if (o == NULL) return KVF_ERR_ARG;
        if (o->n_head != 1 && o->n_head != s->n_stored_head) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot retain rows as the selection must have 1 or %u heads: it has %u",
                           s->n_stored_head, o->n_head);
        }
    }
    uint32_t longest = 0;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        if (rows > longest) longest = rows;
        if (o != NULL && o->bound > rows && o->counts[o->n_head == 1 ? 0 : h] > 0) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot retain rows as the selection must lie below %u rows of head %u: it reaches %u",
                           rows, h, o->bound - 1);
        }
    }
    if (longest == 0) return KVF_OK;
    kv_table *fresh = calloc(s->n_stored_head, sizeof *fresh);
    uint32_t *rows = be_alloc(cache->dev, (size_t)longest * sizeof *rows);
    int32_t status = KVF_OK;
    if (fresh == NULL || rows == NULL) status = kv_fail(e, KVF_ERR_MEMORY, "Cannot retain rows as memory ran out");
    size_t at = 0;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        const kv_table *t = kv_table_of(s, layer, h);
        const uint32_t n_sel = o == NULL ? 0 : o->counts[o->n_head == 1 ? 0 : h];
        const uint32_t head_first = first < t->rows ? first : t->rows, head_last = last < t->rows ? last : t->rows;
        const int32_t n = be_rows_union(cache->dev, o == NULL ? NULL : o->rows + at, n_sel, head_first, head_last, t->rows,
                                        rows, e);
        if (o != NULL && o->n_head > 1) at += n_sel;
        if (n < 0) {
            status = n;
        } else if ((uint32_t)n == t->rows) {
            status = kv_table_share(cache, &fresh[h], t, e);
        } else {
            status = kv_table_reserve(cache, &fresh[h], (uint32_t)n, e);
            if (status == KVF_OK) status = be_gather_rows(cache, &fresh[h], t, rows, (uint32_t)n, e);
            if (status == KVF_OK) fresh[h].rows = (uint32_t)n;
        }
    }
    for (uint32_t h = 0; fresh != NULL && h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        if (status == KVF_OK) {
            const kv_table old = *t;
            *t = fresh[h];
            fresh[h] = old;
        }
        kv_table_clear(cache, &fresh[h]);
    }
    be_free(cache->dev, rows);
    free(fresh);
    return status;
}

int32_t kvf_retain(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                   uint32_t last, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, retain(cache, sequence, layer, selection, first, last, e));
}

static const kv_table *find_table(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, kv_err e) {
    const kv_sequence *s = find_layer(cache, sequence, layer, e);
    if (s == NULL) return NULL;
    if (head < s->n_stored_head) return kv_table_of(s, layer, head);
    kv_fail(e, KVF_ERR_ARG, "Cannot use head as it must be below %u: it is %u", s->n_stored_head, head);
    return NULL;
}

static int32_t read_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t what, float *rows,
                         double rows_bytes, kv_err e) {
    const kv_table *t = find_table(cache, sequence, layer, head, e);
    if (t == NULL) return KVF_ERR_ARG;
    const double needed = (double)t->rows * cache->config.head_dim * sizeof *rows;
    if (what > 1 || !(rows_bytes >= needed) || (rows == NULL && t->rows > 0)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read rows as what must be 0 or 1 and the buffer hold %.0f bytes: they are %u and %.0f",
                       needed, what, rows_bytes);
    }
    return t->rows == 0 ? KVF_OK : be_read_rows(cache, t, what, rows, e);
}

int32_t kvf_read_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t what, float *rows,
                      double rows_bytes, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, read_rows(cache, sequence, layer, head, what, rows, rows_bytes, e));
}

static int32_t read_positions(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *positions,
                              uint32_t n_position, kv_err e) {
    const kv_table *t = find_table(cache, sequence, layer, head, e);
    if (t == NULL) return KVF_ERR_ARG;
    if (n_position < t->rows || (positions == NULL && t->rows > 0)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read positions as the buffer must hold %u numbers: it holds %u", t->rows,
                       n_position);
    }
    return t->rows == 0 ? KVF_OK : be_read_positions(cache, t, positions, e);
}

int32_t kvf_read_positions(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *positions,
                           uint32_t n_position, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, read_positions(cache, sequence, layer, head, positions, n_position, e));
}
