/*
 * Window scores over 16-bit rows on tensor cores. A warp keeps a page's keys in registers, as the m side, and walks the
 * window's queries, which are split into two 16-bit numbers that add up to them. What is summed per row are probabilities, so
 * every query's log-sum-exp must be known: prefill's attention leaves it behind; where it did not, a pass before this one
 * finds every query's maximum and sum over 256 rows, and a small kernel joins them. Nothing of size window x rows reaches
 * memory.
 */
#include "numbers.cuh"
#include "ptx.cuh"
#include "window.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS, CHUNK = WARPS * KVF_PAGE_ROWS, MOST_QUERIES = 128 };

enum pass { STATISTICS, SUMS_OF_MAXIMA };

typedef struct window_args {
    cu_view view;
    cu_queries queries;
    float2 *partial; /* [n_chunk, n_head, n]: maximum and sum over a chunk */
    const float *lse; /* [n_head] of [n], lse_stride apart */
    size_t lse_stride;
    float *out;      /* [n_stored, n_row] */
    uint32_t n_row;  /* rows of out */
    uint32_t reduce;
    float scale;     /* with log2(e) folded in */
    float divide;
} window_args;

template <typename R>
static __device__ __forceinline__ void split(float x, R *high, R *low) {
    from_f32(high, x);
    from_f32(low, x - to_f32(*high));
}

template <typename R, int DIM, int PASS>
static __global__ void __launch_bounds__(THREADS) window_kernel(const window_args a) {
    constexpr int STEPS = DIM / 32, STRIDE = DIM + 8; /* elements of a part in shared memory; the pad spreads the banks */
    extern __shared__ uint4 shared4[];
    R *parts = (R *)shared4; /* [queries, 2, STRIDE] */
    __shared__ float2 found[WARPS][MOST_QUERIES];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t stored = blockIdx.y, readers = a.view.readers, n = a.queries.n, padded = (n + 3) / 4 * 4;
    const uint32_t n_row = a.view.rows[stored], page_index = blockIdx.x * WARPS + warp, row0 = page_index * KVF_PAGE_ROWS;
    const uint32_t in_page = row0 < n_row ? min((uint32_t)KVF_PAGE_ROWS, n_row - row0) : 0;
    R *page = in_page > 0 ? (R *)a.view.pages[(size_t)stored * a.view.cap + page_index] : NULL;
    uint4 low[2][STEPS] = {}, high[2][STEPS] = {};
    uint32_t position[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t row = g + 8 * k;
        position[k] = row < in_page ? page_positions<R>(page, DIM)[row] : KV_NO_TOKEN;
    }
    if (in_page > 0) {
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                const R *at = page + (m * 16 + g) * DIM + i * 32 + t * 8;
                low[m][i] = load_rows(at);
                high[m][i] = load_rows(at + 8 * DIM);
            }
        }
    }
    /* Score of rows g + 8 k under four queries whose parts begin at `first`; this thread's query is first + t. */
    const auto scores = [&](uint32_t first, float x[4]) {
        float c[2][4] = {};
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const uint4 q = *(const uint4 *)&parts[((size_t)first * 2 + g) * STRIDE + i * 32 + t * 8];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint32_t one[4] = {low[m][i].x, high[m][i].x, low[m][i].y, high[m][i].y};
                const uint32_t two[4] = {low[m][i].z, high[m][i].z, low[m][i].w, high[m][i].w};
                mma_16x8x16(c[m], one, q.x, q.y, R());
                mma_16x8x16(c[m], two, q.z, q.w, R());
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) x[k] = (c[k / 2][k % 2 * 2] + c[k / 2][k % 2 * 2 + 1]) * a.scale;
    };
    /* Groups of readers, or of queries of all readers, as many as shared memory holds. */
    const uint32_t rounds = PASS == SUMS_OF_MAXIMA ? padded / 4 : readers * (padded / 4); /* of four queries */
    const uint32_t per_round = PASS == SUMS_OF_MAXIMA ? 4 * readers : 4, at_once = MOST_QUERIES / per_round;
    float sum[4] = {};
    for (uint32_t begin = 0; begin < rounds; begin += at_once) {
        const uint32_t count = min(at_once, rounds - begin);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count * per_round * DIM; i += THREADS) {
            const uint32_t slot = i / DIM, d = i % DIM, round = begin + slot / per_round;
            /* SUMS_OF_MAXIMA: a round is four queries of every reader; otherwise of one reader. */
            const uint32_t r = PASS == SUMS_OF_MAXIMA ? slot % per_round / 4 : round / (padded / 4);
            const uint32_t q = (PASS == SUMS_OF_MAXIMA ? round : round % (padded / 4)) * 4 + slot % 4;
            float x = 0;
            if (q < n) x = a.queries.q[(stored * readers + r) * a.queries.head_stride + (size_t)q * DIM + d];
            split(x, &parts[(size_t)slot * 2 * STRIDE + d], &parts[((size_t)slot * 2 + 1) * STRIDE + d]);
        }
        __syncthreads();
        for (uint32_t k0 = 0; k0 < count; k0++) {
            const uint32_t round = begin + k0, q = (PASS == SUMS_OF_MAXIMA ? round : round % (padded / 4)) * 4 + t;
            const uint32_t query = a.queries.position + q;
            float x[4];
            if (PASS == STATISTICS) {
                scores(k0 * 4, x);
                float most = -INFINITY, total = 0;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    if (position[k] > query) x[k] = -INFINITY; /* no row: the highest position of all */
                    most = fmaxf(most, x[k]);
                }
#pragma unroll
                for (int step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
                const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
                for (int k = 0; k < 4; k++) total += exp2f(x[k] - base);
#pragma unroll
                for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
                if (g == 0) found[warp][k0 * 4 + t] = make_float2(most, total);
                continue;
            }
            float best[4] = {};
            for (uint32_t r = 0; r < readers; r++) {
                scores(k0 * per_round + 4 * r, x);
                const float lse = q < n ? a.lse[(stored * readers + r) * a.lse_stride + q] * LOG2E : 0.0f;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const float p = q < n && position[k] <= query ? exp2f(x[k] - lse) : 0.0f;
                    best[k] = fmaxf(best[k], p);
                }
            }
