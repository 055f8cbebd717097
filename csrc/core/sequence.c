/* Sequences: creation, forks, what they hold, how they sample. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "share.h"

_Static_assert(sizeof(kvf_sequence_info) == 40, "layout of the ABI");
_Static_assert(sizeof(kvf_sampling) == 28, "layout of the ABI");

/* ---- Parts ---- */

kv_sequence *kv_find_sequence(kvf_cache *cache, uint32_t id, const char *action, kv_err err) {
    kv_sequence *s = kv_ids_get(&cache->sequences, id);
    if (s == NULL) kv_fail(err, KVF_ERR_ARG, "Cannot %s as the sequence must be live: id %u", action, id);
    return s;
}

bool kv_check_layer(const kvf_cache *cache, uint32_t layer, const char *action, kv_err err) {
    if (layer < cache->config.n_layer) return true;
    kv_fail(err, KVF_ERR_ARG, "Cannot %s as the layer must be below %u: %u", action, cache->config.n_layer, layer);
    return false;
}

bool kv_check_head(const kv_sequence *s, uint32_t head, const char *action, kv_err err) {
    if (head < s->n_stored_head) return true;
    kv_fail(err, KVF_ERR_ARG, "Cannot %s as the stored head must be below %u: %u", action, s->n_stored_head, head);
    return false;
}

static size_t n_table(const kvf_cache *cache, const kv_sequence *s) {
    return (size_t)cache->config.n_layer * s->n_stored_head;
}

double kv_promised_bytes(const kvf_cache *cache, const kv_sequence *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < n_table(cache, s); i++) {
        const kv_table *t = &s->table[i];
        const uint64_t n_packed = kv_packed_pages(t);
        bytes += (kv_table_pages(t) - n_packed - kv_borrowed_pages(t)) * cache->page_bytes;
        if (t->scale != 0) bytes += kv_scale_of(&cache->config, t->shared, t->exact).bytes;
        if (n_packed > 0) bytes += n_packed * t->format->page_bytes + t->format->frame_bytes;
    }
    return (double)bytes + kv_step_promised(cache, s);
}

/* Pages of table i; what it borrows is found in the table of the layer before. */
static uint64_t table_bytes(const kvf_cache *cache, const kv_sequence *s, size_t i) {
    const kv_table *t = &s->table[i], *lender = t->borrows ? t - s->n_stored_head : NULL;
    uint64_t bytes = t->frame == 0 ? 0 : cache->page[t->frame - 1].bytes;
    if (t->scale != 0) bytes += cache->page[t->scale - 1].bytes;
    for (uint32_t j = 0; j < t->n_page; j++) {
        if (lender != NULL && j < lender->n_page && lender->page[j] == t->page[j]) continue;
        bytes += cache->page[t->page[j]].bytes;
    }
    return bytes;
}

double kv_owned_bytes(const kvf_cache *cache, const kv_sequence *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < n_table(cache, s); i++) bytes += table_bytes(cache, s, i);
    return (double)bytes + kv_step_owned(cache, s);
}

float *kv_copy_angles(const kvf_cache *cache, const float *inv_freq) {
    const size_t bytes = cache->config.head_dim / 2 * sizeof *inv_freq;
    float *copy = malloc(bytes > 0 ? bytes : 1);
    if (copy != NULL) memcpy(copy, inv_freq, bytes);
    return copy;
}

void kv_observations_release(kvf_cache *cache, kv_observations *observe) {
    if (observe == NULL || --observe->refs > 0) return;
    for (uint32_t i = 0; i < observe->n_layer; i++) {
        be_free(cache->dev, observe->window_q[i]);
        be_free(cache->dev, observe->window_lse[i]);
    }
    for (size_t i = 0; i < (size_t)observe->n_layer * observe->n_mass; i++) be_free(cache->dev, observe->mass[i]);
    free(observe->window_q);
    free(observe->window_lse);
    free(observe->mass);
    free(observe);
}

