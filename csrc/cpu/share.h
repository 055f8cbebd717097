/* Rows of which pages hold only the direction: putting them together again. */
#ifndef KVF_CPU_SHARE_H
#define KVF_CPU_SHARE_H

#include "cpu.h"

/*
 * A tile of directions, as cpu_page_tile has it, becomes the table's own rows: n rows from `first` on. what: 0 keys,
 * 1 values.
 */
void cpu_restore_tile(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, uint32_t what, float *tile);

/* Attention without putting rows together. Rows [first, first + n) of a table lie before t->shared. */

/* scores [m, ld_s] of q [m, ld_q] with the rows' directions become scores with the rows' keys. */
void cpu_shared_scores(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, const float *q, size_t ld_q,
                       uint32_t m, float *scores, size_t ld_s);
/*
 * Weights [m, ld_w] of the rows' directions from p [m, ld_p] of their values; out [m, ld_out] takes in the values that are
 * exact, and their weights become 0.
 */
void cpu_shared_weights(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, const float *p, size_t ld_p,
                        uint32_t m, float *weights, size_t ld_w, float *out, size_t ld_out);

#endif
