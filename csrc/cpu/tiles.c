/* Attention over the rows of one table, page by page. */
#include <math.h>
#include <string.h>

#include "packed.h"
#include "share.h"
#include "tiles.h"

#define CHUNK_PAGES (CPU_CHUNK_ROWS / KVF_PAGE_ROWS)
/* Queries that meet shared directions at the same time. */
#define SHARED_QUERIES 8

uint32_t cpu_n_chunk(const kv_table *t) { return (kv_table_pages(t) + CHUNK_PAGES - 1) / CHUNK_PAGES; }

cpu_span cpu_chunk(const kv_table *t, uint32_t chunk) {
    const uint32_t first_page = chunk * CHUNK_PAGES, n_page = kv_table_pages(t), end_page = first_page + CHUNK_PAGES;
    const uint32_t first = kv_page_first(t, first_page);
    return (cpu_span){first_page, first, (end_page < n_page ? kv_page_first(t, end_page) : t->rows) - first};
}

/* Hides the rows of a page that have left the sliding window. */
static void hide(const uint32_t *position, uint32_t n, uint32_t oldest, uint32_t m, float *scores, size_t ld_s) {
    for (uint32_t i = 0; i < n; i++) {
        if (position[i] >= oldest) continue;
        for (uint32_t r = 0; r < m; r++) scores[r * ld_s + i] = -INFINITY;
    }
}

/* The kept channels of queries [m, ld_q], closed up: [m, n]. */
static void keep_channels(const uint16_t *channels, uint32_t n, const float *q, size_t ld_q, uint32_t m, float *out) {
    for (uint32_t r = 0; r < m; r++) {
        for (uint32_t i = 0; i < n; i++) out[r * n + i] = q[r * ld_q + channels[i]];
    }
}

/* Queries that meet packed pages at the same time. */
#define QUERY_BLOCK 32

/* Scores of the span's packed pages; returns how many rows that are. */
static uint32_t packed_scores(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *q, size_t ld_q,
                              uint32_t m, uint32_t oldest, float *scores, size_t ld_s) {
    const cpu_packed p = cpu_packed_of(cache, t);
    const uint32_t n_channel = p.layout.n_channel, end = kv_packed_pages(t);
    const uint16_t *channels = cpu_packed_channels(&p);
    float tile[CPU_TILE_FLOATS] __attribute__((aligned(64)));
    float kept[QUERY_BLOCK * 256];
    uint32_t row = 0;
    for (uint32_t page = span.first_page; page < end && row < span.n; page++) {
        const uint8_t *data = cache->page[t->page[page]].data;
        const uint32_t n = kv_page_rows(t, page);
        const float *keys = cpu_packed_keys(&p, data, tile);
        for (uint32_t r = 0; r < m; r += QUERY_BLOCK) {
            const uint32_t some = m - r < QUERY_BLOCK ? m - r : QUERY_BLOCK;
            const float *from = q + r * ld_q;
            size_t ld = ld_q;
            if (channels != NULL) {
                keep_channels(channels, n_channel, from, ld_q, some, kept);
                from = kept;
                ld = n_channel;
            }
            p.ops->tile_scores(scores + r * ld_s + row, ld_s, from, ld, keys, some, n_channel);
        }
        if (oldest > 0) hide(cpu_packed_positions(&p, data), n, oldest, m, scores + row, ld_s);
        row += n;
    }
    return row;
}

/* Rows of the span, from its first on, of which pages hold directions. */
static uint32_t shared_rows(const kv_table *t, cpu_span span) {
    return t->shared - span.first < span.n ? t->shared - span.first : span.n;
}

void cpu_table_scores(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *q, size_t ld_q, uint32_t m,
                      uint32_t oldest, float *scores, size_t ld_s) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    uint32_t row = 0;
    if (span.first < t->packed) row = packed_scores(cache, t, span, q, ld_q, m, oldest, scores, ld_s);
    const uint32_t plain = row;
    for (; row < span.n; row += KVF_PAGE_ROWS) {
        ops->page_scores[dtype](scores + row, ld_s, q, ld_q, kv_page_data(cache, t, span.first + row), m, dim);
    }
    if (span.first < t->shared) cpu_shared_scores(cache, t, span.first, shared_rows(t, span), q, ld_q, m, scores, ld_s);
    for (row = plain; oldest > 0 && row < span.n; row += KVF_PAGE_ROWS) {
        const uint32_t n = span.n - row < KVF_PAGE_ROWS ? span.n - row : KVF_PAGE_ROWS;
        hide(cpu_page_positions(kv_page_data(cache, t, span.first + row), dim, dtype), n, oldest, m, scores + row, ld_s);
    }
}

/* Adds the values of the span's packed pages; returns how many rows that are. */
static uint32_t packed_values(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *p, size_t ld_p,
                              uint32_t m, float *out, size_t ld_out) {
    const cpu_packed packed = cpu_packed_of(cache, t);
    const uint32_t ld = cpu_packed_ld(&packed), end = kv_packed_pages(t);
    float tile[CPU_TILE_FLOATS] __attribute__((aligned(64)));
    uint32_t row = 0;
    for (uint32_t page = span.first_page; page < end && row < span.n; page++) {
        const uint32_t n = kv_page_rows(t, page);
        const float *values = cpu_packed_values(&packed, cache->page[t->page[page]].data, tile);
        packed.ops->tile_values(out, ld_out, p + row, ld_p, values, ld, m, n, cache->config.head_dim);
        row += n;
    }
    return row;
}

/* Adds the values of the span's plain pages from row `row` of it on. */
static void plain_values(const kvf_cache *cache, const kv_table *t, cpu_span span, uint32_t row, const float *p, size_t ld_p,
                         uint32_t m, float *out, size_t ld_out) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    for (; row < span.n; row += KVF_PAGE_ROWS) {
        const uint32_t n = span.n - row < KVF_PAGE_ROWS ? span.n - row : KVF_PAGE_ROWS;
        cpu_ops_of(cache->dev)->page_values[dtype](out, ld_out, p + row, ld_p, kv_page_data(cache, t, span.first + row), m, n, dim);
    }
}

/* The same where the span's first pages hold directions. */
static void shared_values(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *p, size_t ld_p, uint32_t m,
                          float *out, size_t ld_out) {
    const uint32_t shared = shared_rows(t, span);
    float weights[SHARED_QUERIES][CPU_CHUNK_ROWS];
    for (uint32_t r = 0; r < m; r += SHARED_QUERIES) {
        const uint32_t some = m - r < SHARED_QUERIES ? m - r : SHARED_QUERIES;
        float *to = out + r * ld_out;
        cpu_shared_weights(cache, t, span.first, shared, p + r * ld_p, ld_p, some, weights[0], CPU_CHUNK_ROWS, to, ld_out);
        for (uint32_t k = 0; k < some; k++) {
            memcpy(weights[k] + shared, p + (r + k) * ld_p + shared, (span.n - shared) * sizeof **weights);
        }
        plain_values(cache, t, span, 0, weights[0], CPU_CHUNK_ROWS, some, to, ld_out);
    }
}

void cpu_table_values(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *p, size_t ld_p, uint32_t m,
                      float *out, size_t ld_out) {
    if (span.first < t->shared) {
        shared_values(cache, t, span, p, ld_p, m, out, ld_out);
        return;
    }
    const uint32_t row = span.first < t->packed ? packed_values(cache, t, span, p, ld_p, m, out, ld_out) : 0;
    plain_values(cache, t, span, row, p, ld_p, m, out, ld_out);
}
