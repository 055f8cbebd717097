/*
 * Decode against prefill: a token that goes through the decode path gets the logits that a prefill gives it, for every width
 * of a head, size of a group, type of rows and number of rows; and the same bits whoever else is in the batch.
 */
#include "test.h"

static uint32_t id_of(int32_t result) {
    CHECK(result > 0);
    return (uint32_t)result;
}

static kvf_model *model_with_window(kvf_device *dev, shape s, uint32_t dtype, uint32_t window, uint32_t intermediate) {
    const kvf_model_config config = {.size = sizeof config, .n_layer = s.n_layer, .hidden = 48, .n_head = s.n_head,
                                     .n_kv_head = s.n_kv_head, .head_dim = s.head_dim, .intermediate = intermediate,
                                     .vocab = TEST_VOCAB, .weight_dtype = dtype, .norm_eps = 1e-5f, .rope_scale = 1};
    float inv_freq[128];
    uint32_t windows[64];
    for (uint32_t i = 0; i < s.head_dim / 2; i++) inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s.head_dim);
    for (uint32_t i = 0; i < s.n_layer; i++) windows[i] = window;
    kvf_model *model = kvf_model_create(dev, &config, inv_freq, windows, ERR);
    CHECK(model != NULL && kvf_model_randomize(model, 5, ERR) == KVF_OK);
    return model;
}

