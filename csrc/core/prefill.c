/* The state machines of prefill, of recording from tensors, and of decode. */
#include <stdlib.h>
#include <string.h>

#include "entry.h"

static int32_t check_model(const kvf_model *model, const kvf_cache *cache, kv_err e) {
    if (model == NULL || model->magic != KV_MODEL_MAGIC) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot use model as it must be a live handle");
    }
    if (!model->ready) return kv_fail(e, KVF_ERR_STATE, "Cannot run model as its weights must be loaded");
    const kvf_model_config *m = &model->config;
    const kvf_cache_config *c = &cache->config;
    if (model->dev != cache->dev || m->n_layer != c->n_layer || m->n_head != c->n_head || m->n_kv_head != c->n_kv_head ||
        m->head_dim != c->head_dim) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot run model as the cache must have its device and shape: layers %u and %u",
                       m->n_layer, c->n_layer);
    }
    return KVF_OK;
}

static bool is_empty(const kvf_cache *cache, const kv_sequence *s) {
    if (s->position > 0 || s->prefill != NULL || s->observe != NULL || s->logits != NULL) return false;
    for (size_t i = 0; i < (size_t)cache->config.n_layer * s->n_stored_head; i++) {
        if (s->table[i].rows > 0) return false;
    }
    return true;
}

static int32_t begin(kvf_cache *cache, uint32_t id, uint32_t n_token, const kvf_observe *observe, const uint32_t *ranges,
                     kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (!is_empty(cache, s)) return kv_fail(e, KVF_ERR_STATE, "Cannot prefill sequence as it must be empty: id is %u", id);
    if (n_token < 1 || n_token > 1u << 24) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot prefill as tokens must be from 1 to %u: there are %u", 1u << 24, n_token);
    }
    if (observe == NULL || observe->size != sizeof *observe) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot prefill as observe.size must be %zu: it is %u", sizeof *observe,
                       observe == NULL ? 0 : observe->size);
    }
    if (observe->n_mass > KV_MAX_MASS || observe->n_range > KV_MAX_RANGE || (observe->n_range > 0 && ranges == NULL)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot prefill as masses must be <= %d and ranges <= %d: they are %u and %u",
                       KV_MAX_MASS, KV_MAX_RANGE, observe->n_mass, observe->n_range);
    }
    for (uint32_t i = 0; i < observe->n_range; i++) {
        const uint32_t *r = ranges + (size_t)3 * i;
        if (r[0] >= observe->n_mass || r[1] >= r[2] || r[2] > n_token) {
            return kv_fail(e, KVF_ERR_ARG,
                           "Cannot prefill as query ranges must lie within the prompt: range %u is mass %u, %u to %u", i,
                           r[0], r[1], r[2]);
        }
    }
    const uint32_t n_layer = cache->config.n_layer;
    kv_prefill *p = calloc(1, sizeof *p);
    kv_observations *o = calloc(1, sizeof *o);
    if (o != NULL) {
        o->window_q = calloc(n_layer, sizeof *o->window_q);
        o->mass = calloc((size_t)n_layer * observe->n_mass + 1, sizeof *o->mass);
    }
    if (p == NULL || o == NULL || o->window_q == NULL || o->mass == NULL) {
        free(p);
        if (o != NULL) {
            free(o->window_q);
            free(o->mass);
        }
        free(o);
        return kv_fail(e, KVF_ERR_MEMORY, "Cannot prefill as memory ran out");
    }
    o->refs = 1;
    o->n_layer = n_layer;
    o->n_token = n_token;
    o->n_window = observe->n_window < n_token ? observe->n_window : n_token;
    o->n_mass = observe->n_mass;
    o->n_range = observe->n_range;
    if (o->n_range > 0) memcpy(o->range, ranges, (size_t)o->n_range * sizeof o->range[0]);
    p->n_token = n_token;
    s->prefill = p;
    s->observe = o;
    return KVF_OK;
}

static void drop_prefill(kv_sequence *s) {
    if (s->prefill == NULL) return;
    free(s->prefill->tokens);
    free(s->prefill);
    s->prefill = NULL;
}

static void undo_begin(kvf_cache *cache, kv_sequence *s) {
    drop_prefill(s);
    kv_observations_release(cache, s->observe);
    s->observe = NULL;
}

