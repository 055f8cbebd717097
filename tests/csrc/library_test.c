/*
 * The library through its public interface: known answers, invariance, the ledger, refusals, and calls with random
 * arguments. Exit status 0: all held.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvf.h"

static int failures;

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, err); \
            failures++;                                                     \
        }                                                                   \
    } while (0)

static char err[512];
#define E err, sizeof err

enum { LAYERS = 2, HEADS = 6, KV_HEADS = 2, DIM = 20, VOCAB = 97, HIDDEN = 48 };

static uint32_t state = 12345;
static uint32_t draw(uint32_t n) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

static kvf_device *open_device(uint32_t threads, uint32_t simd) {
    const kvf_device_options options = {.size = sizeof options, .n_thread = threads, .simd = simd};
    kvf_device *dev = kvf_device_create(&options, E);
    CHECK(dev != NULL);
    return dev;
}

static kvf_model *open_model(kvf_device *dev, uint32_t dtype, uint32_t experts) {
    const kvf_model_config config = {.size = sizeof config, .n_layer = LAYERS, .hidden = HIDDEN, .n_head = HEADS,
                                     .n_kv_head = KV_HEADS, .head_dim = DIM, .intermediate = 72, .vocab = VOCAB,
                                     .weight_dtype = dtype, .flags = KVF_QK_NORM | KVF_QKV_BIAS, .n_expert = experts,
                                     .n_expert_used = experts > 0 ? 2 : 0, .norm_eps = 1e-5f, .rope_scale = 1};
    float inv_freq[DIM / 2];
    for (int i = 0; i < DIM / 2; i++) inv_freq[i] = powf(10000.0f, -2.0f * (float)i / DIM);
    const uint32_t windows[LAYERS] = {0, 40};
    kvf_model *model = kvf_model_create(dev, &config, inv_freq, windows, E);
    CHECK(model != NULL);
    CHECK(kvf_model_randomize(model, 7, E) == KVF_OK);
    return model;
}

static kvf_cache *open_cache(kvf_device *dev, uint32_t dtype, double limit) {
    const kvf_cache_config config = {.size = sizeof config, .n_layer = LAYERS, .n_head = HEADS, .n_kv_head = KV_HEADS,
                                     .head_dim = DIM, .row_dtype = dtype, .limit_bytes = limit};
    kvf_cache *cache = kvf_cache_create(dev, &config, E);
    CHECK(cache != NULL);
    return cache;
}

static void check_ledger(kvf_cache *cache) {
    kvf_ledger ledger = {.size = sizeof ledger};
    CHECK(kvf_cache_ledger(cache, &ledger, E) == KVF_OK);
    CHECK(ledger.promised_bytes == ledger.owned_bytes);
    CHECK(ledger.resident_bytes <= ledger.owned_bytes);
    CHECK(ledger.peak_bytes >= ledger.resident_bytes);
}

/* A prompt of n tokens, read by the model; keeps `keep` rows by window scores when keep > 0. */
static uint32_t prefill(kvf_model *model, kvf_cache *cache, uint32_t granularity, uint32_t n, uint32_t seed, uint32_t keep) {
    uint32_t tokens[400];
    for (uint32_t i = 0; i < n; i++) tokens[i] = (i * 31 + seed * 17 + i * i) % VOCAB;
    const kvf_observe observe = {.size = sizeof observe, .n_window = 4, .n_mass = 1, .n_range = 1};
    const uint32_t ranges[3] = {0, 0, n};
    const int32_t id = kvf_sequence_create(cache, granularity, E);
    CHECK(id > 0);
    CHECK(kvf_prefill_begin(model, cache, (uint32_t)id, tokens, n, 0, &observe, ranges, E) == KVF_OK);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        CHECK(kvf_prefill_layers(model, cache, (uint32_t)id, layer, 1, KVF_PHASE_ALL, NULL, E) == KVF_OK);
        if (keep == 0) continue;
        const int32_t scores = kvf_scores_window(cache, (uint32_t)id, layer, 4, 0, KVF_MEAN, E);
        const int32_t pooled = kvf_scores_pool(cache, (uint32_t)scores, 0, 5, E);
        uint32_t counts[HEADS];
        for (int h = 0; h < HEADS; h++) counts[h] = keep - 4;
        const int32_t top = kvf_select_top(cache, (uint32_t)pooled, counts, granularity ? HEADS : KV_HEADS, E);
        CHECK(scores > 0 && pooled > 0 && top > 0);
        CHECK(kvf_retain(cache, (uint32_t)id, layer, (uint32_t)top, 0, 4, E) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)scores, E) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)pooled, E) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)top, E) == KVF_OK);
    }
    CHECK(kvf_prefill_end(model, cache, (uint32_t)id, E) == KVF_OK);
    check_ledger(cache);
    return (uint32_t)id;
}