static uint32_t prefilled(kvf_model *model, kvf_cache *cache, const uint32_t *tokens, uint32_t n, uint32_t granularity) {
    const uint32_t s = id_of(kvf_sequence_create(cache, granularity, ERR));
    CHECK(kvf_prefill_begin(model, cache, s, tokens, n, 0, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, cache->config.n_layer, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    return s;
}

static void logits_of(kvf_cache *cache, uint32_t s, float *to) {
    CHECK(kvf_sequence_logits(cache, s, to, TEST_VOCAB, ERR) == KVF_OK);
}

static double difference(const float *x, const float *y) {
    double error = 0, norm = 0;
    for (uint32_t i = 0; i < TEST_VOCAB; i++) {
        CHECK(isfinite(x[i]) && isfinite(y[i]));
        error += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += (double)y[i] * y[i];
    }
    return sqrt(error / norm);
}

/* The last token of n decoded after a prefill of the others, in both layouts. */
static void against_prefill(kvf_device *dev, shape s, uint32_t weights, uint32_t window, const uint32_t *lengths,
                            uint32_t n_length) {
    /* With f32 weights, 16-bit rows are rounded before attention on both paths: what is left is the order of sums. */
    const double bound = weights == KVF_F32 ? 2e-4 : weights == KVF_F16 ? 4e-3 : 2e-2;
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    kvf_model *model = model_with_window(dev, s, weights, window, 40);
    float whole[TEST_VOCAB], step[TEST_VOCAB];
    for (uint32_t k = 0; k < n_length; k++) {
        const uint32_t n = lengths[k];
        uint32_t *tokens = malloc((n + 1) * sizeof *tokens);
        for (uint32_t i = 0; i <= n; i++) tokens[i] = below(TEST_VOCAB);
        const uint32_t full = prefilled(model, cache, tokens, n + 1, KVF_KV_HEAD);
        logits_of(cache, full, whole);
        float first[TEST_VOCAB];
        for (uint32_t granularity = KVF_KV_HEAD; granularity <= KVF_QUERY_HEAD; granularity++) {
            const uint32_t id = prefilled(model, cache, tokens, n, granularity);
            CHECK(kvf_extend(model, cache, id, tokens + n, 1, ERR) == KVF_OK);
            logits_of(cache, id, step);
            const double error = difference(step, whole);
            if (!(error < bound)) {
                fprintf(stderr, "heads %u/%u of %u, types %u and %u, window %u, %u rows: error %g\n", s.n_head,
                        s.n_kv_head, s.head_dim, weights, s.dtype, window, n, error);
                exit(1);
            }
            /* What a head computes does not depend on who reads it. */
            if (granularity == KVF_KV_HEAD) memcpy(first, step, sizeof first);
            else CHECK(memcmp(first, step, sizeof first) == 0);
            CHECK(kvf_sequence_free(cache, id, ERR) == KVF_OK);
        }
        CHECK(kvf_sequence_free(cache, full, ERR) == KVF_OK);
        free(tokens);
    }
    kvf_cache_free(cache);
    kvf_model_free(model);
}

/* n sequences of up to `most` tokens, the eighth longer, decoded together, and each on its own. */
static void batches(kvf_device *dev, uint32_t dtype, uint32_t intermediate, uint32_t n, uint32_t steps, uint32_t most,
                    uint32_t eighth) {
    enum { N = 40, STEPS = 3 };
    const shape s = {2, 8, 2, 64, dtype};
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    kvf_model *model = model_with_window(dev, s, dtype, 0, intermediate);
    uint32_t ids[N], alone[N], tokens[STEPS * N], one[STEPS], prompt[320 + N];
    float *logits = malloc(sizeof(float) * steps * n * TEST_VOCAB), single[STEPS * TEST_VOCAB];
    for (uint32_t i = 0; i < 320 + N; i++) prompt[i] = below(TEST_VOCAB);
    for (uint32_t b = 0; b < n; b++) {
        const uint32_t length = b == 7 ? eighth : 1 + below(most);
        ids[b] = prefilled(model, cache, prompt + b, length, b % 3 == 0 ? KVF_QUERY_HEAD : KVF_KV_HEAD);
        alone[b] = id_of(kvf_sequence_fork(cache, ids[b], b % 3 == 0 ? KVF_QUERY_HEAD : KVF_KV_HEAD, ERR));
    }
    CHECK(kvf_decode(model, cache, ids, n, steps, tokens, logits, sizeof(float) * steps * n * TEST_VOCAB, NULL, ERR) == KVF_OK);
    for (uint32_t b = 0; b < n; b++) {
        CHECK(kvf_decode(model, cache, &alone[b], 1, steps, one, single, sizeof single, NULL, ERR) == KVF_OK);
        for (uint32_t i = 0; i < steps; i++) {
            CHECK(one[i] == tokens[i * n + b]);
            CHECK(memcmp(single + i * TEST_VOCAB, logits + (i * n + b) * TEST_VOCAB, sizeof(float) * TEST_VOCAB) == 0);
        }
    }
    free(logits);
    kvf_cache_free(cache);
    kvf_model_free(model);
}

/*
 * Many steps of one call, whose pages come while the first ones run, against one step at a time: over ends of pages, and
 * over 512 rows, where the device's tables move.
 */
static void at_once(kvf_device *dev) {
    enum { N = 4, STEPS = 45 };
    static const uint32_t lengths[N] = {3, 30, 61, 500};
    const shape s = {2, 4, 2, 64, KVF_BF16};
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    kvf_model *model = model_with_window(dev, s, KVF_BF16, 0, 40);
    uint32_t ids[N], same[N], given[N], tokens[STEPS * N], slow[STEPS * N], next[2], prompt[500];
    float *logits = malloc(sizeof(float) * STEPS * N * TEST_VOCAB), quick[TEST_VOCAB], step[TEST_VOCAB];
    for (uint32_t i = 0; i < 500; i++) prompt[i] = below(TEST_VOCAB);
    for (uint32_t b = 0; b < N; b++) {
        ids[b] = prefilled(model, cache, prompt, lengths[b], KVF_KV_HEAD);
        same[b] = id_of(kvf_sequence_fork(cache, ids[b], KVF_KV_HEAD, ERR));
        given[b] = id_of(kvf_sequence_fork(cache, ids[b], KVF_KV_HEAD, ERR));
    }
    CHECK(kvf_decode(model, cache, ids, N, STEPS, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, same, N, STEPS, slow, logits, sizeof(float) * STEPS * N * TEST_VOCAB, NULL, ERR) == KVF_OK);
    CHECK(memcmp(tokens, slow, sizeof tokens) == 0);
    for (uint32_t b = 0; b < N; b++) {
        uint32_t forced[STEPS]; /* the same tokens; the last one is not run yet */
        for (uint32_t i = 0; i < STEPS; i++) forced[i] = tokens[i * N + b];
        CHECK(kvf_extend(model, cache, given[b], forced, STEPS - 1, ERR) == KVF_OK);
        logits_of(cache, given[b], step);
        CHECK(memcmp(step, logits + ((STEPS - 1) * N + b) * TEST_VOCAB, sizeof step) == 0);
        CHECK(kvf_decode(model, cache, &ids[b], 1, 1, &next[0], quick, sizeof quick, NULL, ERR) == KVF_OK);
        CHECK(kvf_decode(model, cache, &same[b], 1, 1, &next[1], step, sizeof step, NULL, ERR) == KVF_OK);
        CHECK(next[0] == next[1] && memcmp(quick, step, sizeof quick) == 0);
    }
    free(logits);
    kvf_cache_free(cache);
    kvf_model_free(model);
}

int main(void) {
    static const uint32_t lengths[] = {1, 31, 32, 33, 257, 300}, few[] = {2, 65, 290};
    static const struct {
        uint32_t n_head, n_kv_head, head_dim;
    } table[] = {{4, 1, 128}, {2, 2, 64}, {7, 1, 64}, {8, 1, 32}, {4, 2, 256}, {8, 1, 256}, {3, 1, 16}, {9, 1, 64}, {2, 1, 50}};
    kvf_device *dev = device_of_threads(2);
    for (uint32_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (uint32_t dtype = KVF_F32; dtype <= KVF_BF16; dtype++) {
            const shape s = {1, table[i].n_head, table[i].n_kv_head, table[i].head_dim, dtype};
            const uint32_t window = dtype == KVF_F16 && i > 0 ? 40 : 0, n = i == 0 ? 6 : 3;
            against_prefill(dev, s, KVF_F32, window, i == 0 ? lengths : few, n);
            if (dtype != KVF_F32) against_prefill(dev, s, dtype, window, i == 0 ? lengths : few, n);
        }
    }
    batches(dev, KVF_F32, 40, 19, 3, 70, 300);
    batches(dev, KVF_BF16, 40, 19, 3, 70, 300);
    /* Sums over many columns, and more tokens than one kernel takes. */
    batches(dev, KVF_BF16, 4128, 9, 1, 2, 3);
    batches(dev, KVF_F16, 600, 40, 1, 2, 3);
    at_once(dev);
    kvf_device_free(dev);
    return 0;
}
