/*
 * Attention over the rows of one table, a chunk at a time: the only code that knows how a page holds its rows while
 * scores and outputs are computed. What these functions write for a row depends on that row and the queries alone.
 */
#ifndef KVF_CPU_TILES_H
#define KVF_CPU_TILES_H

#include "cpu.h"

/* Rows [first, first + n) of a table, beginning with page first_page: what one chunk of decode attention covers. */
typedef struct cpu_span {
    uint32_t first_page, first, n;
} cpu_span;

/* Chunks of a table: so many as its pages fill, CPU_CHUNK_ROWS / KVF_PAGE_ROWS pages each. */
uint32_t cpu_n_chunk(const kv_table *t);
cpu_span cpu_chunk(const kv_table *t, uint32_t chunk);

/*
 * scores[r * ld_s + i] = q[r] . key of row span.first + i, for m queries [m, ld_q] and i < span.n; -inf where the row's
 * position is before `oldest`. ld_s >= CPU_SPAN_FLOATS(span.n), or CPU_CHUNK_ROWS for a chunk; what lies between span.n and
 * there is overwritten.
 */
#define CPU_SPAN_FLOATS(n) (((n) + 2 * KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS * KVF_PAGE_ROWS)
void cpu_table_scores(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *q, size_t ld_q, uint32_t m,
                      uint32_t oldest, float *scores, size_t ld_s);
/*
 * out[m, ld_out] += p[m, ld_p] . values of the span's rows, CPU_CHUNK_ROWS at most; p[r * ld_p + i] belongs to row
 * span.first + i.
 */
void cpu_table_values(const kvf_cache *cache, const kv_table *t, cpu_span span, const float *p, size_t ld_p, uint32_t m,
                      float *out, size_t ld_out);

#endif