enum { STEPS = 6, MOST = 64 };

/* Logits of STEPS steps of sequence 0 when it decodes in a batch of n, at slot `slot`. */
static void batch_logits(uint32_t threads, uint32_t dtype, uint32_t experts, uint32_t n, uint32_t slot, float *out) {
    kvf_device *dev = open_device(threads, 0);
    kvf_model *model = open_model(dev, dtype, experts);
    kvf_cache *cache = open_cache(dev, dtype, 0);
    uint32_t ids[MOST], tokens[STEPS * MOST];
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t seed = i == slot ? 0 : i + 1;
        ids[i] = prefill(model, cache, KVF_KV_HEAD, 90 + seed % 40, seed, seed % 3 == 0 ? 24 : 0);
    }
    float *logits = malloc(sizeof(float) * STEPS * n * VOCAB);
    CHECK(kvf_decode(model, cache, ids, n, STEPS, tokens, logits, sizeof(float) * STEPS * n * VOCAB, NULL, E) == KVF_OK);
    for (uint32_t s = 0; s < STEPS; s++) {
        memcpy(out + s * VOCAB, logits + ((size_t)s * n + slot) * VOCAB, sizeof(float) * VOCAB);
    }
    check_ledger(cache);
    free(logits);
    kvf_cache_free(cache);
    kvf_model_free(model);
    kvf_device_free(dev);
}

static void test_invariance(void) {
    for (uint32_t dtype = KVF_F32; dtype <= KVF_BF16; dtype++) {
        float one[STEPS * VOCAB], other[STEPS * VOCAB];
        batch_logits(1, dtype, 0, 1, 0, one);
        const struct {
            uint32_t threads, n, slot;
        } run[] = {{2, 1, 0}, {2, 7, 3}, {1, 7, 0}, {2, MOST, 40}};
        for (size_t i = 0; i < sizeof run / sizeof *run; i++) {
            batch_logits(run[i].threads, dtype, 0, run[i].n, run[i].slot, other);
            CHECK(memcmp(one, other, sizeof one) == 0);
        }
    }
    float one[STEPS * VOCAB], other[STEPS * VOCAB];
    batch_logits(1, KVF_F32, 4, 1, 0, one);
    batch_logits(2, KVF_F32, 4, 7, 2, other);
    CHECK(memcmp(one, other, sizeof one) == 0);
}

