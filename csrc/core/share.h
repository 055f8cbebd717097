/*
 * Rows that two layers share by direction: what a layer keeps of its own, in one page of the pool (kv_table.scale).
 *
 *   lengths  [2][n] f32                       of keys, then of values
 *   rows     u32, n_exact of keys, of values  whose keys, then whose values are exact; ascending
 *   keys     [ceil(n_exact / KVF_PAGE_ROWS)][head_dim][KVF_PAGE_ROWS] row_dtype: laid out as in plain pages
 *   values   [n_exact][head_dim] row_dtype
 */
#ifndef KVF_SHARE_H
#define KVF_SHARE_H

#include "core.h"

typedef struct kv_scale_layout {
    size_t length[2], row[2], exact[2]; /* offsets in bytes; keys, values */
    size_t bytes;
} kv_scale_layout;

/* n_exact: [2], keys and values. */
static inline kv_scale_layout kv_scale_of(const kvf_cache_config *c, uint32_t n, const uint32_t *n_exact) {
    const size_t width = c->row_dtype == KVF_F32 ? 4 : 2, row = c->head_dim * width;
    const size_t slots = ((size_t)n_exact[0] + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS * KVF_PAGE_ROWS;
    kv_scale_layout l;
    l.length[0] = 0;
    l.length[1] = (size_t)n * sizeof(float);
    l.row[0] = 2 * l.length[1];
    l.row[1] = l.row[0] + n_exact[0] * sizeof(uint32_t);
    l.exact[0] = (l.row[1] + n_exact[1] * sizeof(uint32_t) + 63) & ~(size_t)63;
    l.exact[1] = l.exact[0] + slots * row;
    l.bytes = (l.exact[1] + n_exact[1] * row + 63) & ~(size_t)63;
    return l;
}

#endif
