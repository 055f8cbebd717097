/*
 * Rows in pages: moving, reading, writing. A move takes one dimension of a key at a time, for all rows in ascending
 * order: so a key page, which is transposed, is written in runs, and rows may move towards the front of their own pages.
 */
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "packed.h"

/* Dimensions that one chunk of a move takes. */
#define MOVE_DIMS 16

uint32_t be_page_bytes(const kvf_cache_config *config) {
    return (uint32_t)cpu_page_size(config->head_dim, config->row_dtype);
}

/* The CPU keeps nothing of its own per sequence or cache. */
void be_sequence_close(kvf_cache *cache, kv_sequence *s) {
    (void)cache;
    (void)s;
}

void be_cache_close(kvf_cache *cache) { (void)cache; }

/* ---- Moving ---- */

typedef struct move_job {
    const kvf_cache *cache;
    const kv_table *dst;
    const kv_table *src;
    const uint32_t *rows;
    uint32_t n;
} move_job;

/* Dimensions [first, first + n_dim) of up to a page of rows; the page's keys are a template of the element's width. */
#define MOVE_KEYS(name, type)                                                                                           \
    static void name(const move_job *j, void *to, uint32_t row, uint32_t n, uint32_t first, uint32_t n_dim) {           \
        const type *from[KVF_PAGE_ROWS];                                                                                \
        for (uint32_t i = 0; i < n; i++) {                                                                              \
            const uint32_t r = j->rows[row + i];                                                                        \
            from[i] = (const type *)cpu_page_keys(kv_page_data(j->cache, j->src, r)) + kv_slot_of(j->src, r);           \
        }                                                                                                               \
        for (uint32_t d = first; d < first + n_dim; d++) {                                                              \
            type *out = (type *)cpu_page_keys(to) + (size_t)d * KVF_PAGE_ROWS;                                          \
            for (uint32_t i = 0; i < n; i++) out[i] = from[i][(size_t)d * KVF_PAGE_ROWS];                               \
        }                                                                                                               \
    }

MOVE_KEYS(move_keys_32, uint32_t)
MOVE_KEYS(move_keys_16, uint16_t)

/* Some dimensions of all rows; the first chunk takes the positions too. */
static void move_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const move_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const uint32_t first = chunk * MOVE_DIMS, n_dim = dim - first < MOVE_DIMS ? dim - first : MOVE_DIMS;
    const size_t width = cpu_dtype_bytes(dtype);
    for (uint32_t row = 0; row < j->n; row += KVF_PAGE_ROWS) {
        const uint32_t n = j->n - row < KVF_PAGE_ROWS ? j->n - row : KVF_PAGE_ROWS;
        void *to = kv_page_data(j->cache, j->dst, row);
        if (width == 4) {
            move_keys_32(j, to, row, n, first, n_dim);
        } else {
            move_keys_16(j, to, row, n, first, n_dim);
        }
        uint8_t *values = cpu_page_values(to, dim, dtype);
        uint32_t *positions = cpu_page_positions(to, dim, dtype);
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t r = j->rows[row + i];
            if (j->dst == j->src && r == row + i) continue;
            void *from = kv_page_data(j->cache, j->src, r);
            const uint8_t *value = cpu_page_values(from, dim, dtype);
            memcpy(values + ((size_t)i * dim + first) * width, value + ((size_t)(r % KVF_PAGE_ROWS) * dim + first) * width,
                   n_dim * width);
            if (chunk == 0) positions[i] = cpu_page_positions(from, dim, dtype)[r % KVF_PAGE_ROWS];
        }
    }
}

static void move_rows(kvf_cache *cache, const kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n) {
    move_job j = {cache, dst, src, rows, n};
    cpu_parallel(cache->dev, (cache->config.head_dim + MOVE_DIMS - 1) / MOVE_DIMS, move_chunk, &j);
}

