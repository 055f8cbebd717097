/* Caches, their ledger, and sequences. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "entry.h"

static kvf_cache *cache_make(kvf_device *dev, const kvf_cache_config *c, kv_err e) {
    if (c == NULL || c->size != sizeof *c) {
        kv_fail(e, KVF_ERR_ARG, "Cannot create cache as config.size must be %zu: it is %u", sizeof *c,
                c == NULL ? 0 : c->size);
        return NULL;
    }
    if (c->n_layer < 1 || c->n_layer > 1024 || c->n_kv_head < 1 || c->n_head < 1 || c->n_head > 1024 ||
        c->n_head % c->n_kv_head != 0 || c->head_dim < 2 || c->head_dim > 256 || c->head_dim % 2 != 0) {
        kv_fail(e, KVF_ERR_ARG,
                "Cannot create cache as its shape must be one of a model: n_layer %u, n_head %u, n_kv_head %u, head_dim %u",
                c->n_layer, c->n_head, c->n_kv_head, c->head_dim);
        return NULL;
    }
    if (c->row_dtype > KVF_BF16 || !(c->limit_bytes >= 0) || !isfinite(c->limit_bytes)) {
        kv_fail(e, KVF_ERR_ARG, "Cannot create cache as row_dtype must be known and limit_bytes >= 0: they are %u and %g",
                c->row_dtype, c->limit_bytes);
        return NULL;
    }
    kvf_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) {
        kv_fail(e, KVF_ERR_MEMORY, "Cannot create cache as memory ran out");
        return NULL;
    }
    cache->magic = KV_CACHE_MAGIC;
    cache->dev = dev;
    cache->config = *c;
    cache->group = c->n_head / c->n_kv_head;
    cache->page_bytes = be_page_bytes(c);
    cache->free_page = KV_NO_TOKEN;
    kv_device_hold(dev);
    kv_handle_made();
    return cache;
}

kvf_cache *kvf_cache_create(kvf_device *dev, const kvf_cache_config *config, char *err, uint32_t err_cap) {
    const kv_err e = {err, err_cap};
    if (kv_enter(dev, e) != KVF_OK) return NULL;
    kvf_cache *cache = cache_make(dev, config, e);
    kv_leave(dev);
    return cache;
}

void kvf_cache_free(kvf_cache *cache) {
    if (cache == NULL || cache->magic != KV_CACHE_MAGIC) return;
    kvf_device *dev = cache->dev;
    for (uint32_t i = 0; i < cache->cap_sequence; i++) {
        if (cache->sequence[i].live) kv_sequence_clear(cache, &cache->sequence[i]);
    }
    for (uint32_t i = 0; i < cache->cap_object; i++) kv_object_clear(cache, &cache->object[i]);
    free(cache->sequence);
    free(cache->object);
    free(cache->page);
    cache->magic = 0;
    free(cache);
    kv_handle_gone();
    kv_device_release(dev);
}

static void add_bytes(const kvf_cache *cache, const kv_sequence *s, double *promised, double *owned) {
    const size_t n_table = (size_t)cache->config.n_layer * s->n_stored_head;
    for (size_t i = 0; i < n_table; i++) {
        *promised += (double)kv_pages_for(s->table[i].rows) * cache->page_bytes;
        *owned += (double)s->table[i].n_page * cache->page_bytes;
    }
}

static int32_t ledger(kvf_cache *cache, kvf_ledger *out, kv_err e) {
    if (out == NULL || out->size != sizeof *out) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read ledger as its size must be %zu: it is %u", sizeof *out,
                       out == NULL ? 0 : out->size);
    }
    *out = (kvf_ledger){.size = sizeof *out, .n_page = cache->held_page, .resident_bytes = cache->resident_bytes,
                        .peak_bytes = cache->peak_bytes};
    for (uint32_t i = 0; i < cache->cap_sequence; i++) {
        if (!cache->sequence[i].live) continue;
        out->n_sequence++;
        add_bytes(cache, &cache->sequence[i], &out->promised_bytes, &out->owned_bytes);
    }
    for (uint32_t i = 0; i < cache->cap_object; i++) out->n_object += cache->object[i].kind != KV_FREE;
    return KVF_OK;
}

int32_t kvf_cache_ledger(kvf_cache *cache, kvf_ledger *out, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, ledger(cache, out, e));
}

static int32_t reset_peak(kvf_cache *cache) {
    cache->peak_bytes = cache->resident_bytes;
    return KVF_OK;
}

int32_t kvf_cache_reset_peak(kvf_cache *cache, char *err, uint32_t err_cap) { KV_CACHE_CALL(cache, reset_peak(cache)); }

/* ---- Sequences ---- */

kv_sequence *kv_find_sequence(kvf_cache *cache, uint32_t id, kv_err err) {
    if (id >= 1 && id <= cache->cap_sequence && cache->sequence[id - 1].live) return &cache->sequence[id - 1];
    kv_fail(err, KVF_ERR_ARG, "Cannot use sequence as it must be live: id is %u", id);
    return NULL;
}

