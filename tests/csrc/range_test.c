/*
 * Gates far below what F16 holds: SwiGLU makes zeros of them, and neither infinities nor NaN may come of it, in prefill and
 * in decode.
 */
#include "test.h"

#define N_TOKEN 70u
#define STEPS 3u

/* Sets all rows of a tensor of the first layer to one value. */
static void fill(kvf_model *model, uint32_t tensor, float value) {
    uint32_t rows, cols;
    CHECK(kv_tensor_shape(model, tensor, &rows, &cols));
    float *data = malloc((size_t)rows * cols * sizeof *data);
    for (size_t i = 0; i < (size_t)rows * cols; i++) data[i] = value;
    CHECK(be_model_load(model, tensor, 0, 0, KVF_F32, 0, rows, data, (kv_err){ERR}) == KVF_OK);
    CHECK(be_model_finish(model, (kv_err){ERR}) == KVF_OK);
    free(data);
}

/* Logits of the prompt, then of the steps, [N_TOKEN + STEPS, TEST_VOCAB], with every gate 16 * `gate` before SwiGLU. */
static float *logits(kvf_device *dev, uint32_t dtype, float gate) {
    const shape s = {1, 4, 2, 16, dtype};
    kvf_model *model = model_of_dtype(dev, s, dtype);
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    uint32_t tokens[N_TOKEN], answered[STEPS];
    const kvf_observe observe = {.size = sizeof observe};
    float *out = malloc((N_TOKEN + STEPS) * TEST_VOCAB * sizeof *out);
    /* A norm of equal numbers is all ones, where attention adds nothing. */
    fill(model, KVF_T_EMBED, 1);
    fill(model, KVF_T_O, 0);
    fill(model, KVF_T_GATE, gate);
    for (uint32_t i = 0; i < N_TOKEN; i++) tokens[i] = i % TEST_VOCAB;
    const uint32_t id = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    CHECK(kvf_prefill_begin(model, cache, id, tokens, N_TOKEN, 0, &observe, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, id, 0, 1, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_logits(model, cache, id, out, N_TOKEN * TEST_VOCAB * sizeof *out, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, id, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, &id, 1, STEPS, answered, out + N_TOKEN * TEST_VOCAB, STEPS * TEST_VOCAB * sizeof *out,
                     NULL, ERR) == KVF_OK);
    kvf_cache_free(cache);
    kvf_model_free(model);
    return out;
}

int main(void) {
    kvf_device *dev = device_of_threads(2);
    for (uint32_t dtype = KVF_F32; dtype <= KVF_BF16; dtype++) {
        float *none = logits(dev, dtype, 0), *low = logits(dev, dtype, -16384), *some = logits(dev, dtype, 0.25f);
        bool differ = false;
        for (uint32_t i = 0; i < (N_TOKEN + STEPS) * TEST_VOCAB; i++) {
            CHECK(isfinite(low[i]));
            CHECK_NEAR(low[i], none[i], 0);
            differ |= some[i] != none[i];
        }
        CHECK(differ); /* gates do matter */
        free(none);
        free(low);
        free(some);
    }
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
