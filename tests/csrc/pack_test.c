/*
 * Packed rows against references in double: codes and scales from their definition, unpacking from the layout's text,
 * low-rank corrections, rotation, attention, and the books after every kind of change.
 */
#include "core/packed.h"
#include "cpu/convert.h"
#include "test.h"

enum { N_KV_HEAD = 2, N_HEAD = 4 };

static const kvf_format KIVI = {.size = sizeof(kvf_format), .residual = 32, .key_bits = 4, .value_bits = 4,
                                .value_axis = KVF_PER_TOKEN, .value_group = 32};

/* ---- A reader of pages that shares nothing with the library but the layout's description ---- */

static uint32_t bit(const uint8_t *p, uint32_t at) { return p[at / 8] >> at % 8 & 1u; }

static uint32_t code_at(const uint8_t *run, uint32_t bits, uint32_t i) {
    if (bits == 8) return run[i];
    if (bits == 4) {
        const uint32_t at = i % 2 * 32 + i / 2 * 4;
        return bit(run, at) | bit(run, at + 1) << 1 | bit(run, at + 2) << 2 | bit(run, at + 3) << 3;
    }
    const uint32_t low = bit(run, 2 * i) | bit(run, 2 * i + 1) << 1;
    return bits == 2 ? low : low | bit(run, 32 + i) << 2;
}

static double element(const kv_part *p, const uint8_t *page, const uint8_t *frame, uint32_t dtype, uint32_t line, uint32_t lane) {
    const uint32_t channel = p->keys ? line : lane, slot = p->keys ? lane : line;
    if (p->bits == 0) return (double)cpu_get(page + p->codes, (size_t)line * p->n_lane + lane, dtype);
    for (uint32_t i = 0; i < p->n_outlier; i++) {
        uint16_t place;
        memcpy(&place, page + p->places + 2 * i, 2);
        if (place == channel * 32 + slot) return (double)cpu_get(page + p->outliers, i, dtype);
    }
    const uint32_t code = code_at(page + p->codes + ((size_t)line * (p->ld / 16) + lane / 16) * 2 * p->bits, p->bits, lane % 16);
    const uint32_t g = p->by_line ? line * p->n_group + lane / p->group : line / p->group * p->ld + lane;
    double level = code;
    if (p->fitted) level = (double)((const float *)(const void *)(frame + p->levels))[code];
    double x = (double)cpu_get(page + p->offsets, g, KVF_F16) + (double)cpu_get(page + p->scales, g, KVF_F16) * level;
    const uint32_t n_channel = p->keys ? p->n_line : p->n_lane;
    for (uint32_t r = 0; r < p->rank; r++) {
        x += (double)cpu_get(page + p->left, r * 32 + slot, KVF_F16) *
             (double)((const float *)(const void *)(frame + p->basis))[r * n_channel + channel];
    }
    return x;
}

/* ---- Recording and packing ---- */

typedef struct recorded {
    uint32_t id, n, dim;
    float *q, *k, *v;
} recorded;

static recorded record(kvf_cache *cache, uint32_t n) {
    const uint32_t dim = cache->config.head_dim;
    recorded r = {.n = n, .dim = dim, .q = normals((size_t)N_HEAD * n * dim), .k = normals((size_t)N_KV_HEAD * n * dim),
                  .v = normals((size_t)N_KV_HEAD * n * dim)};
    const kvf_observe observe = {sizeof observe, n < 8 ? n : 8, 0, 0};
    r.id = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    CHECK(kvf_record_begin(cache, r.id, n, &observe, NULL, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, r.id, 0, r.q, r.k, r.v, ERR) == KVF_OK);
    return r;
}

static void forget(kvf_cache *cache, recorded *r) {
    CHECK(kvf_sequence_free(cache, r->id, ERR) == KVF_OK);
    free(r->q);
    free(r->k);
    free(r->v);
}

static kv_table *table(kvf_cache *cache, uint32_t id, uint32_t head) {
    return kv_table_of(kv_ids_get(&cache->sequences, id), 0, head);
}

/* A copy of backend memory; NULL stays NULL. */
static uint8_t *fetched(kvf_cache *cache, const void *data, size_t bytes) {
    if (data == NULL) return NULL;
    uint8_t *copy = malloc(bytes);
    CHECK(copy != NULL && be_download(cache->dev, copy, data, bytes, (kv_err){ERR}) == KVF_OK);
    return copy;
}

static uint8_t *frame_of(kvf_cache *cache, const kv_table *t) {
    return fetched(cache, kv_frame_data(cache, t), t->format->frame_bytes);
}

static float *rows_of(kvf_cache *cache, uint32_t id, uint32_t head, uint32_t what) {
    const uint32_t n = table(cache, id, head)->rows, dim = cache->config.head_dim;
    float *x = malloc((size_t)(n + 1) * dim * sizeof *x);
    CHECK(x != NULL);
    CHECK(kvf_read_rows(cache, id, 0, head, what, x, (double)n * dim * 4, ERR) == KVF_OK);
    return x;
}

