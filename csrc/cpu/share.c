/* Directions that two layers share: finding them, attention over them, and putting rows together again. */
#include "../core/share.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "share.h"

/* Least length, and distance of a cosine from 1, that directions are told apart by. */
#define LEAST 1e-6

/* What a table has of its own. */
typedef struct own_part {
    const float *length;
    const uint32_t *row; /* of exact ones */
    uint32_t n_exact;
    const uint8_t *exact;
} own_part;

static own_part own_of(const kvf_cache *cache, const kv_table *t, uint32_t what) {
    const kv_scale_layout l = kv_scale_of(&cache->config, t->shared, t->exact);
    const uint8_t *own = cache->page[t->scale - 1].data;
    return (own_part){(const float *)(const void *)(own + l.length[what]), (const uint32_t *)(const void *)(own + l.row[what]),
                      t->exact[what], own + l.exact[what]};
}

/* How many of the exact rows come before `row`. */
static uint32_t exact_before(const own_part *p, uint32_t row) {
    uint32_t low = 0, high = p->n_exact;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (p->row[middle] < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Element (d, e) of exact keys: they lie in panels. */
static size_t panel_index(uint32_t dim, uint32_t e, uint32_t d) {
    return ((size_t)(e / KVF_PAGE_ROWS) * dim + d) * KVF_PAGE_ROWS + e % KVF_PAGE_ROWS;
}

/* ---- Putting together ---- */

void cpu_restore_tile(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, uint32_t what, float *tile) {
    if (first >= t->shared) return;
    if (n > t->shared - first) n = t->shared - first;
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const own_part own = own_of(cache, t, what);
    const size_t line = what == 0 ? KVF_PAGE_ROWS : 1, ld = what == 0 ? 1 : dim; /* steps of a channel and of a row */
    for (uint32_t d = 0; d < dim; d++) {
        for (uint32_t i = 0; i < n; i++) tile[d * line + i * ld] *= own.length[first + i];
    }
    for (uint32_t e = exact_before(&own, first); e < own.n_exact && own.row[e] < first + n; e++) {
        for (uint32_t d = 0; d < dim; d++) {
            const size_t at = what == 0 ? panel_index(dim, e, d) : (size_t)e * dim + d;
            tile[d * line + (own.row[e] - first) * ld] = cpu_get(own.exact, at, dtype);
        }
    }
}

/* ---- Attention ---- */

/* Queries that meet exact rows at the same time. */
#define QUERY_BLOCK 32

void cpu_shared_scores(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, const float *q, size_t ld_q,
                       uint32_t m, float *scores, size_t ld_s) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const own_part own = own_of(cache, t, 0);
    const size_t panel_bytes = (size_t)dim * KVF_PAGE_ROWS * cpu_dtype_bytes(dtype);
    ops->times(scores, ld_s, scores, ld_s, own.length + first, m, n);
    for (uint32_t e = exact_before(&own, first), end = exact_before(&own, first + n); e < end;) {
        const uint32_t panel = e / KVF_PAGE_ROWS, stop = (panel + 1) * KVF_PAGE_ROWS < end ? (panel + 1) * KVF_PAGE_ROWS : end;
        float fresh[QUERY_BLOCK][KVF_PAGE_ROWS];
        for (uint32_t r = 0; r < m; r += QUERY_BLOCK) {
            const uint32_t some = m - r < QUERY_BLOCK ? m - r : QUERY_BLOCK;
            ops->page_scores[dtype](fresh[0], KVF_PAGE_ROWS, q + r * ld_q, ld_q, own.exact + panel * panel_bytes, some, dim);
            for (uint32_t i = e; i < stop; i++) {
                for (uint32_t k = 0; k < some; k++) scores[(r + k) * ld_s + own.row[i] - first] = fresh[k][i % KVF_PAGE_ROWS];
            }
        }
        e = stop;
    }
}

void cpu_shared_weights(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, const float *p, size_t ld_p,
                        uint32_t m, float *weights, size_t ld_w, float *out, size_t ld_out) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const size_t row_bytes = dim * cpu_dtype_bytes(dtype);
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const own_part own = own_of(cache, t, 1);
    ops->times(weights, ld_w, p, ld_p, own.length + first, m, n);
    for (uint32_t e = exact_before(&own, first), end = exact_before(&own, first + n); e < end;) {
        const uint32_t some_rows = end - e < KVF_PAGE_ROWS ? end - e : KVF_PAGE_ROWS;
        float fresh[QUERY_BLOCK][KVF_PAGE_ROWS];
        for (uint32_t r = 0; r < m; r += QUERY_BLOCK) {
            const uint32_t some = m - r < QUERY_BLOCK ? m - r : QUERY_BLOCK;
            for (uint32_t k = 0; k < some; k++) {
                for (uint32_t i = 0; i < some_rows; i++) {
                    const uint32_t row = own.row[e + i] - first;
                    fresh[k][i] = p[(r + k) * ld_p + row];
                    weights[(r + k) * ld_w + row] = 0;
                }
            }
            /* the kernel takes a page, whose values come behind its keys */
            ops->page_values[dtype](out + r * ld_out, ld_out, fresh[0], KVF_PAGE_ROWS,
                                    own.exact + e * row_bytes - cpu_page_values_offset(dim, dtype), some, some_rows, dim);
        }
        e += some_rows;
    }
}