static int32_t prefill_begin(kvf_model *model, kvf_cache *cache, uint32_t id, const uint32_t *tokens, uint32_t n_token,
                             const kvf_observe *observe, const uint32_t *ranges, kv_err e) {
    int32_t status = check_model(model, cache, e);
    if (status != KVF_OK) return status;
    if (tokens == NULL) return kv_fail(e, KVF_ERR_ARG, "Cannot prefill as tokens must be given");
    status = begin(cache, id, n_token, observe, ranges, e);
    if (status != KVF_OK) return status;
    kv_sequence *s = &cache->sequence[id - 1];
    for (uint32_t i = 0; i < n_token && status == KVF_OK; i++) {
        if (tokens[i] < model->config.vocab) continue;
        status = kv_fail(e, KVF_ERR_ARG, "Cannot prefill as tokens must be below %u: token %u is %u", model->config.vocab, i,
                         tokens[i]);
    }
    if (status == KVF_OK) {
        s->prefill->model = model;
        s->prefill->tokens = malloc(n_token * sizeof *tokens);
        if (s->prefill->tokens == NULL) {
            status = kv_fail(e, KVF_ERR_MEMORY, "Cannot prefill as memory ran out");
        } else {
            memcpy(s->prefill->tokens, tokens, n_token * sizeof *tokens);
            status = be_prefill_begin(model, cache, s, e);
        }
    }
    if (status != KVF_OK) undo_begin(cache, s);
    return status;
}

int32_t kvf_prefill_begin(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens,
                          uint32_t n_token, const kvf_observe *observe, const uint32_t *ranges, char *err,
                          uint32_t err_cap) {
    KV_CACHE_CALL(cache, prefill_begin(model, cache, sequence, tokens, n_token, observe, ranges, e));
}

/* The sequence, if it is being prefilled by that model. */
static kv_sequence *find_prefill(kvf_model *model, kvf_cache *cache, uint32_t id, kv_err e, int32_t *status) {
    *status = check_model(model, cache, e);
    if (*status != KVF_OK) return NULL;
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) {
        *status = KVF_ERR_ARG;
        return NULL;
    }
    if (s->prefill == NULL || s->prefill->model != model) {
        *status = kv_fail(e, KVF_ERR_STATE, "Cannot go on as a prefill by this model must be running: id is %u", id);
        return NULL;
    }
    return s;
}

static int32_t prefill_layers(kvf_model *model, kvf_cache *cache, uint32_t id, uint32_t first, uint32_t n,
                              uint32_t phases, uint32_t *control, kv_err e) {
    int32_t status;
    kv_sequence *s = find_prefill(model, cache, id, e, &status);
    if (s == NULL) return status;
    kv_prefill *p = s->prefill;
    const uint32_t n_layer = cache->config.n_layer;
    if (first != p->next_layer || n < 1 || n > n_layer - first) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot run layers %u to %u as the next one must be %u of %u", first, first + n,
                       p->next_layer, n_layer);
    }
    if (phases < KVF_PHASE_PROJECT || phases > KVF_PHASE_ALL || (phases != KVF_PHASE_ALL && n != 1) ||
        p->projected != (phases == KVF_PHASE_ATTEND)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot run layer %u as its phases must come in order, one layer at a time: phases is %u",
                       first, phases);
    }
    volatile uint32_t *poll = control;
    for (uint32_t i = 0; i < n; i++) {
        if (poll != NULL && poll[0] != 0) return kv_fail(e, KVF_ERR_CANCELLED, "Cannot go on as the caller cancelled");
        if (phases & KVF_PHASE_PROJECT) {
            status = kv_layer_reserve_prefill(cache, s, p->next_layer, p->n_token, e);
            if (status == KVF_OK) {
                status = be_prefill_layer(model, cache, s, KVF_PHASE_PROJECT, e);
                if (status != KVF_OK) {
                    for (uint32_t h = 0; h < s->n_stored_head; h++) kv_table_clear(cache, kv_table_of(s, p->next_layer, h));
                }
            }
            if (status != KVF_OK) return status;
            p->projected = true;
        }
        if (phases & KVF_PHASE_ATTEND) {
            status = be_prefill_layer(model, cache, s, KVF_PHASE_ATTEND, e);
            if (status != KVF_OK) return status;
            p->projected = false;
            p->next_layer++;
            if (poll != NULL) poll[1] = poll[1] + 1;
        }
    }
    return KVF_OK;
}

