/* Rows merged into others against the formula in double, over shapes and layouts; values spread; books stay right. */
#include "test.h"

typedef struct filled {
    kvf_cache *cache;
    uint32_t sequence, n;
    float *q, *k, *v;
} filled;

static filled fill(kvf_device *dev, shape s, uint32_t granularity, uint32_t n) {
    filled f = {cache_of_shape(dev, s, 0), 0, n, normals((size_t)s.n_head * n * s.head_dim),
                normals((size_t)s.n_kv_head * n * s.head_dim), normals((size_t)s.n_kv_head * n * s.head_dim)};
    f.sequence = (uint32_t)kvf_sequence_create(f.cache, granularity, ERR);
    const kvf_observe observe = {.size = sizeof observe};
    CHECK(kvf_record_begin(f.cache, f.sequence, n, &observe, NULL, ERR) == KVF_OK);
    for (uint32_t layer = 0; layer < s.n_layer; layer++) {
        CHECK(kvf_record_layer(f.cache, f.sequence, layer, f.q, f.k, f.v, ERR) == KVF_OK);
    }
    return f;
}

static void drop(filled f) {
    CHECK(kvf_sequence_free(f.cache, f.sequence, ERR) == KVF_OK);
    check_books(f.cache);
    kvf_cache_free(f.cache);
    free(f.q);
    free(f.k);
    free(f.v);
}

static double cosine(const float *x, const float *y, uint32_t dim) {
    double xy = 0, xx = 0, yy = 0;
    for (uint32_t d = 0; d < dim; d++) xy += (double)x[d] * y[d], xx += (double)x[d] * x[d], yy += (double)y[d] * y[d];
    return xy / fmax(sqrt(xx), 1e-6) / fmax(sqrt(yy), 1e-6);
}

/* What kept row `row` of `x` becomes when each row with that target is merged into it. */
static void expect(double *out, const float *x, uint32_t row, const uint32_t *target, const double *near, uint32_t n,
                   uint32_t dim, uint32_t merge) {
    double weight = 1;
    for (uint32_t d = 0; d < dim; d++) out[d] = x[row * dim + d];
    for (uint32_t r = 0; r < n; r++) {
        if (target[r] != row) continue;
        const double g = fmax((near[r] + 1) / 2, 1e-6);
        weight += merge == KVF_MERGE_MIDPOINT ? 1 : g;
        for (uint32_t d = 0; d < dim; d++) {
            const double y = x[r * dim + d];
            out[d] += merge == KVF_MERGE_MIDPOINT ? (x[row * dim + d] + y) / 2 : g * y;
        }
    }
    for (uint32_t d = 0; d < dim; d++) out[d] /= weight;
}

static void compare(kvf_device *dev, shape s, uint32_t granularity, uint32_t n, uint32_t merge) {
    filled f = fill(dev, s, granularity, n);
    const uint32_t heads = granularity == KVF_QUERY_HEAD ? s.n_head : s.n_kv_head, dim = s.head_dim;
    uint32_t *counts = malloc(heads * sizeof *counts), *rows = malloc((size_t)heads * n * sizeof *rows);
    uint32_t at = 0;
    for (uint32_t h = 0; h < heads; h++) {
        const uint32_t from = at;
        for (uint32_t r = 0; r < n; r++) {
            if (below(3) == 0) rows[at++] = r;
        }
        counts[h] = at - from;
    }
    const int32_t sel = kvf_selection_create(f.cache, heads, counts, rows, ERR);
    CHECK(sel > 0);
    CHECK(kvf_retain_merged(f.cache, f.sequence, 0, (uint32_t)sel, 1, 2, merge, ERR) == KVF_OK);
    check_books(f.cache);
    float *keys = malloc((size_t)n * dim * sizeof *keys), *values = malloc((size_t)n * dim * sizeof *values);
    uint32_t *positions = malloc(n * sizeof *positions), *target = malloc(n * sizeof *target);
    uint32_t *held = malloc((size_t)s.n_layer * heads * sizeof *held);
    double *near = malloc(n * sizeof *near), want[256];
    CHECK(kvf_sequence_rows(f.cache, f.sequence, held, s.n_layer * heads, ERR) == KVF_OK);
    for (uint32_t h = 0; h < heads; h++) {
        const uint32_t kept = held[h], source = h / (heads / s.n_kv_head);
        const float *k = f.k + (size_t)source * n * dim, *v = f.v + (size_t)source * n * dim;
        CHECK(kvf_read_rows(f.cache, f.sequence, 0, h, 0, keys, (double)n * dim * sizeof *keys, ERR) == KVF_OK);
        CHECK(kvf_read_rows(f.cache, f.sequence, 0, h, 1, values, (double)n * dim * sizeof *keys, ERR) == KVF_OK);
        CHECK(kvf_read_positions(f.cache, f.sequence, 0, h, positions, n, ERR) == KVF_OK);
        for (uint32_t r = 0, next = 0; r < n; r++) {
            target[r] = UINT32_MAX;
            if (next < kept && positions[next] == r) {
                next++;
                continue;
            }
            near[r] = -2;
            for (uint32_t i = 0; i < kept; i++) {
                const double c = cosine(k + (size_t)r * dim, k + (size_t)positions[i] * dim, dim);
                if (c > near[r]) near[r] = c, target[r] = positions[i];
            }
        }
        for (uint32_t i = 0; i < kept; i++) {
            expect(want, k, positions[i], target, near, n, dim, merge);
            for (uint32_t d = 0; d < dim; d++) CHECK_NEAR(keys[i * dim + d], want[d], 1e-5);
            expect(want, v, positions[i], target, near, n, dim, merge);
            for (uint32_t d = 0; d < dim; d++) CHECK_NEAR(values[i * dim + d], want[d], 1e-5);
        }
    }
    CHECK(kvf_object_free(f.cache, (uint32_t)sel, ERR) == KVF_OK);
    free(counts);
    free(rows);
    free(keys);
    free(values);
    free(positions);
    free(target);
    free(held);
    free(near);
    drop(f);
}

