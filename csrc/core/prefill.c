/*
 * Prefill and recording: states, observations, pages.
 *
 *   empty -> begin -> layers in order (each PROJECT, then ATTEND) -> end: position = n_token, logits
 *   empty -> record_begin -> layers in any order                  -> after the last one: position = n_token, no logits
 *
 * A sequence whose prefill was cancelled, or refused for want of pages, stays where it was and may go on or be freed. One
 * whose layer failed half-way can only be freed.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

_Static_assert(sizeof(kvf_observe) == 16, "layout of the ABI");

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot run the prefill as %zu bytes must be available", bytes);
}

/* ---- Begin ---- */

static int32_t check_observe(const kvf_observe *o, const uint32_t *ranges, uint32_t n_token, kv_err err) {
    if (o == NULL) return KVF_OK;
    if (o->size != sizeof *o) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as kvf_observe must have %zu bytes: size is %u", sizeof *o,
                       o->size);
    }
    if (o->n_mass > KV_MAX_MASS) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as n_mass must be at most %d: %u", KV_MAX_MASS, o->n_mass);
    }
    if (o->n_range > KV_MAX_RANGE) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as n_range must be at most %d: %u", KV_MAX_RANGE,
                       o->n_range);
    }
    if (o->n_range > 0 && ranges == NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as ranges must not be NULL: n_range is %u", o->n_range);
    }
    for (uint32_t i = 0; i < o->n_range; i++) {
        const uint32_t *r = &ranges[3 * (size_t)i];
        if (r[0] >= o->n_mass || r[1] >= r[2] || r[2] > n_token) {
            return kv_fail(err, KVF_ERR_ARG,
                           "Cannot begin the prefill as range %u must be of one of %u masses and within %u tokens: %u, %u to %u",
                           i, o->n_mass, n_token, r[0], r[1], r[2]);
        }
    }
    return KVF_OK;
}

static int32_t check_start(const kvf_cache *cache, const kv_sequence *s, uint32_t n_token, kv_err err) {
    if (s->prefill != NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot begin the prefill as none must be running: %u of %u layers are done",
                       s->prefill->next_layer, cache->config.n_layer);
    }
    if (s->position != 0) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot begin the prefill as the sequence must be empty: position %u", s->position);
    }
    if (n_token == 0 || n_token > KV_MAX_TOKEN) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as n_token must be between 1 and %u: %u", KV_MAX_TOKEN,
                       n_token);
    }
    return KVF_OK;
}

static kv_observations *observations_new(const kvf_cache *cache, const kvf_observe *o, const uint32_t *ranges,
                                         uint32_t n_token, kv_err err) {
    kv_observations *x = calloc(1, sizeof *x);
    if (x == NULL) goto none;
    x->refs = 1;
    x->n_layer = cache->config.n_layer;
    x->n_token = n_token;
    if (o != NULL) {
        x->n_window = o->n_window < n_token ? o->n_window : n_token;
        x->n_mass = o->n_mass;
        x->n_range = o->n_range;
        if (o->n_range > 0) memcpy(x->range, ranges, 3 * (size_t)o->n_range * sizeof *ranges);
    }
    x->window_q = calloc(x->n_layer, sizeof *x->window_q);
    x->window_lse = calloc(x->n_layer, sizeof *x->window_lse);
    x->mass = calloc((size_t)x->n_layer * (x->n_mass + 1), sizeof *x->mass);
    if (x->window_q == NULL || x->window_lse == NULL || x->mass == NULL) goto none;
    return x;
none:
    if (x != NULL) {
        free(x->window_q);
        free(x->window_lse);
        free(x->mass);
    }
    free(x);
    no_memory(sizeof *x, err);
    return NULL;
}

void kv_prefill_free(kvf_cache *cache, kv_sequence *s) {
    kv_prefill *p = s->prefill;
    if (p == NULL) return;
    if (p->impl != NULL) be_prefill_abort(cache, s);
    if (p->model != NULL) kv_model_release(p->model);
    free(p->recorded);
    free(p->tokens);
    free(p->sparse);
    free(p);
    s->prefill = NULL;
}

/* Takes the sequence back to empty after a failed begin. */
static void undo_begin(kvf_cache *cache, kv_sequence *s) {
    kv_prefill_free(cache, s);
    kv_observations_release(cache, s->observe);
    s->observe = NULL;
}