/* What kvf_read_rows tells is what the bytes of the pages say; and with even levels within half a step of the original. */
static void check_pages(kvf_cache *cache, const recorded *r, bool bounded) {
    const kvf_cache_config *c = &cache->config;
    for (uint32_t h = 0; h < N_KV_HEAD; h++) {
        const kv_table *t = table(cache, r->id, h);
        const kv_layout l = kv_layout_of(c, &t->format->config);
        uint8_t *frame = frame_of(cache, t), *page = NULL;
        float *keys = rows_of(cache, r->id, h, 0), *values = rows_of(cache, r->id, h, 1);
        for (uint32_t row = 0; row < t->packed; row++) {
            if (row % KVF_PAGE_ROWS == 0) {
                free(page);
                page = fetched(cache, kv_page_data(cache, t, row), t->format->page_bytes);
            }
            for (uint32_t d = 0; d < r->dim; d++) {
                const size_t at = (size_t)row * r->dim + d;
                const double key = element(&l.key, page, frame, c->row_dtype, d, row % 32);
                const double value = element(&l.value, page, frame, c->row_dtype, row % 32, d);
                CHECK_NEAR(keys[at], key, 2e-6);
                CHECK_NEAR(values[at], value, 2e-6);
                if (!bounded) continue;
                const kv_part *parts[2] = {&l.key, &l.value};
                const double got[2] = {key, value};
                const double want[2] = {r->k[(size_t)h * r->n * r->dim + at], r->v[(size_t)h * r->n * r->dim + at]};
                for (uint32_t w = 0; w < 2; w++) {
                    const kv_part *p = parts[w];
                    const uint32_t line = w == 0 ? d : row % 32, lane = w == 0 ? row % 32 : d;
                    const uint32_t g = p->by_line ? line * p->n_group + lane / p->group : line / p->group * p->ld + lane;
                    const double step = p->bits == 0 ? 0 : (double)cpu_get(page + p->scales, g, KVF_F16);
                    CHECK(fabs(got[w] - want[w]) <= 0.5 * step + 1e-6);
                }
            }
        }
        free(keys);
        free(values);
        free(frame);
        free(page);
    }
}

/* Every code is the nearest one to its element, and scales are no wider than f16 makes them. */
static void test_codes(kvf_device *dev) {
    static const uint32_t BITS[] = {2, 3, 4, 8};
    for (uint32_t i = 0; i < 48; i++) {
        const shape s = {1, N_HEAD, N_KV_HEAD, i % 3 == 0 ? 64 : i % 3 == 1 ? 80 : 34, i % 5 == 4 ? KVF_BF16 : KVF_F32};
        kvf_cache *cache = cache_of_shape(dev, s, 0);
        kvf_format f = {.size = sizeof f, .residual = below(70), .key_bits = BITS[below(4)], .value_bits = BITS[below(4)],
                        .key_axis = below(2), .value_axis = below(2), .flags = below(2) ? KVF_PACK_ONCE : 0};
        if (f.key_axis == KVF_PER_TOKEN) f.key_group = 16 * below(4);
        if (f.value_axis == KVF_PER_TOKEN) f.value_group = 16 * below(4);
        recorded r = record(cache, 1 + below(200));
        CHECK(kvf_pack(cache, r.id, 0, &f, 0, 0, ERR) == KVF_OK);
        const uint32_t more = r.n > f.residual ? r.n - f.residual : 0;
        const uint32_t want = f.flags ? more : more / 32 * 32;
        CHECK(table(cache, r.id, 0)->packed == want && table(cache, r.id, 1)->packed == want);
        check_pages(cache, &r, s.dtype == KVF_F32);
        check_books(cache);
        forget(cache, &r);
        CHECK(ledger_of(cache).resident_bytes == 0 && cache->formats == NULL);
        kvf_cache_free(cache);
    }
}

/* A group from -1 to 2 with 2 bits has steps of 1; halves go to the even code. */
static void test_known_group(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, 1, 1, 16, KVF_F32}, 0);
    float k[32 * 16], v[32 * 16];
    for (uint32_t i = 0; i < 32 * 16; i++) k[i] = v[i] = i % 16 == 0 ? -1.0f : i % 16 == 1 ? 2.0f : i % 16 % 2 ? 0.5f : -0.5f;
    const uint32_t id = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    CHECK(kvf_record_begin(cache, id, 32, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, id, 0, k, k, v, ERR) == KVF_OK);
    const kvf_format f = {.size = sizeof f, .value_bits = 2, .value_axis = KVF_PER_TOKEN};
    CHECK(kvf_pack(cache, id, 0, &f, 0, 0, ERR) == KVF_OK);
    float got[32 * 16];
    CHECK(kvf_read_rows(cache, id, 0, 0, 1, got, sizeof got, ERR) == KVF_OK);
    for (uint32_t i = 0; i < 32 * 16; i++) CHECK(got[i] == (i % 16 == 0 ? -1.0f : i % 16 == 1 ? 2.0f : i % 16 % 2 ? 1.0f : -1.0f));
    CHECK(kvf_read_rows(cache, id, 0, 0, 0, got, sizeof got, ERR) == KVF_OK);
    CHECK(memcmp(got, k, sizeof k) == 0);
    kvf_cache_free(cache);
}

