/*
 * Rows that take others in: merging by the likeness of keys, and values that spread over later rows. Threads divide rows
 * or dimensions, never a sum.
 */
#include <math.h>
#include <string.h>

#include "convert.h"
#include "cpu.h"

/* Slots of cpu_scratch. */
enum { SLOT_ROWS = 20, SLOT_TARGET = 21 };

/* Rows of one chunk of a search. */
#define SEARCH_ROWS 16u
/* Dimensions that one chunk of a spread takes. */
#define SPREAD_DIMS 16u

static int32_t no_memory(kv_err err, size_t bytes) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot merge rows as %zu bytes must be available", bytes);
}

typedef struct merge_job {
    const uint32_t *rows; /* kept */
    uint32_t n, n_row, dim, merge;
    const float *keys, *values; /* [n_row, dim] */
    float *unit;                /* [n_row, dim]: keys of norm 1 */
    uint32_t *target;           /* [n_row]: index of the kept row that a row goes to; n for kept rows */
    float *cosine;              /* [n_row] */
    float *k, *v;
} merge_job;

static void unit_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const merge_job *j = arg;
    for (uint32_t r = chunk * SEARCH_ROWS; r < j->n_row && r < (chunk + 1) * SEARCH_ROWS; r++) {
        const float *key = j->keys + (size_t)r * j->dim;
        double square = 0;
        for (uint32_t d = 0; d < j->dim; d++) square += (double)key[d] * key[d];
        const float norm = (float)sqrt(square);
        for (uint32_t d = 0; d < j->dim; d++) j->unit[(size_t)r * j->dim + d] = key[d] / (norm > 1e-6f ? norm : 1e-6f);
    }
}

/* Eight partial sums, so that the compiler may use a vector; the order is the same everywhere. */
static float dot(const float *x, const float *y, uint32_t n) {
    float part[8] = {0};
    uint32_t d = 0;
    for (; d + 8 <= n; d += 8) {
        for (uint32_t i = 0; i < 8; i++) part[i] += x[d + i] * y[d + i];
    }
    for (uint32_t i = 0; d < n; d++, i++) part[i] += x[d] * y[d];
    return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

static void search_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const merge_job *j = arg;
    const uint32_t first = chunk * SEARCH_ROWS, end = j->n_row - first < SEARCH_ROWS ? j->n_row : first + SEARCH_ROWS;
    uint32_t next = 0; /* the first kept row that is not before r */
    while (next < j->n && j->rows[next] < first) next++;
    for (uint32_t r = first; r < end; r++) {
        j->target[r] = j->n;
        if (next < j->n && j->rows[next] == r) {
            next++;
            continue;
        }
        float best = -INFINITY;
        uint32_t at = 0;
        for (uint32_t i = 0; i < j->n; i++) {
            const float cosine = dot(j->unit + (size_t)r * j->dim, j->unit + (size_t)j->rows[i] * j->dim, j->dim);
            if (cosine > best) best = cosine, at = i;
        }
        j->target[r] = at;
        j->cosine[r] = best;
    }
}

/* One kept row and all that goes to it, in ascending order. */
static void take_chunk(void *arg, uint32_t i, uint32_t thread) {
    (void)thread;
    const merge_job *j = arg;
    const size_t own = (size_t)j->rows[i] * j->dim;
    double k[256], v[256], weight = 1;
    for (uint32_t d = 0; d < j->dim; d++) k[d] = j->keys[own + d], v[d] = j->values[own + d];
    for (uint32_t r = 0; r < j->n_row; r++) {
        if (j->target[r] != i) continue;
        const size_t from = (size_t)r * j->dim;
        const double half = (j->cosine[r] + 1.0) / 2, g = half > 1e-6 ? half : 1e-6;
        const bool midpoint = j->merge == KVF_MERGE_MIDPOINT;
        weight += midpoint ? 1 : g;
        for (uint32_t d = 0; d < j->dim; d++) {
            k[d] += midpoint ? ((double)j->keys[own + d] + j->keys[from + d]) / 2 : g * j->keys[from + d];
            v[d] += midpoint ? ((double)j->values[own + d] + j->values[from + d]) / 2 : g * j->values[from + d];
        }
    }
    for (uint32_t d = 0; d < j->dim; d++) {
        j->k[(size_t)i * j->dim + d] = (float)(k[d] / weight);
        j->v[(size_t)i * j->dim + d] = (float)(v[d] / weight);
    }
}