/* One page of rows of a table with packed rows, which become plain. */
static void unpack_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const move_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const uint32_t first = chunk * KVF_PAGE_ROWS, n = j->n - first < KVF_PAGE_ROWS ? j->n - first : KVF_PAGE_ROWS;
    void *to = kv_page_data(j->cache, j->dst, first);
    float keys[CPU_TILE_FLOATS], values[CPU_TILE_FLOATS];
    uint32_t held = KV_NO_TOKEN; /* page of the source in the tiles */
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t row = j->rows[first + i], page = kv_page_of(j->src, row), slot = kv_slot_of(j->src, row);
        if (page != held) {
            cpu_page_tile(j->cache, j->src, page, 0, keys);
            cpu_page_tile(j->cache, j->src, page, 1, values);
            held = page;
        }
        for (uint32_t d = 0; d < dim; d++) {
            cpu_put(cpu_page_keys(to), (size_t)d * KVF_PAGE_ROWS + i, dtype, keys[(size_t)d * KVF_PAGE_ROWS + slot]);
            cpu_put(cpu_page_values(to, dim, dtype), (size_t)i * dim + d, dtype, values[(size_t)slot * dim + d]);
        }
        cpu_page_positions(to, dim, dtype)[i] = cpu_positions_of(j->cache, j->src, page)[slot];
    }
}

int32_t be_gather_rows(kvf_cache *cache, kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                       kv_err err) {
    (void)err;
    if (src->packed == 0) {
        move_rows(cache, dst, src, rows, n);
        return KVF_OK;
    }
    move_job j = {cache, dst, src, rows, n};
    cpu_parallel(cache->dev, (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, unpack_chunk, &j);
    return KVF_OK;
}

int32_t be_compact_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, const kv_row_list *list, kv_err err) {
    (void)err;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        if (list[h].n > 0) move_rows(cache, t, t, list[h].rows, list[h].n);
    }
    return KVF_OK;
}

void cpu_move_row(const kvf_cache *cache, const kv_table *t, uint32_t to, uint32_t from) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const size_t width = cpu_dtype_bytes(dtype);
    void *there = kv_page_data(cache, t, to), *here = kv_page_data(cache, t, from);
    const size_t slot = to % KVF_PAGE_ROWS, own = from % KVF_PAGE_ROWS;
    if (width == 4) {
        uint32_t *k = cpu_page_keys(there);
        const uint32_t *x = cpu_page_keys(here);
        for (uint32_t d = 0; d < dim; d++) k[d * (size_t)KVF_PAGE_ROWS + slot] = x[d * (size_t)KVF_PAGE_ROWS + own];
    } else {
        uint16_t *k = cpu_page_keys(there);
        const uint16_t *x = cpu_page_keys(here);
        for (uint32_t d = 0; d < dim; d++) k[d * (size_t)KVF_PAGE_ROWS + slot] = x[d * (size_t)KVF_PAGE_ROWS + own];
    }
    memcpy((uint8_t *)cpu_page_values(there, dim, dtype) + slot * dim * width,
           (const uint8_t *)cpu_page_values(here, dim, dtype) + own * dim * width, dim * width);
    cpu_page_positions(there, dim, dtype)[slot] = cpu_page_positions(here, dim, dtype)[own];
}

/* ---- Order ---- */

typedef struct placed {
    uint32_t position, row;
} placed;

static int by_position(const void *a, const void *b) {
    const uint32_t x = ((const placed *)a)->position, y = ((const placed *)b)->position;
    return x < y ? -1 : x > y;
}

/*
 * One column at a time: it is taken out in the new order and put back. Columns are the channels of keys and values, the
 * positions, and the masses of each query head.
 */
