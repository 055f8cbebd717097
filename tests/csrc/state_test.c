/*
 * The right calls at the wrong moment, or with wrong arguments: each is refused with a reason, and what was there before
 * stays as it was. Ends with the right moments: lean prefill, forks, decode, extend, cancelling.
 */
#include "test.h"

static const shape SHAPE = {2, 4, 2, 8, KVF_F32};
static const uint32_t PROMPT[7] = {1, 2, 3, 4, 5, 6, 7};

static uint32_t id_of(int32_t result) {
    CHECK(result > 0);
    return (uint32_t)result;
}

static uint32_t prefilled(kvf_model *model, kvf_cache *cache, uint32_t granularity) {
    const uint32_t s = id_of(kvf_sequence_create(cache, granularity, ERR));
    CHECK(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    return s;
}

static void devices(void) {
    kvf_device_options options = {.size = sizeof options, .n_thread = 1};
    CHECK(kvf_device_create(NULL, ERR) == NULL);
    options.size = 4;
    CHECK(kvf_device_create(&options, ERR) == NULL && strstr(test_message, "16 bytes") != NULL);
    options.size = sizeof options;
    options.simd = 5;
    CHECK(kvf_device_create(&options, ERR) == NULL);
    options.simd = 0;
    options.ordinal = 1000; /* no machine has so many */
    CHECK(kvf_device_create(&options, ERR) == NULL);
    CHECK(kvf_live_handles() == 0);

    kvf_device *dev = device_of_threads(1);
    kvf_device_info info = {.size = sizeof info};
    CHECK(kvf_device_describe(dev, &info, ERR) == KVF_OK && info.kind <= 1 && info.n_thread == 1 && info.simd >= 1);
    info.size = 8;
    REFUSED(kvf_device_describe(dev, &info, ERR), KVF_ERR_ARG);
    REFUSED(kvf_device_describe(dev, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_device_describe(NULL, &info, ERR), KVF_ERR_ARG);
    CHECK(kvf_device_read_bandwidth(dev, 1e6) > 0);
    CHECK(kvf_device_read_bandwidth(dev, NAN) == 0 && kvf_device_read_bandwidth(dev, -1) == 0);

    /* A message is cut to its buffer, and none is needed. */
    char small[8];
    memset(small, 'x', sizeof small);
    CHECK(kvf_device_describe(NULL, &info, small, sizeof small) == KVF_ERR_ARG && strlen(small) == 7);
    CHECK(kvf_device_describe(NULL, &info, NULL, 0) == KVF_ERR_ARG);

    /* Freed before its cache: the handle is gone at once, the device with the cache. Freeing twice does nothing. */
    kvf_cache *cache = cache_of_shape(dev, SHAPE, 0);
    CHECK(kvf_live_handles() == 2);
    kvf_device_free(dev);
    kvf_device_free(dev);
    kvf_device_free(NULL);
    CHECK(kvf_live_handles() == 1);
    info.size = sizeof info;
    REFUSED(kvf_device_describe(dev, &info, ERR), KVF_ERR_ARG);
    CHECK(kvf_sequence_create(cache, KVF_KV_HEAD, ERR) > 0);
    kvf_cache_free(cache);
    kvf_cache_free(cache);
    REFUSED(kvf_sequence_create(cache, KVF_KV_HEAD, ERR), KVF_ERR_ARG);
    CHECK(kvf_live_handles() == 0);
}

static void caches(kvf_device *dev) {
    static const kvf_cache_config good = {sizeof good, 2, 4, 2, 8, KVF_F16, 0};
    kvf_cache_config table[16];
    uint32_t n = 0;
    for (uint32_t i = 0; i < 16; i++) table[i] = good;
    table[n++].size = 0;
    table[n++].n_layer = 0;
    table[n++].n_layer = 0xffffffffu;
    table[n++].n_head = 0;
    table[n++].n_head = 3;
    table[n++].n_head = 1u << 31;
    table[n++].n_kv_head = 0;
    table[n++].n_kv_head = 3;
    table[n++].head_dim = 0;
    table[n++].head_dim = 257;
    table[n++].row_dtype = 3;
    table[n++].limit_bytes = -1;
    table[n++].limit_bytes = NAN;
    table[n++].limit_bytes = INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        test_message[0] = '\0';
        CHECK(kvf_cache_create(dev, &table[i], ERR) == NULL && test_message[0] != '\0');
    }
    CHECK(kvf_cache_create(dev, NULL, ERR) == NULL);
    CHECK(kvf_cache_create(NULL, &good, ERR) == NULL);
    kvf_ledger ledger = {.size = 1};
    kvf_cache *cache = kvf_cache_create(dev, &good, ERR);
    CHECK(cache != NULL);
    REFUSED(kvf_cache_ledger(cache, &ledger, ERR), KVF_ERR_ARG);
    REFUSED(kvf_cache_ledger(cache, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_cache_ledger((kvf_cache *)(void *)dev, &ledger, ERR), KVF_ERR_ARG);
    kvf_cache_free((kvf_cache *)(void *)dev);
    kvf_cache_free(cache);
}

static void models(kvf_device *dev) {
    static const kvf_model_config good = {.size = sizeof good, .n_layer = 1, .hidden = 4, .n_head = 2, .n_kv_head = 1,
                                          .head_dim = 2, .intermediate = 3, .vocab = 5, .weight_dtype = KVF_F32,
                                          .norm_eps = 1e-5f, .rope_scale = 1};
    const float inv_freq[1] = {1}, bad_freq[1] = {NAN};
    const uint32_t windows[1] = {0};
    kvf_model_config table[24];
    uint32_t n = 0;
    for (uint32_t i = 0; i < 24; i++) table[i] = good;
    table[n++].size = 3;
    table[n++].n_layer = 0;
    table[n++].hidden = 0;
    table[n++].hidden = 0xffffffffu;
    table[n++].n_head = 0;
    table[n++].n_kv_head = 0;
    table[n++].n_head = 0x80000000u;
    table[n++].head_dim = 3;
    table[n++].head_dim = 258;
    table[n++].intermediate = 0;
    table[n++].vocab = 0;
    table[n++].vocab = 0xffffffffu;
    table[n++].weight_dtype = 9;
    table[n++].flags = 32;
    table[n++].n_expert = 0xffffffffu;
    table[n++].n_expert = 2;
    table[n++].n_expert_used = 1;
    table[n++].norm_eps = -1;
    table[n++].norm_eps = NAN;
    table[n++].rope_scale = 0;
    for (uint32_t i = 0; i < n; i++) {
        test_message[0] = '\0';
        CHECK(kv_fail((kv_err){NULL, 0}, KVF_ERR_BUSY, "something else") == KVF_ERR_BUSY && kvf_last_status() == KVF_ERR_BUSY);
        CHECK(kvf_model_create(dev, &table[i], inv_freq, windows, ERR) == NULL && test_message[0] != '\0');
        CHECK(kvf_last_status() == KVF_ERR_ARG);
    }
    CHECK(kvf_model_create(dev, NULL, inv_freq, windows, ERR) == NULL);
    CHECK(kvf_model_create(dev, &good, NULL, windows, ERR) == NULL);
    CHECK(kvf_model_create(dev, &good, bad_freq, windows, ERR) == NULL);
    CHECK(kvf_model_create(dev, &good, inv_freq, NULL, ERR) == NULL);

    kvf_model *model = kvf_model_create(dev, &good, inv_freq, windows, ERR);
    CHECK(model != NULL && kvf_model_bytes(model) > 0 && kvf_model_step_bytes(model) > 0);
    float data[64] = {0};
    REFUSED(kvf_model_load(model, 99, 0, 0, KVF_F32, 0, 1, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q_BIAS, 0, 0, KVF_F32, 0, 1, data, 16, ERR), KVF_ERR_ARG); /* not of this model */
    REFUSED(kvf_model_load(model, KVF_T_Q, 1, 0, KVF_F32, 0, 1, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 1, KVF_F32, 0, 1, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, 3, 0, 1, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 4, 1, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 3, 0xffffffffu, data, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 0, 0, data, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 0, 1, data, 15, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 0, 1, data, NAN, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 0, 1, NULL, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_source(model, NULL, 16, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_source(model, data, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_source(model, data, 1.5, ERR), KVF_ERR_ARG);
    REFUSED(kvf_model_source(model, data, NAN, ERR), KVF_ERR_ARG);
    CHECK(kvf_model_source(model, data, sizeof data, ERR) == KVF_OK);
    CHECK(kvf_model_source(model, NULL, 0, ERR) == KVF_OK);
    CHECK(kvf_model_source(model, data, sizeof data, ERR) == KVF_OK);
    REFUSED(kvf_model_ready(model, ERR), KVF_ERR_STATE);
    CHECK(strstr(test_message, "embed") != NULL);
    const struct {
        uint32_t tensor, rows, cols;
    } tensors[] = {{KVF_T_EMBED, 5, 4}, {KVF_T_OUTPUT, 5, 4}, {KVF_T_FINAL_NORM, 1, 4}, {KVF_T_ATTN_NORM, 1, 4},
                   {KVF_T_MLP_NORM, 1, 4}, {KVF_T_Q, 4, 4}, {KVF_T_K, 2, 4}, {KVF_T_V, 2, 4}, {KVF_T_O, 4, 4},
                   {KVF_T_GATE, 3, 4}, {KVF_T_UP, 3, 4}, {KVF_T_DOWN, 4, 3}};
    for (uint32_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        for (uint32_t row = tensors[i].rows; row-- > 0;) { /* rows come in any order, each once */
            REFUSED(kvf_model_ready(model, ERR), KVF_ERR_STATE);
            CHECK(kvf_model_load(model, tensors[i].tensor, 0, 0, KVF_F32, row, 1, data, 4 * tensors[i].cols, ERR) == KVF_OK);
        }
        REFUSED(kvf_model_load(model, tensors[i].tensor, 0, 0, KVF_F32, 0, 1, data, 4 * tensors[i].cols, ERR), KVF_ERR_ARG);
    }
    CHECK(kvf_model_ready(model, ERR) == KVF_OK && kvf_model_ready(model, ERR) == KVF_OK);
    REFUSED(kvf_model_load(model, KVF_T_Q, 0, 0, KVF_F32, 0, 1, data, 16, ERR), KVF_ERR_STATE);
    REFUSED(kvf_model_randomize(model, 1, ERR), KVF_ERR_STATE);
    REFUSED(kvf_model_source(model, data, sizeof data, ERR), KVF_ERR_STATE);
    kvf_model_free(model);
    kvf_model_free(model);
    CHECK(kvf_model_bytes(model) == 0);
}

static void prefill(kvf_device *dev, kvf_model *model) {
    kvf_cache *cache = cache_of_shape(dev, SHAPE, 0), *other = cache_of_shape(dev, (shape){2, 4, 2, 16, KVF_F32}, 0);
    uint32_t s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const uint32_t t = id_of(kvf_sequence_create(other, KVF_KV_HEAD, ERR));
    const uint32_t bad_tokens[2] = {1, TEST_VOCAB};
    float logits[7 * TEST_VOCAB];
    uint32_t tokens[4];
    REFUSED(kvf_sequence_create(cache, 2, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s + 1, PROMPT, 7, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, other, t, PROMPT, 7, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(NULL, cache, s, PROMPT, 7, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin((kvf_model *)(void *)cache, cache, s, PROMPT, 7, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, NULL, 7, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 0, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 0xffffffffu, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, bad_tokens, 2, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    kvf_observe observe = {sizeof observe, 100, 1, 1};
    const uint32_t outside[3] = {0, 0, 8}, no_mass[3] = {1, 0, 7}, empty[3] = {0, 3, 3}, range[3] = {0, 2, 7};
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, outside, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, no_mass, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, empty, ERR), KVF_ERR_ARG);
    observe.n_mass = 5;
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, range, ERR), KVF_ERR_ARG);
    observe.n_mass = 1;
    observe.n_range = 65;
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, range, ERR), KVF_ERR_ARG);
    observe.n_range = 1;
    for (int i = 0; i < 3; i++) {
        const double bad[3] = {-1, NAN, INFINITY};
        REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, bad[i], &observe, range, ERR), KVF_ERR_ARG);
    }
    /* A page of each of two KV heads, and what the other layers keep beside it or after it. */
    const double page = cache->page_bytes, layer = cache->config.n_kv_head * page;
    cache->config.limit_bytes = layer + page;
    const double before = 1 - 1.0 / cache->config.n_layer;
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, (page + 1) / before, &observe, range, ERR), KVF_ERR_MEMORY);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, layer + page + 1, &observe, range, ERR), KVF_ERR_MEMORY);
    CHECK(kvf_prefill_begin(model, cache, s, PROMPT, 7, page / before, &observe, range, ERR) == KVF_OK);
    cache->config.limit_bytes = 0;
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
    s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));

    /* Before it begins. */
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_end(model, cache, s, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_logits(model, cache, s, logits, sizeof logits, ERR), KVF_ERR_STATE);
    REFUSED(kvf_record_layer(cache, s, 0, logits, logits, logits, ERR), KVF_ERR_STATE);
    REFUSED(kvf_decode(model, cache, &s, 1, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_sequence_logits(cache, s, logits, TEST_VOCAB, ERR), KVF_ERR_STATE);
    REFUSED(kvf_scores_window(cache, s, 0, 1, 0, 0, ERR), KVF_ERR_STATE);

    CHECK(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, range, ERR) == KVF_OK);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, &observe, range, ERR), KVF_ERR_STATE);
    REFUSED(kvf_record_begin(cache, s, 7, NULL, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_record_layer(cache, s, 0, logits, logits, logits, ERR), KVF_ERR_STATE);
    REFUSED(kvf_sequence_fork(cache, s, KVF_KV_HEAD, ERR), KVF_ERR_STATE);
    REFUSED(kvf_sequence_forget(cache, s, ERR), KVF_ERR_STATE);
    REFUSED(kvf_decode(model, cache, &s, 1, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_extend(model, cache, s, PROMPT, 1, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_layers(model, cache, s, 1, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 3, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 0xffffffffu, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 0, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, 4, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_PROJECT, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ATTEND, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_end(model, cache, s, ERR), KVF_ERR_STATE);
    uint32_t control[2] = {1, 0};
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_ALL, control, ERR), KVF_ERR_CANCELLED);
    control[0] = 0;
    CHECK(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_PROJECT, control, ERR) == KVF_OK && control[1] == 0);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_PROJECT, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_STATE);
    REFUSED(kvf_retain(cache, s, 0, 0, 1, 1, ERR), KVF_ERR_STATE); /* its attention still needs all rows */
    CHECK(kvf_scores_window(cache, s, 0, 7, 0, 0, ERR) > 0);       /* as many queries as tokens: n_window was cut */
    REFUSED(kvf_scores_mass(cache, s, 0, 0, 0, ERR), KVF_ERR_STATE);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ATTEND, control, ERR) == KVF_OK && control[1] == 1);
    CHECK(kvf_scores_mass(cache, s, 0, 0, 0, ERR) > 0);
    REFUSED(kvf_scores_window(cache, s, 1, 1, 0, 0, ERR), KVF_ERR_STATE);
    REFUSED(kvf_scores_window(cache, s, 2, 1, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_window(cache, s, 0, 0, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_window(cache, s, 0, 8, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_window(cache, s, 0, 1, 1024, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_window(cache, s, 0, 1, 0, 3, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_mass(cache, s, 0, 1, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_mass(cache, s, 0, 0, 3, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_norm(cache, s, 0, 2, ERR), KVF_ERR_ARG);

    /* Lean: the finished layer is cut while the next one has not run; its observations are of use no more. */
    CHECK(kvf_retain(cache, s, 0, 0, 2, 2, ERR) == KVF_OK);
    check_books(cache);
    REFUSED(kvf_scores_window(cache, s, 0, 1, 0, 0, ERR), KVF_ERR_STATE);
    REFUSED(kvf_scores_mass(cache, s, 0, 0, 0, ERR), KVF_ERR_STATE);
    CHECK(kvf_prefill_layers(model, cache, s, 1, 1, KVF_PHASE_ALL, control, ERR) == KVF_OK && control[1] == 2);
    REFUSED(kvf_prefill_layers(model, cache, s, 2, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_logits(model, cache, s, logits, sizeof logits - 1, ERR), KVF_ERR_ARG);
    CHECK(kvf_prefill_logits(model, cache, s, logits, sizeof logits, ERR) == KVF_OK);
    CHECK(info_of(cache, s).position == 0);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    CHECK(info_of(cache, s).position == 7);
    float last[TEST_VOCAB];
    REFUSED(kvf_sequence_logits(cache, s, last, TEST_VOCAB - 1, ERR), KVF_ERR_ARG);
    CHECK(kvf_sequence_logits(cache, s, last, TEST_VOCAB, ERR) == KVF_OK);
    for (uint32_t i = 0; i < TEST_VOCAB; i++) CHECK_NEAR(last[i], logits[6 * TEST_VOCAB + i], 1e-5);
    REFUSED(kvf_prefill_begin(model, cache, s, PROMPT, 7, 0, NULL, NULL, ERR), KVF_ERR_STATE);
    CHECK(kvf_scores_window(cache, s, 1, 3, 0, 0, ERR) > 0);
    CHECK(kvf_sequence_forget(cache, s, ERR) == KVF_OK && kvf_sequence_forget(cache, s, ERR) == KVF_OK);
    REFUSED(kvf_scores_window(cache, s, 1, 3, 0, 0, ERR), KVF_ERR_STATE);

    /* Freed in the middle, in every state; the model may go first. */
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t x = id_of(kvf_sequence_create(cache, i % 2, ERR));
        kvf_model *brief = model_of_shape(dev, SHAPE);
        CHECK(kvf_prefill_begin(brief, cache, x, PROMPT, 7, 0, &observe, range, ERR) == KVF_OK);
        if (i > 0) CHECK(kvf_prefill_layers(brief, cache, x, 0, 1, KVF_PHASE_PROJECT, NULL, ERR) == KVF_OK);
        if (i > 1) CHECK(kvf_prefill_layers(brief, cache, x, 0, 1, KVF_PHASE_ATTEND, NULL, ERR) == KVF_OK);
        if (i > 2) CHECK(kvf_prefill_layers(brief, cache, x, 1, 1, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
        REFUSED(kvf_prefill_layers(model, cache, x, 0, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG); /* another model */
        kvf_model_free(brief);
        REFUSED(kvf_prefill_layers(brief, cache, x, 0, 1, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_ARG);
        CHECK(kvf_sequence_free(cache, x, ERR) == KVF_OK);
        check_books(cache);
    }
    kvf_cache_free(cache);
    kvf_cache_free(other);
}

static void recording(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, SHAPE, 0);
    const uint32_t s = id_of(kvf_sequence_create(cache, KVF_QUERY_HEAD, ERR));
    float *x = normals(4 * 5 * 8);
    REFUSED(kvf_record_begin(cache, s, 0, NULL, NULL, ERR), KVF_ERR_ARG);
    CHECK(kvf_record_begin(cache, s, 5, NULL, NULL, ERR) == KVF_OK);
    REFUSED(kvf_record_layer(cache, s, 2, x, x, x, ERR), KVF_ERR_ARG);
    REFUSED(kvf_record_layer(cache, s, 1, x, NULL, x, ERR), KVF_ERR_ARG);
    CHECK(kvf_record_layer(cache, s, 1, x, x, x, ERR) == KVF_OK);
    REFUSED(kvf_record_layer(cache, s, 1, x, x, x, ERR), KVF_ERR_STATE);
    CHECK(kvf_retain(cache, s, 1, 0, 0, 0, ERR) == KVF_OK);
    REFUSED(kvf_record_layer(cache, s, 1, x, x, x, ERR), KVF_ERR_STATE);
    CHECK(kvf_record_layer(cache, s, 0, x, x, x, ERR) == KVF_OK);
    REFUSED(kvf_record_layer(cache, s, 0, x, x, x, ERR), KVF_ERR_STATE);
    CHECK(info_of(cache, s).position == 5);
    /* A group's heads share pages until they change. */
    CHECK(ledger_of(cache).n_page == 2 && ledger_of(cache).promised_bytes == 4.0 * cache->page_bytes);
    free(x);
    kvf_cache_free(cache);
}

static void decoding(kvf_device *dev, kvf_model *model) {
    kvf_cache *cache = cache_of_shape(dev, SHAPE, 0);
    const uint32_t a = prefilled(model, cache, KVF_KV_HEAD), b = prefilled(model, cache, KVF_QUERY_HEAD);
    const uint32_t pair[2] = {a, b}, twice[2] = {a, a}, dead[2] = {a, 0};
    uint32_t tokens[2 * 8], again[8];
    float logits[2 * 8 * TEST_VOCAB];
    REFUSED(kvf_decode(model, cache, NULL, 1, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 0, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 0xffffffffu, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 2, 0, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 2, 0xffffffffu, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 2, 1, NULL, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, twice, 2, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, dead, 2, 1, tokens, NULL, 0, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_decode(model, cache, pair, 2, 1, tokens, logits, 2 * TEST_VOCAB * 4 - 1, NULL, ERR), KVF_ERR_ARG);
    uint32_t control[2] = {1, 0};
    REFUSED(kvf_decode(model, cache, pair, 2, 4, tokens, NULL, 0, control, ERR), KVF_ERR_CANCELLED);
    CHECK(info_of(cache, a).n_generated == 0 && tokens[0] == KV_NO_TOKEN);

    /* A fork goes its parent's way, alone or in a batch, page after page. */
    const uint32_t fork = id_of(kvf_sequence_fork(cache, a, KVF_QUERY_HEAD, ERR));
    REFUSED(kvf_sequence_fork(cache, b, KVF_KV_HEAD, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_fork(cache, b, 7, ERR), KVF_ERR_ARG);
    CHECK(kvf_decode(model, cache, pair, 2, 8, tokens, logits, sizeof logits, NULL, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, &fork, 1, 8, again, NULL, 0, NULL, ERR) == KVF_OK);
    for (uint32_t i = 0; i < 8; i++) CHECK(tokens[2 * i] == again[i] && tokens[2 * i + 1] == again[i]);
    check_books(cache);
    CHECK(info_of(cache, a).position == 14 && info_of(cache, a).n_generated == 8);
    REFUSED(kvf_sequence_logits(cache, a, logits, TEST_VOCAB, ERR), KVF_ERR_STATE); /* the last token was not run */

    /* Extending runs that token first: the same as feeding all of them. */
    const uint32_t c = prefilled(model, cache, KVF_KV_HEAD), next[2] = {9, 3};
    float want[TEST_VOCAB], got[TEST_VOCAB];
    REFUSED(kvf_extend(model, cache, c, NULL, 1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_extend(model, cache, c, next, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_extend(model, cache, c, (uint32_t[1]){TEST_VOCAB}, 1, ERR), KVF_ERR_ARG);
    CHECK(kvf_extend(model, cache, c, again, 8, ERR) == KVF_OK && kvf_extend(model, cache, c, next, 2, ERR) == KVF_OK);
    CHECK(kvf_extend(model, cache, a, next, 2, ERR) == KVF_OK);
    CHECK(kvf_sequence_logits(cache, a, got, TEST_VOCAB, ERR) == KVF_OK);
    CHECK(kvf_sequence_logits(cache, c, want, TEST_VOCAB, ERR) == KVF_OK);
    CHECK(memcmp(got, want, sizeof got) == 0 && info_of(cache, a).position == 17 && info_of(cache, c).position == 17);
    CHECK(info_of(cache, a).n_generated == 8 && info_of(cache, c).n_generated == 0);
    check_books(cache);

    /* An empty sequence may be extended too: token by token through decode, as prefill would have it. */
    const uint32_t d = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR)), e = prefilled(model, cache, KVF_KV_HEAD);
    CHECK(kvf_extend(model, cache, d, PROMPT, 7, ERR) == KVF_OK);
    CHECK(kvf_sequence_logits(cache, d, got, TEST_VOCAB, ERR) == KVF_OK);
    CHECK(kvf_sequence_logits(cache, e, want, TEST_VOCAB, ERR) == KVF_OK);
    for (uint32_t i = 0; i < TEST_VOCAB; i++) CHECK_NEAR(got[i], want[i], 1e-4);

    /* A stop token ends a sequence; extending it opens it again. */
    kvf_sampling sampling = {.size = sizeof sampling, .top_p = 1};
    REFUSED(kvf_sequence_sampling(cache, e, NULL, NULL, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_sampling(cache, e, &sampling, NULL, 1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_sampling(cache, e, &sampling, again, 65, ERR), KVF_ERR_ARG);
    sampling.top_p = 0;
    REFUSED(kvf_sequence_sampling(cache, e, &sampling, NULL, 0, ERR), KVF_ERR_ARG);
    sampling.top_p = 1;
    sampling.temperature = NAN;
    REFUSED(kvf_sequence_sampling(cache, e, &sampling, NULL, 0, ERR), KVF_ERR_ARG);
    sampling.temperature = 0;
    CHECK(kvf_sequence_sampling(cache, e, &sampling, again + 1, 1, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, &e, 1, 8, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    uint32_t at = 0;
    while (again[at] != again[1]) at++;
    CHECK(info_of(cache, e).finished == 1 && info_of(cache, e).n_generated == at + 1);
    for (uint32_t i = 0; i < 8; i++) CHECK(tokens[i] == (i <= at ? again[i] : KV_NO_TOKEN));
    CHECK(kvf_extend(model, cache, e, next, 2, ERR) == KVF_OK && info_of(cache, e).finished == 0);
    CHECK(kvf_decode(model, cache, &e, 1, 1, tokens, NULL, 0, NULL, ERR) == KVF_OK && tokens[0] != KV_NO_TOKEN);

    /* As many rows as the prompt had, but not the prompt's: no scores of the recording. */
    const uint32_t f = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const kvf_observe observe = {sizeof observe, 4, 0, 0};
    CHECK(kvf_prefill_begin(model, cache, f, PROMPT, 7, 0, &observe, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, f, 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, f, ERR) == KVF_OK);
    CHECK(kvf_retain(cache, f, 0, 0, 0, 5, ERR) == KVF_OK && kvf_extend(model, cache, f, next, 2, ERR) == KVF_OK);
    REFUSED(kvf_scores_window(cache, f, 0, 1, 0, 0, ERR), KVF_ERR_STATE);
    CHECK(kvf_scores_norm(cache, f, 0, 0, ERR) > 0);
    uint32_t positions[7];
    CHECK(kvf_read_positions(cache, f, 0, 1, positions, 7, ERR) == KVF_OK);
    for (uint32_t i = 0; i < 7; i++) CHECK(positions[i] == i + 2);
    check_books(cache);
    kvf_cache_free(cache);
}

/* At the limit a call fails whole, and works as soon as there is room. */
static void limits(kvf_device *dev, kvf_model *model) {
    kvf_cache *cache = cache_of_shape(dev, SHAPE, 0);
    uint32_t prompt[32], tokens[4];
    for (uint32_t i = 0; i < 32; i++) prompt[i] = i;
    cache->config.limit_bytes = 5.0 * cache->page_bytes;
    const uint32_t a = prefilled(model, cache, KVF_KV_HEAD), s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    CHECK(kvf_prefill_begin(model, cache, s, prompt, 32, 0, NULL, NULL, ERR) == KVF_OK);
    REFUSED(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_MEMORY);
    check_books(cache);
    CHECK(ledger_of(cache).n_page == 4);
    CHECK(kvf_sequence_free(cache, a, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    /* The first token needs no row, the second one a page in each of four tables. */
    CHECK(kvf_decode(model, cache, &s, 1, 1, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    REFUSED(kvf_decode(model, cache, &s, 1, 4, tokens, NULL, 0, NULL, ERR), KVF_ERR_MEMORY);
    check_books(cache);
    CHECK(info_of(cache, s).position == 32 && info_of(cache, s).n_generated == 1 && ledger_of(cache).n_page == 4);
    REFUSED(kvf_extend(model, cache, s, prompt, 3, ERR), KVF_ERR_MEMORY);
    CHECK(info_of(cache, s).position == 32 && info_of(cache, s).n_generated == 1);
    cache->config.limit_bytes = 0;
    CHECK(kvf_decode(model, cache, &s, 1, 4, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    CHECK(info_of(cache, s).position == 36 && info_of(cache, s).n_generated == 5);
    check_books(cache);
    kvf_cache_free(cache);
}

/* Ids of the dead stay dead, and there is an end to the living. */
static void ids(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, 1, 1, 2, KVF_F32}, 0);
    uint32_t before = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        const uint32_t s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
        if (before != 0) REFUSED(kvf_sequence_free(cache, before, ERR), KVF_ERR_ARG);
        CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
        before = s;
    }
    REFUSED(kvf_sequence_free(cache, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_free(cache, 0xffffffffu, ERR), KVF_ERR_ARG);
    uint32_t *all = malloc(KV_MAX_ID * sizeof *all);
    for (uint32_t i = 0; i < KV_MAX_ID; i++) all[i] = id_of(kvf_scores_create(cache, 1, 0, NULL, ERR));
    REFUSED(kvf_scores_create(cache, 1, 1, NULL, ERR), KVF_ERR_MEMORY);
    CHECK(kvf_object_free(cache, all[777], ERR) == KVF_OK);
    CHECK(kvf_scores_create(cache, 1, 1, NULL, ERR) > 0);
    CHECK(ledger_of(cache).n_object == KV_MAX_ID);
    free(all);
    kvf_cache_free(cache);
}

int main(void) {
    CHECK(kvf_abi_version() == KVF_ABI_VERSION);
    devices();
    kvf_device *dev = device_of_threads(2);
    caches(dev);
    models(dev);
    kvf_model *model = model_of_shape(dev, SHAPE);
    prefill(dev, model);
    recording(dev);
    decoding(dev, model);
    limits(dev, model);
    ids(dev);
    kvf_model_free(model);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