int32_t kvf_prefill_layers(kvf_model *model, kvf_cache *cache, uint32_t sequence, uint32_t first_layer,
                           uint32_t n_layer, uint32_t phases, uint32_t *control, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, prefill_layers(model, cache, sequence, first_layer, n_layer, phases, control, e));
}

static int32_t prefill_end(kvf_model *model, kvf_cache *cache, uint32_t id, kv_err e) {
    int32_t status;
    kv_sequence *s = find_prefill(model, cache, id, e, &status);
    if (s == NULL) return status;
    if (s->prefill->next_layer < cache->config.n_layer) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot end prefill as all %u layers must have run: %u did", cache->config.n_layer,
                       s->prefill->next_layer);
    }
    s->logits = be_alloc(cache->dev, model->config.vocab * sizeof(float));
    if (s->logits == NULL) return kv_fail(e, KVF_ERR_MEMORY, "Cannot end prefill as memory ran out");
    s->vocab = model->config.vocab;
    status = be_prefill_end(model, cache, s, e);
    if (status != KVF_OK) {
        be_free(cache->dev, s->logits);
        s->logits = NULL;
        return status;
    }
    s->position = s->prefill->n_token;
    be_prefill_abort(cache, s);
    drop_prefill(s);
    return KVF_OK;
}

int32_t kvf_prefill_end(kvf_model *model, kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, prefill_end(model, cache, sequence, e));
}

static int32_t prefill_logits(kvf_model *model, kvf_cache *cache, uint32_t id, float *logits, double bytes, kv_err e) {
    int32_t status;
    kv_sequence *s = find_prefill(model, cache, id, e, &status);
    if (s == NULL) return status;
    if (s->prefill->next_layer < cache->config.n_layer) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot read logits as all layers must have run: %u did", s->prefill->next_layer);
    }
    const double needed = (double)s->prefill->n_token * model->config.vocab * sizeof(float);
    if (logits == NULL || !(bytes >= needed)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot read logits as the buffer must hold %.0f bytes: it holds %.0f", needed, bytes);
    }
    return be_prefill_logits(model, cache, s, logits, e);
}

int32_t kvf_prefill_logits(kvf_model *model, kvf_cache *cache, uint32_t sequence, float *logits, double logits_bytes,
                           char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, prefill_logits(model, cache, sequence, logits, logits_bytes, e));
}

int32_t kvf_record_begin(kvf_cache *cache, uint32_t sequence, uint32_t n_token, const kvf_observe *observe,
                         const uint32_t *ranges, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, begin(cache, sequence, n_token, observe, ranges, e));
}

static int32_t record_layer(kvf_cache *cache, uint32_t id, uint32_t layer, const float *q, const float *k,
                            const float *v, kv_err e) {
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->prefill == NULL || s->prefill->model != NULL) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot record layer as kvf_record_begin must have been called: id is %u", id);
    }
    if (layer >= cache->config.n_layer || q == NULL || k == NULL || v == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot record layer as it must be below %u and q, k, v be given: layer is %u",
                       cache->config.n_layer, layer);
    }
    if (kv_table_of(s, layer, 0)->rows > 0) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot record layer %u as each must be recorded once", layer);
    }
    const uint32_t n = s->prefill->n_token, copies = s->n_stored_head / cache->config.n_kv_head;
    int32_t status = kv_layer_reserve_prefill(cache, s, layer, n, e);
    for (uint32_t head = 0; head < cache->config.n_kv_head && status == KVF_OK; head++) {
        const size_t at = (size_t)head * n * cache->config.head_dim;
        status = be_write_rows(cache, kv_table_of(s, layer, head * copies), k + at, v + at, n, e);
    }
    for (uint32_t head = 0; head < s->n_stored_head && status == KVF_OK; head++) kv_table_of(s, layer, head)->rows = n;
    if (status == KVF_OK) status = be_record_layer(cache, s, layer, q, e);
    if (status != KVF_OK) {
        for (uint32_t h = 0; h < s->n_stored_head; h++) kv_table_clear(cache, kv_table_of(s, layer, h));
        return status;
    }
    if (++s->prefill->next_layer == cache->config.n_layer) {
        s->position = n;
        drop_prefill(s);
    }
    return KVF_OK;
}

