/*
 * How a plain page lies in memory on the CPU.
 *
 *   keys      [head_dim][KVF_PAGE_ROWS] row_dtype, transposed: a page is a ready panel for q . K^T, without sums across
 *                                       the lanes of a vector
 *   values    [KVF_PAGE_ROWS][head_dim] row_dtype: ready for P . V
 *   position  [KVF_PAGE_ROWS] u32
 *
 * Slots beyond a table's rows hold anything, even bit patterns of NaN: never let them reach a result.
 */
#ifndef KVF_CPU_LAYOUT_H
#define KVF_CPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "../kvf.h"

/* Bytes of one element. */
static inline size_t cpu_dtype_bytes(uint32_t dtype) { return dtype == KVF_F32 ? 4 : 2; }

static inline size_t cpu_page_values_offset(uint32_t head_dim, uint32_t dtype) {
    return (size_t)KVF_PAGE_ROWS * head_dim * cpu_dtype_bytes(dtype);
}

static inline size_t cpu_page_positions_offset(uint32_t head_dim, uint32_t dtype) {
    return 2 * cpu_page_values_offset(head_dim, dtype);
}

/* Bytes of a page, a multiple of 64. */
static inline size_t cpu_page_size(uint32_t head_dim, uint32_t dtype) {
    const size_t bytes = cpu_page_positions_offset(head_dim, dtype) + KVF_PAGE_ROWS * sizeof(uint32_t);
    return (bytes + 63) & ~(size_t)63;
}

/* Element (d, slot) is at index d * KVF_PAGE_ROWS + slot. */
static inline void *cpu_page_keys(void *page) { return page; }

/* Element (slot, d) is at index slot * head_dim + d. */
static inline void *cpu_page_values(void *page, uint32_t head_dim, uint32_t dtype) {
    return (uint8_t *)page + cpu_page_values_offset(head_dim, dtype);
}

static inline uint32_t *cpu_page_positions(void *page, uint32_t head_dim, uint32_t dtype) {
    return (uint32_t *)(void *)((uint8_t *)page + cpu_page_positions_offset(head_dim, dtype));
}

#endif