static uint64_t mix(uint64_t hash, const uint8_t *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t mix_part(uint64_t hash, const kv_part *p, const uint8_t *page, const uint8_t *frame, uint32_t element) {
    hash = mix(hash, page + p->codes, (size_t)p->n_line * (p->ld / KV_RUN) * 2 * p->bits);
    hash = mix(hash, page + p->offsets, 4 * p->n_param);
    hash = mix(hash, page + p->places, 2 * p->n_outlier);
    hash = mix(hash, page + p->outliers, p->n_outlier * element);
    return p->fitted ? mix(hash, frame + p->levels, (size_t)4 << p->bits) : hash;
}

/* Offsets, scales, codes, outliers and levels are exactly specified: both builds, on whatever machine, make these bytes. */
static void test_bytes(kvf_device *dev) {
    static const uint64_t WANT[4] = {0xf22bda781eb98d34u, 0x762718b6322e14c5u, 0x90d380e8adea7f84u, 0x8944b790022f092fu};
    for (uint32_t i = 0; i < 4; i++) {
        test_state = 4711 + i;
        const shape s = {1, N_HEAD, N_KV_HEAD, i % 2 ? 80 : 64, i < 2 ? KVF_F32 : KVF_BF16};
        kvf_cache *cache = cache_of_shape(dev, s, 0);
        recorded r = record(cache, 150);
        kvf_format f = {.size = sizeof f, .flags = KVF_PACK_ONCE, .key_bits = 2 + i % 3, .value_bits = i == 0 ? 8 : 5 - (2 + i % 3)};
        if (f.value_bits < 2) f.value_bits = 3;
        f.key_axis = i == 3, f.value_axis = i != 2, f.value_group = i == 1 ? 32 : 0;
        f.key_outliers = 7 * i, f.value_outliers = i == 2 ? 0 : 11;
        f.key_levels = i > 1, f.value_levels = i == 1 || i == 3;
        CHECK(kvf_pack(cache, r.id, 0, &f, 0, 0, ERR) == KVF_OK);
        uint64_t hash = 0xcbf29ce484222325u;
        for (uint32_t h = 0; h < N_KV_HEAD; h++) {
            const kv_table *t = table(cache, r.id, h);
            const kv_layout l = kv_layout_of(&cache->config, &f);
            uint8_t *frame = frame_of(cache, t);
            for (uint32_t row = 0; row < t->packed; row += KVF_PAGE_ROWS) {
                uint8_t *page = fetched(cache, kv_page_data(cache, t, row), t->format->page_bytes);
                hash = mix_part(hash, &l.key, page, frame, s.dtype == KVF_F32 ? 4 : 2);
                hash = mix_part(hash, &l.value, page, frame, s.dtype == KVF_F32 ? 4 : 2);
                hash = mix(hash, page + l.positions, KVF_PAGE_ROWS * sizeof(uint32_t));
                free(page);
            }
            free(frame);
        }
        if (hash != WANT[i]) fprintf(stderr, "format %u: 0x%016llx\n", i, (unsigned long long)hash);
        CHECK(hash == WANT[i]);
        forget(cache, &r);
        kvf_cache_free(cache);
    }
}

static double error_of(kvf_cache *cache, const recorded *r) {
    double sum = 0;
    for (uint32_t h = 0; h < N_KV_HEAD; h++) {
        float *keys = rows_of(cache, r->id, h, 0), *values = rows_of(cache, r->id, h, 1);
        for (size_t i = 0; i < (size_t)r->n * r->dim; i++) {
            const double a = (double)keys[i] - (double)r->k[(size_t)h * r->n * r->dim + i];
            const double b = (double)values[i] - (double)r->v[(size_t)h * r->n * r->dim + i];
            sum += a * a + b * b;
        }
        free(keys);
        free(values);
    }
    return sum;
}

/* Outliers, fitted levels and low rank each lose less than without, where there is something to gain. */
static void test_corrections(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, N_HEAD, N_KV_HEAD, 64, KVF_F32}, 0);
    for (uint32_t i = 0; i < 3; i++) {
        double error[2];
        for (uint32_t with = 0; with < 2; with++) {
            test_state = 1234 + i;
            recorded r = record(cache, 160);
            if (i == 0) { /* some elements far out */
                for (uint32_t j = 0; j < 100; j++) r.k[below(N_KV_HEAD * 160 * 64)] = r.v[below(N_KV_HEAD * 160 * 64)] = 20;
            }
            if (i == 2) { /* a few directions far stronger than the rest, which coarse codes lose together */
                for (uint32_t row = 0; row < N_KV_HEAD * 160; row++) {
                    const float a = 8 * normal();
                    for (uint32_t d = 0; d < 64; d++) {
                        r.k[row * 64 + d] = 0.1f * r.k[row * 64 + d] + a * (d < 4 ? 1 : 0.05f);
                        r.v[row * 64 + d] = 0.1f * r.v[row * 64 + d] + a * (d < 4 ? 1 : 0.05f);
                    }
                }
            }
            CHECK(kvf_sequence_free(cache, r.id, ERR) == KVF_OK);
            r.id = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
            CHECK(kvf_record_begin(cache, r.id, r.n, NULL, NULL, ERR) == KVF_OK);
            CHECK(kvf_record_layer(cache, r.id, 0, r.q, r.k, r.v, ERR) == KVF_OK);
            kvf_format f = {.size = sizeof f, .key_bits = 2, .value_bits = 2, .value_axis = KVF_PER_TOKEN};
            if (with && i == 0) f.key_outliers = f.value_outliers = 40;
            if (with && i == 1) f.key_levels = f.value_levels = KVF_LEVELS_FITTED;
            if (with && i == 2) f.key_rank = f.value_rank = 2;
            CHECK(kvf_pack(cache, r.id, 0, &f, 0, 0, ERR) == KVF_OK);
            check_pages(cache, &r, false);
            check_books(cache);
            error[with] = error_of(cache, &r);
            forget(cache, &r);
        }
        CHECK(error[1] < 0.9 * error[0]);
    }
    kvf_cache_free(cache);
}