/* Forks share pages, query_head forks give the same logits, and what a fork does leaves its parent alone. */
static void test_forks(void) {
    kvf_device *dev = open_device(0, 0);
    kvf_model *model = open_model(dev, KVF_F32, 0);
    kvf_cache *cache = open_cache(dev, KVF_F32, 0);
    const uint32_t parent = prefill(model, cache, KVF_KV_HEAD, 100, 5, 0);
    kvf_ledger before = {.size = sizeof before}, after = {.size = sizeof after};
    CHECK(kvf_cache_ledger(cache, &before, E) == KVF_OK);
    const uint32_t same = (uint32_t)kvf_sequence_fork(cache, parent, KVF_KV_HEAD, E);
    const uint32_t wide = (uint32_t)kvf_sequence_fork(cache, parent, KVF_QUERY_HEAD, E);
    const uint32_t small = (uint32_t)kvf_sequence_fork(cache, parent, KVF_KV_HEAD, E);
    CHECK(kvf_sequence_fork(cache, wide, KVF_KV_HEAD, E) == KVF_ERR_ARG);
    CHECK(kvf_cache_ledger(cache, &after, E) == KVF_OK);
    CHECK(before.resident_bytes == after.resident_bytes && after.promised_bytes > before.promised_bytes);
    for (uint32_t layer = 0; layer < LAYERS; layer++) CHECK(kvf_retain(cache, small, layer, 0, 4, 12, E) == KVF_OK);
    uint32_t rows[LAYERS * KV_HEADS];
    CHECK(kvf_sequence_rows(cache, small, rows, LAYERS * KV_HEADS, E) == KVF_OK);
    CHECK(rows[0] == 16 && rows[LAYERS * KV_HEADS - 1] == 16);
    uint32_t positions[16];
    CHECK(kvf_read_positions(cache, small, 1, 1, positions, 16, E) == KVF_OK);
    CHECK(positions[3] == 3 && positions[4] == 88 && positions[15] == 99);
    CHECK(kvf_scores_window(cache, small, 0, 4, 0, KVF_MEAN, E) == KVF_ERR_STATE);
    const uint32_t ids[4] = {parent, same, wide, small};
    uint32_t tokens[8 * 4];
    float logits[8 * 4 * VOCAB];
    CHECK(kvf_decode(model, cache, ids, 4, 8, tokens, logits, sizeof logits, NULL, E) == KVF_OK);
    for (uint32_t s = 0; s < 8; s++) {
        const float *row = logits + (size_t)s * 4 * VOCAB;
        CHECK(memcmp(row, row + VOCAB, sizeof(float) * VOCAB) == 0);
        CHECK(memcmp(row, row + 2 * VOCAB, sizeof(float) * VOCAB) == 0);
    }
    check_ledger(cache);
    for (int i = 0; i < 4; i++) CHECK(kvf_sequence_free(cache, ids[i], E) == KVF_OK);
    CHECK(kvf_sequence_free(cache, parent, E) == KVF_ERR_ARG);
    CHECK(kvf_cache_ledger(cache, &after, E) == KVF_OK);
    CHECK(after.resident_bytes == 0 && after.n_page == 0 && after.n_object == 0);
    kvf_device_free(dev); /* lives on until its children are gone */
    kvf_cache_free(cache);
    kvf_model_free(model);
}

/* Pooling, group reduction and top-k against worked numbers. */
static void test_known_answers(void) {
    kvf_device *dev = open_device(1, 0);
    kvf_cache *cache = open_cache(dev, KVF_F32, 0);
    const float x[5] = {1, 2, 3, 4, 5};
    float y[5];
    const uint32_t scores = (uint32_t)kvf_scores_create(cache, 1, 5, x, E);
    const uint32_t average = (uint32_t)kvf_scores_pool(cache, scores, 1, 5, E);
    CHECK(kvf_scores_read(cache, average, y, 5, E) == KVF_OK);
    const float expected[5] = {1.2f, 2, 3, 2.8f, 2.4f};
    for (int i = 0; i < 5; i++) CHECK(fabsf(y[i] - expected[i]) < 1e-6f);
    const uint32_t highest = (uint32_t)kvf_scores_pool(cache, scores, 0, 7, E);
    CHECK(kvf_scores_read(cache, highest, y, 5, E) == KVF_OK);
    CHECK(y[0] == 4 && y[1] == 5 && y[4] == 5);
    CHECK(kvf_scores_pool(cache, scores, 0, 4, E) == KVF_ERR_ARG);
    const float ties[8] = {1, NAN, 3, 3, 3, -INFINITY, 2, 3};
    const uint32_t tied = (uint32_t)kvf_scores_create(cache, 1, 8, ties, E);
    const uint32_t count = 3;
    uint32_t counts[1], rows[3];
    const uint32_t top = (uint32_t)kvf_select_top(cache, tied, &count, 1, E);
    CHECK(kvf_selection_read(cache, top, counts, 1, rows, 3, E) == KVF_OK);
    CHECK(rows[0] == 2 && rows[1] == 3 && rows[2] == 4);
    kvf_cache_free(cache);
    kvf_device_free(dev);
}

