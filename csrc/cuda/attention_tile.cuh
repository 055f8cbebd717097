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

/* The warps' shares of a chunk, in order. sums: shared [WARPS, READERS, DIM]   stat: [WARPS, READERS, 2], maximum and sum */
template <int READERS, int DIM, int WARPS>
static __device__ __forceinline__ void store_chunk(const step_args &a, uint32_t stored, uint32_t readers, uint32_t chunk,
                                                   const float *sums, const float *stat) {
    for (uint32_t i = threadIdx.x; i < readers * DIM; i += 32 * WARPS) {
        const uint32_t r = i / DIM, d = i % DIM;
        float most = -INFINITY, total = 0, weights = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, stat[(w * READERS + r) * 2]);
        const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float factor = exp2f(stat[(w * READERS + r) * 2] - base);
            total = fmaf(factor, sums[(w * READERS + r) * DIM + d], total);
            weights = fmaf(factor, stat[(w * READERS + r) * 2 + 1], weights);
        }
        float *to = partial_of(a, blockIdx.z, stored * readers + r, chunk);
        to[d] = total;
        if (d == 0) to[DIM] = most, to[DIM + 1] = weights;
    }
}

#endif
