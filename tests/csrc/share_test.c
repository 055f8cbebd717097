/*
 * Layers that share directions: rows against the definition in double, attention against the same rows held whole, bytes,
 * forks, and what is refused.
 */
#include "test.h"

static const float ANGLE = 0.6f;

typedef struct filled {
    kvf_cache *cache;
    uint32_t sequence, n;
    float *k[2], *v[2];
} filled;

static uint32_t record(kvf_cache *cache, shape s, uint32_t granularity, uint32_t n, float *const k[2], float *const v[2]) {
    const uint32_t id = (uint32_t)kvf_sequence_create(cache, granularity, ERR);
    const kvf_observe observe = {.size = sizeof observe, .n_window = 1};
    float *q = normals((size_t)s.n_head * n * s.head_dim);
    CHECK(kvf_record_begin(cache, id, n, &observe, NULL, ERR) == KVF_OK);
    for (uint32_t layer = 0; layer < 2; layer++) CHECK(kvf_record_layer(cache, id, layer, q, k[layer], v[layer], ERR) == KVF_OK);
    free(q);
    return id;
}

static filled fill(kvf_device *dev, shape s, uint32_t granularity, uint32_t n) {
    const size_t size = (size_t)s.n_kv_head * n * s.head_dim;
    filled f = {.cache = cache_of_shape(dev, s, 0), .n = n, .k = {normals(size), normals(size)}, .v = {normals(size), normals(size)}};
    for (size_t i = 0; i < size; i++) f.k[1][i] = 0.3f * f.k[1][i] + 2 * f.k[0][i]; /* alike, as in real models */
    f.sequence = record(f.cache, s, granularity, n, f.k, f.v);
    return f;
}

static void drop(filled f) {
    CHECK(kvf_sequence_free(f.cache, f.sequence, ERR) == KVF_OK);
    check_books(f.cache);
    CHECK(ledger_of(f.cache).resident_bytes == 0);
    kvf_cache_free(f.cache);
    for (uint32_t i = 0; i < 2; i++) free(f.k[i]), free(f.v[i]);
}

/* Both rows after sharing, and how far apart they were. */
static double restore(const float *before, const float *now, uint32_t dim, double *out) {
    double a = 0, b = 0, cosine = 0, norm = 0;
    for (uint32_t d = 0; d < dim; d++) a += (double)before[d] * before[d], b += (double)now[d] * now[d];
    a = fmax(sqrt(a), 1e-6), b = fmax(sqrt(b), 1e-6);
    for (uint32_t d = 0; d < dim; d++) cosine += before[d] / a * now[d] / b;
    const double angle = acos(fmin(fmax(cosine, -1 + 1e-6), 1 - 1e-6));
    for (uint32_t d = 0; d < dim; d++) {
        out[d] = sin((1 - (double)ANGLE) * angle) * before[d] / a + sin((double)ANGLE * angle) * now[d] / b;
        norm += out[d] * out[d];
    }
    norm = fmax(sqrt(norm), 1e-6);
    for (uint32_t d = 0; d < dim; d++) out[dim + d] = out[d] / norm * b, out[d] *= a / norm;
    return angle;
}

/* Rows [n, dim] of two layers, in place; exact rows stay. */
static void share(float *before, float *now, uint32_t n, uint32_t dim, uint32_t n_exact) {
    double *far = malloc(n * sizeof *far), *out = malloc(2 * (size_t)n * dim * sizeof *out);
    for (uint32_t i = 0; i < n; i++) far[i] = restore(before + i * dim, now + i * dim, dim, out + 2 * (size_t)i * dim);
    for (uint32_t e = 0; e < n_exact; e++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++) best = (float)far[i] > (float)far[best] ? i : best;
        far[best] = -1;
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < dim && far[i] >= 0; d++) {
            before[i * dim + d] = (float)out[2 * (size_t)i * dim + d];
            now[i * dim + d] = (float)out[2 * (size_t)i * dim + dim + d];
        }
    }
    free(far);
    free(out);
}