void kv_observations_release(kvf_cache *cache, kv_observations *o) {
    if (o == NULL || --o->refs > 0) return;
    for (uint32_t i = 0; i < o->n_layer; i++) be_free(cache->dev, o->window_q[i]);
    for (uint32_t i = 0; i < o->n_layer * o->n_mass; i++) be_free(cache->dev, o->mass[i]);
    free(o->window_q);
    free(o->mass);
    free(o);
}

void kv_sequence_clear(kvf_cache *cache, kv_sequence *s) {
    if (s->prefill != NULL) {
        be_prefill_abort(cache, s);
        free(s->prefill->tokens);
        free(s->prefill);
    }
    for (size_t i = 0; s->table != NULL && i < (size_t)cache->config.n_layer * s->n_stored_head; i++) {
        kv_table_clear(cache, &s->table[i]);
    }
    free(s->table);
    kv_observations_release(cache, s->observe);
    be_free(cache->dev, s->logits);
    *s = (kv_sequence){0};
}

/* A live, empty sequence, or NULL. Pointers to other sequences are invalid afterwards. */
static kv_sequence *sequence_make(kvf_cache *cache, uint32_t granularity, uint32_t *id, kv_err e) {
    uint32_t slot = 0;
    while (slot < cache->cap_sequence && cache->sequence[slot].live) slot++;
    if (slot == cache->cap_sequence) {
        const uint32_t cap = slot == 0 ? 16 : slot * 2;
        kv_sequence *grown = cap <= KV_MAX_SEQUENCE ? realloc(cache->sequence, cap * sizeof *grown) : NULL;
        if (grown == NULL) {
            kv_fail(e, KVF_ERR_MEMORY, "Cannot create sequence as at most %u may live: %u do", KV_MAX_SEQUENCE, slot);
            return NULL;
        }
        memset(grown + slot, 0, (cap - slot) * sizeof *grown);
        cache->sequence = grown;
        cache->cap_sequence = cap;
    }
    kv_sequence *s = &cache->sequence[slot];
    *s = (kv_sequence){.granularity = granularity, .pending = KV_NO_TOKEN,
                       .n_stored_head = granularity == KVF_QUERY_HEAD ? cache->config.n_head : cache->config.n_kv_head,
                       .sampling = {.size = sizeof s->sampling, .top_p = 1}};
    s->table = calloc((size_t)cache->config.n_layer * s->n_stored_head, sizeof *s->table);
    if (s->table == NULL) {
        kv_fail(e, KVF_ERR_MEMORY, "Cannot create sequence as memory ran out");
        return NULL;
    }
    s->live = true;
    *id = slot + 1;
    return s;
}

static int32_t sequence_create(kvf_cache *cache, uint32_t granularity, kv_err e) {
    if (granularity > KVF_QUERY_HEAD) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot create sequence as granularity must be 0 or 1: it is %u", granularity);
    }
    uint32_t id = 0;
    return sequence_make(cache, granularity, &id, e) == NULL ? KVF_ERR_MEMORY : (int32_t)id;
}

int32_t kvf_sequence_create(kvf_cache *cache, uint32_t granularity, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_create(cache, granularity, e));
}

static int32_t sequence_fork(kvf_cache *cache, uint32_t parent_id, uint32_t granularity, kv_err e) {
    kv_sequence *parent = kv_find_sequence(cache, parent_id, e);
    if (parent == NULL) return KVF_ERR_ARG;
    if (granularity > KVF_QUERY_HEAD || granularity < parent->granularity) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot fork sequence as its granularity must be %u or finer: it is %u",
                       parent->granularity, granularity);
    }
    if (parent->prefill != NULL) return kv_fail(e, KVF_ERR_STATE, "Cannot fork sequence as its prefill must have ended");
    uint32_t id = 0;
    kv_sequence *s = sequence_make(cache, granularity, &id, e);
    if (s == NULL) return KVF_ERR_MEMORY;
    parent = &cache->sequence[parent_id - 1];
    const uint32_t ratio = s->n_stored_head / parent->n_stored_head;
    int32_t status = KVF_OK;
    for (uint32_t layer = 0; layer < cache->config.n_layer && status == KVF_OK; layer++) {
        for (uint32_t head = 0; head < s->n_stored_head && status == KVF_OK; head++) {
            status = kv_table_share(cache, kv_table_of(s, layer, head), kv_table_of(parent, layer, head / ratio), e);
        }
    }
    if (status == KVF_OK && parent->logits != NULL) {
        s->logits = be_alloc(cache->dev, parent->vocab * sizeof(float));
        status = s->logits == NULL
                     ? kv_fail(e, KVF_ERR_MEMORY, "Cannot fork sequence as memory ran out")
                     : be_copy(cache->dev, s->logits, parent->logits, parent->vocab * sizeof(float), e);
    }
    if (status != KVF_OK) {
        kv_sequence_clear(cache, s);
        return status;
    }
    s->position = parent->position;
    s->vocab = parent->vocab;
    s->pending = parent->pending;
    s->n_generated = parent->n_generated;
    s->finished = parent->finished;
    s->sampling = parent->sampling;
    s->n_stop = parent->n_stop;
    memcpy(s->stop, parent->stop, sizeof s->stop);
    s->observe = parent->observe;
    if (s->observe != NULL) s->observe->refs++;
    return (int32_t)id;
}