int32_t be_order_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    kv_table *t = kv_table_of(s, layer, head);
    const uint32_t rows = t->rows;
    placed *order = malloc((size_t)rows * (sizeof *order + sizeof(float)));
    if (order == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot put rows in order as memory ran out");
    float *column = (float *)(void *)(order + rows);
    for (uint32_t row = 0; row < rows; row++) {
        order[row] = (placed){cpu_page_positions(kv_page_data(cache, t, row), dim, dtype)[row % KVF_PAGE_ROWS], row};
    }
    qsort(order, rows, sizeof *order, by_position);
    for (uint32_t d = 0; d < 2 * dim; d++) {
        for (uint32_t pass = 0; pass < 2; pass++) {
            for (uint32_t i = 0; i < rows; i++) {
                const uint32_t row = pass == 0 ? order[i].row : i;
                void *page = kv_page_data(cache, t, row);
                const size_t slot = row % KVF_PAGE_ROWS;
                void *at = d < dim ? cpu_page_keys(page) : cpu_page_values(page, dim, dtype);
                const size_t index = d < dim ? d * (size_t)KVF_PAGE_ROWS + slot : slot * dim + (d - dim);
                if (pass == 0) {
                    column[i] = cpu_get(at, index, dtype);
                } else {
                    cpu_put(at, index, dtype, column[i]);
                }
            }
        }
    }
    for (uint32_t i = 0; i < rows; i++) {
        cpu_page_positions(kv_page_data(cache, t, i), dim, dtype)[i % KVF_PAGE_ROWS] = order[i].position;
    }
    kv_live *live = &kv_step_of(s, layer)->head[head];
    for (uint32_t r = 0; live->n_mass > 0 && r < kv_readers(cache, s); r++) {
        const size_t at = (size_t)r * KV_SEGMENT_ROWS;
        for (uint32_t i = 0; i < rows; i++) {
            const uint32_t row = order[i].row;
            column[i] = live->mass[row / KV_SEGMENT_ROWS][at + row % KV_SEGMENT_ROWS];
        }
        for (uint32_t i = 0; i < rows; i++) live->mass[i / KV_SEGMENT_ROWS][at + i % KV_SEGMENT_ROWS] = column[i];
    }
    free(order);
    return KVF_OK;
}

/* ---- Reading and writing ---- */

int32_t be_read_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *to_host, kv_err err) {
    (void)err;
    const uint32_t dim = cache->config.head_dim;
    float tile[CPU_TILE_FLOATS];
    for (uint32_t page = 0; page < kv_table_pages(t); page++) {
        cpu_page_tile(cache, t, page, what, tile);
        for (uint32_t i = 0; i < kv_page_rows(t, page); i++) {
            for (uint32_t d = 0; d < dim; d++) {
                *to_host++ = what == 0 ? tile[(size_t)d * KVF_PAGE_ROWS + i] : tile[(size_t)i * dim + d];
            }
        }
    }
    return KVF_OK;
}

int32_t be_read_positions(kvf_cache *cache, const kv_table *t, uint32_t *to_host, kv_err err) {
    (void)err;
    for (uint32_t page = 0; page < kv_table_pages(t); page++) {
        const uint32_t n = kv_page_rows(t, page);
        memcpy(to_host, cpu_positions_of(cache, t, page), n * sizeof *to_host);
        to_host += n;
    }
    return KVF_OK;
}

typedef struct write_job {
    const kvf_cache *cache;
    const kv_table *t;
    const float *k;
    const float *v;
    uint32_t n;
} write_job;

/* One page. */
static void write_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const write_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const uint32_t first = chunk * KVF_PAGE_ROWS, n = j->n - first < KVF_PAGE_ROWS ? j->n - first : KVF_PAGE_ROWS;
    void *page = kv_page_data(j->cache, j->t, first);
    const float *k = j->k + (size_t)first * dim, *v = j->v + (size_t)first * dim;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < dim; d++) {
            cpu_put(cpu_page_keys(page), (size_t)d * KVF_PAGE_ROWS + i, dtype, k[(size_t)i * dim + d]);
            cpu_put(cpu_page_values(page, dim, dtype), (size_t)i * dim + d, dtype, v[(size_t)i * dim + d]);
        }
        cpu_page_positions(page, dim, dtype)[i] = first + i;
    }
}

int32_t be_write_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err) {
    (void)err;
    write_job j = {cache, t, k, v, n};
    cpu_parallel(cache->dev, (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, write_chunk, &j);
    return KVF_OK;
}
