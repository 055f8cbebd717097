/* Attention over the rows of one table, page by page. */
#include <math.h>

#include "tiles.h"

#define CHUNK_PAGES (CPU_CHUNK_ROWS / KVF_PAGE_ROWS)

uint32_t cpu_n_chunk(const kv_table *t) { return (t->rows + CPU_CHUNK_ROWS - 1) / CPU_CHUNK_ROWS; }

cpu_span cpu_chunk(const kv_table *t, uint32_t chunk) {
    const uint32_t first = chunk * CPU_CHUNK_ROWS;
    return (cpu_span){chunk * CHUNK_PAGES, first, t->rows - first < CPU_CHUNK_ROWS ? t->rows - first : CPU_CHUNK_ROWS};
}

/* Hides the rows of a page that have left the sliding window. */
static void hide(const uint32_t *position, uint32_t n, uint32_t oldest, uint32_t m, float *scores, size_t ld_s) {
    for (uint32_t i = 0; i < n; i++) {
        if (position[i] >= oldest) continue;
        for (uint32_t r = 0; r < m; r++) scores[r * ld_s + i] = -INFINITY;
    }
}

void cpu_table_scores(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *q, size_t ld_q, uint32_t m,
                      uint32_t oldest, float *scores, size_t ld_s) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    for (uint32_t row = 0; row < span.n; row += KVF_PAGE_ROWS) {
        void *page = kv_page_data(cache, t, span.first + row);
        const uint32_t n = span.n - row < KVF_PAGE_ROWS ? span.n - row : KVF_PAGE_ROWS;
        ops->page_scores[dtype](scores + row, ld_s, q, ld_q, page, m, dim);
        if (oldest > 0) hide(cpu_page_positions(page, dim, dtype), n, oldest, m, scores + row, ld_s);
    }
}

void cpu_table_values(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *p, size_t ld_p, uint32_t m,
                      float *out, size_t ld_out) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    for (uint32_t row = 0; row < span.n; row += KVF_PAGE_ROWS) {
        const uint32_t n = span.n - row < KVF_PAGE_ROWS ? span.n - row : KVF_PAGE_ROWS;
        ops->page_values[dtype](out, ld_out, p + row, ld_p, kv_page_data(cache, t, span.first + row), m, n, dim);
    }
}