int32_t kvf_sequence_fork(kvf_cache *cache, uint32_t sequence, uint32_t granularity, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_fork(cache, sequence, granularity, e));
}

static int32_t sequence_free(kvf_cache *cache, uint32_t id, kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    kv_sequence_clear(cache, s);
    return KVF_OK;
}

int32_t kvf_sequence_free(kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_free(cache, sequence, e));
}

static int32_t sequence_describe(kvf_cache *cache, uint32_t id, kvf_sequence_info *info, kv_err e) {
    const kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (info == NULL || info->size != sizeof *info) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot describe sequence as info.size must be %zu: it is %u", sizeof *info,
                       info == NULL ? 0 : info->size);
    }
    *info = (kvf_sequence_info){.size = sizeof *info, .granularity = s->granularity, .n_stored_head = s->n_stored_head,
                                .position = s->position, .n_generated = s->n_generated, .finished = s->finished};
    add_bytes(cache, s, &info->promised_bytes, &info->owned_bytes);
    return KVF_OK;
}

int32_t kvf_sequence_describe(kvf_cache *cache, uint32_t sequence, kvf_sequence_info *info, char *err,
                              uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_describe(cache, sequence, info, e));
}

static int32_t sequence_rows(kvf_cache *cache, uint32_t id, uint32_t *rows, uint32_t n_rows, kv_err e) {
    const kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    const uint32_t n = cache->config.n_layer * s->n_stored_head;
    if (rows == NULL || n_rows < n) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read rows as the buffer must hold %u numbers: it holds %u", n, n_rows);
    }
    for (uint32_t i = 0; i < n; i++) rows[i] = s->table[i].rows;
    return KVF_OK;
}

int32_t kvf_sequence_rows(kvf_cache *cache, uint32_t sequence, uint32_t *rows, uint32_t n_rows, char *err,
                          uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_rows(cache, sequence, rows, n_rows, e));
}

static int32_t sequence_sampling(kvf_cache *cache, uint32_t id, const kvf_sampling *sampling, const uint32_t *stop,
                                 uint32_t n_stop, kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (sampling == NULL || sampling->size != sizeof *sampling) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot set sampling as its size must be %zu: it is %u", sizeof *sampling,
                       sampling == NULL ? 0 : sampling->size);
    }
    if (!(sampling->temperature >= 0) || !isfinite(sampling->temperature) || !(sampling->top_p > 0) ||
        !(sampling->top_p <= 1)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot set sampling as temperature must be >= 0 and top_p in (0, 1]: they are %g and %g",
                       (double)sampling->temperature, (double)sampling->top_p);
    }
    if (n_stop > KV_MAX_STOP || (n_stop > 0 && stop == NULL)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot set sampling as at most %d stop tokens may be given: there are %u",
                       KV_MAX_STOP, n_stop);
    }
    s->sampling = *sampling;
    s->n_stop = n_stop;
    if (n_stop > 0) memcpy(s->stop, stop, n_stop * sizeof *stop);
    return KVF_OK;
}

int32_t kvf_sequence_sampling(kvf_cache *cache, uint32_t sequence, const kvf_sampling *sampling, const uint32_t *stop,
                              uint32_t n_stop, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_sampling(cache, sequence, sampling, stop, n_stop, e));
}

static int32_t sequence_forget(kvf_cache *cache, uint32_t id, kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->prefill != NULL) return kv_fail(e, KVF_ERR_STATE, "Cannot forget observations as the prefill must have ended");
    kv_observations_release(cache, s->observe);
    s->observe = NULL;
    return KVF_OK;
}

int32_t kvf_sequence_forget(kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_forget(cache, sequence, e));
}

static int32_t sequence_logits(kvf_cache *cache, uint32_t id, float *logits, uint32_t n_logit, kv_err e) {
    const kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->logits == NULL) return kv_fail(e, KVF_ERR_STATE, "Cannot read logits as a prefill must have ended");
    if (s->pending != KV_NO_TOKEN) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot read logits as the last sampled token must have been run");
    }
    if (logits == NULL || n_logit < s->vocab) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read logits as the buffer must hold %u numbers: it holds %u", s->vocab,
                       n_logit);
    }
    return be_download(cache->dev, logits, s->logits, s->vocab * sizeof(float), e);
}

int32_t kvf_sequence_logits(kvf_cache *cache, uint32_t sequence, float *logits, uint32_t n_logit, char *err,
                            uint32_t err_cap) {
    KV_CACHE_CALL(cache, sequence_logits(cache, sequence, logits, n_logit, e));
}
