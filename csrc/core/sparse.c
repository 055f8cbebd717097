/* Attention over a part of the rows, during prefill. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"

/* Filled from recorded tensors: there is no attention, and after the last layer no prefill. */
static bool recorded(const kv_sequence *s) {
    return s->prefill != NULL ? s->prefill->model == NULL : s->position > 0 && s->logits == NULL;
}

static int32_t check(kvf_cache *cache, const kv_sequence *s, const uint32_t *patterns, uint32_t n_pattern, const char *action,
                     kv_err err) {
    if (!recorded(s) && (s->prefill == NULL || !s->prefill->projected)) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as a layer must be projected and not attended: none is", action);
    }
    if (patterns == NULL || n_pattern == 0 || n_pattern % cache->config.n_head != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as there must be a pattern for each of %u query heads: %u", action,
                       cache->config.n_head, patterns == NULL ? 0 : n_pattern);
    }
    for (uint32_t h = 0; h < n_pattern; h++) {
        const uint32_t kind = patterns[3 * h], a = patterns[3 * h + 1], b = patterns[3 * h + 2];
        const bool known = kind <= KVF_ATTEND_BLOCKS;
        const bool enough = kind == KVF_ATTEND_LINES    ? a >= 30 && b >= 50
                            : kind == KVF_ATTEND_ENDS   ? b >= 1
                            : kind == KVF_ATTEND_BLOCKS ? a >= 1
                                                        : true;
        if (known && enough) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as patterns must be known and large enough: %u, %u, %u of head %u", action,
                       kind, a, b, h);
    }
    return KVF_OK;
}

static int32_t prefill_sparse(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern, kv_err err) {
    static const char *const action = "attend sparsely";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL) return KVF_ERR_ARG;
    int32_t status = check(cache, s, patterns, n_pattern, action, err);
    if (status != KVF_OK) return status;
    if (n_pattern != cache->config.n_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as there must be one pattern for each of %u query heads: %u", action,
                       cache->config.n_head, n_pattern);
    }
    if (recorded(s)) return KVF_OK;
    if (s->observe->n_mass > 0) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as no column masses may be recorded: there are %u", action, s->observe->n_mass);
    }
    status = be_prefill_sparse(cache, s, err);
    if (status != KVF_OK) return status;
    const size_t bytes = 3 * (size_t)n_pattern * sizeof *patterns;
    uint32_t *copy = malloc(bytes);
    if (copy == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot %s as %zu bytes must be available", action, bytes);
    memcpy(copy, patterns, bytes);
    free(s->prefill->sparse);
    s->prefill->sparse = copy;
    return KVF_OK;
}

int32_t kvf_prefill_sparse(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern, char *text,
                           uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "attend sparsely", err);
    if (status != KVF_OK) return status;
    status = prefill_sparse(cache, sequence, patterns, n_pattern, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t prefill_recall(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern,
                              float *shares, kv_err err) {
    static const char *const action = "measure patterns";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL) return KVF_ERR_ARG;
    const int32_t status = check(cache, s, patterns, n_pattern, action, err);
    if (status != KVF_OK) return status;
    if (recorded(s)) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as a model must run: the sequence is a recording", action);
    }
    if (shares == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as shares must not be NULL", action);
    return be_prefill_recall(cache, s, patterns, n_pattern / cache->config.n_head, shares, err);
}

int32_t kvf_prefill_recall(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern, float *shares,
                           char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "measure patterns", err);
    if (status != KVF_OK) return status;
    status = prefill_recall(cache, sequence, patterns, n_pattern, shares, err);
    kv_leave(cache->dev);
    return status;
}