static kv_sequence *sequence_new(kvf_cache *cache, uint32_t granularity, kv_err err) {
    kv_sequence *s = calloc(1, sizeof *s);
    if (s != NULL) {
        s->granularity = granularity;
        s->n_stored_head = granularity == KVF_KV_HEAD ? cache->config.n_kv_head : cache->config.n_head;
        s->pending = KV_NO_TOKEN;
        s->sampling = (kvf_sampling){.size = sizeof s->sampling, .top_p = 1};
        s->table = calloc(n_table(cache, s), sizeof *s->table);
    }
    if (s == NULL || s->table == NULL) {
        free(s);
        kv_fail(err, KVF_ERR_MEMORY, "Cannot create a sequence as %zu bytes must be available", sizeof *s);
        return NULL;
    }
    return s;
}

void kv_sequence_destroy(kvf_cache *cache, kv_sequence *s) {
    if (s == NULL) return;
    kv_prefill_free(cache, s);
    kv_observations_release(cache, s->observe);
    kv_steps_free(cache, s);
    for (size_t i = 0; i < n_table(cache, s); i++) kv_table_free(cache, &s->table[i]);
    be_sequence_close(cache, s);
    be_free(cache->dev, s->logits);
    free(s->inv_freq);
    free(s->table);
    free(s);
}

/* Gives a finished sequence its id, or destroys it. */
static int32_t publish(kvf_cache *cache, kv_sequence *s, kv_err err) {
    const uint32_t id = kv_ids_add(&cache->sequences, s);
    if (id != 0) {
        s->slot = kv_id_slot(id);
        return (int32_t)id;
    }
    kv_sequence_destroy(cache, s);
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot create a sequence as at most %u may be live: %u", KV_MAX_ID,
                   cache->sequences.n_live);
}

/* ---- Creation and forks ---- */

static int32_t sequence_create(kvf_cache *cache, uint32_t granularity, kv_err err) {
    if (granularity > KVF_QUERY_HEAD) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a sequence as its granularity must be 0 or 1: %u", granularity);
    }
    kv_sequence *s = sequence_new(cache, granularity, err);
    return s == NULL ? KVF_ERR_MEMORY : publish(cache, s, err);
}

int32_t kvf_sequence_create(kvf_cache *cache, uint32_t granularity, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "create a sequence", err);
    if (status != KVF_OK) return status;
    status = sequence_create(cache, granularity, err);
    kv_leave(cache->dev);
    return status;
}

/* The copy's tables hold the parent's pages; stored heads of a finer copy share those of their group. */
static int32_t share_tables(kvf_cache *cache, kv_sequence *copy, const kv_sequence *s, kv_err err) {
    const uint32_t n_sharing = copy->n_stored_head / s->n_stored_head;
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        for (uint32_t h = 0; h < copy->n_stored_head; h++) {
            const kv_table *from = kv_table_of(s, layer, h / n_sharing);
            const int32_t status = kv_table_share(cache, kv_table_of(copy, layer, h), from, err);
            if (status != KVF_OK) return status;
        }
    }
    return KVF_OK;
}