#pragma unroll
            for (int k = 0; k < 4; k++) sum[k] += best[k];
            if (round != rounds - 1) continue;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 1);
                sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 2);
                const uint32_t row = row0 + g + 8 * k;
                if (t == 0 && row < a.n_row && row < n_row) a.out[(size_t)stored * a.n_row + row] = sum[k] / a.divide;
            }
        }
        if (PASS != STATISTICS) continue;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count * 4; i += THREADS) {
            const uint32_t round = begin + i / 4, q = round % (padded / 4) * 4 + i % 4;
            const uint32_t head = stored * readers + round / (padded / 4);
            if (q >= n) continue;
            float most = -INFINITY, total = 0;
            for (int w = 0; w < WARPS; w++) most = fmaxf(most, found[w][i].x);
            const float base = most == -INFINITY ? 0.0f : most;
            for (int w = 0; w < WARPS; w++) total = fmaf(found[w][i].y, exp2f(found[w][i].x - base), total);
            a.partial[((size_t)blockIdx.x * a.queries.n_head + head) * n + q] = make_float2(most, total);
        }
    }
}

enum { SUM_WARPS = 16, SUM_THREADS = 32 * SUM_WARPS, SLOTS = 128, ROUND = 8 };

template <typename R, int DIM>
struct sum_shape {
    /* elements between queries in shared memory: spreads the 16 bytes that lanes read over the banks */
    static constexpr int STRIDE = DIM == 32 ? 32 : DIM + 32;
    static constexpr size_t BYTES = (size_t)2 * SLOTS * STRIDE * sizeof(R);
};