static void compare(kvf_device *dev, kvf_model *model, shape s, uint32_t granularity, uint32_t n, uint32_t n_exact) {
    filled f = fill(dev, s, granularity, n);
    const uint32_t heads = granularity == KVF_QUERY_HEAD ? s.n_head : s.n_kv_head, dim = s.head_dim;
    const double full = info_of(f.cache, f.sequence).promised_bytes;
    CHECK(kvf_share_directions(f.cache, f.sequence, 1, ANGLE, n_exact, -1, ERR) == KVF_OK);
    check_books(f.cache);
    if (n >= 200 && granularity == KVF_KV_HEAD) CHECK(info_of(f.cache, f.sequence).owned_bytes < 0.8 * full);
    for (uint32_t h = 0; h < s.n_kv_head; h++) {
        const size_t at = (size_t)h * n * dim;
        share(f.k[0] + at, f.k[1] + at, n, dim, n_exact);
        share(f.v[0] + at, f.v[1] + at, n, dim, n_exact);
    }
    float *got = malloc((size_t)n * dim * sizeof *got);
    uint32_t *positions = malloc(n * sizeof *positions);
    for (uint32_t layer = 0; layer < 2; layer++) {
        for (uint32_t h = 0; h < heads; h++) {
            const size_t at = (size_t)(h / (heads / s.n_kv_head)) * n * dim;
            for (uint32_t what = 0; what < 2; what++) {
                const float *want = (what == 0 ? f.k : f.v)[layer] + at;
                CHECK(kvf_read_rows(f.cache, f.sequence, layer, h, what, got, (double)n * dim * sizeof *got, ERR) == KVF_OK);
                for (size_t i = 0; i < (size_t)n * dim; i++) CHECK_NEAR(got[i], want[i], 2e-5);
            }
            CHECK(kvf_read_positions(f.cache, f.sequence, layer, h, positions, n, ERR) == KVF_OK);
            for (uint32_t i = 0; i < n; i++) CHECK(positions[i] == i);
        }
    }
    /* Generation over them, beside a fork, and over the same rows held whole. */
    const uint32_t whole = record(f.cache, s, granularity, n, f.k, f.v);
    const int32_t fork = kvf_sequence_fork(f.cache, f.sequence, granularity, ERR);
    CHECK(fork > 0);
    const uint32_t tokens[] = {3, 1, 4, 1, 5, 9, 2, 6};
    const uint32_t ids[3] = {f.sequence, whole, (uint32_t)fork};
    float logits[3][TEST_VOCAB];
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t t = 0; t < 8; t++) {
            CHECK(kvf_extend(model, f.cache, ids[i], tokens + t, 1, ERR) == KVF_OK);
            check_books(f.cache);
        }
        CHECK(kvf_sequence_logits(f.cache, ids[i], logits[i], TEST_VOCAB, ERR) == KVF_OK);
    }
    CHECK(memcmp(logits[0], logits[2], sizeof logits[0]) == 0);
    for (uint32_t i = 0; i < TEST_VOCAB; i++) CHECK_NEAR(logits[0][i], logits[1][i], 1e-4);
    CHECK(kvf_sequence_free(f.cache, whole, ERR) == KVF_OK);
    CHECK(kvf_sequence_free(f.cache, (uint32_t)fork, ERR) == KVF_OK);
    free(got);
    free(positions);
    drop(f);
}

/* Rows are exact by their distance: keys and values apart, as many as there are in each head. */
static void threshold(kvf_device *dev, kvf_model *model, shape s, uint32_t n, float within) {
    filled f = fill(dev, s, KVF_KV_HEAD, n);
    const uint32_t dim = s.head_dim;
    CHECK(kvf_share_directions(f.cache, f.sequence, 1, ANGLE, 0, within, ERR) == KVF_OK);
    check_books(f.cache);
    double *far = malloc(n * sizeof *far), *out = malloc(2 * (size_t)dim * sizeof *out);
    float *got = malloc((size_t)n * dim * sizeof *got);
    uint32_t seen[2] = {0, 0}; /* keys, values */
    for (uint32_t h = 0; h < s.n_kv_head; h++) {
        for (uint32_t what = 0; what < 2; what++) {
            float *const *x = what == 0 ? f.k : f.v;
            const size_t at = (size_t)h * n * dim;
            double least = INFINITY, most = -INFINITY;
            for (uint32_t i = 0; i < n; i++) {
                far[i] = restore(x[0] + at + i * dim, x[1] + at + i * dim, dim, out);
                least = fmin(least, far[i]), most = fmax(most, far[i]);
            }
            CHECK(kvf_read_rows(f.cache, f.sequence, 1, h, what, got, (double)n * dim * sizeof *got, ERR) == KVF_OK);
            for (uint32_t i = 0; i < n; i++) {
                if (fabs(far[i] - (most - within * (most - least))) < 1e-6) continue; /* a matter of rounding */
                const bool exact = far[i] > most - within * (most - least);
                seen[what] += exact;
                CHECK(exact == (memcmp(got + i * dim, x[1] + at + i * dim, dim * sizeof *got) == 0));
            }
        }
    }
    if (within > 0 && n > 100) CHECK(seen[0] > 0 && seen[1] > 0 && seen[0] < n * s.n_kv_head);
    const uint32_t token = 3;
    CHECK(kvf_extend(model, f.cache, f.sequence, &token, 1, ERR) == KVF_OK);
    free(far);
    free(out);
    free(got);
    drop(f);
}

