/* What the C tests share. A failed check prints where and ends the program with status 1. */
#ifndef KVF_TEST_H
#define KVF_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"

static char test_message[512];
#define ERR test_message, (uint32_t)sizeof test_message

#define CHECK(condition)                                                                                  \
    do {                                                                                                  \
        if (!(condition)) {                                                                               \
            fprintf(stderr, "%s:%d: not true: %s (last message: %s)\n", __FILE__, __LINE__, #condition, test_message); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

/* The call must return `status`, and say why if that is an error. */
#define REFUSED(call, status)                              \
    do {                                                   \
        test_message[0] = '\0';                            \
        CHECK((call) == (status));                         \
        CHECK(strncmp(test_message, "Cannot ", 7) == 0);   \
    } while (0)

#define CHECK_NEAR(got, want, tolerance)                                                                        \
    do {                                                                                                        \
        const double test_got = (got), test_want = (want);                                                      \
        if (!(fabs(test_got - test_want) <= (tolerance) * (1 + fabs(test_want)))) {                             \
            fprintf(stderr, "%s:%d: %s is %.9g, not %.9g\n", __FILE__, __LINE__, #got, test_got, test_want);    \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* ---- Random numbers: one stream per program, the same in every run ---- */

static uint64_t test_state = 0x9e3779b97f4a7c15u;

static inline uint32_t rnd(void) {
    test_state ^= test_state << 13;
    test_state ^= test_state >> 7;
    test_state ^= test_state << 17;
    return (uint32_t)(test_state >> 32);
}
/* Below n. */
static inline uint32_t below(uint32_t n) { return rnd() % n; }
static inline float uniform(void) { return (float)(rnd() >> 8) * 0x1p-24f; }
/* Roughly normal. */
static inline float normal(void) { return (uniform() + uniform() + uniform() + uniform() - 2.0f) * 1.7320508f; }

static inline float *normals(size_t n) {
    float *x = malloc(n * sizeof *x);
    CHECK(x != NULL);
    for (size_t i = 0; i < n; i++) x[i] = normal();
    return x;
}

/* ---- Handles ---- */

static inline kvf_device *device_of_threads(uint32_t n_thread) {
    const kvf_device_options options = {.size = sizeof options, .n_thread = n_thread};
    kvf_device *dev = kvf_device_create(&options, ERR);
    CHECK(dev != NULL);
    return dev;
}

typedef struct shape {
    uint32_t n_layer, n_head, n_kv_head, head_dim, dtype;
} shape;

static inline kvf_cache *cache_of_shape(kvf_device *dev, shape s, double limit) {
    const kvf_cache_config config = {sizeof config, s.n_layer, s.n_head, s.n_kv_head, s.head_dim, s.dtype, limit};
    kvf_cache *cache = kvf_cache_create(dev, &config, ERR);
    CHECK(cache != NULL);
    return cache;
}

#define TEST_VOCAB 40u

/* A model with random weights of a type for caches of that shape. */
static inline kvf_model *model_of_dtype(kvf_device *dev, shape s, uint32_t dtype) {
    const kvf_model_config config = {.size = sizeof config, .n_layer = s.n_layer, .hidden = 16, .n_head = s.n_head,
                                     .n_kv_head = s.n_kv_head, .head_dim = s.head_dim, .intermediate = 24,
                                     .vocab = TEST_VOCAB, .weight_dtype = dtype, .flags = KVF_TIED_EMBEDDING,
                                     .norm_eps = 1e-5f, .rope_scale = 1};
    float inv_freq[128];
    uint32_t windows[64] = {0};
    for (uint32_t i = 0; i < s.head_dim / 2; i++) inv_freq[i] = powf(10000.0f, -2.0f * (float)i / (float)s.head_dim);
    kvf_model *model = kvf_model_create(dev, &config, inv_freq, windows, ERR);
    CHECK(model != NULL);
    CHECK(kvf_model_randomize(model, 7, ERR) == KVF_OK);
    return model;
}
static inline kvf_model *model_of_shape(kvf_device *dev, shape s) { return model_of_dtype(dev, s, KVF_F32); }

static inline kvf_ledger ledger_of(kvf_cache *cache) {
    kvf_ledger ledger = {.size = sizeof ledger};
    CHECK(kvf_cache_ledger(cache, &ledger, ERR) == KVF_OK);
    return ledger;
}

static inline kvf_sequence_info info_of(kvf_cache *cache, uint32_t sequence) {
    kvf_sequence_info info = {.size = sizeof info};
    CHECK(kvf_sequence_describe(cache, sequence, &info, ERR) == KVF_OK);
    return info;
}

/* The pool's own books: every page's references, what is held, and the ledger's sums. */
static inline void check_books(kvf_cache *cache) {
    uint32_t *refs = calloc(cache->n_page + 1, sizeof *refs);
    CHECK(refs != NULL);
    for (uint32_t i = 0; i < cache->sequences.n_slot; i++) {
        const kv_sequence *s = cache->sequences.slot[i].item;
        if (s == NULL) continue;
        for (size_t t = 0; t < (size_t)cache->config.n_layer * s->n_stored_head; t++) {
            CHECK(s->table[t].n_page == kv_table_pages(&s->table[t]));
            CHECK(s->table[t].packed <= s->table[t].rows);
            CHECK(s->table[t].packed == 0 ? s->table[t].frame == 0 : s->table[t].format != NULL);
            if (s->table[t].frame != 0) refs[s->table[t].frame - 1]++;
            if (s->table[t].scale != 0) refs[s->table[t].scale - 1]++;
            for (uint32_t j = 0; j < s->table[t].n_page; j++) refs[s->table[t].page[j]]++;
        }
    }
    uint32_t held = 0, shared = 0;
    double bytes = 0;
    for (uint32_t i = 0; i < cache->n_page; i++) {
        CHECK(cache->page[i].refs == refs[i]);
        CHECK((cache->page[i].data != NULL) == (refs[i] > 0));
        held += refs[i] > 0, shared += refs[i] > 1;
        bytes += refs[i] > 0 ? cache->page[i].bytes : 0;
    }
    free(refs);
    const kvf_ledger ledger = ledger_of(cache);
    CHECK(ledger.n_page == held && cache->held_page == held && cache->shared_page == shared);
    CHECK(ledger.promised_bytes == ledger.owned_bytes);
    double live = 0;
    for (uint32_t i = 0; i < cache->sequences.n_slot; i++) {
        const kv_sequence *s = cache->sequences.slot[i].item;
        if (s != NULL) live += kv_step_owned(cache, s);
    }
    CHECK(live == (double)cache->live_bytes);
    CHECK(ledger.resident_bytes == bytes + live);
    CHECK(ledger.peak_bytes >= ledger.resident_bytes);
    CHECK(cache->config.limit_bytes == 0 || ledger.peak_bytes <= cache->config.limit_bytes);
}

#endif
