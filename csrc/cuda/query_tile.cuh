/* The arithmetic of the plain kernels of prefill attention: a tile of queries takes in 32 rows at a time. */
#ifndef KVF_CUDA_QUERY_TILE_H
#define KVF_CUDA_QUERY_TILE_H

#include "attention_prefill.cuh"

/*
 * A block of 256 threads takes 16 * QI queries of one head and 32 rows at a time; DIM: head_dim rounded up to 64, 128 or 256.
 * Thread (ty, tx) of 16 x 16 owns QI queries and two of the 32 rows for the scores, and the same queries and every 16th
 * column for the output. Shared memory, in floats: queries [16 * QI, DIM + 4], rows [32, DIM + 4], weights [16 * QI, 33].
 */
template <int DIM, int QI>
struct query_tile {
    float acc[QI][DIM / 16], max[QI], sum[QI];
};

template <int DIM, int QI>
static constexpr size_t tile_bytes(void) {
    return ((size_t)(16 * QI + KVF_PAGE_ROWS) * (DIM + 4) + 16 * QI * 33) * sizeof(float);
}

/* [n, head_dim] f32 rows at `from` into shared memory of `stride` floats per row, zeros around them. */
static __device__ __forceinline__ void fill_queries(float *to, uint32_t stride, const float *from, uint32_t n,
                                                    uint32_t n_tile, uint32_t head_dim, float scale) {
    for (uint32_t i = threadIdx.x; i < n_tile * stride; i += 256) {
        const uint32_t r = i / stride, d = i % stride;
        to[i] = r < n && d < head_dim ? from[(size_t)r * head_dim + d] * scale : 0.0f;
    }
}

/* 32 rows, keys or values: `at` gives the address of each; NULL: zeros. */
template <typename R, typename At>
static __device__ __forceinline__ void fill_rows(float *to, uint32_t stride, uint32_t head_dim, At at) {
    if (head_dim % 8 == 0) {
        const uint32_t per_row = stride / 8; /* the last pad columns are set below */
        for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * per_row; i += 256) {
            const uint32_t r = i / per_row, d = i % per_row * 8;
            const R *from = at(r);
            float v[8] = {};
            if (from != NULL && d < head_dim) load8(from + d, v);
#pragma unroll
            for (int k = 0; k < 8; k++) to[r * stride + d + k] = v[k];
        }
        for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * (stride % 8); i += 256) {
            to[i / (stride % 8) * stride + per_row * 8 + i % (stride % 8)] = 0;
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * stride; i += 256) {
        const uint32_t r = i / stride, d = i % stride;
        const R *from = at(r);
        to[i] = from != NULL && d < head_dim ? to_f32(from[d]) : 0.0f;
    }
}

/* The rows of a page, keys or values; slots beyond n_row become zeros, whatever they hold. */
template <typename R>
static __device__ __forceinline__ void fill_page(float *to, uint32_t stride, const R *from, uint32_t n_row,
                                                 uint32_t head_dim) {
    fill_rows<R>(to, stride, head_dim, [=](uint32_t r) { return r < n_row ? from + r * head_dim : (const R *)NULL; });
}

/* s[i][j] = query ty * QI + i times row tx + 16 * j. */
template <int QI>
static __device__ __forceinline__ void score_tile(float s[QI][2], const float *qs, const float *ks, uint32_t stride,
                                                  uint32_t head_dim) {
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < QI; i++) s[i][0] = s[i][1] = 0;
    for (uint32_t d = 0; d < head_dim; d += 4) {
        const float4 k0 = *(const float4 *)&ks[tx * stride + d], k1 = *(const float4 *)&ks[(tx + 16) * stride + d];
#pragma unroll
        for (int i = 0; i < QI; i++) {
            const float4 q = *(const float4 *)&qs[(ty * QI + i) * stride + d];
            s[i][0] = fmaf(q.w, k0.w, fmaf(q.z, k0.z, fmaf(q.y, k0.y, fmaf(q.x, k0.x, s[i][0]))));
            s[i][1] = fmaf(q.w, k1.w, fmaf(q.z, k1.z, fmaf(q.y, k1.y, fmaf(q.x, k1.x, s[i][1]))));
        }
    }
}

static __device__ __forceinline__ float half_warp_max(float x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
static __device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
    for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <int DIM, int QI>
static __device__ __forceinline__ void clear_tile(query_tile<DIM, QI> &x) {
#pragma unroll
    for (int i = 0; i < QI; i++) {
        x.max[i] = -INFINITY, x.sum[i] = 0;
#pragma unroll
        for (int c = 0; c < DIM / 16; c++) x.acc[i][c] = 0;
    }
}

/* A step of the online softmax: scores, -inf where a query does not see a row, become weights in ps. */
template <int DIM, int QI>
static __device__ __forceinline__ void weigh_scores(query_tile<DIM, QI> &x, const float s[QI][2], float *ps) {
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < QI; i++) {
        const float new_max = fmaxf(x.max[i], half_warp_max(fmaxf(s[i][0], s[i][1])));
        const float base = new_max == -INFINITY ? 0.0f : new_max;
        const float p0 = exp2f(s[i][0] - base), p1 = exp2f(s[i][1] - base), shrink = exp2f(x.max[i] - base);
        x.sum[i] = x.sum[i] * shrink + half_warp_sum(p0 + p1);
        x.max[i] = new_max;
        ps[(ty * QI + i) * 33 + tx] = p0;
        ps[(ty * QI + i) * 33 + tx + 16] = p1;
#pragma unroll
        for (int c = 0; c < DIM / 16; c++) x.acc[i][c] *= shrink;
    }
}

/* The first n of 32 rows of values, by their weights. */
template <int DIM, int QI>
static __device__ __forceinline__ void add_values(query_tile<DIM, QI> &x, const float *ps, const float *rows, uint32_t n) {
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (uint32_t r = 0; r < n; r++) {
        float p[QI];
#pragma unroll
        for (int i = 0; i < QI; i++) p[i] = ps[(ty * QI + i) * 33 + r];
#pragma unroll
        for (int c = 0; c < DIM / 16; c++) {
            const float v = rows[r * (DIM + 4) + c * 16 + tx];
#pragma unroll
            for (int i = 0; i < QI; i++) x.acc[i][c] = fmaf(p[i], v, x.acc[i][c]);
        }
    }
}

/* Output and log-sum-exp of n queries from q0 on, as far as they are wanted. */
template <int DIM, int QI>
static __device__ __forceinline__ void store_tile(const query_tile<DIM, QI> &x, const prefill_args &a, uint32_t head,
                                                  uint32_t q0, uint32_t n) {
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16, head_dim = a.view.head_dim;
#pragma unroll
    for (int i = 0; i < QI; i++) {
        const uint32_t query = ty * QI + i;
        if (query >= n) continue;
        const float inverse = x.sum[i] > 0 ? 1.0f / x.sum[i] : 0.0f;
#pragma unroll
        for (int c = 0; c < DIM / 16; c++) {
            const uint32_t d = c * 16 + tx;
            if (a.out != NULL && d < head_dim) {
                store_as(a.out, a.out_dtype, (size_t)(q0 + query) * a.ldo + head * head_dim + d, x.acc[i][c] * inverse);
            }
        }
        if (a.lse != NULL && tx == 0) {
            a.lse[(size_t)head * a.queries.n + q0 + query] =
                x.sum[i] > 0 ? x.max[i] / LOG2E + logf(x.sum[i]) : -INFINITY;
        }
    }
}

#endif
