/* What kernels of decode attention share in which a warp takes a page at a time. */
#ifndef KVF_CUDA_ATTENTION_TILE_H
#define KVF_CUDA_ATTENTION_TILE_H

#include "attention_decode.cuh"

/* Eight columns of a query: rounded (part 0), or what the rounding lost (part 1). */
template <typename R>
static __device__ __forceinline__ uint4 query_part(const float *q, uint32_t part) {
    float x[8];
    load8(q, x);
    if (part == 1) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            R rounded;
            from_f32(&rounded, x[i]);
            x[i] -= to_f32(rounded);
        }
    }
    return make_uint4(pack<R>(x[0], x[1]), pack<R>(x[2], x[3]), pack<R>(x[4], x[5]), pack<R>(x[6], x[7]));
}

/* Where a warp is in the pages of its block's chunks. */
typedef struct walk {
    uint32_t chunk, page; /* chunk >= n_chunk: at the end */
} walk;

static __device__ __forceinline__ void settle(walk *w, uint32_t n_chunk, uint32_t n_page, uint32_t per_chunk, uint32_t warp) {
    while (w->chunk < n_chunk && w->page >= min((w->chunk + 1) * per_chunk, n_page)) {
        w->chunk += gridDim.x;
        w->page = w->chunk * per_chunk + warp;
    }
}

#endif