int32_t be_merge_rows(kvf_cache *cache, const kv_table *t, const uint32_t *rows, uint32_t n, uint32_t merge, float *k,
                      float *v, kv_err err) {
    const uint32_t dim = cache->config.head_dim, n_row = t->rows;
    const size_t size = (size_t)n_row * dim, bytes = 3 * size * sizeof(float);
    float *data = cpu_scratch(cache->dev, SLOT_ROWS, bytes);
    uint32_t *target = cpu_scratch(cache->dev, SLOT_TARGET, n_row * (sizeof *target + sizeof(float)));
    if (data == NULL || target == NULL) return no_memory(err, bytes);
    merge_job j = {rows, n, n_row, dim, merge, data, data + size, data + 2 * size, target, (float *)(target + n_row), k, v};
    int32_t status = be_read_rows(cache, t, 0, data, err);
    if (status == KVF_OK) status = be_read_rows(cache, t, 1, data + size, err);
    if (status != KVF_OK) return status;
    const uint32_t n_chunk = (n_row + SEARCH_ROWS - 1) / SEARCH_ROWS;
    cpu_parallel(cache->dev, n_chunk, unit_chunk, &j);
    cpu_parallel(cache->dev, n_chunk, search_chunk, &j);
    cpu_parallel(cache->dev, n, take_chunk, &j);
    return KVF_OK;
}

int32_t be_replace_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err) {
    (void)err;
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    for (uint32_t row = 0; row < n; row++) {
        void *page = kv_page_data(cache, t, row);
        const size_t slot = row % KVF_PAGE_ROWS, from = (size_t)row * dim;
        for (uint32_t d = 0; d < dim; d++) {
            cpu_put(cpu_page_keys(page), d * (size_t)KVF_PAGE_ROWS + slot, dtype, k[from + d]);
            cpu_put(cpu_page_values(page, dim, dtype), slot * dim + d, dtype, v[from + d]);
        }
    }
    return KVF_OK;
}

/* ---- Spreading ---- */

typedef struct spread_job {
    const kvf_cache *cache;
    const kv_table *t;
    const float *shares;
    uint32_t first, span;
} spread_job;

static void *value_row(const spread_job *j, uint32_t row) {
    const kvf_cache_config *c = &j->cache->config;
    uint8_t *values = cpu_page_values(kv_page_data(j->cache, j->t, row), c->head_dim, c->row_dtype);
    return values + (size_t)(row % KVF_PAGE_ROWS) * c->head_dim * cpu_dtype_bytes(c->row_dtype);
}

/* Some dimensions of all rows, in order. */
static void spread_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const spread_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const uint32_t first = chunk * SPREAD_DIMS, end = dim - first < SPREAD_DIMS ? dim : first + SPREAD_DIMS;
    for (uint32_t row = j->first; row + j->span < j->t->rows; row++) {
        if (j->shares[row] == 0) continue;
        const void *from = value_row(j, row);
        for (uint32_t next = row + 1; next <= row + j->span; next++) {
            void *to = value_row(j, next);
            for (uint32_t d = first; d < end; d++) {
                cpu_put(to, d, dtype, cpu_get(to, d, dtype) + cpu_get(from, d, dtype) * j->shares[row] / (float)j->span);
            }
        }
    }
}

int32_t be_spread_values(kvf_cache *cache, kv_table *t, const float *shares, uint32_t first, uint32_t span, kv_err err) {
    (void)err;
    spread_job j = {cache, t, shares, first, span};
    cpu_parallel(cache->dev, (cache->config.head_dim + SPREAD_DIMS - 1) / SPREAD_DIMS, spread_chunk, &j);
    return KVF_OK;
}