/* The basis is orthonormal, and no other one of its rank catches more of the loss: its vectors are eigenvectors. */
static void test_basis(kvf_device *dev) {
    enum { DIM = 32, RANK = 3, N = 96 };
    kvf_cache *cache = cache_of_shape(dev, (shape){1, N_HEAD, N_KV_HEAD, DIM, KVF_F32}, 0);
    recorded r = record(cache, N);
    kvf_format f = {.size = sizeof f, .value_bits = 2, .value_axis = KVF_PER_TOKEN, .value_rank = RANK};
    CHECK(kvf_pack(cache, r.id, 0, &f, 0, 0, ERR) == KVF_OK);
    const kv_table *t = table(cache, r.id, 0);
    const kv_layout l = kv_layout_of(&cache->config, &f);
    kv_part bare = l.value;
    bare.rank = 0;
    uint8_t *frame = frame_of(cache, t), *pages[N / 32];
    const float *basis = (const float *)(const void *)(frame + l.value.basis);
    for (uint32_t i = 0; i < N / 32; i++) pages[i] = fetched(cache, kv_page_data(cache, t, i * 32), t->format->page_bytes);
    static double loss[N][DIM], square[DIM][DIM];
    for (uint32_t row = 0; row < N; row++) {
        for (uint32_t d = 0; d < DIM; d++) {
            loss[row][d] = (double)r.v[row * DIM + d] - element(&bare, pages[row / 32], NULL, KVF_F32, row % 32, d);
        }
        for (uint32_t a = 0; a < DIM; a++) {
            for (uint32_t b = 0; b < DIM; b++) square[a][b] += loss[row][a] * loss[row][b];
        }
    }
    double before = INFINITY;
    for (uint32_t i = 0; i < RANK; i++) {
        for (uint32_t j = 0; j <= i; j++) {
            double dot = 0;
            for (uint32_t d = 0; d < DIM; d++) dot += (double)basis[i * DIM + d] * (double)basis[j * DIM + d];
            CHECK(fabs(dot - (i == j)) < 2e-2); /* close eigenvalues part slowly */
        }
        double value = 0;
        for (uint32_t a = 0; a < DIM; a++) {
            for (uint32_t b = 0; b < DIM; b++) value += (double)basis[i * DIM + a] * square[a][b] * (double)basis[i * DIM + b];
        }
        CHECK(value <= before * 1.02);
        before = value;
        for (uint32_t row = 0; row < N; row++) { /* left is the loss along the basis */
            double dot = 0;
            for (uint32_t d = 0; d < DIM; d++) dot += loss[row][d] * (double)basis[i * DIM + d];
            CHECK_NEAR(cpu_get(pages[row / 32] + l.value.left, i * 32 + row % 32, KVF_F16), dot, 1e-3);
        }
    }
    /* more than the trace shares out by chance */
    double trace = 0;
    for (uint32_t d = 0; d < DIM; d++) trace += square[d][d];
    CHECK(before > 1.2 * trace / DIM);
    for (uint32_t i = 0; i < N / 32; i++) free(pages[i]);
    free(frame);
    forget(cache, &r);
    kvf_cache_free(cache);
}