static void test_limit(void) {
    kvf_device *dev = open_device(1, 0);
    kvf_model *model = open_model(dev, KVF_F32, 0);
    kvf_cache *cache = open_cache(dev, KVF_F32, 30000);
    uint32_t tokens[200] = {0};
    const kvf_observe observe = {.size = sizeof observe};
    const uint32_t id = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, E);
    CHECK(kvf_prefill_begin(model, cache, id, tokens, 200, 0, &observe, NULL, E) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, id, 0, LAYERS, KVF_PHASE_ALL, NULL, E) == KVF_ERR_MEMORY);
    CHECK(strstr(err, "30000") != NULL);
    check_ledger(cache);
    CHECK(kvf_sequence_free(cache, id, E) == KVF_OK);
    kvf_ledger ledger = {.size = sizeof ledger};
    CHECK(kvf_cache_ledger(cache, &ledger, E) == KVF_OK && ledger.resident_bytes == 0);
    kvf_cache_free(cache);
    kvf_model_free(model);
    kvf_device_free(dev);
}

/* Calls with arguments that are right, nearly right and wrong: no crash, the ledger stays true. */
static void test_random_calls(void) {
    kvf_device *dev = open_device(2, 0);
    kvf_model *model = open_model(dev, KVF_BF16, 0);
    kvf_cache *cache = open_cache(dev, KVF_F16, 400000);
    static float floats[4096];
    static uint32_t words[4096];
    for (int round = 0; round < 4000; round++) {
        const uint32_t a = draw(9), b = draw(9), layer = draw(LAYERS + 1);
        for (int i = 0; i < 64; i++) words[i] = draw(VOCAB + 3), floats[i] = (float)draw(100);
        switch (draw(20)) {
        case 0: kvf_sequence_create(cache, draw(3), E); break;
        case 1: kvf_sequence_fork(cache, a, draw(3), E); break;
        case 2: kvf_sequence_free(cache, a, E); break;
        case 3: {
            const kvf_observe o = {.size = sizeof o, .n_window = draw(40), .n_mass = draw(6), .n_range = draw(3)};
            kvf_prefill_begin(model, cache, a, words, draw(60), 0, &o, words + 8, E);
            break;
        }
        case 4: kvf_prefill_layers(model, cache, a, draw(LAYERS), draw(3), draw(5), NULL, E); break;
        case 5: kvf_prefill_end(model, cache, a, E); break;
        case 6: kvf_decode(model, cache, words, draw(4), draw(5), words + 64, NULL, 0, NULL, E); break;
        case 7: kvf_scores_window(cache, a, layer, draw(20), draw(9), draw(4), E); break;
        case 8: kvf_scores_mass(cache, a, layer, draw(5), draw(4), E); break;
        case 9: kvf_scores_norm(cache, a, layer, draw(3), E); break;
        case 10: kvf_scores_pool(cache, a, draw(3), draw(12), E); break;
        case 11: kvf_select_top(cache, a, words, draw(7), E); break;
        case 12: kvf_retain(cache, a, layer, b, draw(30), draw(30), E); break;
        case 13: kvf_object_free(cache, a, E); break;
        case 14: kvf_scores_combine(cache, a, b, draw(3), E); break;
        case 15: kvf_selection_create(cache, draw(5), words, words + 8, E); break;
        case 16: kvf_extend(model, cache, a, words, draw(4), E); break;
        case 17: kvf_read_rows(cache, a, layer, draw(HEADS + 1), draw(3), floats, draw(sizeof floats), E); break;
        case 18: kvf_scores_share(cache, a, draw(300), words, draw(8), E); break;
        default: kvf_sequence_forget(cache, a, E); break;
        }
        for (int i = 0; i < 4; i++) words[i] = draw(9);
        if (round % 50 == 0) check_ledger(cache);
    }
    kvf_cache_free(cache);
    kvf_model_free(model);
    kvf_device_free(dev);
}

int main(void) {
    test_known_answers();
    test_forks();
    test_limit();
    test_random_calls();
    test_invariance();
    CHECK(kvf_live_handles() == 0);
    return failures == 0 ? 0 : 1;
}
