/* Decode and extend: checks, and what must be undone when a step fails. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot decode as %zu bytes must be available", bytes);
}

/* Not prefilling, logits of the model's vocabulary if any, and room for n more tokens. */
static int32_t check_sequence(const kvf_model *model, const kv_sequence *s, uint32_t id, uint32_t n, kv_err err) {
    if (s->prefill != NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot decode as the prefill of sequence %u must have ended: %u layers are done",
                       id, s->prefill->next_layer);
    }
    if (s->logits != NULL && s->vocab != model->config.vocab) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot decode as sequence %u must have the model's vocabulary of %u: %u", id,
                       model->config.vocab, s->vocab);
    }
    if (n > KV_MAX_TOKEN || s->position > KV_MAX_TOKEN - n) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot decode as a sequence must have at most %u tokens: %u and %u more",
                       KV_MAX_TOKEN, s->position, n);
    }
    return KVF_OK;
}

static void trim(kvf_cache *cache, kv_sequence *s) {
    for (size_t i = 0; i < (size_t)cache->config.n_layer * s->n_stored_head; i++) kv_table_trim(cache, &s->table[i]);
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) kv_step_trim(cache, s, layer);
}

/* ---- Decode ---- */

/* Looks the sequences up and checks each; marks them listed as far as it came. */
static int32_t collect(kvf_model *model, kvf_cache *cache, const uint32_t *ids, uint32_t n, uint32_t n_step,
                       kv_sequence **s, kv_err err) {
    for (uint32_t i = 0; i < n; i++) {
        s[i] = kv_find_sequence(cache, ids[i], "decode", err);
        if (s[i] == NULL) return KVF_ERR_ARG;
        if (s[i]->listed) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot decode as sequences must be distinct: id %u comes twice", ids[i]);
        }
        s[i]->listed = true;
        const int32_t status = check_sequence(model, s[i], ids[i], n_step, err);
        if (status != KVF_OK) return status;
        if (s[i]->logits == NULL) {
            return kv_fail(err, KVF_ERR_STATE, "Cannot decode as sequence %u must have logits: it was not prefilled", ids[i]);
        }
    }
    return KVF_OK;
}

static int32_t decode(kvf_model *model, kvf_cache *cache, const uint32_t *ids, uint32_t n, uint32_t n_step,
                      uint32_t *tokens, float *logits, double logits_bytes, uint32_t *control, kv_err err) {
    int32_t status = kv_check_model(model, cache, "decode", err);
    if (status != KVF_OK) return status;
    if (ids == NULL || n == 0 || n > KV_MAX_ID) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot decode as between 1 and %u sequences must be given: %u", KV_MAX_ID,
                       ids == NULL ? 0 : n);
    }
    if (n_step == 0 || n_step > KV_MAX_TOKEN) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot decode as n_step must be between 1 and %u: %u", KV_MAX_TOKEN, n_step);
    }
    if (tokens == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot decode as tokens must not be NULL");
    const double bytes = (double)n_step * n * model->config.vocab * sizeof(float);
    if (logits != NULL && !(logits_bytes >= bytes)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot decode as logits must have %.0f bytes: %.0f", bytes, logits_bytes);
    }
    kv_sequence **s = calloc(n, sizeof *s);
    if (s == NULL) return no_memory(n * sizeof *s, err);
    status = collect(model, cache, ids, n, n_step, s, err);
    for (uint32_t i = 0; i < n && s[i] != NULL; i++) s[i]->listed = false;
    if (status == KVF_OK) {
        memset(tokens, 0xff, (size_t)n_step * n * sizeof *tokens);
        status = be_decode(model, cache, s, n, n_step, NULL, tokens, logits, control, err);
        if (status != KVF_OK) {
            for (uint32_t i = 0; i < n; i++) trim(cache, s[i]);
        }
    }
    free(s);
    return status;
}