/* Chosen rows and channels: what is stored, in which order, and what is gone. */
static void test_chosen(kvf_device *dev) {
    enum { DIM = 16, N = 90 };
    kvf_cache *cache = cache_of_shape(dev, (shape){1, N_HEAD, N_KV_HEAD, DIM, KVF_F32}, 0);
    recorded r = record(cache, N);
    const uint32_t counts[2] = {41, 7}, channel_counts[2] = {5, 5};
    uint32_t rows[48], channels[10] = {0, 3, 4, 9, 15, 1, 2, 7, 8, 12};
    for (uint32_t i = 0; i < 41; i++) rows[i] = 2 * i;
    for (uint32_t i = 0; i < 7; i++) rows[41 + i] = 80 + i;
    const uint32_t sel = (uint32_t)kvf_selection_create(cache, 2, counts, rows, ERR);
    const uint32_t kept = (uint32_t)kvf_selection_create(cache, 2, channel_counts, channels, ERR);
    const kvf_format f = {.size = sizeof f, .flags = KVF_PACK_ONCE, .key_channels = 5};
    REFUSED(kvf_pack(cache, r.id, 0, &f, sel, 0, ERR), KVF_ERR_ARG);
    CHECK(kvf_pack(cache, r.id, 0, &f, sel, kept, ERR) == KVF_OK);
    check_books(cache);
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t positions[N];
        CHECK(table(cache, r.id, h)->packed == counts[h] && table(cache, r.id, h)->rows == N);
        CHECK(kvf_read_positions(cache, r.id, 0, h, positions, N, ERR) == KVF_OK);
        float *keys = rows_of(cache, r.id, h, 0), *values = rows_of(cache, r.id, h, 1);
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t from = positions[i];
            if (i < counts[h]) CHECK(from == rows[h * 41 + i]);
            if (i > counts[h]) CHECK(from > positions[i - 1]);
            for (uint32_t d = 0; d < DIM; d++) {
                bool stored = i >= counts[h];
                for (uint32_t c = 0; c < 5; c++) stored = stored || channels[h * 5 + c] == d;
                const size_t at = ((size_t)h * N + from) * DIM + d;
                CHECK(keys[i * DIM + d] == (stored ? r.k[at] : 0));
                CHECK(values[i * DIM + d] == r.v[at]);
            }
        }
        free(keys);
        free(values);
    }
    REFUSED(kvf_pack(cache, r.id, 0, &f, sel, kept, ERR), KVF_ERR_STATE);
    /* evicting takes rows of both parts */
    CHECK(kvf_retain(cache, r.id, 0, 0, 20, 10, ERR) == KVF_OK);
    CHECK(table(cache, r.id, 0)->packed == 20 && table(cache, r.id, 1)->packed == 7 && table(cache, r.id, 0)->rows == 30);
    check_books(cache);
    CHECK(kvf_object_free(cache, sel, ERR) == KVF_OK && kvf_object_free(cache, kept, ERR) == KVF_OK);
    forget(cache, &r);
    kvf_cache_free(cache);
}

/* Random retains, merges, spreads and forks: books hold, and rows that stay whole keep their bytes. */
static void test_changes(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, N_HEAD, N_KV_HEAD, 32, KVF_F32}, 0);
    for (uint32_t round = 0; round < 30; round++) {
        recorded r = record(cache, 40 + below(260));
        kvf_format f = KIVI;
        f.residual = below(64);
        if (below(2)) f.key_outliers = 3, f.value_rank = 2, f.value_levels = KVF_LEVELS_FITTED;
        if (below(3) == 0) f.flags = KVF_PACK_ONCE;
        CHECK(kvf_pack(cache, r.id, 0, &f, 0, 0, ERR) == KVF_OK);
        const uint32_t fork = (uint32_t)kvf_sequence_fork(cache, r.id, below(2) ? KVF_QUERY_HEAD : KVF_KV_HEAD, ERR);
        check_books(cache);
        float *before = rows_of(cache, r.id, 0, 0);
        for (uint32_t step = 0; step < 4; step++) {
            const uint32_t rows = table(cache, fork, 0)->rows, first = below(rows + 1), last = below(rows - first + 1);
            const uint32_t whole = first / 32 < table(cache, fork, 0)->packed / 32 ? first / 32 : table(cache, fork, 0)->packed / 32;
            float *old = rows_of(cache, fork, 0, 0);
            const bool merges = below(3) == 0;
            if (merges) {
                CHECK(kvf_retain_merged(cache, fork, 0, 0, first, last, below(2), ERR) == KVF_OK);
            } else {
                CHECK(kvf_retain(cache, fork, 0, 0, first, last, ERR) == KVF_OK);
            }
            check_books(cache);
            CHECK(table(cache, fork, 0)->rows == first + last);
            float *now = rows_of(cache, fork, 0, 0);
            if (!merges) CHECK(memcmp(old, now, (size_t)whole * 32 * 32 * sizeof *old) == 0);
            for (uint32_t i = 0; i < (first + last) * 32; i++) CHECK(isfinite(now[i]));
            free(old);
            free(now);
            if (first + last < 2) break;
        }
        float *after = rows_of(cache, r.id, 0, 0); /* the fork's parent saw nothing of it */
        CHECK(memcmp(before, after, (size_t)r.n * 32 * sizeof *after) == 0);
        free(before);
        free(after);
        CHECK(kvf_sequence_free(cache, fork, ERR) == KVF_OK);
        forget(cache, &r);
        CHECK(ledger_of(cache).resident_bytes == 0);
    }
    kvf_cache_free(cache);
}