static int32_t sequence_fork(kvf_cache *cache, uint32_t sequence, uint32_t granularity, kv_err err) {
    const kv_sequence *s = kv_find_sequence(cache, sequence, "fork the sequence", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (granularity > KVF_QUERY_HEAD || granularity < s->granularity) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot fork the sequence as granularity %u must not become coarser: %u",
                       s->granularity, granularity);
    }
    if (s->prefill != NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot fork the sequence as its prefill must have ended: %u of %u layers are done",
                       s->prefill->next_layer, cache->config.n_layer);
    }
    for (uint32_t layer = 0; layer < cache->config.n_layer && granularity != s->granularity; layer++) {
        if (!kv_check_whole(s, layer, "fork the sequence into query heads", err)) return KVF_ERR_STATE;
    }
    kv_sequence *copy = sequence_new(cache, granularity, err);
    if (copy == NULL) return KVF_ERR_MEMORY;
    int32_t status = share_tables(cache, copy, s, err);
    if (status == KVF_OK) status = kv_step_fork(cache, copy, s, err);
    if (status == KVF_OK && s->inv_freq != NULL) {
        copy->inv_freq = kv_copy_angles(cache, s->inv_freq);
        if (copy->inv_freq == NULL) status = kv_fail(err, KVF_ERR_MEMORY, "Cannot fork the sequence as memory ran out");
    }
    if (status == KVF_OK && s->logits != NULL) {
        const size_t bytes = (size_t)s->vocab * sizeof(float);
        copy->logits = be_alloc(cache->dev, bytes);
        if (copy->logits == NULL) {
            status = kv_fail(err, KVF_ERR_MEMORY, "Cannot fork the sequence as %zu bytes must be available", bytes);
        } else {
            status = be_copy(cache->dev, copy->logits, s->logits, bytes, err);
        }
    }
    if (status != KVF_OK) {
        kv_sequence_destroy(cache, copy);
        return status;
    }
    copy->position = s->position;
    copy->observe = s->observe;
    if (copy->observe != NULL) copy->observe->refs++;
    copy->vocab = s->vocab;
    copy->pending = s->pending;
    copy->n_generated = s->n_generated;
    copy->finished = s->finished;
    copy->sampling = s->sampling;
    copy->n_stop = s->n_stop;
    memcpy(copy->stop, s->stop, sizeof copy->stop);
    return publish(cache, copy, err);
}

int32_t kvf_sequence_fork(kvf_cache *cache, uint32_t sequence, uint32_t granularity, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "fork the sequence", err);
    if (status != KVF_OK) return status;
    status = sequence_fork(cache, sequence, granularity, err);
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_sequence_free(kvf_cache *cache, uint32_t sequence, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "free the sequence", err);
    if (status != KVF_OK) return status;
    kv_sequence *s = kv_ids_remove(&cache->sequences, sequence);
    if (s == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot free the sequence as it must be live: id %u", sequence);
    } else {
        kv_sequence_destroy(cache, s);
    }
    kv_leave(cache->dev);
    return status;
}

/* ---- Facts ---- */

static int32_t sequence_describe(kvf_cache *cache, uint32_t sequence, kvf_sequence_info *info, kv_err err) {
    const kv_sequence *s = kv_find_sequence(cache, sequence, "describe the sequence", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (info == NULL || info->size != sizeof *info) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot describe the sequence as kvf_sequence_info must have %zu bytes: size is %u",
                       sizeof *info, info == NULL ? 0 : info->size);
    }
    *info = (kvf_sequence_info){.size = sizeof *info,
                                .granularity = s->granularity,
                                .n_stored_head = s->n_stored_head,
                                .position = s->position,
                                .n_generated = s->n_generated,
                                .finished = s->finished,
                                .promised_bytes = kv_promised_bytes(cache, s),
                                .owned_bytes = kv_owned_bytes(cache, s)};
    return KVF_OK;
}

int32_t kvf_sequence_describe(kvf_cache *cache, uint32_t sequence, kvf_sequence_info *info, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "describe the sequence", err);
    if (status != KVF_OK) return status;
    status = sequence_describe(cache, sequence, info, err);
    kv_leave(cache->dev);
    return status;
}

/* Per table, its rows or how many of them are packed. */
static int32_t count_rows(kvf_cache *cache, uint32_t sequence, bool packed, uint32_t *rows, uint32_t n_rows, kv_err err) {
    const kv_sequence *s = kv_find_sequence(cache, sequence, "read the row counts", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (rows == NULL || n_rows < n_table(cache, s)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the row counts as rows must have %zu elements: %u", n_table(cache, s),
                       rows == NULL ? 0 : n_rows);
    }
    for (size_t i = 0; i < n_table(cache, s); i++) rows[i] = packed ? s->table[i].packed : s->table[i].rows;
    return KVF_OK;
}