static int32_t check_pair(const kvf_model *model, const kvf_cache *cache, const char *action, kv_err err) {
    if (model == NULL || !kv_shares_device(model, KV_MODEL, cache->dev)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as the model must be a live handle of the cache's device: %p", action,
                       (const void *)model);
    }
    return KVF_OK;
}

int32_t kv_check_model(const kvf_model *model, const kvf_cache *cache, const char *action, kv_err err) {
    const int32_t status = check_pair(model, cache, action, err);
    if (status != KVF_OK) return status;
    if (!model->ready) return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the model must be ready: weights are missing", action);
    const kvf_model_config *m = &model->config;
    const kvf_cache_config *c = &cache->config;
    if (m->n_layer != c->n_layer || m->n_head != c->n_head || m->n_kv_head != c->n_kv_head || m->head_dim != c->head_dim) {
        return kv_fail(err, KVF_ERR_ARG,
                       "Cannot %s as the cache must have the model's shape of %u layers, %u heads, %u KV heads of %u: %u, %u, %u of %u",
                       action, m->n_layer, m->n_head, m->n_kv_head, m->head_dim, c->n_layer, c->n_head, c->n_kv_head,
                       c->head_dim);
    }
    return KVF_OK;
}

int32_t kv_check_tokens(const kvf_model *model, const uint32_t *tokens, uint32_t n_token, const char *action, kv_err err) {
    if (tokens == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as tokens must not be NULL", action);
    for (uint32_t i = 0; i < n_token; i++) {
        if (tokens[i] >= model->config.vocab) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot %s as tokens must be below %u: %u at %u", action, model->config.vocab,
                           tokens[i], i);
        }
    }
    return KVF_OK;
}

double kv_prefill_layer_bytes(const kvf_cache *cache, const kv_sequence *s) {
    const uint32_t n_page = (s->prefill->n_token + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS;
    return (double)cache->config.n_kv_head * n_page * cache->page_bytes;
}

double kv_prefill_row_bytes(const kvf_cache *cache, const kv_sequence *s) {
    const double layer = kv_prefill_layer_bytes(cache, s), kept = s->prefill->kept_bytes;
    const double last = layer + kept * (1 - 1.0 / cache->config.n_layer);
    return kept > last ? kept : last;
}

static int32_t prefill_begin(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens,
                             uint32_t n_token, double kept_bytes, const kvf_observe *observe, const uint32_t *ranges,
                             kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "begin the prefill", err);
    if (s == NULL) return KVF_ERR_ARG;
    int32_t status;
    if ((status = kv_check_model(model, cache, "begin the prefill", err)) != KVF_OK) return status;
    if ((status = check_start(cache, s, n_token, err)) != KVF_OK) return status;
    if ((status = kv_check_tokens(model, tokens, n_token, "begin the prefill", err)) != KVF_OK) return status;
    if ((status = check_observe(observe, ranges, n_token, err)) != KVF_OK) return status;
    if (!isfinite(kept_bytes) || kept_bytes < 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot begin the prefill as kept_bytes must be finite and at least 0: %g", kept_bytes);
    }

    kv_prefill *p = calloc(1, sizeof *p);
    if (p == NULL) return no_memory(sizeof *p, err);
    s->prefill = p;
    p->n_token = n_token;
    p->kept_bytes = kept_bytes;
    p->model = model;
    model->refs++;
    if (kept_bytes > 0 && (status = kv_check_limit(cache, kv_prefill_row_bytes(cache, s), err)) != KVF_OK) {
        undo_begin(cache, s);
        return status;
    }
    p->tokens = malloc((size_t)n_token * sizeof *tokens);
    s->observe = p->tokens == NULL ? NULL : observations_new(cache, observe, ranges, n_token, err);
    if (s->observe == NULL) {
        undo_begin(cache, s);
        return no_memory((size_t)n_token * sizeof *tokens, err);
    }
    memcpy(p->tokens, tokens, (size_t)n_token * sizeof *tokens);
    free(s->inv_freq);
    s->inv_freq = kv_copy_angles(cache, model->inv_freq);
    if (s->inv_freq == NULL) {
        undo_begin(cache, s);
        return no_memory(cache->config.head_dim, err);
    }
    status = be_prefill_begin(model, cache, s, err);
    if (status != KVF_OK) undo_begin(cache, s);
    return status;
}

