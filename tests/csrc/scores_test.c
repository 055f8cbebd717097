/*
 * Scores against references in double: the known answers of window scores, column sums, pooling and group reduction; a
 * table of shapes for window scores, masses and norms; and, at each SIMD level, the same bits for one thread and for two.
 */
#include "test.h"

/* f32 sums of up to a few hundred products and probabilities, against double. */
#define TOLERANCE 2e-5

static uint32_t id_of(int32_t result) {
    CHECK(result > 0);
    return (uint32_t)result;
}

static void read_scores(kvf_cache *cache, uint32_t scores, float *to, uint32_t n_head, uint32_t n_row) {
    uint32_t dims[3];
    CHECK(kvf_object_shape(cache, scores, dims, ERR) == KVF_OK);
    CHECK(dims[0] == 0 && dims[1] == n_head && dims[2] == n_row);
    CHECK(kvf_scores_read(cache, scores, to, n_head * n_row, ERR) == KVF_OK);
}

static void expect(kvf_cache *cache, uint32_t scores, const double *want, uint32_t n_head, uint32_t n_row, double tolerance) {
    float got[64];
    read_scores(cache, scores, got, n_head, n_row);
    for (uint32_t i = 0; i < n_head * n_row; i++) CHECK_NEAR(got[i], want[i], tolerance);
    CHECK(kvf_object_free(cache, scores, ERR) == KVF_OK);
}

/* ---- Known answers ---- */

static void pooling(kvf_cache *cache) {
    static const struct {
        uint32_t kind, width;
        double want[5];
    } table[] = {{1, 3, {1, 2, 3, 4, 3}},
                 {1, 5, {1.2, 2, 3, 2.8, 2.4}},
                 {1, 7, {1.428571, 2.142857, 2.142857, 2.142857, 2}},
                 {0, 3, {2, 3, 4, 5, 5}},
                 {0, 7, {4, 5, 5, 5, 5}},
                 {0, 1, {1, 2, 3, 4, 5}},
                 {1, 1, {1, 2, 3, 4, 5}},
                 {0, 9, {5, 5, 5, 5, 5}},
                 {0, 0xffffffffu, {5, 5, 5, 5, 5}},
                 {1, 15, {1, 1, 1, 1, 1}}};
    const float x[5] = {1, 2, 3, 4, 5};
    const uint32_t in = id_of(kvf_scores_create(cache, 1, 5, x, ERR));
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        expect(cache, id_of(kvf_scores_pool(cache, in, table[i].kind, table[i].width, ERR)), table[i].want, 1, 5, 1e-6);
    }
    REFUSED(kvf_scores_pool(cache, in, 0, 2, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_pool(cache, in, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_pool(cache, in, 2, 3, ERR), KVF_ERR_ARG);
    CHECK(kvf_object_free(cache, in, ERR) == KVF_OK);

    /* Any width, against the definition; NaN never hides another number. */
    for (uint32_t k = 0; k < 200; k++) {
        const uint32_t n = 1 + below(60), n_head = 1 + below(3), width = 2 * below(70) + 1, kind = below(2);
        float *values = normals((size_t)n_head * n), *got = malloc((size_t)n_head * n * sizeof *got);
        if (kind == 0 && below(3) == 0) values[below(n)] = NAN;
        const uint32_t a = id_of(kvf_scores_create(cache, n_head, n, values, ERR));
        const uint32_t b = id_of(kvf_scores_pool(cache, a, kind, width, ERR));
        read_scores(cache, b, got, n_head, n);
        for (uint32_t i = 0; i < n_head * n; i++) {
            const int64_t row = i % n, half = width / 2;
            double sum = 0, most = -INFINITY;
            bool any = false;
            for (int64_t j = row - half; j <= row + half; j++) {
                if (j < 0 || j >= (int64_t)n) continue;
                const double x1 = values[i - i % n + j];
                sum += x1;
                any |= !isnan(x1);
                if (x1 > most) most = x1;
            }
            if (kind == 1) {
                CHECK_NEAR(got[i], sum / width, 1e-6);
            } else if (any) {
                CHECK(got[i] == (float)most);
            }
        }
        CHECK(kvf_object_free(cache, a, ERR) == KVF_OK && kvf_object_free(cache, b, ERR) == KVF_OK);
        free(values);
        free(got);
    }
}

/* One head of one dimension, six tokens, a window of two. */
static void known_window(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){2, 1, 1, 1, KVF_F32}, 0);
    const float k[6] = {0, 1, 2, 0.5f, 1.5f, 1}, q[6] = {9, 9, 9, 9, 1, 2}, ones[6] = {1, 1, 1, 1, 1, 1};
    const uint32_t s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const kvf_observe observe = {sizeof observe, 2, 1, 1};
    const uint32_t range[3] = {0, 0, 6};
    CHECK(kvf_record_begin(cache, s, 6, &observe, range, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, s, 1, ones, k, k, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, s, 0, q, k, k, ERR) == KVF_OK);
    CHECK(info_of(cache, s).position == 6);

    const double sums[4] = {0.068744, 0.236992, 1.014598, 0.124818}, most[4] = {0.236992, 1.014598, 1.014598, 1.014598};
    const double average[4] = {0.101912, 0.440111, 0.458803, 0.379805};
    const uint32_t w = id_of(kvf_scores_window(cache, s, 0, 2, 0, KVF_MEAN, ERR));
    expect(cache, id_of(kvf_scores_pool(cache, w, 0, 3, ERR)), most, 1, 4, 1e-6);
    expect(cache, id_of(kvf_scores_pool(cache, w, 1, 3, ERR)), average, 1, 4, 1e-6);
    expect(cache, w, sums, 1, 4, 1e-6);
    double halves[4];
    for (uint32_t i = 0; i < 4; i++) halves[i] = sums[i] / 2;
    expect(cache, id_of(kvf_scores_window(cache, s, 0, 2, KVF_WINDOW_MEAN, KVF_MEAN, ERR)), halves, 1, 4, 1e-6);

    /* Column sums under the full causal mask, all queries 1; the two heaviest before the window are rows 2 and 0. */
    const double columns[6] = {1.545488, 1.482791, 2.043422, 0.307514, 0.484571, 0.136214};
    const uint32_t mass = id_of(kvf_scores_mass(cache, s, 1, 0, KVF_MEAN, ERR));
    const uint32_t before = id_of(kvf_scores_fill(cache, mass, 4, 6, -INFINITY, ERR));
    const uint32_t two = 2;
    const uint32_t top = id_of(kvf_select_top(cache, before, &two, 1, ERR));
    uint32_t count, rows[2];
    CHECK(kvf_selection_read(cache, top, &count, 1, rows, 2, ERR) == KVF_OK && rows[0] == 0 && rows[1] == 2);
    expect(cache, mass, columns, 1, 6, 1e-6);
    kvf_cache_free(cache);
}

