/* Directions that two layers share: finding them, and putting rows together again. */
#include "../core/share.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "share.h"

/* Least length, and distance of a cosine from 1, that directions are told apart by. */
#define LEAST 1e-6

/* ---- Putting together ---- */

void cpu_restore_tile(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, uint32_t what, float *tile) {
    if (first >= t->shared) return;
    if (n > t->shared - first) n = t->shared - first;
    const kvf_cache_config *c = &cache->config;
    const kv_scale_layout l = kv_scale_of(c, t->shared, t->exact);
    const uint8_t *own = cache->page[t->scale - 1].data;
    const float *length = (const float *)(const void *)(own + l.length[what]) + first;
    const uint32_t *row = (const uint32_t *)(const void *)(own + l.row[what]);
    const size_t line = what == 0 ? KVF_PAGE_ROWS : 1, ld = what == 0 ? 1 : c->head_dim; /* steps of a channel and of a row */
    for (uint32_t d = 0; d < c->head_dim; d++) {
        for (uint32_t i = 0; i < n; i++) tile[d * line + i * ld] *= length[i];
    }
    for (uint32_t e = 0; e < t->exact; e++) {
        if (row[e] < first || row[e] >= first + n) continue;
        for (uint32_t d = 0; d < c->head_dim; d++) {
            tile[d * line + (row[e] - first) * ld] = cpu_get(own + l.exact[what], (size_t)e * c->head_dim + d, c->row_dtype);
        }
    }
}

/* ---- Finding ---- */

typedef struct share_job {
    const kvf_cache *cache;
    uint32_t n, n_exact;
    double interpolation;
    const float *x[2][2];  /* [layer][keys, values]: [n, head_dim] */
    float *distance[2];    /* [keys, values]: [n] */
    const uint32_t *position;
    void *const *pages;
    uint8_t *own[2];
    kv_scale_layout layout;
} share_job;

/* One row's keys or values: lengths, distance, and the direction between. */
static void share_row(const share_job *j, uint32_t row, uint32_t what, double *direction) {
    const uint32_t dim = j->cache->config.head_dim;
    double length[2] = {0, 0}, cosine = 0, norm = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const float *x = j->x[i][what] + (size_t)row * dim;
        for (uint32_t d = 0; d < dim; d++) length[i] += (double)x[d] * x[d];
        length[i] = fmax(sqrt(length[i]), LEAST);
        ((float *)(void *)(j->own[i] + j->layout.length[what]))[row] = (float)length[i];
    }
    const float *before = j->x[0][what] + (size_t)row * dim, *now = j->x[1][what] + (size_t)row * dim;
    for (uint32_t d = 0; d < dim; d++) cosine += before[d] / length[0] * (now[d] / length[1]);
    const double angle = acos(fmin(fmax(cosine, -1 + LEAST), 1 - LEAST)), sine = sin(angle), t = j->interpolation;
    const double a = sin((1 - t) * angle) / sine, b = sin(t * angle) / sine;
    for (uint32_t d = 0; d < dim; d++) {
        direction[d] = a * before[d] / length[0] + b * now[d] / length[1];
        norm += direction[d] * direction[d];
    }
    norm = fmax(sqrt(norm), LEAST);
    for (uint32_t d = 0; d < dim; d++) direction[d] /= norm;
    j->distance[what][row] = (float)(angle / acos(-1));
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
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    uint32_t *row = (uint32_t *)(void *)(j->own[0] + j->layout.row[what]);
    if (j->n_exact == 0) return KVF_OK;
    const int32_t status = be_select_top(j->cache->dev, j->distance[what], 1, j->n, &j->n_exact, row, err);
    if (status != KVF_OK) return status;
    memcpy(j->own[1] + j->layout.row[what], row, j->n_exact * sizeof *row);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t e = 0; e < j->n_exact; e++) {
            for (uint32_t d = 0; d < dim; d++) {
                cpu_put(j->own[i] + j->layout.exact[what], (size_t)e * dim + d, dtype, j->x[i][what][(size_t)row[e] * dim + d]);
            }
        }
    }
    return KVF_OK;
}

int32_t be_share_rows(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n, float interpolation,
                      uint32_t n_exact, void *const *pages, void *const own[2], kv_err err) {
    const size_t size = (size_t)n * cache->config.head_dim;
    float *data = be_alloc(cache->dev, (4 * size + 4 * (size_t)n) * sizeof *data);
    if (data == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot share directions as memory ran out");
    uint32_t *position = (uint32_t *)(void *)(data + 4 * size + 2 * (size_t)n);
    share_job j = {.cache = cache, .n = n, .n_exact = n_exact, .interpolation = interpolation,
                   .distance = {data + 4 * size, data + 4 * size + n}, .position = position, .pages = pages,
                   .own = {own[0], own[1]}, .layout = kv_scale_of(&cache->config, n, n_exact)};
    const kv_table *tables[2] = {before, now};
    int32_t status = KVF_OK;
    for (uint32_t i = 0; i < 2 && status == KVF_OK; i++) {
        for (uint32_t what = 0; what < 2 && status == KVF_OK; what++) {
            float *x = data + (2 * i + what) * size;
            j.x[i][what] = x;
            status = be_read_rows(cache, tables[i], what, x, err);
        }
        if (status == KVF_OK) status = be_read_positions(cache, tables[i], position + (size_t)i * n, err);
    }
    if (status == KVF_OK && memcmp(position, position + n, n * sizeof *position) != 0) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot share directions as both layers must hold rows of the same positions: they do not");
    }
    if (status == KVF_OK) {
        cpu_parallel(cache->dev, (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, share_chunk, &j);
        status = keep_exact(&j, 0, err);
    }
    if (status == KVF_OK) status = keep_exact(&j, 1, err);
    be_free(cache->dev, data);
    return status;
}
