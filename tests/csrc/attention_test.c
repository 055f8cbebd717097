/*
 * Attention of a prefill: every token of a long prompt gets the logits, bit for bit, that it gets as the last one of a
 * shorter prompt; they are those of a model with the same weights in f32, as far as rounding allows; and what each query
 * gives to the rows is one in all. For lengths off every tile, every size of a group and sliding windows. (Where a library
 * computes the products, it may choose another order of sums for another length: then bits become a bound.)
 */
#include "test.h"

enum { HIDDEN = 64, LONG = 391 };

static uint32_t id_of(int32_t result) {
    CHECK(result > 0);
    return (uint32_t)result;
}

static kvf_model *model_of(kvf_device *dev, shape s, uint32_t dtype, uint32_t window) {
    const kvf_model_config config = {.size = sizeof config, .n_layer = 1, .hidden = HIDDEN, .n_head = s.n_head,
                                     .n_kv_head = s.n_kv_head, .head_dim = s.head_dim, .intermediate = 40,
                                     .vocab = TEST_VOCAB, .weight_dtype = dtype, .norm_eps = 1e-5f, .rope_scale = 1};
    float inv_freq[128];
    for (uint32_t i = 0; i < s.head_dim / 2; i++) inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s.head_dim);
    kvf_model *model = kvf_model_create(dev, &config, inv_freq, &window, ERR);
    CHECK(model != NULL && kvf_model_randomize(model, 11, ERR) == KVF_OK);
    return model;
}

/* A prompt up to its end, with the logits of all its tokens or, to == NULL, none; every query in one column mass. */
static uint32_t prefilled(kvf_model *model, kvf_cache *cache, const uint32_t *tokens, uint32_t n, float *to) {
    const kvf_observe observe = {sizeof observe, 0, 1, 1};
    const uint32_t range[3] = {0, 0, n}, s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    CHECK(kvf_prefill_begin(model, cache, s, tokens, n, 0, &observe, range, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    if (to != NULL) CHECK(kvf_prefill_logits(model, cache, s, to, (double)n * TEST_VOCAB * sizeof *to, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    return s;
}

/* The greatest relative error of a token's logits. */
static double worst(const float *x, const float *y, uint32_t n) {
    double most = 0;
    for (uint32_t i = 0; i < n; i++) {
        double error = 0, norm = 0;
        for (uint32_t j = 0; j < TEST_VOCAB; j++) {
            const double a = x[i * TEST_VOCAB + j], b = y[i * TEST_VOCAB + j];
            CHECK(isfinite(a) && isfinite(b));
            error += (a - b) * (a - b), norm += b * b;
        }
        if (sqrt(error / norm) > most) most = sqrt(error / norm);
    }
    return most;
}

static void check_shape(kvf_device *dev, shape s, uint32_t window, const uint32_t *lengths, uint32_t n_length) {
    shape plain = s;
    plain.dtype = KVF_F32;
    kvf_cache *cache = cache_of_shape(dev, s, 0), *reference = cache_of_shape(dev, plain, 0);
    kvf_model *model = model_of(dev, s, s.dtype, window), *exact = model_of(dev, plain, KVF_F32, window);
    uint32_t tokens[LONG];
    for (uint32_t i = 0; i < LONG; i++) tokens[i] = below(TEST_VOCAB);
    float *got = malloc(sizeof(float) * LONG * TEST_VOCAB), *want = malloc(sizeof(float) * LONG * TEST_VOCAB);
    const uint32_t n = lengths[n_length - 1], whole = prefilled(model, cache, tokens, n, got);
    CHECK(kvf_sequence_free(reference, prefilled(exact, reference, tokens, n, want), ERR) == KVF_OK);
    const double error = worst(got, want, n), bound = s.dtype == KVF_F16 ? 6e-3 : 4e-2;
    if (!(error < bound)) {
        fprintf(stderr, "heads %u/%u of %u, type %u, window %u, %u tokens: error %g\n", s.n_head, s.n_kv_head, s.head_dim,
                s.dtype, window, n, error);
        exit(1);
    }
    const uint32_t mass = id_of(kvf_scores_mass(cache, whole, 0, 0, KVF_SUM, ERR));
    float *sums = malloc(sizeof(float) * s.n_kv_head * n);
    CHECK(kvf_scores_read(cache, mass, sums, s.n_kv_head * n, ERR) == KVF_OK);
    for (uint32_t h = 0; h < s.n_kv_head; h++) {
        double sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += sums[(size_t)h * n + i];
        CHECK_NEAR(sum, (double)n * s.n_head / s.n_kv_head, 1e-3);
    }
    free(sums);
    for (uint32_t k = 0; k + 1 < n_length; k++) {
        float last[TEST_VOCAB];
        const uint32_t id = prefilled(model, cache, tokens, lengths[k], NULL);
        CHECK(kvf_sequence_logits(cache, id, last, TEST_VOCAB, ERR) == KVF_OK);
        const float *same = got + (size_t)(lengths[k] - 1) * TEST_VOCAB;
        CHECK(dev->info.blas ? worst(last, same, 1) < bound : memcmp(last, same, sizeof last) == 0);
        CHECK(kvf_sequence_free(cache, id, ERR) == KVF_OK);
    }
    free(got);
    free(want);
    kvf_cache_free(cache);
    kvf_cache_free(reference);
    kvf_model_free(model);
    kvf_model_free(exact);
}

int main(void) {
    static const uint32_t lengths[] = {1, 33, 64, 127, 129, 256, LONG}, few[] = {65, 130, 257};
    static const struct {
        uint32_t n_head, n_kv_head, head_dim, dtype, window;
    } table[] = {{4, 1, 128, KVF_BF16, 0}, {2, 2, 64, KVF_BF16, 0},   {3, 1, 64, KVF_F16, 0},  {8, 1, 64, KVF_BF16, 70},
                 {6, 2, 64, KVF_F16, 1},   {1, 1, 128, KVF_F16, 200}, {2, 1, 32, KVF_BF16, 9}, {2, 1, 96, KVF_BF16, 0}};
    kvf_device *dev = device_of_threads(2);
    for (uint32_t i = 0; i < sizeof table / sizeof *table; i++) {
        const shape s = {1, table[i].n_head, table[i].n_kv_head, table[i].head_dim, table[i].dtype};
        check_shape(dev, s, table[i].window, i < 2 ? lengths : few, i < 2 ? 7 : 3);
    }
    kvf_device_free(dev);
    return 0;
}