int32_t kvf_record_layer(kvf_cache *cache, uint32_t sequence, uint32_t layer, const float *q, const float *k,
                         const float *v, char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, record_layer(cache, sequence, layer, q, k, v, e));
}

/* ---- Decode ---- */

static int32_t check_decodable(const kvf_model *model, const kv_sequence *s, uint32_t id, kv_err e) {
    if (s->prefill != NULL || s->logits == NULL || s->vocab != model->config.vocab) {
        return kv_fail(e, KVF_ERR_STATE, "Cannot decode sequence %u as its prefill by such a model must have ended", id);
    }
    return KVF_OK;
}

static int by_address(const void *a, const void *b) {
    const uintptr_t x = (uintptr_t) * (kv_sequence *const *)a, y = (uintptr_t) * (kv_sequence *const *)b;
    return (x > y) - (x < y);
}

static int32_t decode(kvf_model *model, kvf_cache *cache, const uint32_t *ids, uint32_t n, uint32_t n_step,
                      uint32_t *tokens, float *logits, double logits_bytes, uint32_t *control, kv_err e) {
    int32_t status = check_model(model, cache, e);
    if (status != KVF_OK) return status;
    if (n < 1 || n > KV_MAX_SEQUENCE || ids == NULL || n_step < 1 || n_step > 1u << 20 || tokens == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot decode as sequences, steps and tokens must be given: %u sequences, %u steps", n,
                       n_step);
    }
    const double needed = (double)n_step * n * model->config.vocab * sizeof(float);
    if (logits != NULL && !(logits_bytes >= needed)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot decode as the logits must hold %.0f bytes: they hold %.0f", needed,
                       logits_bytes);
    }
    kv_sequence **s = malloc(2 * (size_t)n * sizeof *s);
    if (s == NULL) return kv_fail(e, KVF_ERR_MEMORY, "Cannot decode as memory ran out");
    for (uint32_t i = 0; i < n && status == KVF_OK; i++) {
        s[i] = kv_find_sequence(cache, ids[i], e);
        status = s[i] == NULL ? KVF_ERR_ARG : check_decodable(model, s[i], ids[i], e);
    }
    if (status == KVF_OK) {
        memcpy(s + n, s, n * sizeof *s);
        qsort(s + n, n, sizeof *s, by_address);
        for (uint32_t i = 1; i < n && status == KVF_OK; i++) {
            if (s[n + i] == s[n + i - 1]) status = kv_fail(e, KVF_ERR_ARG, "Cannot decode as sequences must be distinct");
        }
    }
    if (status == KVF_OK) {
        for (size_t i = 0; i < (size_t)n_step * n; i++) tokens[i] = KV_NO_TOKEN;
        status = be_decode(model, cache, s, n, n_step, NULL, tokens, logits, control, e);
    }
    free(s);
    return status;
}

int32_t kvf_decode(kvf_model *model, kvf_cache *cache, const uint32_t *sequences, uint32_t n_sequence,
                   uint32_t n_step, uint32_t *tokens, float *logits, double logits_bytes, uint32_t *control,
                   char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, decode(model, cache, sequences, n_sequence, n_step, tokens, logits, logits_bytes, control, e));
}

static int32_t extend(kvf_model *model, kvf_cache *cache, uint32_t id, const uint32_t *tokens, uint32_t n, kv_err e) {
    int32_t status = check_model(model, cache, e);
    if (status != KVF_OK) return status;
    kv_sequence *s = kv_find_sequence(cache, id, e);
    if (s == NULL) return KVF_ERR_ARG;
    status = check_decodable(model, s, id, e);
    if (status != KVF_OK) return status;
    if (tokens == NULL || n < 1 || n > 1u << 24) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot extend sequence as tokens must be given: there are %u", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (tokens[i] >= model->config.vocab) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot extend sequence as tokens must be below %u: token %u is %u",
                           model->config.vocab, i, tokens[i]);
        }
    }
    return be_decode(model, cache, &s, 1, n, tokens, NULL, NULL, NULL, e);
}

int32_t kvf_extend(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens, uint32_t n_token,
                   char *err, uint32_t err_cap) {
    KV_CACHE_CALL(cache, extend(model, cache, sequence, tokens, n_token, e));
}
