/* The sum of squares of a row, in the one order that all norms of activations have. */
#ifndef KVF_CUDA_NORM_H
#define KVF_CUDA_NORM_H

#include "numbers.cuh"

enum { NORM_THREADS = 256 };

static __device__ __forceinline__ float norm_add(float sum, const float4 &v) {
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}
/* Of the block's sums. */
static __device__ __forceinline__ float norm_factor(float sum, uint32_t n_col, float eps) {
    return rsqrtf(block_sum(sum) / (float)n_col + eps);
}

/* Block of NORM_THREADS; thread t takes columns 4 t to 4 t + 3 of every 1024. Every thread gets the factor. */
static __device__ __forceinline__ float norm_scale(const float *x, uint32_t n_col, float eps) {
    float sum = 0;
    if (n_col % 4 == 0) {
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < n_col / 4; i += NORM_THREADS) {
            sum = norm_add(sum, ((const float4 *)x)[i]);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < n_col; i += NORM_THREADS) sum = fmaf(x[i], x[i], sum);
    }
    return norm_factor(sum, n_col, eps);
}

#endif