/*
 * Sums of probabilities, divided and reduced over the readers. A block goes over the pages of one stored head, a page a warp at
 * a time; the queries lie in shared memory, SLOTS at once, as high and low parts. Eight queries of one reader make a round:
 * lane 4 g + t holds rows g + 8 k under queries 2 t and 2 t + 1. Low parts that are all zero, as those of queries that were
 * rounded to the rows' type are, take no part: that changes no bit.
 */
template <typename R, int DIM>
static __global__ void __launch_bounds__(SUM_THREADS) sums_kernel(const window_args a) {
    constexpr int STEPS = DIM / 32, STRIDE = sum_shape<R, DIM>::STRIDE, VECTORS = DIM / 4, FETCH = 4;
    extern __shared__ uint4 shared4[];
    __shared__ float bases[SLOTS]; /* log-sum-exp in base 2; infinite where there is no query */
    R *const high = (R *)shared4, *const low = high + SLOTS * STRIDE;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t stored = blockIdx.y, readers = a.view.readers, n = a.queries.n;
    const uint32_t per_reader = (n + ROUND - 1) / ROUND, rounds = readers * per_reader, at_once = SLOTS / ROUND;
    const uint32_t n_row = min(a.n_row, a.view.rows[stored]);
    bool filled = false, parts = false;
    for (uint32_t page0 = blockIdx.x * SUM_WARPS; page0 * KVF_PAGE_ROWS < a.n_row; page0 += gridDim.x * SUM_WARPS) {
        const uint32_t row0 = (page0 + warp) * KVF_PAGE_ROWS;
        const uint32_t in_page = row0 < n_row ? min((uint32_t)KVF_PAGE_ROWS, n_row - row0) : 0;
        uint4 key[4][STEPS] = {}; /* of rows g + 8 k */
        uint32_t position[4];
        if (in_page > 0) {
            R *page = (R *)a.view.pages[(size_t)stored * a.view.cap + page0 + warp];
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int i = 0; i < STEPS; i++) key[k][i] = load_rows(page + (g + 8 * k) * DIM + i * 32 + t * 8);
            }
#pragma unroll
            for (int k = 0; k < 4; k++) position[k] = page_positions<R>(page, DIM)[g + 8 * k];
        }
        bool all_seen = in_page > 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (g + 8 * k >= in_page) position[k] = KV_NO_TOKEN;
            else all_seen = all_seen && position[k] <= a.queries.position;
        }
        all_seen = __ballot_sync(0xffffffffu, all_seen) == 0xffffffffu;
        float sum[4] = {}, result[4] = {};
        for (uint32_t begin = 0; begin < rounds; begin += at_once) {
            const uint32_t count = min(at_once, rounds - begin);
            if (!filled || rounds > at_once) {
                bool mine = false;
                __syncthreads();
                for (uint32_t base = threadIdx.x; base < count * ROUND * VECTORS; base += FETCH * SUM_THREADS) {
                    float4 x[FETCH];
#pragma unroll
                    for (int f = 0; f < FETCH; f++) {
                        const uint32_t slot = (base + f * SUM_THREADS) / VECTORS, round = begin + slot / ROUND;
                        const uint32_t r = round / per_reader, q = round % per_reader * ROUND + slot % ROUND;
                        x[f] = make_float4(0, 0, 0, 0);
                        if (slot >= count * ROUND || q >= n) continue;
                        x[f] = ((const float4 *)(a.queries.q + (stored * readers + r) * a.queries.head_stride +
                                                 (size_t)q * DIM))[base % VECTORS];
                    }
#pragma unroll
                    for (int f = 0; f < FETCH; f++) {
                        const uint32_t slot = (base + f * SUM_THREADS) / VECTORS;
                        const float part[4] = {x[f].x, x[f].y, x[f].z, x[f].w};
                        R first[4], second[4];
                        if (slot >= count * ROUND) continue;
#pragma unroll
                        for (int k = 0; k < 4; k++) {
                            split(part[k], &first[k], &second[k]);
                            mine = mine || to_f32(second[k]) != 0;
                        }
                        memcpy(high + slot * STRIDE + base % VECTORS * 4, first, sizeof first);
                        memcpy(low + slot * STRIDE + base % VECTORS * 4, second, sizeof second);
                    }
                }
                for (uint32_t slot = threadIdx.x; slot < count * ROUND; slot += SUM_THREADS) {
                    const uint32_t round = begin + slot / ROUND, q = round % per_reader * ROUND + slot % ROUND;
                    const uint32_t head = stored * readers + round / per_reader;
                    bases[slot] = q < n ? a.lse[head * a.lse_stride + q] * LOG2E : INFINITY;
                }
                parts = __syncthreads_or(mine) != 0;
                filled = true;
            }
            if (in_page == 0) continue;
            for (uint32_t k0 = 0; k0 < count; k0++) {
                const uint32_t round = begin + k0, in_reader = round % per_reader;
                float c[2][4] = {}, d[2][4] = {};
                const auto multiply = [&](const R *from, float to[2][4]) {
#pragma unroll
                    for (int i = 0; i < STEPS; i++) {
                        const uint4 q = *(const uint4 *)&from[(k0 * ROUND + g) * STRIDE + i * 32 + t * 8];
#pragma unroll
                        for (int m = 0; m < 2; m++) {
                            const uint4 x = key[2 * m][i], y = key[2 * m + 1][i];
                            const uint32_t one[4] = {x.x, y.x, x.y, y.y}, two[4] = {x.z, y.z, x.w, y.w};
                            mma_16x8x16(to[m], one, q.x, q.y, R());
                            mma_16x8x16(to[m], two, q.z, q.w, R());
                        }
                    }
                };
                multiply(high, c);
                if (parts) multiply(low, d);
                const uint32_t query = a.queries.position + in_reader * ROUND + 2 * t;
                const float base0 = bases[k0 * ROUND + 2 * t], base1 = bases[k0 * ROUND + 2 * t + 1];
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const int m = k / 2, at = k % 2 * 2;
                    float p0 = exp2f(fmaf(c[m][at] + d[m][at], a.scale, -base0));
                    float p1 = exp2f(fmaf(c[m][at + 1] + d[m][at + 1], a.scale, -base1));
                    if (!all_seen) {
                        p0 = position[k] <= query ? p0 : 0.0f;
                        p1 = position[k] <= query + 1 ? p1 : 0.0f;
                    }
                    sum[k] += p0;
                    sum[k] += p1;
                }
                if (in_reader != per_reader - 1) continue;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 1);
                    sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], 2);
                    const float y = sum[k] / a.divide;
                    result[k] = round == in_reader ? y : a.reduce == KVF_MAX ? fmaxf(result[k], y) : result[k] + y;
                    sum[k] = 0;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float y = a.reduce == KVF_MEAN ? result[k] / (float)readers : result[k];
            if (t == 0 && g + 8 * k < in_page) a.out[(size_t)stored * a.n_row + row0 + g + 8 * k] = y;
        }
    }
}

