/* What the kernels of prefill attention share. */
#ifndef KVF_CUDA_ATTENTION_PREFILL_H
#define KVF_CUDA_ATTENTION_PREFILL_H

#include "numbers.cuh"

/* Rows that a query may see. */
static __device__ __forceinline__ bool visible(uint32_t query, uint32_t row, uint32_t window) {
    return row <= query && (window == 0 || query - row < window);
}

typedef struct prefill_args {
    cu_view view;
    cu_queries queries;
    void *out;
    uint32_t out_dtype;
    uint32_t ldo;
    float *lse;
    float scale; /* with log2(e) folded in */
} prefill_args;

/* Tensor cores, where rows and results have one 16-bit type and heads 32, 64 or 128 columns. True when it is such a case. */
bool cu_attention_tensor(uint32_t row_dtype, const prefill_args &a, cudaStream_t stream, cudaError_t *status);

/* The same on compute capability 9.0, with heads of 64 or 128 columns. */
bool cu_attention_hopper(const cu_device *d, uint32_t row_dtype, const prefill_args &a, cudaError_t *status);

#endif