/* Decode packs what comes due; books after every step; the batch does not matter; a limit that is too low is an error. */
static void test_decode(kvf_device *dev) {
    const shape s = {2, N_HEAD, N_KV_HEAD, 16, KVF_F32};
    kvf_model *model = model_of_shape(dev, s);
    kvf_format formats[3] = {KIVI, KIVI, KIVI};
    formats[0].residual = 16;
    formats[1].flags = KVF_KEYS_UNROTATED;
    formats[1].key_levels = formats[1].value_levels = KVF_LEVELS_FITTED;
    formats[1].key_outliers = 4;
    formats[2].key_rank = formats[2].value_rank = 2;
    for (uint32_t i = 0; i < 3; i++) {
        kvf_cache *cache = cache_of_shape(dev, s, 0);
        uint32_t ids[3], prompt[77];
        for (uint32_t j = 0; j < 77; j++) prompt[j] = below(TEST_VOCAB);
        for (uint32_t j = 0; j < 3; j++) {
            ids[j] = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
            const uint32_t n = j == 2 ? 77 : 50; /* two of the same, one other */
            CHECK(kvf_prefill_begin(model, cache, ids[j], prompt, n, 0, NULL, NULL, ERR) == KVF_OK);
            CHECK(kvf_prefill_layers(model, cache, ids[j], 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
            CHECK(kvf_prefill_end(model, cache, ids[j], ERR) == KVF_OK);
            for (uint32_t layer = 0; layer < 2; layer++) CHECK(kvf_pack(cache, ids[j], layer, &formats[i], 0, 0, ERR) == KVF_OK);
        }
        static uint32_t alone[300], tokens[3];
        CHECK(kvf_decode(model, cache, ids, 1, 300, alone, NULL, 0, NULL, ERR) == KVF_OK);
        for (uint32_t step = 0; step < 300; step++) {
            CHECK(kvf_decode(model, cache, ids + 1, 2, 1, tokens, NULL, 0, NULL, ERR) == KVF_OK);
            CHECK(tokens[0] == alone[step]);
            check_books(cache);
            const kv_table *t = table(cache, ids[1], 0);
            CHECK(t->rows - t->packed < formats[i].residual + 33 && t->rows == 50 + step);
        }
        kvf_cache_free(cache);
    }
    kvf_model_free(model);
}

/*
 * A step over packed and plain rows gives the logits of one over plain rows with the same values: 16-bit rows, groups of
 * query heads, lengths off every page and chunk, partly filled pages, chosen rows, a sliding window.
 */
static void test_attention(kvf_device *dev) {
    for (uint32_t i = 0; i < 20; i++) {
        const uint32_t bits = i % 2 ? 4 : 2, dim = i / 2 % 2 ? 128 : 64, group = 1u << i / 4 % 4, dtype = i % 3 ? KVF_BF16 : KVF_F16;
        const shape s = {1, 2 * group, 2, dim, KVF_F32};
        kvf_model *model = model_of_shape(dev, s);
        if (i % 5 == 4) model->layer_window[0] = 40;
        shape narrow = s;
        narrow.dtype = dtype;
        kvf_cache *cache = cache_of_shape(dev, narrow, 0), *exact = cache_of_shape(dev, s, 0);
        const uint32_t n = i == 3 ? 700 : 97 + below(160); /* enough that the rounding of the new rows counts little */
        recorded r = {.n = n, .dim = dim, .q = normals((size_t)s.n_head * n * dim), .k = normals((size_t)2 * n * dim),
                      .v = normals((size_t)2 * n * dim)};
        r.id = (uint32_t)kvf_sequence_create(cache, i % 7 == 6 ? KVF_QUERY_HEAD : KVF_KV_HEAD, ERR);
        CHECK(kvf_record_begin(cache, r.id, n, NULL, NULL, ERR) == KVF_OK);
        CHECK(kvf_record_layer(cache, r.id, 0, r.q, r.k, r.v, ERR) == KVF_OK);
        kvf_format f = {.size = sizeof f, .residual = below(40), .key_bits = bits, .value_bits = bits, .value_axis = KVF_PER_TOKEN,
                        .value_group = i % 4 == 3 ? 0 : i % 4 == 2 ? 16 : 32, .flags = i % 3 == 2 ? KVF_PACK_ONCE : 0};
        while (n > f.residual && (n - f.residual) % 32 > 28) f.residual++; /* nothing comes due in three steps */
        if (i >= 16) f.key_outliers = 5, f.value_rank = 2, f.key_levels = KVF_LEVELS_FITTED; /* any other format */
        uint32_t chosen = 0;
        if (i % 6 == 5) { /* every third row */
            const uint32_t count = n / 3;
            uint32_t rows[300];
            for (uint32_t k = 0; k < count; k++) rows[k] = 3 * k;
            CHECK(f.flags == KVF_PACK_ONCE);
            chosen = (uint32_t)kvf_selection_create(cache, 1, &count, rows, ERR);
        }
        CHECK(kvf_pack(cache, r.id, 0, &f, chosen, 0, ERR) == KVF_OK);
        /* the same values, plain, at their positions; every reader of a group has the same rows here */
        const uint32_t readers = i % 7 == 6 ? group : 1;
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t positions[1000];
            CHECK(kvf_read_positions(cache, r.id, 0, h * readers, positions, n, ERR) == KVF_OK);
            float *keys = rows_of(cache, r.id, h * readers, 0), *values = rows_of(cache, r.id, h * readers, 1);
            for (uint32_t row = 0; row < n; row++) {
                const size_t to = ((size_t)h * n + positions[row]) * dim;
                memcpy(r.k + to, keys + (size_t)row * dim, dim * sizeof(float));
                memcpy(r.v + to, values + (size_t)row * dim, dim * sizeof(float));
            }
            free(keys);
            free(values);
        }
        const uint32_t twin = (uint32_t)kvf_sequence_create(exact, KVF_KV_HEAD, ERR);
        CHECK(kvf_record_begin(exact, twin, n, NULL, NULL, ERR) == KVF_OK);
        CHECK(kvf_record_layer(exact, twin, 0, r.q, r.k, r.v, ERR) == KVF_OK);
        for (uint32_t step = 0; step < 3; step++) {
            const uint32_t token = below(TEST_VOCAB);
            float got[TEST_VOCAB], want[TEST_VOCAB];
            CHECK(kvf_extend(model, cache, r.id, &token, 1, ERR) == KVF_OK);
            CHECK(kvf_extend(model, exact, twin, &token, 1, ERR) == KVF_OK);
            CHECK(kvf_sequence_logits(cache, r.id, got, TEST_VOCAB, ERR) == KVF_OK);
            CHECK(kvf_sequence_logits(exact, twin, want, TEST_VOCAB, ERR) == KVF_OK);
            for (uint32_t t = 0; t < TEST_VOCAB; t++) CHECK_NEAR(got[t], want[t], 4e-3);
        }
        if (chosen != 0) CHECK(kvf_object_free(cache, chosen, ERR) == KVF_OK);
        forget(cache, &r);
        kvf_cache_free(cache);
        kvf_cache_free(exact);
        kvf_model_free(model);
    }
}

/* Scores of a packed layer, against those of plain rows with the same values and against their definition. */
static void test_scores(kvf_device *dev) {
    for (uint32_t i = 0; i < 8; i++) {
        const uint32_t dim = i % 2 ? 64 : 34, n = 40 + below(120), window = 1 + below(8), n_block = (n + 31) / 32;
        const shape s = {1, N_HEAD, N_KV_HEAD, dim, KVF_F32};
        kvf_cache *cache = cache_of_shape(dev, s, 0);
        recorded r = record(cache, n);
        kvf_format f = {.size = sizeof f, .residual = below(30), .key_bits = 3, .value_bits = 2, .value_axis = KVF_PER_TOKEN,
                        .key_outliers = 4, .value_rank = 1, .flags = i % 4 > 1 ? KVF_PACK_ONCE : 0};
        uint32_t chosen = 0, rows[80];
        const uint32_t count = n / 2;
        for (uint32_t k = 0; k < count; k++) rows[k] = 2 * k + 1;
        if (i % 4 == 3) chosen = (uint32_t)kvf_selection_create(cache, 1, &count, rows, ERR);
        CHECK(kvf_pack(cache, r.id, 0, &f, chosen, 0, ERR) == KVF_OK);
        CHECK(table(cache, r.id, 0)->packed > 0);
        /* the twin's rows are in order of position; at[h][row] is where row `row` of the packed head is there */
        static uint32_t at[N_KV_HEAD][200];
        for (uint32_t h = 0; h < N_KV_HEAD; h++) {
            CHECK(kvf_read_positions(cache, r.id, 0, h, at[h], n, ERR) == KVF_OK);
            float *x[2] = {rows_of(cache, r.id, h, 0), rows_of(cache, r.id, h, 1)}, *to[2] = {r.k, r.v};
            for (uint32_t what = 0; what < 2; what++) {
                float norms[N_KV_HEAD * 200];
                const uint32_t id = (uint32_t)kvf_scores_norm(cache, r.id, 0, what, ERR);
                CHECK(kvf_scores_read(cache, id, norms, N_KV_HEAD * n, ERR) == KVF_OK);
                for (uint32_t row = 0; row < n; row++) {
                    double square = 0;
                    for (uint32_t d = 0; d < dim; d++) square += (double)x[what][row * dim + d] * (double)x[what][row * dim + d];
                    CHECK_NEAR(norms[h * n + row], sqrt(square), 1e-5);
                    memcpy(to[what] + ((size_t)h * n + at[h][row]) * dim, x[what] + (size_t)row * dim, dim * sizeof(float));
                }
                free(x[what]);
                CHECK(kvf_object_free(cache, id, ERR) == KVF_OK);
            }
        }
        const kvf_observe observe = {sizeof observe, 8, 0, 0};
        const uint32_t twin = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
        CHECK(kvf_record_begin(cache, twin, n, &observe, NULL, ERR) == KVF_OK);
        CHECK(kvf_record_layer(cache, twin, 0, r.q, r.k, r.v, ERR) == KVF_OK);
        for (uint32_t reduce = 0; reduce < 3; reduce++) {
            float got[N_KV_HEAD * 200], want[N_KV_HEAD * 200];
            const uint32_t flags = KVF_WINDOW_ALL_ROWS | (reduce ? KVF_WINDOW_REDUCE_FIRST : KVF_WINDOW_MEAN);
            const uint32_t a = (uint32_t)kvf_scores_window(cache, r.id, 0, window, flags, reduce, ERR);
            const uint32_t b = (uint32_t)kvf_scores_window(cache, twin, 0, window, flags, reduce, ERR);
            CHECK(kvf_scores_read(cache, a, got, N_KV_HEAD * n, ERR) == KVF_OK && kvf_scores_read(cache, b, want, N_KV_HEAD * n, ERR) == KVF_OK);
            for (uint32_t h = 0; h < N_KV_HEAD; h++) {
                for (uint32_t row = 0; row < n; row++) CHECK_NEAR(got[h * n + row], want[h * n + at[h][row]], 1e-5);
            }
            CHECK(kvf_object_free(cache, a, ERR) == KVF_OK && kvf_object_free(cache, b, ERR) == KVF_OK);
            /* channels: mean squares of the last queries and of all keys */
            const uint32_t c = (uint32_t)kvf_scores_channels(cache, r.id, 0, window, reduce, ERR);
            CHECK(kvf_scores_read(cache, c, got, N_KV_HEAD * dim, ERR) == KVF_OK);
            for (uint32_t h = 0; h < N_KV_HEAD; h++) {
                for (uint32_t d = 0; d < dim; d++) {
                    double keys = 0, queries = 0;
                    for (uint32_t row = 0; row < n; row++) keys += pow((double)r.k[((size_t)h * n + row) * dim + d], 2) / n;
                    for (uint32_t g = 0; g < N_HEAD / N_KV_HEAD; g++) {
                        double sum = 0;
                        for (uint32_t w = n - window; w < n; w++) {
                            sum += pow((double)r.q[((size_t)(h * (N_HEAD / N_KV_HEAD) + g) * n + w) * dim + d], 2) / window;
                        }
                        queries = reduce == KVF_MAX ? fmax(queries, sum) : queries + sum;
                    }
                    if (reduce == KVF_MEAN) queries /= N_HEAD / N_KV_HEAD;
                    CHECK_NEAR(got[h * dim + d], queries * keys, 1e-5);
                }
            }
            CHECK(kvf_object_free(cache, c, ERR) == KVF_OK);
        }
        float maps[2][N_HEAD * 6 * 6];
        const double bytes = (double)N_HEAD * n_block * n_block * sizeof(float);
        CHECK(kvf_attention_map(cache, r.id, 0, 32, maps[0], bytes, ERR) == KVF_OK);
        CHECK(kvf_attention_map(cache, twin, 0, 32, maps[1], bytes, ERR) == KVF_OK);
        for (uint32_t k = 0; k < N_HEAD * n_block * n_block; k++) CHECK_NEAR(maps[0][k], maps[1][k], 1e-5);
        if (chosen != 0) CHECK(kvf_object_free(cache, chosen, ERR) == KVF_OK);
        forget(cache, &r);
        kvf_cache_free(cache);
    }
}

/* Formats that make no sense. */
static void test_refusals(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, N_HEAD, N_KV_HEAD, 16, KVF_F32}, 0);
    recorded r = record(cache, 64);
    kvf_format f[16];
    for (uint32_t i = 0; i < 16; i++) f[i] = KIVI;
    f[0].size = 60;
    f[1].flags = 4;
    f[2].residual = UINT32_MAX;
    f[3].key_channels = 17;
    f[4].key_channels = 8;
    f[5].key_bits = 5;
    f[6].key_bits = 0, f[6].key_rank = 1;
    f[7].value_axis = 2;
    f[8].key_group = 16;
    f[9].value_group = 24;
    f[10].key_levels = KVF_LEVELS_FITTED, f[10].key_bits = 8;
    f[11].value_levels = 2;
    f[12].key_outliers = 16 * 32;
    f[13].value_rank = 17;
    f[14].key_bits = f[14].value_bits = f[14].value_axis = f[14].value_group = 0;
    f[15].flags = KVF_KEYS_UNROTATED, f[15].key_bits = 0;
    double bytes[2];
    for (uint32_t i = 0; i < 16; i++) {
        REFUSED(kvf_pack(cache, r.id, 0, &f[i], 0, 0, ERR), KVF_ERR_ARG);
        REFUSED(kvf_format_bytes(cache, &f[i], bytes, ERR), KVF_ERR_ARG);
    }
    kvf_format unrotated = KIVI;
    unrotated.flags = KVF_KEYS_UNROTATED;
    REFUSED(kvf_pack(cache, r.id, 0, &unrotated, 0, 0, ERR), KVF_ERR_STATE); /* recorded: no rotation is known */
    REFUSED(kvf_pack(cache, r.id, 0, NULL, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_pack(cache, r.id, 1, &KIVI, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_pack(cache, r.id, 0, &KIVI, 7, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_pack(cache, r.id, 0, &KIVI, 0, 7, ERR), KVF_ERR_ARG);
    REFUSED(kvf_format_bytes(cache, &KIVI, NULL, ERR), KVF_ERR_ARG);
    CHECK(cache->formats == NULL && table(cache, r.id, 0)->format == NULL);
    cache->config.limit_bytes = (double)cache->held_bytes + 100;
    REFUSED(kvf_pack(cache, r.id, 0, &KIVI, 0, 0, ERR), KVF_ERR_MEMORY);
    check_books(cache);
    cache->config.limit_bytes = 0;
    CHECK(kvf_pack(cache, r.id, 0, &KIVI, 0, 0, ERR) == KVF_OK);
    CHECK(kvf_pack(cache, r.id, 0, &KIVI, 0, 0, ERR) == KVF_OK); /* nothing is left to do */
    kvf_format other = KIVI;
    other.key_bits = 2;
    REFUSED(kvf_pack(cache, r.id, 0, &other, 0, 0, ERR), KVF_ERR_STATE);
    forget(cache, &r);
    kvf_cache_free(cache);
}

int main(void) {
    kvf_device *dev = device_of_threads(2);
    test_codes(dev);
    test_known_group(dev);
    test_bytes(dev);
    test_corrections(dev);
    test_basis(dev);
    test_chosen(dev);
    test_changes(dev);
    test_attention(dev);
    test_scores(dev);
    test_decode(dev);
    test_refusals(dev);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
