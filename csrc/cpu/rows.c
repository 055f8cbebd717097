/* Rows of plain pages: gather, read, write. Layout: layout.h. */
#include <string.h>

#include "convert.h"
#include "cpu.h"

uint32_t be_page_bytes(const kvf_cache_config *config) {
    return (uint32_t)cpu_page_size(config->head_dim, config->row_dtype);
}

typedef struct row_shape {
    uint32_t head_dim, dtype;
    size_t element;
} row_shape;

static row_shape shape_of(const kvf_cache *cache) {
    return (row_shape){cache->config.head_dim, cache->config.row_dtype, cpu_dtype_bytes(cache->config.row_dtype)};
}

/* One row from slot `from` of a page to slot `to` of another. Elements are moved, not converted. */
static void move_row(row_shape r, void *dst, uint32_t to, void *src, uint32_t from) {
    if (r.element == 4) {
        uint32_t *d = cpu_page_keys(dst);
        const uint32_t *s = cpu_page_keys(src);
        for (uint32_t i = 0; i < r.head_dim; i++) d[i * KVF_PAGE_ROWS + to] = s[i * KVF_PAGE_ROWS + from];
    } else {
        uint16_t *d = cpu_page_keys(dst);
        const uint16_t *s = cpu_page_keys(src);
        for (uint32_t i = 0; i < r.head_dim; i++) d[i * KVF_PAGE_ROWS + to] = s[i * KVF_PAGE_ROWS + from];
    }
    const size_t row = r.head_dim * r.element;
    memcpy((uint8_t *)cpu_page_values(dst, r.head_dim, r.dtype) + to * row,
           (uint8_t *)cpu_page_values(src, r.head_dim, r.dtype) + from * row, row);
    cpu_page_positions(dst, r.head_dim, r.dtype)[to] = cpu_page_positions(src, r.head_dim, r.dtype)[from];
}

int32_t be_gather_rows(kvf_cache *cache, kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                       kv_err err) {
    (void)err;
    const row_shape r = shape_of(cache);
    for (uint32_t i = 0; i < n; i++) {
        move_row(r, kv_page_data(cache, dst, i), i % KVF_PAGE_ROWS, kv_page_data(cache, src, rows[i]),
                 rows[i] % KVF_PAGE_ROWS);
    }
    return KVF_OK;
}

int32_t be_read_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *to_host, kv_err err) {
    (void)err;
    const row_shape r = shape_of(cache);
    for (uint32_t row = 0; row < t->rows; row++) {
        void *page = kv_page_data(cache, t, row);
        const uint32_t slot = row % KVF_PAGE_ROWS;
        float *out = to_host + (size_t)row * r.head_dim;
        for (uint32_t i = 0; i < r.head_dim; i++) {
            out[i] = what == 0 ? cpu_get(cpu_page_keys(page), (size_t)i * KVF_PAGE_ROWS + slot, r.dtype)
                               : cpu_get(cpu_page_values(page, r.head_dim, r.dtype), (size_t)slot * r.head_dim + i, r.dtype);
        }
    }
    return KVF_OK;
}

int32_t be_read_positions(kvf_cache *cache, const kv_table *t, uint32_t *to_host, kv_err err) {
    (void)err;
    const row_shape r = shape_of(cache);
    for (uint32_t row = 0; row < t->rows; row++) {
        to_host[row] = cpu_page_positions(kv_page_data(cache, t, row), r.head_dim, r.dtype)[row % KVF_PAGE_ROWS];
    }
    return KVF_OK;
}

int32_t be_write_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err) {
    (void)err;
    const row_shape r = shape_of(cache);
    for (uint32_t row = 0; row < n; row++) {
        void *page = kv_page_data(cache, t, row);
        const uint32_t slot = row % KVF_PAGE_ROWS;
        for (uint32_t i = 0; i < r.head_dim; i++) {
            cpu_put(cpu_page_keys(page), (size_t)i * KVF_PAGE_ROWS + slot, r.dtype, k[(size_t)row * r.head_dim + i]);
            cpu_put(cpu_page_values(page, r.head_dim, r.dtype), (size_t)slot * r.head_dim + i, r.dtype,
                    v[(size_t)row * r.head_dim + i]);
        }
        cpu_page_positions(page, r.head_dim, r.dtype)[slot] = row;
    }
    return KVF_OK;
}