/* ---- Finding ---- */

typedef struct share_job {
    const kvf_cache *cache;
    uint32_t n;
    const uint32_t *n_exact;
    double interpolation;
    const float *x[2][2];  /* [layer][keys, values]: [n, head_dim] */
    float *distance[2];    /* [keys, values]: [n] */
    const uint32_t *position;
    void *const *pages;
    uint8_t *own[2];
    kv_scale_layout layout;
} share_job;

/* The angle between one row's keys or values, and both lengths. */
static double angle_of(const share_job *j, uint32_t row, uint32_t what, double length[2]) {
    const uint32_t dim = j->cache->config.head_dim;
    const float *x[2] = {j->x[0][what] + (size_t)row * dim, j->x[1][what] + (size_t)row * dim};
    double cosine = 0;
    for (uint32_t i = 0; i < 2; i++) {
        length[i] = 0;
        for (uint32_t d = 0; d < dim; d++) length[i] += (double)x[i][d] * x[i][d];
        length[i] = fmax(sqrt(length[i]), LEAST);
    }
    for (uint32_t d = 0; d < dim; d++) cosine += x[0][d] / length[0] * (x[1][d] / length[1]);
    return acos(fmin(fmax(cosine, -1 + LEAST), 1 - LEAST));
}

static float distance_of(double angle) { return (float)(angle / acos(-1)); }

/* One row's keys or values: lengths, distance, and the direction between. */
static void share_row(const share_job *j, uint32_t row, uint32_t what, double *direction) {
    const uint32_t dim = j->cache->config.head_dim;
    double length[2], norm = 0;
    const double angle = angle_of(j, row, what, length), sine = sin(angle), t = j->interpolation;
    for (uint32_t i = 0; i < 2; i++) ((float *)(void *)(j->own[i] + j->layout.length[what]))[row] = (float)length[i];
    const float *before = j->x[0][what] + (size_t)row * dim, *now = j->x[1][what] + (size_t)row * dim;
    const double a = sin((1 - t) * angle) / sine, b = sin(t * angle) / sine;
    for (uint32_t d = 0; d < dim; d++) {
        direction[d] = a * before[d] / length[0] + b * now[d] / length[1];
        norm += direction[d] * direction[d];
    }
    norm = fmax(sqrt(norm), LEAST);
    for (uint32_t d = 0; d < dim; d++) direction[d] /= norm;
    j->distance[what][row] = distance_of(angle);
}

/* One page. */
static void share_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const share_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype, first = chunk * KVF_PAGE_ROWS;
    void *page = j->pages[chunk];
    double direction[256];
    for (uint32_t i = 0; i < KVF_PAGE_ROWS && first + i < j->n; i++) {
        share_row(j, first + i, 0, direction);
        for (uint32_t d = 0; d < dim; d++) cpu_put(cpu_page_keys(page), (size_t)d * KVF_PAGE_ROWS + i, dtype, (float)direction[d]);
        share_row(j, first + i, 1, direction);
        for (uint32_t d = 0; d < dim; d++) cpu_put(cpu_page_values(page, dim, dtype), (size_t)i * dim + d, dtype, (float)direction[d]);
        cpu_page_positions(page, dim, dtype)[i] = j->position[first + i];
    }
}

