/* Conversions and reductions that kernels share. Orders of summation are fixed. */
#ifndef KVF_CUDA_NUMBERS_H
#define KVF_CUDA_NUMBERS_H

#include "cuda.h"

#define LOG2E 1.4426950408889634f

static __device__ __forceinline__ float to_f32(float x) { return x; }
static __device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }
static __device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }

static __device__ __forceinline__ void from_f32(float *to, float x) { *to = x; }
static __device__ __forceinline__ void from_f32(__half *to, float x) { *to = __float2half_rn(x); }
static __device__ __forceinline__ void from_f32(__nv_bfloat16 *to, float x) { *to = __float2bfloat16_rn(x); }

/* Element of an array whose dtype is known at run time. */
static __device__ __forceinline__ void store_as(void *to, uint32_t dtype, size_t i, float x) {
    if (dtype == KVF_F32) {
        ((float *)to)[i] = x;
    } else if (dtype == KVF_F16) {
        from_f32((__half *)to + i, x);
    } else {
        from_f32((__nv_bfloat16 *)to + i, x);
    }
}

static __device__ __forceinline__ float load_as(const void *from, uint32_t dtype, size_t i) {
    if (dtype == KVF_F32) return ((const float *)from)[i];
    if (dtype == KVF_F16) return to_f32(((const __half *)from)[i]);
    return to_f32(((const __nv_bfloat16 *)from)[i]);
}

/* Two 16-bit elements in one word, the first in its lower half. */
template <typename R>
static __device__ __forceinline__ uint32_t pack(float low, float high) {
    R pair[2];
    uint32_t word;
    from_f32(&pair[0], low);
    from_f32(&pair[1], high);
    memcpy(&word, pair, sizeof word);
    return word;
}

/* Eight elements that lie in registers. */
static __device__ __forceinline__ void unpack8(uint4 raw, float to[8], __nv_bfloat16) {
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = __uint_as_float(word[i] << 16);
        to[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}
static __device__ __forceinline__ void unpack8(uint4 raw, float to[8], __half) {
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __half2 half;
        memcpy(&half, &word[i], sizeof half);
        const float2 pair = __half22float2(half);
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
    }
}

/* Eight elements at an address that is aligned to eight elements or 16 bytes, whichever is less. */
static __device__ __forceinline__ void load8(const float *from, float to[8]) {
    const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
static __device__ __forceinline__ void load8(const __half *from, float to[8]) { unpack8(*(const uint4 *)from, to, __half()); }
static __device__ __forceinline__ void load8(const __nv_bfloat16 *from, float to[8]) {
    unpack8(*(const uint4 *)from, to, __nv_bfloat16());
}

/* The same for writing. */
static __device__ __forceinline__ void store8(float *to, const float from[8]) {
    ((float4 *)to)[0] = make_float4(from[0], from[1], from[2], from[3]);
    ((float4 *)to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}
template <typename R>
static __device__ __forceinline__ void store8(R *to, const float from[8]) {
    *(uint4 *)to = make_uint4(pack<R>(from[0], from[1]), pack<R>(from[2], from[3]), pack<R>(from[4], from[5]),
                              pack<R>(from[6], from[7]));
}

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
/* Sum over all threads of a block of 32 * n_warp threads; every thread gets it. */
static __device__ __forceinline__ float block_sum(float x) {
    __shared__ float part[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warp = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < n_warp; i++) sum += part[i];
    return sum;
}

/* Philox-4x32-10, the same words as kv_philox. */
static __device__ __forceinline__ void philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                              uint32_t k1, uint32_t out[4]) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t h0 = __umulhi(0xd2511f53u, c0), l0 = 0xd2511f53u * c0;
        const uint32_t h1 = __umulhi(0xcd9e8d57u, c2), l1 = 0xcd9e8d57u * c2;
        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/*
 * For kernels of decode that go around the L1 cache: all of it is theirs as shared memory. A multiprocessor divides the two
 * anew only when it is empty, so a kernel that left more to the cache would keep the next one's blocks out until its last one
 * had gone.
 */
template <typename... P>
static inline cudaError_t cu_all_shared(void (*kernel)(P...)) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

/*
 * Launches a kernel of decode. Where the device allows it, the kernel's blocks start while the kernel before them still
 * runs: it must call wait_previous before it touches anything that others write, in every thread, on every path.
 */
template <typename... P, typename... A>
static inline cudaError_t cu_launch_next(const cu_device *d, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                                         A... args) {
    cudaLaunchAttribute attribute = {};
    cudaLaunchConfig_t config = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = d->stream;
    config.attrs = &attribute, config.numAttrs = d->dependent && !d->alone;
    d->alone = false;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

/* Parts of a page of R rows. */
template <typename R>
static __device__ __forceinline__ R *page_keys(void *page) {
    return (R *)page;
}
template <typename R>
static __device__ __forceinline__ R *page_values(void *page, uint32_t head_dim) {
    return (R *)page + (size_t)KVF_PAGE_ROWS * head_dim;
}
template <typename R>
static __device__ __forceinline__ uint32_t *page_positions(void *page, uint32_t head_dim) {
    return (uint32_t *)((R *)page + (size_t)2 * KVF_PAGE_ROWS * head_dim);
}

/* Key (what 0) or value of an exact row of a table that shares rows; length: what stands in place of its length. */
template <typename R>
static __device__ __forceinline__ const R *own_exact(const cu_own &own, uint32_t what, float length, uint32_t head_dim) {
    return (const R *)own.exact[what] + (size_t)((uint32_t)-length - 1) * head_dim;
}

/* What gate and up are kept in before SwiGLU; see cu_wide_dtype. */
template <typename T>
struct wide_of {
    using type = T;
};
template <>
struct wide_of<__half> {
    using type = float;
};

/* Calls `call` with R defined as the type of `dtype`. */
#define CU_WITH_TYPE(dtype, R, call) \
    do {                             \
        if ((dtype) == KVF_F32) {    \
            using R = float;         \
            call;                    \
        } else if ((dtype) == KVF_F16) { \
            using R = __half;        \
            call;                    \
        } else {                     \
            using R = __nv_bfloat16; \
            call;                    \
        }                            \
    } while (0)

#endif