int32_t kvf_prefill_begin(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens,
                          uint32_t n_token, double kept_bytes, const kvf_observe *observe, const uint32_t *ranges,
                          char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "begin the prefill", err);
    if (status != KVF_OK) return status;
    status = prefill_begin(model, cache, sequence, tokens, n_token, kept_bytes, observe, ranges, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- One layer, undone ---- */

static void window_free(kvf_cache *cache, kv_observations *o, uint32_t layer) {
    be_free(cache->dev, o->window_q[layer]);
    o->window_q[layer] = NULL;
}

static void mass_free(kvf_cache *cache, kv_observations *o, uint32_t layer) {
    for (uint32_t m = 0; m < o->n_mass; m++) {
        float **mass = &o->mass[(size_t)layer * o->n_mass + m];
        be_free(cache->dev, *mass);
        *mass = NULL;
    }
}

static void set_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t rows) {
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        t->rows = rows;
        kv_table_trim(cache, t);
    }
}

/* ---- Layers ---- */

static int32_t run_project(kvf_cache *cache, kv_sequence *s, kv_err err) {
    kv_prefill *p = s->prefill;
    const uint32_t layer = p->next_layer;
    int32_t status = kv_layer_reserve_prefill(cache, s, layer, p->n_token, err);
    if (status == KVF_OK) status = be_prefill_layer(p->model, cache, s, KVF_PHASE_PROJECT, err);
    if (status != KVF_OK) {
        set_rows(cache, s, layer, 0);
        window_free(cache, s->observe, layer);
        return status;
    }
    set_rows(cache, s, layer, p->n_token);
    p->projected = true;
    return KVF_OK;
}

static int32_t run_attend(kvf_cache *cache, kv_sequence *s, kv_err err) {
    kv_prefill *p = s->prefill;
    const int32_t status = be_prefill_layer(p->model, cache, s, KVF_PHASE_ATTEND, err);
    if (status != KVF_OK) {
        mass_free(cache, s->observe, p->next_layer);
        p->failed = true;
        return status;
    }
    free(p->sparse);
    p->sparse = NULL;
    p->projected = false;
    p->next_layer++;
    return KVF_OK;
}

/* A running prefill of this model, or NULL with a message and *status set. */
static kv_sequence *running(const kvf_model *model, kvf_cache *cache, uint32_t sequence, const char *action,
                            int32_t *status, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    *status = s == NULL ? KVF_ERR_ARG : kv_check_model(model, cache, action, err);
    if (*status != KVF_OK) return NULL;
    if (s->prefill == NULL || s->prefill->model == NULL) {
        *status = kv_fail(err, KVF_ERR_STATE, "Cannot %s as a prefill of sequence %u must be running", action, sequence);
        return NULL;
    }
    if (s->prefill->model != model) {
        *status = kv_fail(err, KVF_ERR_ARG, "Cannot %s as the model must be the one that began the prefill", action);
        return NULL;
    }
    return s;
}

static int32_t prefill_layers(kvf_model *model, kvf_cache *cache, uint32_t sequence, uint32_t first_layer,
                              uint32_t n_layer, uint32_t phases, uint32_t *control, kv_err err) {
    int32_t status;
    kv_sequence *s = running(model, cache, sequence, "run layers", &status, err);
    if (s == NULL) return status;
    const uint32_t all = cache->config.n_layer;
    if (phases == 0 || phases > KVF_PHASE_ALL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot run layers as phases must be between 1 and %d: %u", KVF_PHASE_ALL, phases);
    }
    if (n_layer == 0 || first_layer >= all || n_layer > all - first_layer) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot run layers as the model's %u must hold them: %u from %u", all, n_layer,
                       first_layer);
    }
    if (phases != KVF_PHASE_ALL && n_layer != 1) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot run layers as a single phase must be of a single layer: %u layers", n_layer);
    }
    if (s->prefill->failed) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot run layers as none may have failed: layer %u did", s->prefill->next_layer);
    }
    if (first_layer != s->prefill->next_layer) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot run layers as layer %u must be the next one: %u", s->prefill->next_layer,
                       first_layer);
    }
    if (s->prefill->projected != (phases == KVF_PHASE_ATTEND)) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot run layers as the next phase of layer %u must be %s: phases is %u",
                       first_layer, s->prefill->projected ? "attend" : "project", phases);
    }
    for (uint32_t i = 0; i < n_layer; i++) {
        if (control != NULL && __atomic_load_n(&control[0], __ATOMIC_RELAXED) != 0) {
            return kv_fail(err, KVF_ERR_CANCELLED, "Cannot run layers as they must not be cancelled: %u of %u are done", i,
                           n_layer);
        }
        if ((phases & KVF_PHASE_PROJECT) && (status = run_project(cache, s, err)) != KVF_OK) return status;
        if ((phases & KVF_PHASE_ATTEND) && (status = run_attend(cache, s, err)) != KVF_OK) return status;
        if (control != NULL && (phases & KVF_PHASE_ATTEND)) __atomic_fetch_add(&control[1], 1, __ATOMIC_RELAXED);
    }
    return KVF_OK;
}