/* A warp per query: its chunks joined. */
static __global__ void join_kernel(float *lse, const float2 *partial, uint32_t n_query, uint32_t n_chunk) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n_query) return;
    float most = -INFINITY, total = 0;
    for (uint32_t c = lane; c < n_chunk; c += 32) most = fmaxf(most, partial[(size_t)c * n_query + i].x);
    most = warp_max(most);
    const float base = most == -INFINITY ? 0.0f : most;
    for (uint32_t c = lane; c < n_chunk; c += 32) {
        const float2 p = partial[(size_t)c * n_query + i];
        total = fmaf(p.y, exp2f(p.x - base), total);
    }
    total = warp_sum(total);
    if (lane == 0) lse[i] = total > 0 ? most / LOG2E + logf(total) : -INFINITY;
}

template <typename R, int DIM, int PASS>
static cudaError_t launch(const window_args &a, uint32_t n_chunk, cudaStream_t stream) {
    constexpr size_t bytes = (size_t)MOST_QUERIES * 2 * (DIM + 8) * sizeof(R);
    const cudaError_t e = cudaFuncSetAttribute(window_kernel<R, DIM, PASS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)bytes);
    if (e != cudaSuccess) return e;
    const dim3 grid(n_chunk, a.queries.n_head / a.view.readers);
    window_kernel<R, DIM, PASS><<<grid, THREADS, bytes, stream>>>(a);
    return cudaGetLastError();
}