static void refusals(kvf_device *dev, shape s) {
    filled f = fill(dev, s, KVF_KV_HEAD, 40);
    const uint32_t id = f.sequence;
    REFUSED(kvf_share_directions(f.cache, id, 0, ANGLE, 2, -1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 2, ANGLE, 2, -1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, 1.5f, 2, -1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, NAN, 2, -1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, ANGLE, 41, -1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, ANGLE, 2, 0.5f, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, ANGLE, 0, 1.5f, ERR), KVF_ERR_ARG);
    REFUSED(kvf_share_directions(f.cache, id, 1, ANGLE, 0, NAN, ERR), KVF_ERR_ARG);
    const int32_t fork = kvf_sequence_fork(f.cache, id, KVF_KV_HEAD, ERR);
    CHECK(kvf_retain(f.cache, (uint32_t)fork, 0, 0, 10, 0, ERR) == KVF_OK);
    REFUSED(kvf_share_directions(f.cache, (uint32_t)fork, 1, ANGLE, 2, -1, ERR), KVF_ERR_STATE);
    CHECK(kvf_retain(f.cache, (uint32_t)fork, 1, 0, 0, 10, ERR) == KVF_OK); /* as many rows, other ones */
    REFUSED(kvf_share_directions(f.cache, (uint32_t)fork, 1, ANGLE, 2, -1, ERR), KVF_ERR_ARG);
    check_books(f.cache);
    CHECK(kvf_sequence_free(f.cache, (uint32_t)fork, ERR) == KVF_OK);
    CHECK(kvf_share_directions(f.cache, id, 1, ANGLE, 2, -1, ERR) == KVF_OK);
    for (uint32_t layer = 0; layer < 2; layer++) {
        REFUSED(kvf_retain(f.cache, id, layer, 0, 10, 0, ERR), KVF_ERR_STATE);
        REFUSED(kvf_scores_window(f.cache, id, layer, 1, 0, 0, ERR), KVF_ERR_STATE);
        REFUSED(kvf_scores_norm(f.cache, id, layer, 0, ERR), KVF_ERR_STATE);
    }
    REFUSED(kvf_share_directions(f.cache, id, 1, ANGLE, 2, -1, ERR), KVF_ERR_STATE);
    REFUSED(kvf_sequence_fork(f.cache, id, KVF_QUERY_HEAD, ERR), KVF_ERR_STATE);
    drop(f);
    /* Without room nothing changes. */
    filled g = fill(dev, s, KVF_KV_HEAD, 70);
    g.cache->config.limit_bytes = ledger_of(g.cache).resident_bytes + g.cache->page_bytes;
    REFUSED(kvf_share_directions(g.cache, g.sequence, 1, ANGLE, 2, -1, ERR), KVF_ERR_MEMORY);
    check_books(g.cache);
    drop(g);
}

int main(void) {
    kvf_device *dev = device_of_threads(3);
    const shape shapes[] = {{2, 4, 2, 16, KVF_F32}, {2, 3, 1, 8, KVF_F32}, {2, 4, 4, 32, KVF_F32}};
    const uint32_t lengths[] = {1, 31, 32, 33, 64, 200, 600};
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        kvf_model *model = model_of_shape(dev, shapes[i]);
        for (uint32_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            const uint32_t n = lengths[l];
            compare(dev, model, shapes[i], l % 2, n, n / 10);
            compare(dev, model, shapes[i], (l + 1) % 2, n, l % 3 == 0 ? n : 0);
            threshold(dev, model, shapes[i], n, (float)l / 8);
        }
        kvf_model_free(model);
    }
    refusals(dev, shapes[0]);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