int32_t kvf_prefill_layers(kvf_model *model, kvf_cache *cache, uint32_t sequence, uint32_t first_layer,
                           uint32_t n_layer, uint32_t phases, uint32_t *control, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "run layers", err);
    if (status != KVF_OK) return status;
    status = prefill_layers(model, cache, sequence, first_layer, n_layer, phases, control, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- End ---- */

static int32_t check_layers_done(const kvf_cache *cache, const kv_sequence *s, const char *action, kv_err err) {
    if (s->prefill->next_layer == cache->config.n_layer) return KVF_OK;
    return kv_fail(err, KVF_ERR_STATE, "Cannot %s as all layers must be done: %u of %u", action, s->prefill->next_layer,
                   cache->config.n_layer);
}

static int32_t prefill_end(kvf_model *model, kvf_cache *cache, uint32_t sequence, kv_err err) {
    int32_t status;
    kv_sequence *s = running(model, cache, sequence, "end the prefill", &status, err);
    if (s == NULL) return status;
    if ((status = check_layers_done(cache, s, "end the prefill", err)) != KVF_OK) return status;
    const size_t bytes = (size_t)model->config.vocab * sizeof(float);
    s->logits = be_alloc(cache->dev, bytes);
    if (s->logits == NULL) return no_memory(bytes, err);
    s->vocab = model->config.vocab;
    status = be_prefill_end(model, cache, s, err);
    if (status != KVF_OK) {
        be_free(cache->dev, s->logits);
        s->logits = NULL;
        return status;
    }
    s->position = s->prefill->n_token;
    kv_prefill_free(cache, s);
    return KVF_OK;
}

int32_t kvf_prefill_end(kvf_model *model, kvf_cache *cache, uint32_t sequence, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "end the prefill", err);
    if (status != KVF_OK) return status;
    status = prefill_end(model, cache, sequence, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t prefill_logits(kvf_model *model, kvf_cache *cache, uint32_t sequence, float *logits, double logits_bytes,
                              kv_err err) {
    int32_t status;
    kv_sequence *s = running(model, cache, sequence, "read the prompt's logits", &status, err);
    if (s == NULL) return status;
    if ((status = check_layers_done(cache, s, "read the prompt's logits", err)) != KVF_OK) return status;
    const double bytes = (double)s->prefill->n_token * model->config.vocab * sizeof(float);
    if (logits == NULL || !(logits_bytes >= bytes)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the prompt's logits as %.0f bytes must be given: %.0f", bytes,
                       logits == NULL ? 0 : logits_bytes);
    }
    return be_prefill_logits(model, cache, s, logits, err);
}

int32_t kvf_prefill_logits(kvf_model *model, kvf_cache *cache, uint32_t sequence, float *logits, double logits_bytes,
                           char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the prompt's logits", err);
    if (status != KVF_OK) return status;
    status = prefill_logits(model, cache, sequence, logits, logits_bytes, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Recorded tensors ---- */

static int32_t record_begin(kvf_cache *cache, uint32_t sequence, uint32_t n_token, const kvf_observe *observe,
                            const uint32_t *ranges, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "begin the recording", err);
    if (s == NULL) return KVF_ERR_ARG;
    int32_t status;
    if ((status = check_start(cache, s, n_token, err)) != KVF_OK) return status;
    if ((status = check_observe(observe, ranges, n_token, err)) != KVF_OK) return status;
    kv_prefill *p = calloc(1, sizeof *p);
    if (p == NULL) return no_memory(sizeof *p, err);
    s->prefill = p;
    p->n_token = n_token;
    p->recorded = calloc(cache->config.n_layer, 1);
    s->observe = p->recorded == NULL ? NULL : observations_new(cache, observe, ranges, n_token, err);
    if (s->observe == NULL) {
        undo_begin(cache, s);
        return no_memory(cache->config.n_layer, err);
    }
    return KVF_OK;
}

int32_t kvf_record_begin(kvf_cache *cache, uint32_t sequence, uint32_t n_token, const kvf_observe *observe,
                         const uint32_t *ranges, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "begin the recording", err);
    if (status != KVF_OK) return status;
    status = record_begin(cache, sequence, n_token, observe, ranges, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t record_rotation(kvf_cache *cache, uint32_t sequence, const float *inv_freq, uint32_t n, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "record the rotation", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->prefill == NULL || s->prefill->recorded == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot record the rotation as a recording of sequence %u must be running", sequence);
    }
    if (inv_freq == NULL || n != cache->config.head_dim / 2 || n == 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot record the rotation as inv_freq must have %u elements: %u",
                       cache->config.head_dim / 2, inv_freq == NULL ? 0 : n);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (isfinite(inv_freq[i])) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot record the rotation as its angles must be finite: element %u is %g", i,
                       (double)inv_freq[i]);
    }
    float *copy = kv_copy_angles(cache, inv_freq);
    if (copy == NULL) return no_memory(n * sizeof *copy, err);
    free(s->inv_freq);
    s->inv_freq = copy;
    return KVF_OK;
}