/* The n_exact rows of the greatest distance, the lower one among equals, ascending. */
static int32_t keep_exact(const share_job *j, uint32_t what, kv_err err) {
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype, n_exact = j->n_exact[what];
    uint32_t *row = (uint32_t *)(void *)(j->own[0] + j->layout.row[what]);
    if (n_exact == 0) return KVF_OK;
    const int32_t status = be_select_top(j->cache->dev, j->distance[what], 1, j->n, &n_exact, row, err);
    if (status != KVF_OK) return status;
    memcpy(j->own[1] + j->layout.row[what], row, n_exact * sizeof *row);
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t *exact = j->own[i] + j->layout.exact[what];
        if (what == 0) memset(exact, 0, j->layout.exact[1] - j->layout.exact[0]); /* slots that no row fills */
        for (uint32_t e = 0; e < n_exact; e++) {
            for (uint32_t d = 0; d < dim; d++) {
                const size_t at = what == 0 ? panel_index(dim, e, d) : (size_t)e * dim + d;
                cpu_put(exact, at, dtype, j->x[i][what][(size_t)row[e] * dim + d]);
            }
        }
    }
    return KVF_OK;
}

/* Reads both layers' rows, four blocks of them, and their positions [2, n]. */
static int32_t read_pair(kvf_cache *cache, share_job *j, const kv_table *before, const kv_table *now, float *data,
                         uint32_t *position, kv_err err) {
    const kv_table *tables[2] = {before, now};
    const size_t size = (size_t)j->n * cache->config.head_dim;
    int32_t status = KVF_OK;
    for (uint32_t i = 0; i < 2 && status == KVF_OK; i++) {
        for (uint32_t what = 0; what < 2 && status == KVF_OK; what++) {
            float *x = data + (2 * i + what) * size;
            j->x[i][what] = x;
            status = be_read_rows(cache, tables[i], what, x, err);
        }
        if (status == KVF_OK) status = be_read_positions(cache, tables[i], position + (size_t)i * j->n, err);
    }
    if (status == KVF_OK && memcmp(position, position + j->n, j->n * sizeof *position) != 0) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot share directions as both layers must hold rows of the same positions: they do not");
    }
    return status;
}

/* Room for both layers' rows, their positions and distances. */
static float *take_pair(kvf_cache *cache, uint32_t n, kv_err err) {
    float *data = be_alloc(cache->dev, 4 * (size_t)n * (cache->config.head_dim + 1) * sizeof *data);
    if (data == NULL) kv_fail(err, KVF_ERR_MEMORY, "Cannot share directions as memory ran out");
    return data;
}

static void distance_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const share_job *j = arg;
    for (uint32_t row = chunk * KVF_PAGE_ROWS; row < j->n && row < (chunk + 1) * KVF_PAGE_ROWS; row++) {
        double length[2];
        for (uint32_t what = 0; what < 2; what++) j->distance[what][row] = distance_of(angle_of(j, row, what, length));
    }
}

int32_t be_share_distances(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n, float *to_host,
                           kv_err err) {
    float *data = take_pair(cache, n, err);
    if (data == NULL) return KVF_ERR_MEMORY;
    uint32_t *position = (uint32_t *)(void *)(data + 4 * (size_t)n * cache->config.head_dim);
    share_job j = {.cache = cache, .n = n, .distance = {to_host, to_host + n}};
    const int32_t status = read_pair(cache, &j, before, now, data, position, err);
    if (status == KVF_OK) cpu_parallel(cache->dev, (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, distance_chunk, &j);
    be_free(cache->dev, data);
    return status;
}

int32_t be_share_rows(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n, float interpolation,
                      const uint32_t *n_exact, void *const *pages, void *const own[2], kv_err err) {
    float *data = take_pair(cache, n, err);
    if (data == NULL) return KVF_ERR_MEMORY;
    uint32_t *position = (uint32_t *)(void *)(data + 4 * (size_t)n * cache->config.head_dim);
    float *distance = (float *)(void *)(position + 2 * (size_t)n);
    share_job j = {.cache = cache, .n = n, .n_exact = n_exact, .interpolation = interpolation,
                   .distance = {distance, distance + n}, .position = position, .pages = pages,
                   .own = {own[0], own[1]}, .layout = kv_scale_of(&cache->config, n, n_exact)};
    int32_t status = read_pair(cache, &j, before, now, data, position, err);
    if (status == KVF_OK) {
        cpu_parallel(cache->dev, (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, share_chunk, &j);
        status = keep_exact(&j, 0, err);
    }
    if (status == KVF_OK) status = keep_exact(&j, 1, err);
    be_free(cache->dev, data);
    return status;
}
