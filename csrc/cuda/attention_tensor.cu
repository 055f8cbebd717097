/*
 * Attention of a prefill on tensor cores, for 16-bit rows and results: the loop of FlashAttention-2 over pages. A block owns
 * 128 queries of one head, each of its four warps 32 of them; keys and values come two pages at a time into a ring of two
 * stages by asynchronous copies. Positions decide who sees whom, as in the general kernel. Queries must be rounded to the
 * rows' type already.
 */
#include "attention_prefill.cuh"
#include "ptx.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, QUERIES = 32 * WARPS, ROWS = 2 * KVF_PAGE_ROWS };

/* Index of 16-byte column c of a row in shared memory, so that eight rows of one column lie in different banks. */
template <int DIM>
static __device__ __forceinline__ uint32_t place(uint32_t row, uint32_t c) {
    const uint32_t turn = DIM >= 64 ? row % 8 : row / 2 % 4;
    return row * (DIM / 8) + (c ^ turn);
}

/* Starts copying the rows of tile `tile`; what lies beyond n_row becomes zeros. */
template <typename R, int DIM>
static __device__ __forceinline__ void fetch(uint4 *keys, uint4 *values, uint4 *positions, void *const *pages, uint32_t tile,
                                             uint32_t n_row) {
    constexpr int COLUMNS = DIM / 8;
    const uint32_t row0 = tile * ROWS;
#pragma unroll
    for (int k = 0; k < ROWS * COLUMNS / THREADS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS, r = i / COLUMNS, c = i % COLUMNS;
        const bool inside = row0 + r < n_row;
        R *page = (R *)pages[inside ? (row0 + r) / KVF_PAGE_ROWS : 0];
        const R *at = page + r % KVF_PAGE_ROWS * DIM + c * 8;
        copy_async(&keys[place<DIM>(r, c)], at, inside);
        copy_async(&values[place<DIM>(r, c)], at + KVF_PAGE_ROWS * DIM, inside);
    }
    if (threadIdx.x < ROWS / 4) {
        const uint32_t r = threadIdx.x * 4;
        const bool inside = row0 + r < n_row;
        void *page = pages[inside ? (row0 + r) / KVF_PAGE_ROWS : 0];
        copy_async(&positions[threadIdx.x], page_positions<R>(page, DIM) + r % KVF_PAGE_ROWS, inside);
    }
}

template <typename R, int DIM>
static __global__ void __launch_bounds__(THREADS) tensor_kernel(const prefill_args a) {
    constexpr int STEPS = DIM / 16, COLUMNS = DIM / 8, TILES = ROWS / 8;
    extern __shared__ uint4 shared4[];
    uint4 *queries = shared4, *keys = queries + QUERIES * COLUMNS, *values = keys + 2 * ROWS * COLUMNS;
    uint4 *positions = values + 2 * ROWS * COLUMNS; /* [2, ROWS / 4] */
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t head = blockIdx.x, stored = head / a.view.readers;
    /* late tiles see most: they start first */
    const uint32_t q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES, n = min((uint32_t)QUERIES, a.queries.n - q0);
    const uint32_t first = a.queries.position + q0, last = first + n - 1, window = a.queries.window;
    void *const *pages = a.view.pages + (size_t)stored * a.view.cap;
    /* A row's position is at least its index, so rows beyond `last` see nobody; and where the last row's position is its
     * index, every row's is. */
    const uint32_t n_row = a.view.rows[stored], n_seen = min(n_row, last + 1);
    const bool dense = n_row == 0 ||
        page_positions<R>(pages[(n_row - 1) / KVF_PAGE_ROWS], DIM)[(n_row - 1) % KVF_PAGE_ROWS] == n_row - 1;
    const uint32_t tile0 = dense && window != 0 && first >= window ? (first - window + 1) / ROWS : 0;
    const uint32_t n_tile = (n_seen + ROWS - 1) / ROWS;

    if (tile0 < n_tile) fetch<R, DIM>(keys, values, positions, pages, tile0, n_row);
    copy_commit();
    const float *from = a.queries.q + head * a.queries.head_stride + (size_t)q0 * DIM;
    for (uint32_t i = threadIdx.x; i < QUERIES * COLUMNS; i += THREADS) {
        const uint32_t r = i / COLUMNS, c = i % COLUMNS;
        float x[8] = {};
        if (r < n) load8(from + r * DIM + c * 8, x);
        queries[place<DIM>(r, c)] = make_uint4(pack<R>(x[0], x[1]), pack<R>(x[2], x[3]), pack<R>(x[4], x[5]),
                                               pack<R>(x[6], x[7]));
    }

    float out[2][COLUMNS][4] = {}, max[2][2], sum[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++) max[m][0] = max[m][1] = -INFINITY, sum[m][0] = sum[m][1] = 0;
    for (uint32_t tile = tile0; tile < n_tile; tile++) {
        const uint32_t stage = (tile - tile0) % 2;
        const uint4 *k_now = keys + stage * ROWS * COLUMNS, *v_now = values + stage * ROWS * COLUMNS;
        const uint32_t *position = (const uint32_t *)(positions + stage * (ROWS / 4));
        copy_wait();
        __syncthreads(); /* this tile is there, and nobody reads the other stage any more */
        if (tile + 1 < n_tile) {
            fetch<R, DIM>(keys + (1 - stage) * ROWS * COLUMNS, values + (1 - stage) * ROWS * COLUMNS,
                          positions + (1 - stage) * (ROWS / 4), pages, tile + 1, n_row);
        }
        copy_commit();

        float s[2][TILES][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            uint32_t q[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                load_matrix(q[m], &queries[place<DIM>(warp * 32 + m * 16 + lane % 16, 2 * k + lane / 16)]);
            }
#pragma unroll
            for (int j = 0; j < TILES; j += 2) {
                uint32_t b[4];
                load_matrix(b, &k_now[place<DIM>(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2)]);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_16x8x16(s[m][j], q[m], b[0], b[1], R());
                    mma_16x8x16(s[m][j + 1], q[m], b[2], b[3], R());
                }
            }
        }

        const uint32_t row0 = tile * ROWS;
        const bool masked = !dense || row0 + ROWS > n_row || row0 + ROWS - 1 > first + warp * 32 ||
                            (window != 0 && row0 + window <= first + warp * 32 + 31);
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint32_t query = first + warp * 32 + m * 16 + h * 8 + g;
                float most = -INFINITY, total = 0;
#pragma unroll
                for (int j = 0; j < TILES; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float *x = &s[m][j][2 * h + e];
                        const uint32_t row = j * 8 + 2 * t + e;
                        if (masked && (row0 + row >= n_row || !visible(query, position[row], window))) *x = -INFINITY;
                        most = fmaxf(most, *x);
                    }
                }
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                most = fmaxf(most * a.scale, max[m][h]);
                const float base = most == -INFINITY ? 0.0f : most, shrink = exp2f(max[m][h] - base);