/* Four query heads, groups of two: the masses of single queries are chosen so that the reductions are known. */
static void known_reduction(kvf_device *dev) {
    kvf_cache *cache = cache_of_shape(dev, (shape){1, 4, 2, 2, KVF_F32}, 0);
    const uint32_t s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const kvf_observe observe = {sizeof observe, 0, 1, 1};
    const uint32_t range[3] = {0, 0, 2};
    float *x = normals(4 * 2 * 2);
    CHECK(kvf_record_begin(cache, s, 2, &observe, range, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, s, 0, x, x, x, ERR) == KVF_OK);
    const float masses[8] = {2, 8, 4, 0, 1, 1, 5, 3};
    float *recorded = ((kv_sequence *)kv_ids_get(&cache->sequences, s))->observe->mass[0];
    CHECK(be_upload(dev, recorded, masses, sizeof masses, (kv_err){ERR}) == KVF_OK);
    expect(cache, id_of(kvf_scores_mass(cache, s, 0, 0, KVF_MEAN, ERR)), (double[4]){3, 4, 3, 2}, 2, 2, 0);
    expect(cache, id_of(kvf_scores_mass(cache, s, 0, 0, KVF_MAX, ERR)), (double[4]){4, 8, 5, 3}, 2, 2, 0);
    expect(cache, id_of(kvf_scores_mass(cache, s, 0, 0, KVF_SUM, ERR)), (double[4]){6, 8, 6, 4}, 2, 2, 0);
    /* Stored query heads are not reduced. */
    const uint32_t fine = id_of(kvf_sequence_fork(cache, s, KVF_QUERY_HEAD, ERR));
    expect(cache, id_of(kvf_scores_mass(cache, fine, 0, 0, KVF_MAX, ERR)), (double[8]){2, 8, 4, 0, 1, 1, 5, 3}, 4, 2, 0);
    free(x);
    kvf_cache_free(cache);
}

