/*
 * The arithmetic of prefill attention on tensor cores: a warp takes M * 16 queries through 64 rows at a time, keys and values
 * in shared memory, with the online softmax of FlashAttention-2. For 16-bit rows R.
 */
#ifndef KVF_CUDA_TENSOR_TILE_H
#define KVF_CUDA_TENSOR_TILE_H

#include "attention_prefill.cuh"
#include "ptx.cuh"

#define TENSOR_ROWS (2 * KVF_PAGE_ROWS)
#define TENSOR_TILES (TENSOR_ROWS / 8)

/* Lane 4 * g + t has rows g and g + 8 of each group of 16 queries, and columns 2t, 2t + 1 of each group of 8. */
template <int DIM, int M>
struct tensor_state {
    float out[M][DIM / 8][4], max[M][2], sum[M][2];
};

/* Index of 16-byte column c of a row in shared memory, so that eight rows of one column lie in different banks. */
template <int DIM>
static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t c) {
    const uint32_t turn = DIM >= 64 ? row % 8 : row / 2 % 4;
    return row * (DIM / 8) + (c ^ turn);
}

/* n queries of `all` into shared memory by a block, zeros behind them. */
template <typename R, int DIM>
static __device__ __forceinline__ void place_queries(uint4 *to, const float *from, uint32_t n, uint32_t all) {
    for (uint32_t i = threadIdx.x; i < all * (DIM / 8); i += blockDim.x) {
        const uint32_t r = i / (DIM / 8), c = i % (DIM / 8);
        float x[8] = {};
        if (r < n) load8(from + r * DIM + c * 8, x);
        to[place<DIM>(r, c)] = make_uint4(pack<R>(x[0], x[1]), pack<R>(x[2], x[3]), pack<R>(x[4], x[5]), pack<R>(x[6], x[7]));
    }
}

template <int DIM, int M>
static __device__ __forceinline__ void clear_state(tensor_state<DIM, M> &x) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        x.max[m][0] = x.max[m][1] = -INFINITY, x.sum[m][0] = x.sum[m][1] = 0;
#pragma unroll
        for (int c = 0; c < DIM / 8; c++) x.out[m][c][0] = x.out[m][c][1] = x.out[m][c][2] = x.out[m][c][3] = 0;
    }
}

/* Products of the warp's queries, from row query0 of `queries` on, with 64 keys; s: zeros. */
template <typename R, int DIM, int M>
static __device__ __forceinline__ void score_rows(float s[M][TENSOR_TILES][4], const uint4 *queries, uint32_t query0,
                                                  const uint4 *keys) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        uint32_t q[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrix(q[m], &queries[place<DIM>(query0 + m * 16 + lane % 16, 2 * k + lane / 16)]);
#pragma unroll
        for (int j = 0; j < TENSOR_TILES; j += 2) {
            uint32_t b[4];
            load_matrix(b, &keys[place<DIM>(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2)]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(s[m][j], q[m], b[0], b[1], R());
                mma_16x8x16(s[m][j + 1], q[m], b[2], b[3], R());
            }
        }
    }
}

/* Scores, of which those become -infinity that hidden(query, row) says with `masked`, become weights. Queries and rows: of the tile. */
template <int DIM, int M, typename Hidden>
static __device__ __forceinline__ void weigh_rows(tensor_state<DIM, M> &x, float s[M][TENSOR_TILES][4], float scale, bool masked,
                                                  Hidden hidden) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t query = m * 16 + h * 8 + g;
            float most = -INFINITY, total = 0;
#pragma unroll
            for (int j = 0; j < TENSOR_TILES; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float *y = &s[m][j][2 * h + e];
                    if (masked && hidden(query, j * 8 + 2 * t + e)) *y = -INFINITY;
                    most = fmaxf(most, *y);
                }
            }
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(most * scale, x.max[m][h]);
            const float base = most == -INFINITY ? 0.0f : most, shrink = exp2f(x.max[m][h] - base);
#pragma unroll
            for (int j = 0; j < TENSOR_TILES; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float *y = &s[m][j][2 * h + e];
                    *y = exp2f(fmaf(*y, scale, -base));
                    total += *y;
                }
            }
            x.sum[m][h] = x.sum[m][h] * shrink + total; /* of this thread's columns; added up at the end */
            x.max[m][h] = most;
#pragma unroll
            for (int c = 0; c < DIM / 8; c++) x.out[m][c][2 * h] *= shrink, x.out[m][c][2 * h + 1] *= shrink;
        }
    }
}

/* Adds 64 values by their weights. */
template <typename R, int DIM, int M>
static __device__ __forceinline__ void add_rows(tensor_state<DIM, M> &x, const float s[M][TENSOR_TILES][4], const uint4 *values) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < TENSOR_ROWS / 16; k++) {
        uint32_t p[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            p[m][0] = pack<R>(s[m][2 * k][0], s[m][2 * k][1]);
            p[m][1] = pack<R>(s[m][2 * k][2], s[m][2 * k][3]);
            p[m][2] = pack<R>(s[m][2 * k + 1][0], s[m][2 * k + 1][1]);
            p[m][3] = pack<R>(s[m][2 * k + 1][2], s[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int c = 0; c < DIM / 8; c += 2) {
            uint32_t b[4];
            load_matrix_turned(b, &values[place<DIM>(k * 16 + lane % 16, c + lane / 16)]);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(x.out[m][c], p[m], b[0], b[1], R());
                mma_16x8x16(x.out[m][c + 1], p[m], b[2], b[3], R());
            }
        }
    }
}

/* Results of the warp's queries, the first of which is q0 of all and query0 of the block's n. */
template <typename R, int DIM, int M>
static __device__ __forceinline__ void store_state(const tensor_state<DIM, M> &x, const prefill_args &a, uint32_t head, uint32_t q0,
                                                   uint32_t query0, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = x.sum[m][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const uint32_t query = query0 + m * 16 + h * 8 + g;
            if (query >= n) continue;
            const float inverse = total > 0 ? 1.0f / total : 0.0f;
            R *to = (R *)a.out + (size_t)(q0 + query) * a.ldo + head * DIM + 2 * t;
#pragma unroll
            for (int c = 0; c < DIM / 8; c++) {
                from_f32(&to[c * 8], x.out[m][c][2 * h] * inverse);
                from_f32(&to[c * 8 + 1], x.out[m][c][2 * h + 1] * inverse);
            }
            if (a.lse != NULL && t == 0) {
                a.lse[(size_t)head * a.queries.n + q0 + query] =
                    total > 0 ? x.max[m][h] / LOG2E + logf(total) : -INFINITY;
            }
        }
    }
}

#endif