/* As many blocks as there are multiprocessors, as far as pages go round. */
template <typename R, int DIM>
static cudaError_t launch_sums(const window_args &a, uint32_t n_sm, cudaStream_t stream) {
    constexpr size_t bytes = sum_shape<R, DIM>::BYTES;
    const cudaError_t e = cudaFuncSetAttribute(sums_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    const uint32_t n_stored = a.queries.n_head / a.view.readers, turns = cu_div_up(a.n_row, SUM_WARPS * KVF_PAGE_ROWS);
    const uint32_t most = n_sm > n_stored ? n_sm / n_stored : 1;
    const dim3 grid(turns < most ? turns : most, n_stored);
    sums_kernel<R, DIM><<<grid, SUM_THREADS, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <typename R, int DIM>
static cudaError_t run(window_args a, bool maxima, uint32_t n_rows, float *lse, uint32_t n_sm, cudaStream_t stream) {
    if (lse != NULL) {
        const uint32_t n_chunk = cu_div_up(n_rows, CHUNK), n_query = a.queries.n_head * a.queries.n;
        cudaError_t e = launch<R, DIM, STATISTICS>(a, n_chunk, stream);
        if (e != cudaSuccess) return e;
        join_kernel<<<cu_div_up(n_query, 8), 256, 0, stream>>>(lse, a.partial, n_query, n_chunk);
        e = cudaGetLastError();
        if (e != cudaSuccess) return e;
        a.lse = lse, a.lse_stride = a.queries.n;
    }
    return maxima ? launch<R, DIM, SUMS_OF_MAXIMA>(a, cu_div_up(a.n_row, CHUNK), stream) : launch_sums<R, DIM>(a, n_sm, stream);
}

template <typename R>
static cudaError_t run_dim(const window_args &a, bool maxima, uint32_t n_rows, float *lse, uint32_t n_sm, cudaStream_t stream) {
    if (a.view.head_dim == 32) return run<R, 32>(a, maxima, n_rows, lse, n_sm, stream);
    if (a.view.head_dim == 64) return run<R, 64>(a, maxima, n_rows, lse, n_sm, stream);
    return run<R, 128>(a, maxima, n_rows, lse, n_sm, stream);
}

size_t cu_window_bytes(uint32_t n_head, uint32_t window, uint32_t n_rows) {
    return (size_t)cu_div_up(n_rows, CHUNK) * n_head * window * sizeof(float2);
}

bool cu_window_scores(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                      const cu_window *window, uint32_t n_rows, float *out, uint32_t n_row, cudaError_t *status) {
    const uint32_t dim = view->head_dim;
    if (row_dtype == KVF_F32 || view->readers > MOST_QUERIES / 4 || (dim != 32 && dim != 64 && dim != 128)) return false;
    window_args a = {};
    a.view = *view, a.queries = *queries, a.partial = (float2 *)window->partial, a.out = out, a.n_row = n_row;
    a.lse = window->known, a.lse_stride = window->known_stride, a.reduce = window->reduce;
    a.scale = LOG2E / sqrtf((float)dim), a.divide = window->divide;
    float *lse = window->known == NULL ? window->lse : NULL;
    const cu_device *d = cu_of(dev);
    *status = row_dtype == KVF_F16 ? run_dim<__half>(a, window->maxima, n_rows, lse, d->n_sm, d->stream)
                                   : run_dim<__nv_bfloat16>(a, window->maxima, n_rows, lse, d->n_sm, d->stream);
    return true;
}