int32_t kvf_record_rotation(kvf_cache *cache, uint32_t sequence, const float *inv_freq, uint32_t n_freq, char *text,
                            uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "record the rotation", err);
    if (status != KVF_OK) return status;
    status = record_rotation(cache, sequence, inv_freq, n_freq, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t write_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, const float *q, const float *k,
                           const float *v, kv_err err) {
    const uint32_t n = s->prefill->n_token;
    const uint32_t n_kv_head = cache->config.n_kv_head;
    const uint32_t n_sharing = s->n_stored_head / n_kv_head;
    int32_t status = kv_layer_reserve_prefill(cache, s, layer, n, err);
    for (uint32_t h = 0; h < n_kv_head && status == KVF_OK; h++) {
        const size_t at = (size_t)h * n * cache->config.head_dim;
        status = be_write_rows(cache, kv_table_of(s, layer, h * n_sharing), k + at, v + at, n, err);
    }
    if (status != KVF_OK) return status;
    set_rows(cache, s, layer, n);
    return be_record_layer(cache, s, layer, q, err);
}

static int32_t record_layer(kvf_cache *cache, uint32_t sequence, uint32_t layer, const float *q, const float *k,
                            const float *v, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "record the layer", err);
    if (s == NULL || !kv_check_layer(cache, layer, "record the layer", err)) return KVF_ERR_ARG;
    kv_prefill *p = s->prefill;
    if (p == NULL || p->recorded == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot record the layer as a recording of sequence %u must be running", sequence);
    }
    if (p->recorded[layer]) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot record the layer as each must come once: %u", layer);
    }
    if (q == NULL || k == NULL || v == NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot record the layer as q, k and v must not be NULL");
    }
    const int32_t status = write_layer(cache, s, layer, q, k, v, err);
    if (status != KVF_OK) {
        set_rows(cache, s, layer, 0);
        window_free(cache, s->observe, layer);
        mass_free(cache, s->observe, layer);
        return status;
    }
    p->recorded[layer] = 1;
    if (++p->next_layer == cache->config.n_layer) {
        s->position = p->n_token;
        kv_prefill_free(cache, s);
    }
    return KVF_OK;
}

int32_t kvf_record_layer(kvf_cache *cache, uint32_t sequence, uint32_t layer, const float *q, const float *k,
                         const float *v, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "record the layer", err);
    if (status != KVF_OK) return status;
    status = record_layer(cache, sequence, layer, q, k, v, err);
    kv_leave(cache->dev);
    return status;
}
