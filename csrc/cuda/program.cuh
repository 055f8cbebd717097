/* What the kernels of step programs share. */
#ifndef KVF_CUDA_PROGRAM_CUH
#define KVF_CUDA_PROGRAM_CUH

#include "packed.cuh"
#include "program.h"
#include "ptx.cuh"

/* Rows of one stored head. */
typedef struct head_rows {
    void *const *pages;
    uint32_t n_row;
    uint32_t head_dim;
    uint32_t dtype;
    const cu_packing *packing; /* NULL: all rows are plain; packed ones fill their pages */
} head_rows;

static __host__ __device__ __forceinline__ uint32_t element_bytes(uint32_t dtype) { return dtype == KVF_F32 ? 4 : 2; }

static __device__ __forceinline__ bool is_packed(const head_rows &h, uint32_t page) {
    return h.packing != NULL && page * KVF_PAGE_ROWS < h.packing->packed;
}
/* Positions of a page's rows. */
static __device__ __forceinline__ uint32_t *positions_at(const head_rows &h, uint32_t page) {
    if (is_packed(h, page)) return (uint32_t *)((char *)h.pages[page] + h.packing->format->layout.positions);
    return (uint32_t *)((char *)h.pages[page] + (size_t)2 * KVF_PAGE_ROWS * h.head_dim * element_bytes(h.dtype));
}
static __device__ __forceinline__ uint32_t position_of(const head_rows &h, uint32_t row) {
    return positions_at(h, row / KVF_PAGE_ROWS)[row % KVF_PAGE_ROWS];
}
static __device__ __forceinline__ float key_of(const head_rows &h, uint32_t row, uint32_t d) {
    if (is_packed(h, row / KVF_PAGE_ROWS)) {
        return packed_key(*h.packing->format, (const uint8_t *)h.pages[row / KVF_PAGE_ROWS], (const uint8_t *)h.packing->frame,
                          row % KVF_PAGE_ROWS, d);
    }
    return load_as(h.pages[row / KVF_PAGE_ROWS], h.dtype, (size_t)(row % KVF_PAGE_ROWS) * h.head_dim + d);
}

/* A slot's program for a table, or NULL. */
static __device__ __forceinline__ const cu_program *program_of(const cu_slot *s, size_t table) {
    return s->program == NULL ? NULL : &s->program[table];
}
/* Place of a mass or a bound in its list of segments. */
static __device__ __forceinline__ float *mass_of(const cu_program *p, uint32_t reader, uint32_t row) {
    return p->segment[row / KV_SEGMENT_ROWS] + (size_t)reader * KV_SEGMENT_ROWS + row % KV_SEGMENT_ROWS;
}
/* As kv_evicts. */
static __device__ __forceinline__ bool evicts(const cu_program *p, uint32_t n_row, uint32_t seen) {
    return p->evict.size != 0 && n_row > p->evict.above && seen % p->evict.every == 0;
}
/* Rows at positions below this move along, 0 when none has been evicted yet. */
static __device__ __forceinline__ uint32_t moves_below(const cu_program *p, uint32_t n_row, uint32_t seen) {
    return seen > n_row ? p->relative : 0;
}

/* Lines of a slot: scores of a query head; what belongs to a stored head. */
static __device__ __forceinline__ float *score_line(const cu_program_work &w, uint32_t slot, uint32_t head) {
    return w.line + ((size_t)slot * (w.n_head + w.max_stored) + head) * w.ld;
}
static __device__ __forceinline__ float *head_line(const cu_program_work &w, uint32_t slot, uint32_t stored) {
    return score_line(w, slot, w.n_head + stored);
}
static __device__ __forceinline__ uint2 *pick_line(const cu_program_work &w, uint32_t slot, uint32_t stored) {
    return w.pick + ((size_t)slot * w.max_stored + stored) * (w.ld / KVF_PAGE_ROWS);
}

#endif