int32_t kvf_sequence_rows(kvf_cache *cache, uint32_t sequence, uint32_t *rows, uint32_t n_rows, char *text,
                          uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the row counts", err);
    if (status != KVF_OK) return status;
    status = count_rows(cache, sequence, false, rows, n_rows, err);
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_sequence_packed(kvf_cache *cache, uint32_t sequence, uint32_t *rows, uint32_t n_rows, char *text,
                            uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the row counts", err);
    if (status != KVF_OK) return status;
    status = count_rows(cache, sequence, true, rows, n_rows, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t sequence_bytes(kvf_cache *cache, uint32_t sequence, double *bytes, uint32_t n_bytes, kv_err err) {
    const kv_sequence *s = kv_find_sequence(cache, sequence, "read the bytes", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (bytes == NULL || n_bytes < n_table(cache, s)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the bytes as bytes must have %zu elements: %u", n_table(cache, s),
                       bytes == NULL ? 0 : n_bytes);
    }
    for (size_t i = 0; i < n_table(cache, s); i++) bytes[i] = (double)table_bytes(cache, s, i);
    return KVF_OK;
}

int32_t kvf_sequence_bytes(kvf_cache *cache, uint32_t sequence, double *bytes, uint32_t n_bytes, char *text,
                           uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the bytes", err);
    if (status != KVF_OK) return status;
    status = sequence_bytes(cache, sequence, bytes, n_bytes, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Sampling and observations ---- */

static int32_t sequence_sampling(kvf_cache *cache, uint32_t sequence, const kvf_sampling *p, const uint32_t *stop,
                                 uint32_t n_stop, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "set the sampling", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (p == NULL || p->size != sizeof *p) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot set the sampling as kvf_sampling must have %zu bytes: size is %u", sizeof *p,
                       p == NULL ? 0 : p->size);
    }
    if (!isfinite(p->temperature) || p->temperature < 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot set the sampling as temperature must be finite and at least 0: %g",
                       (double)p->temperature);
    }
    if (!(p->top_p > 0 && p->top_p <= 1)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot set the sampling as top_p must be above 0 and at most 1: %g",
                       (double)p->top_p);
    }
    if (n_stop > KV_MAX_STOP) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot set the sampling as at most %d stop tokens are allowed: %u", KV_MAX_STOP,
                       n_stop);
    }
    if (n_stop > 0 && stop == NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot set the sampling as stop must not be NULL: n_stop is %u", n_stop);
    }
    s->sampling = *p;
    s->n_stop = n_stop;
    if (n_stop > 0) memcpy(s->stop, stop, n_stop * sizeof *stop);
    return KVF_OK;
}

int32_t kvf_sequence_sampling(kvf_cache *cache, uint32_t sequence, const kvf_sampling *sampling, const uint32_t *stop,
                              uint32_t n_stop, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "set the sampling", err);
    if (status != KVF_OK) return status;
    status = sequence_sampling(cache, sequence, sampling, stop, n_stop, err);
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_sequence_forget(kvf_cache *cache, uint32_t sequence, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "forget the observations", err);
    if (status != KVF_OK) return status;
    kv_sequence *s = kv_find_sequence(cache, sequence, "forget the observations", err);
    if (s == NULL) {
        status = KVF_ERR_ARG;
    } else if (s->prefill != NULL) {
        status = kv_fail(err, KVF_ERR_STATE,
                         "Cannot forget the observations as the prefill must have ended: %u of %u layers are done",
                         s->prefill->next_layer, cache->config.n_layer);
    } else {
        kv_observations_release(cache, s->observe);
        s->observe = NULL;
    }
    kv_leave(cache->dev);
    return status;
}