static void algebra(kvf_cache *cache) {
    const float x[6] = {1, -2, 3, 0, 5, -0.5f}, y[6] = {2, 2, -1, 7, 0.25f, 4};
    const uint32_t a = id_of(kvf_scores_create(cache, 2, 3, x, ERR)), b = id_of(kvf_scores_create(cache, 2, 3, y, ERR));
    const uint32_t c = id_of(kvf_scores_create(cache, 3, 2, x, ERR));
    expect(cache, id_of(kvf_scores_create(cache, 2, 3, NULL, ERR)), (double[6]){0}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_affine(cache, a, -2, 1, ERR)), (double[6]){-1, 5, -5, 1, -9, 2}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_combine(cache, a, b, 0, ERR)), (double[6]){3, 0, 2, 7, 5.25, 3.5}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_combine(cache, a, b, 1, ERR)), (double[6]){2, -4, -3, 0, 1.25, -2}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_combine(cache, a, b, 2, ERR)), (double[6]){1, 1, 0, 1, 0, 1}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_fill(cache, a, 1, 3, 9, ERR)), (double[6]){1, 9, 9, 0, 9, 9}, 2, 3, 0);
    expect(cache, id_of(kvf_scores_fill(cache, a, 3, 3, 9, ERR)), (double[6]){1, -2, 3, 0, 5, -0.5}, 2, 3, 0);
    REFUSED(kvf_scores_combine(cache, a, c, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_combine(cache, a, b, 3, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_fill(cache, a, 2, 1, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_fill(cache, a, 0, 4, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_create(cache, 0, 3, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_create(cache, 4096, 0xffffffffu, NULL, ERR), KVF_ERR_ARG);

    /* Draws depend on seed, layer, head and row only. */
    float wide[3 * 50], narrow[2 * 20], other[2 * 20];
    read_scores(cache, id_of(kvf_scores_random(cache, 3, 50, 11, 4, ERR)), wide, 3, 50);
    read_scores(cache, id_of(kvf_scores_random(cache, 2, 20, 11, 4, ERR)), narrow, 2, 20);
    read_scores(cache, id_of(kvf_scores_random(cache, 2, 20, 11, 5, ERR)), other, 2, 20);
    double sum = 0;
    uint32_t n_equal = 0;
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < 20; i++) {
            CHECK(narrow[h * 20 + i] == wide[h * 50 + i]);
            n_equal += narrow[h * 20 + i] == other[h * 20 + i];
        }
    }
    for (uint32_t i = 0; i < 150; i++) {
        CHECK(wide[i] > 0 && wide[i] <= 1);
        sum += wide[i];
    }
    CHECK(n_equal == 0 && fabs(sum / 150 - 0.5) < 0.1);
}

/* ---- Against references in double ---- */

typedef struct layer {
    shape s;
    uint32_t n, window;
    float *q, *k, *v; /* as recorded; k and v then read back, rounded as the cache rounds them */
} layer;

/* Probability of each row under query i of query head h. */
static void probabilities(const layer *l, uint32_t h, uint32_t i, double *p) {
    const uint32_t dim = l->s.head_dim, group = l->s.n_head / l->s.n_kv_head;
    double most = -INFINITY, sum = 0;
    for (uint32_t j = 0; j < l->n; j++) {
        double x = 0;
        for (uint32_t d = 0; d < dim; d++) {
            x += (double)l->q[((size_t)h * l->n + i) * dim + d] * l->k[((size_t)(h / group) * l->n + j) * dim + d];
        }
        p[j] = j <= i ? x / sqrt(dim) : -INFINITY;
        if (p[j] > most) most = p[j];
    }
    for (uint32_t j = 0; j < l->n; j++) sum += p[j] = exp(p[j] - most);
    for (uint32_t j = 0; j < l->n; j++) p[j] /= sum;
}

/* The same, as hits: at least the average over the i + 1 rows seen; what rounding may turn either way is `doubt`. */
static void hits(const layer *l, uint32_t h, uint32_t i, double *p, double *doubt) {
    probabilities(l, h, i, p);
    for (uint32_t j = 0; j < l->n; j++) {
        const double off = p[j] * (i + 1) - 1;
        doubt[j] += fabs(off) < 1e-4 && i > 0;
        p[j] = off >= 0;
    }
}

static void given(const layer *l, uint32_t h, uint32_t i, uint32_t flags, double *p, double *doubt) {
    if (flags & KVF_WINDOW_HITS) hits(l, h, i, p, doubt);
    else probabilities(l, h, i, p);
}

static double combine(double a, double b, uint32_t reduce) { return reduce == KVF_MAX ? (a > b ? a : b) : a + b; }

/*
 * Sums over queries [from, n) of all query heads, or reduced over the group per query first: [n_stored, n]. doubt: [n_stored, n],
 * added to: how many hits may be either.
 */
static double *reference(const layer *l, uint32_t from, const uint8_t *member, uint32_t n_stored, uint32_t flags, uint32_t reduce,
                         double *doubt) {
    const uint32_t group = l->s.n_head / n_stored;
    double *out = calloc((size_t)n_stored * l->n, sizeof *out), *p = malloc(l->n * sizeof *p);
    double *one = malloc(l->n * sizeof *one);
    for (uint32_t g = 0; g < n_stored; g++) {
        double *to = out + (size_t)g * l->n;
        if (flags & KVF_WINDOW_REDUCE_FIRST) {
            for (uint32_t i = from; i < l->n; i++) {
                for (uint32_t r = 0; r < group; r++) {
                    given(l, g * group + r, i, flags, p, doubt + (size_t)g * l->n);
                    for (uint32_t j = 0; j < l->n; j++) one[j] = r == 0 ? p[j] : combine(one[j], p[j], reduce);
                }
                for (uint32_t j = 0; j < l->n; j++) to[j] += one[j];
            }
        } else {
            for (uint32_t r = 0; r < group; r++) {
                memset(one, 0, l->n * sizeof *one);
                for (uint32_t i = from; i < l->n; i++) {
                    if (member != NULL && !member[i]) continue;
                    given(l, g * group + r, i, flags, p, doubt + (size_t)g * l->n);
                    for (uint32_t j = 0; j < l->n; j++) one[j] += p[j];
                }
                for (uint32_t j = 0; j < l->n; j++) to[j] = r == 0 ? one[j] : combine(to[j], one[j], reduce);
            }
        }
        for (uint32_t j = 0; j < l->n; j++) {
            if (reduce == KVF_MEAN) to[j] /= group;
            if (flags & KVF_WINDOW_MEAN) to[j] /= l->n - from;
        }
    }
    free(p);
    free(one);
    return out;
}

/* Maps of all query heads, with blocks of one token, of some, and of more than there are. */
static void map(const layer *l, kvf_cache *cache, uint32_t s) {
    const uint32_t blocks[3] = {1, 1 + below(l->n), l->n + below(9)};
    double *p = malloc(l->n * sizeof *p);
    for (uint32_t c = 0; c < 3; c++) {
        const uint32_t block = blocks[c], n_block = (l->n - 1) / block + 1, from = l->n - l->window;
        const size_t one = (size_t)n_block * n_block, size = one * l->s.n_head;
        float *got = malloc(size * sizeof *got);
        double *want = calloc(size, sizeof *want);
        CHECK(kvf_attention_map(cache, s, 0, block, got, (double)(size * sizeof *got), ERR) == KVF_OK);
        REFUSED(kvf_attention_map(cache, s, 0, block, got, (double)(size * sizeof *got) - 1, ERR), KVF_ERR_ARG);
        for (uint32_t h = 0; h < l->s.n_head; h++) {
            for (uint32_t i = from; i < l->n; i++) {
                const uint32_t b = i / block, first = b * block > from ? b * block : from;
                const uint32_t end = l->n - b * block < block ? l->n : (b + 1) * block;
                probabilities(l, h, i, p);
                for (uint32_t j = 0; j < l->n; j++) want[h * one + b * n_block + j / block] += p[j] / (end - first);
            }
        }
        for (size_t i = 0; i < size; i++) CHECK_NEAR(got[i], want[i], TOLERANCE);
        free(got);
        free(want);
    }
    float none;
    REFUSED(kvf_attention_map(cache, s, 0, 0, &none, 4, ERR), KVF_ERR_ARG);
    REFUSED(kvf_attention_map(cache, s, 0, 1, NULL, 1e9, ERR), KVF_ERR_ARG);
    REFUSED(kvf_attention_map(cache, s, 9, 1, &none, 4, ERR), KVF_ERR_ARG);
    free(p);
}

static void compare(const layer *l, kvf_cache *cache, uint32_t s, uint32_t n_stored, const uint8_t *member) {
    float *got = malloc((size_t)n_stored * l->n * sizeof *got);
    double *doubt = calloc((size_t)n_stored * l->n, sizeof *doubt);
    size_t sure = 0, all = 0;
    for (uint32_t reduce = KVF_MEAN; reduce <= KVF_SUM; reduce++) {
        for (uint32_t i = 0; i < 9; i++) { /* hits in one way of eight: the device's emulator is slow */
            const uint32_t flags = i < 8 ? i : KVF_WINDOW_HITS + below(8);
            const uint32_t window = below(2) ? l->window : 1 + below(l->window);
            const uint32_t n_row = flags & KVF_WINDOW_ALL_ROWS ? l->n : l->n - window;
            const uint32_t w = id_of(kvf_scores_window(cache, s, 0, window, flags, reduce, ERR));
            read_scores(cache, w, got, n_stored, n_row);
            memset(doubt, 0, (size_t)n_stored * l->n * sizeof *doubt);
            double *want = reference(l, l->n - window, NULL, n_stored, flags, reduce, doubt);
            for (uint32_t g = 0; g < n_stored; g++) {
                for (uint32_t j = 0; j < n_row; j++) {
                    const size_t at = (size_t)g * l->n + j;
                    CHECK_NEAR(got[(size_t)g * n_row + j], want[at], TOLERANCE + doubt[at]);
                    sure += doubt[at] == 0;
                    all++;
                }
            }
            free(want);
            CHECK(kvf_object_free(cache, w, ERR) == KVF_OK);
        }
        const uint32_t mass = id_of(kvf_scores_mass(cache, s, 0, 1, reduce, ERR));
        read_scores(cache, mass, got, n_stored, l->n);
        double *want = reference(l, 0, member, n_stored, 0, reduce, doubt);
        for (size_t i = 0; i < (size_t)n_stored * l->n; i++) CHECK_NEAR(got[i], want[i], TOLERANCE);
        free(want);
        CHECK(kvf_object_free(cache, mass, ERR) == KVF_OK);
    }
    CHECK(10 * sure >= 9 * all);
    free(doubt);
    for (uint32_t what = 0; what < 2; what++) {
        const uint32_t norm = id_of(kvf_scores_norm(cache, s, 0, what, ERR));
        read_scores(cache, norm, got, n_stored, l->n);
        for (uint32_t g = 0; g < n_stored; g++) {
            for (uint32_t j = 0; j < l->n; j++) {
                const float *row = (what == 0 ? l->k : l->v) +
                                   ((size_t)(g / (n_stored / l->s.n_kv_head)) * l->n + j) * l->s.head_dim;
                double sum = 0;
                for (uint32_t d = 0; d < l->s.head_dim; d++) sum += (double)row[d] * row[d];
                CHECK_NEAR(got[(size_t)g * l->n + j], sqrt(sum), TOLERANCE);
            }
        }
        CHECK(kvf_object_free(cache, norm, ERR) == KVF_OK);
    }
    free(got);
}

static void one_shape(kvf_device *dev, shape s, uint32_t n, uint32_t window, uint32_t granularity) {
    const size_t n_kv = (size_t)s.n_kv_head * n * s.head_dim;
    layer l = {.s = s, .n = n, .window = window, .q = normals((size_t)s.n_head * n * s.head_dim), .k = normals(n_kv),
               .v = normals(n_kv)};
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    const uint32_t id = id_of(kvf_sequence_create(cache, granularity, ERR));
    const kvf_observe observe = {sizeof observe, window, 2, 3};
    const uint32_t a = below(n), b = a + 1 + below(n - a), c = below(n);
    const uint32_t ranges[9] = {1, a, b, 0, 0, n, 1, c, n};
    uint8_t *member = calloc(n, 1);
    for (uint32_t i = 0; i < n; i++) member[i] = (i >= a && i < b) || i >= c;
    CHECK(kvf_record_begin(cache, id, n, &observe, ranges, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, id, 0, l.q, l.k, l.v, ERR) == KVF_OK);
    const uint32_t n_stored = granularity == KVF_KV_HEAD ? s.n_kv_head : s.n_head;
    for (uint32_t h = 0; h < n_stored; h++) { /* one read per kv head is enough: the group's heads hold the same */
        const size_t at = (size_t)(h / (n_stored / s.n_kv_head)) * n * s.head_dim;
        CHECK(kvf_read_rows(cache, id, 0, h, 0, l.k + at, (double)n * s.head_dim * 4, ERR) == KVF_OK);
        CHECK(kvf_read_rows(cache, id, 0, h, 1, l.v + at, (double)n * s.head_dim * 4, ERR) == KVF_OK);
    }
    compare(&l, cache, id, n_stored, member);
    map(&l, cache, id);
    if (granularity == KVF_KV_HEAD) {
        const uint32_t fork = id_of(kvf_sequence_fork(cache, id, KVF_QUERY_HEAD, ERR));
        compare(&l, cache, fork, s.n_head, member);
        map(&l, cache, fork);
    }
    free(member);
    free(l.q);
    free(l.k);
    free(l.v);
    kvf_cache_free(cache);
}

/* ---- Any number of threads ---- */

/* All of a policy's steps on one fixed layer; the scores of the last one and the rows kept, as bits. */
static void policy(uint32_t n_thread, uint32_t simd, float *scores, uint32_t *rows) {
    const kvf_device_options options = {.size = sizeof options, .n_thread = n_thread, .simd = simd};
    kvf_device *dev = kvf_device_create(&options, ERR);
    CHECK(dev != NULL);
    const shape s = {1, 6, 2, 64, KVF_BF16};
    const uint32_t n = 333;
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    test_state = 12345;
    float *q = normals(6 * n * 64), *k = normals(2 * n * 64);
    const uint32_t id = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const kvf_observe observe = {sizeof observe, 17, 1, 1};
    const uint32_t range[3] = {0, 0, n}, counts[2] = {40, 33};
    CHECK(kvf_record_begin(cache, id, n, &observe, range, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, id, 0, q, k, k, ERR) == KVF_OK);
    const uint32_t w = id_of(kvf_scores_window(cache, id, 0, 17, KVF_WINDOW_ALL_ROWS, KVF_MEAN, ERR));
    const uint32_t p = id_of(kvf_scores_pool(cache, w, 1, 7, ERR));
    const uint32_t mass = id_of(kvf_scores_mass(cache, id, 0, 0, KVF_MAX, ERR));
    const uint32_t norm = id_of(kvf_scores_norm(cache, id, 0, 0, ERR));
    const uint32_t sum = id_of(kvf_scores_combine(cache, p, id_of(kvf_scores_combine(cache, mass, norm, 1, ERR)), 0, ERR));
    const uint32_t out = id_of(kvf_scores_affine(cache, sum, 0.3f, 1, ERR));
    const uint32_t top = id_of(kvf_select_top(cache, out, counts, 2, ERR));
    CHECK(kvf_retain(cache, id, 0, top, 3, 5, ERR) == KVF_OK);
    CHECK(kvf_scores_read(cache, out, scores, 2 * n, ERR) == KVF_OK);
    uint32_t got[2];
    CHECK(kvf_selection_read(cache, top, got, 2, rows, 73, ERR) == KVF_OK);
    free(q);
    free(k);
    kvf_cache_free(cache);
    kvf_device_free(dev);
}

int main(void) {
    kvf_device *dev = device_of_threads(2);
    kvf_cache *cache = cache_of_shape(dev, (shape){1, 4, 2, 4, KVF_F32}, 0);
    pooling(cache);
    algebra(cache);
    kvf_cache_free(cache);
    known_window(dev);
    known_reduction(dev);
    static const uint32_t groups[] = {1, 3, 4, 5, 8}, dims[] = {16, 32, 64, 80, 96, 128}, lengths[] = {1, 2, 31, 32, 33, 64, 95, 130};
    for (uint32_t i = 0; i < 48; i++) {
        const uint32_t kv = 1 + below(2), group = groups[i % 5], n = lengths[i % 8];
        const uint32_t window = i % 3 == 0 ? 1 : 1 + below(n < 20 ? n : 20);
        one_shape(dev, (shape){1, kv * group, kv, dims[i % 6], i / 5 % 3}, n, window, i % 4 == 3 ? KVF_QUERY_HEAD : KVF_KV_HEAD);
    }
    kvf_device_free(dev);
    for (uint32_t simd = 0; simd <= 3; simd++) {
        static float a[666], b[666];
        static uint32_t x[73], y[73];
        policy(1, simd, a, x);
        policy(2, simd, b, y);
        CHECK(memcmp(a, b, sizeof a) == 0 && memcmp(x, y, sizeof x) == 0);
    }
    CHECK(kvf_live_handles() == 0);
    return 0;
}