#pragma unroll
                for (int j = 0; j < TILES; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float *x = &s[m][j][2 * h + e];
                        *x = exp2f(fmaf(*x, a.scale, -base));
                        total += *x;
                    }
                }
                sum[m][h] = sum[m][h] * shrink + total; /* of this thread's columns; added up at the end */
                max[m][h] = most;
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) out[m][c][2 * h] *= shrink, out[m][c][2 * h + 1] *= shrink;
            }
        }

#pragma unroll
        for (int k = 0; k < ROWS / 16; k++) {
            uint32_t p[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                p[m][0] = pack<R>(s[m][2 * k][0], s[m][2 * k][1]);
                p[m][1] = pack<R>(s[m][2 * k][2], s[m][2 * k][3]);
                p[m][2] = pack<R>(s[m][2 * k + 1][0], s[m][2 * k + 1][1]);
                p[m][3] = pack<R>(s[m][2 * k + 1][2], s[m][2 * k + 1][3]);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c += 2) {
                uint32_t b[4];
                load_matrix_turned(b, &v_now[place<DIM>(k * 16 + lane % 16, c + lane / 16)]);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma_16x8x16(out[m][c], p[m], b[0], b[1], R());
                    mma_16x8x16(out[m][c + 1], p[m], b[2], b[3], R());
                }
            }
        }
    }
    copy_wait();
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[m][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const uint32_t query = warp * 32 + m * 16 + h * 8 + g;
            if (query >= n) continue;
            const float inverse = total > 0 ? 1.0f / total : 0.0f;
            R *to = (R *)a.out + (size_t)(q0 + query) * a.ldo + head * DIM + 2 * t;
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                from_f32(&to[c * 8], out[m][c][2 * h] * inverse);
                from_f32(&to[c * 8 + 1], out[m][c][2 * h + 1] * inverse);
            }
            if (a.lse != NULL && t == 0) {
                a.lse[(size_t)head * a.queries.n + q0 + query] =
                    total > 0 ? max[m][h] / LOG2E + logf(total) : -INFINITY;
            }
        }
    }
}

template <typename R, int DIM>
static cudaError_t launch(const prefill_args &a, cudaStream_t stream) {
    constexpr size_t bytes = (size_t)(QUERIES + 4 * ROWS) * DIM * sizeof(R) + 2 * ROWS * sizeof(uint32_t);
    const cudaError_t e = cudaFuncSetAttribute(tensor_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    const dim3 grid(a.queries.n_head, cu_div_up(a.queries.n, QUERIES));
    tensor_kernel<R, DIM><<<grid, THREADS, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_dim(const prefill_args &a, cudaStream_t stream) {
    if (a.view.head_dim == 32) return launch<R, 32>(a, stream);
    if (a.view.head_dim == 64) return launch<R, 64>(a, stream);
    return launch<R, 128>(a, stream);
}

bool cu_attention_tensor(uint32_t row_dtype, const prefill_args &a, cudaStream_t stream, cudaError_t *status) {
    const uint32_t dim = a.view.head_dim;
    if (row_dtype == KVF_F32 || a.out == NULL || a.out_dtype != row_dtype || (dim != 32 && dim != 64 && dim != 128)) return false;
    *status = row_dtype == KVF_F16 ? launch_dim<__half>(a, stream) : launch_dim<__nv_bfloat16>(a, stream);
    return true;
}