int32_t kvf_decode(kvf_model *model, kvf_cache *cache, const uint32_t *sequences, uint32_t n_sequence,
                   uint32_t n_step, uint32_t *tokens, float *logits, double logits_bytes, uint32_t *control,
                   char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "decode", err);
    if (status != KVF_OK) return status;
    status = decode(model, cache, sequences, n_sequence, n_step, tokens, logits, logits_bytes, control, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Extend ---- */

/* Runs the tokens; a sampled token that was not run yet goes first, since it precedes them. */
static int32_t run_forced(kvf_model *model, kvf_cache *cache, kv_sequence *s, const uint32_t *tokens, uint32_t n,
                          kv_err err) {
    const uint32_t n_pending = s->pending != KV_NO_TOKEN;
    const uint32_t n_run = n + n_pending;
    uint32_t *run = malloc(2 * (size_t)n_run * sizeof *run); /* what to run, and room for what be_decode reports */
    if (run == NULL) return no_memory(2 * (size_t)n_run * sizeof *run, err);
    if (n_pending) run[0] = s->pending;
    memcpy(run + n_pending, tokens, (size_t)n * sizeof *run);
    memset(run + n_run, 0xff, (size_t)n_run * sizeof *run);

    const uint32_t pending = s->pending;
    const uint32_t position = s->position;
    const uint32_t n_generated = s->n_generated;
    const bool finished = s->finished;
    s->pending = KV_NO_TOKEN;
    s->finished = false;
    const int32_t status = be_decode(model, cache, &s, 1, n_run, run, run + n_run, NULL, NULL, err);
    s->n_generated = n_generated;
    s->finished = false;
    s->pending = KV_NO_TOKEN;
    if (status != KVF_OK) {
        trim(cache, s);
        if (s->position == position) {
            s->pending = pending;
            s->finished = finished;
        }
    }
    free(run);
    return status;
}

static int32_t extend(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens, uint32_t n,
                      kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "extend the sequence", err);
    if (s == NULL) return KVF_ERR_ARG;
    int32_t status;
    if ((status = kv_check_model(model, cache, "extend the sequence", err)) != KVF_OK) return status;
    if (n == 0 || n >= KV_MAX_TOKEN) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot extend the sequence as n_token must be between 1 and %u: %u", KV_MAX_TOKEN - 1,
                       n);
    }
    if ((status = kv_check_tokens(model, tokens, n, "extend the sequence", err)) != KVF_OK) return status;
    if ((status = check_sequence(model, s, sequence, n + 1, err)) != KVF_OK) return status;
    const bool fresh = s->logits == NULL;
    if (fresh) {
        const size_t bytes = (size_t)model->config.vocab * sizeof(float);
        s->logits = be_alloc(cache->dev, bytes);
        if (s->logits == NULL) return no_memory(bytes, err);
        s->vocab = model->config.vocab;
    }
    const uint32_t position = s->position;
    status = run_forced(model, cache, s, tokens, n, err);
    if (status != KVF_OK && fresh && s->position == position) {
        be_free(cache->dev, s->logits);
        s->logits = NULL;
    }
    return status;
}

int32_t kvf_extend(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens, uint32_t n_token,
                   char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "extend the sequence", err);
    if (status != KVF_OK) return status;
    status = extend(model, cache, sequence, tokens, n_token, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Logits ---- */

static int32_t sequence_logits(kvf_cache *cache, uint32_t sequence, float *logits, uint32_t n_logit, kv_err err) {
    const kv_sequence *s = kv_find_sequence(cache, sequence, "read the logits", err);
    if (s == NULL) return KVF_ERR_ARG;
    if (s->logits == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot read the logits as sequence %u must have some: it was not prefilled", sequence);
    }
    if (s->pending != KV_NO_TOKEN) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot read the logits as the last sampled token must have been run: %u",
                       s->pending);
    }
    if (logits == NULL || n_logit < s->vocab) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read the logits as %u elements must be given: %u", s->vocab,
                       logits == NULL ? 0 : n_logit);
    }
    return be_download(cache->dev, logits, s->logits, (size_t)s->vocab * sizeof *logits, err);
}

int32_t kvf_sequence_logits(kvf_cache *cache, uint32_t sequence, float *logits, uint32_t n_logit, char *text,
                            uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the logits", err);
    if (status != KVF_OK) return status;
    status = sequence_logits(cache, sequence, logits, n_logit, err);
    kv_leave(cache->dev);
    return status;
}