/* A share of its value for each of the next rows, as in a program that reads line by line. */
static void spread(kvf_device *dev, shape s, uint32_t granularity, uint32_t n, uint32_t first, uint32_t span) {
    filled f = fill(dev, s, granularity, n);
    const uint32_t heads = granularity == KVF_QUERY_HEAD ? s.n_head : s.n_kv_head, dim = s.head_dim;
    const int32_t fork = kvf_sequence_fork(f.cache, f.sequence, granularity, ERR);
    CHECK(fork > 0);
    float *shares = malloc((size_t)heads * n * sizeof *shares), *got = malloc((size_t)n * dim * sizeof *got);
    for (uint32_t i = 0; i < heads * n; i++) shares[i] = below(2) == 0 ? 0.0f : uniform();
    const int32_t id = kvf_scores_create(f.cache, heads, n, shares, ERR);
    CHECK(kvf_spread_values(f.cache, (uint32_t)fork, 0, (uint32_t)id, first, span, ERR) == KVF_OK);
    check_books(f.cache);
    for (uint32_t h = 0; h < heads; h++) {
        const float *v = f.v + (size_t)(h / (heads / s.n_kv_head)) * n * dim;
        CHECK(kvf_read_rows(f.cache, f.sequence, 0, h, 1, got, (double)n * dim * sizeof *got, ERR) == KVF_OK);
        CHECK(memcmp(got, v, (size_t)n * dim * sizeof *got) == 0); /* the other sequence sees nothing of it */
        CHECK(kvf_read_rows(f.cache, (uint32_t)fork, 0, h, 1, got, (double)n * dim * sizeof *got, ERR) == KVF_OK);
        double *want = malloc((size_t)n * dim * sizeof *want);
        for (size_t i = 0; i < (size_t)n * dim; i++) want[i] = v[i];
        for (uint32_t r = first; r + span < n; r++) {
            for (uint32_t next = r + 1; next <= r + span; next++) {
                for (uint32_t d = 0; d < dim; d++) want[next * dim + d] += want[r * dim + d] * shares[h * n + r] / span;
            }
        }
        for (size_t i = 0; i < (size_t)n * dim; i++) CHECK_NEAR(got[i], want[i], 1e-5);
        free(want);
    }
    REFUSED(kvf_spread_values(f.cache, (uint32_t)fork, 0, (uint32_t)id, first, 0, ERR), KVF_ERR_ARG);
    CHECK(kvf_object_free(f.cache, (uint32_t)id, ERR) == KVF_OK);
    CHECK(kvf_sequence_free(f.cache, (uint32_t)fork, ERR) == KVF_OK);
    free(shares);
    free(got);
    drop(f);
}

static void relative(kvf_cache *cache) {
    const float x[] = {0, 4, 1, 0, 2, 8, 0, 0, NAN};
    const float want[] = {0, 1, 0.5f, 0, 0.25f, 1, 0, 0, 0};
    float got[9];
    const int32_t in = kvf_scores_create(cache, 1, 9, x, ERR), out = kvf_scores_relative(cache, (uint32_t)in, 1, 3, ERR);
    CHECK(out > 0);
    CHECK(kvf_scores_read(cache, (uint32_t)out, got, 9, ERR) == KVF_OK);
    CHECK(memcmp(got, want, sizeof want) == 0);
    REFUSED(kvf_scores_relative(cache, (uint32_t)in, 10, 3, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_relative(cache, (uint32_t)in, 1, 0, ERR), KVF_ERR_ARG);
    CHECK(kvf_object_free(cache, (uint32_t)in, ERR) == KVF_OK);
    CHECK(kvf_object_free(cache, (uint32_t)out, ERR) == KVF_OK);
}

int main(void) {
    kvf_device *dev = device_of_threads(3);
    const shape shapes[] = {{1, 4, 2, 16, KVF_F32}, {2, 3, 1, 8, KVF_F32}, {1, 8, 8, 32, KVF_F32}, {1, 5, 1, 80, KVF_F32}};
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (uint32_t granularity = 0; granularity < 2; granularity++) {
            for (uint32_t n = 1; n < 200; n = 2 * n + 1) {
                compare(dev, shapes[i], granularity, n, below(2));
                spread(dev, shapes[i], granularity, n, below(n), 1 + below(9));
            }
        }
    }
    filled f = fill(dev, shapes[0], KVF_KV_HEAD, 70);
    relative(f.cache);
    REFUSED(kvf_retain_merged(f.cache, f.sequence, 0, 0, 1, 2, 2, ERR), KVF_ERR_ARG);
    REFUSED(kvf_retain_merged(f.cache, f.sequence, 0, 0, 1, 2, UINT32_MAX, ERR), KVF_ERR_ARG);
    drop(f);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
