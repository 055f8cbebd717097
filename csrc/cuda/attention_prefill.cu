/*
 * Attention of many queries over a layer's pages, with an online softmax, and the sums over its columns that policies ask
 * for. A block owns a tile of queries of one head and walks the pages; thread (ty, tx) of 16 x 16 owns QI queries and two of
 * a page's 32 rows for the scores, and the same queries and every 16th column for the output. Positions decide who sees
 * whom, so evicted rows leave no trace here.
 */
#include "attention_prefill.cuh"

/* [n, head_dim] f32 rows at `from` into shared memory of `stride` floats per row, zeros around them. */
static __device__ __forceinline__ void fill_queries(float *to, uint32_t stride, const float *from, uint32_t n,
                                                    uint32_t n_tile, uint32_t head_dim, float scale) {
    for (uint32_t i = threadIdx.x; i < n_tile * stride; i += 256) {
        const uint32_t r = i / stride, d = i % stride;
        to[i] = r < n && d < head_dim ? from[(size_t)r * head_dim + d] * scale : 0.0f;
    }
}

/* The rows of a page, keys or values; slots beyond n_row become zeros, whatever they hold. */
template <typename R>
static __device__ __forceinline__ void fill_page(float *to, uint32_t stride, const R *from, uint32_t n_row,
                                                 uint32_t head_dim) {
    if (head_dim % 8 == 0) {
        const uint32_t per_row = stride / 8; /* the last pad columns are set below */
        for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * per_row; i += 256) {
            const uint32_t r = i / per_row, d = i % per_row * 8;
            float v[8] = {};
            if (r < n_row && d < head_dim) load8(from + r * head_dim + d, v);
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
        to[i] = r < n_row && d < head_dim ? to_f32(from[r * head_dim + d]) : 0.0f;
    }
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

/* DIM: head_dim rounded up to 64, 128 or 256; QI * 16 queries per block. */
template <typename R, int DIM, int QI>
static __global__ void __launch_bounds__(256) attention_prefill_kernel(const prefill_args a) {
    constexpr uint32_t STRIDE = DIM + 4, QUERIES = 16 * QI;
    extern __shared__ float4 shared4[];
    float *qs = (float *)shared4, *rows = qs + QUERIES * STRIDE, *ps = rows + KVF_PAGE_ROWS * STRIDE;
    __shared__ uint32_t position[KVF_PAGE_ROWS];
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16, head_dim = a.view.head_dim;
    const uint32_t head = blockIdx.x, stored = head / a.view.readers;
    /* late tiles see most: they start first */
    const uint32_t q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES, n = min(QUERIES, a.queries.n - q0);
    const uint32_t first = a.queries.position + q0, last = first + n - 1, window = a.queries.window;
    void *const *pages = a.view.pages + (size_t)stored * a.view.cap;
    const uint32_t n_row = a.view.rows[stored];
    fill_queries(qs, STRIDE, a.queries.q + head * a.queries.head_stride + (size_t)q0 * head_dim, n, QUERIES, head_dim,
                 a.scale);
    float acc[QI][DIM / 16] = {}, max[QI], sum[QI];
#pragma unroll
    for (int i = 0; i < QI; i++) max[i] = -INFINITY, sum[i] = 0;
    for (uint32_t row0 = 0; row0 < n_row; row0 += KVF_PAGE_ROWS) {
        void *page = pages[row0 / KVF_PAGE_ROWS];
        const uint32_t in_page = min((uint32_t)KVF_PAGE_ROWS, n_row - row0);
        const uint32_t *page_position = page_positions<R>(page, head_dim);
        if (page_position[0] > last) break;
        if (window != 0 && page_position[in_page - 1] + window <= first) continue;
        __syncthreads();
        fill_page(rows, STRIDE, page_keys<R>(page), in_page, head_dim);
        if (threadIdx.x < KVF_PAGE_ROWS) {
            position[threadIdx.x] = threadIdx.x < in_page ? page_position[threadIdx.x] : KV_NO_TOKEN;
        }
        __syncthreads();
        float s[QI][2];
        score_tile<QI>(s, qs, rows, STRIDE, head_dim);
#pragma unroll
        for (int i = 0; i < QI; i++) {
            const uint32_t query = first + ty * QI + i;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (!visible(query, position[tx + 16 * j], window)) s[i][j] = -INFINITY;
            }
            const float new_max = fmaxf(max[i], half_warp_max(fmaxf(s[i][0], s[i][1])));
            const float base = new_max == -INFINITY ? 0.0f : new_max;
            const float p0 = exp2f(s[i][0] - base), p1 = exp2f(s[i][1] - base), shrink = exp2f(max[i] - base);
            sum[i] = sum[i] * shrink + half_warp_sum(p0 + p1);
            max[i] = new_max;
            ps[(ty * QI + i) * 33 + tx] = p0;
            ps[(ty * QI + i) * 33 + tx + 16] = p1;
#pragma unroll
            for (int c = 0; c < DIM / 16; c++) acc[i][c] *= shrink;
        }
        if (a.out == NULL) continue;
        __syncthreads();
        fill_page(rows, STRIDE, page_values<R>(page, head_dim), in_page, head_dim);
        __syncthreads();
        for (uint32_t r = 0; r < in_page; r++) {
            float p[QI];
#pragma unroll
            for (int i = 0; i < QI; i++) p[i] = ps[(ty * QI + i) * 33 + r];
#pragma unroll
            for (int c = 0; c < DIM / 16; c++) {
                const float v = rows[r * STRIDE + c * 16 + tx];
#pragma unroll
                for (int i = 0; i < QI; i++) acc[i][c] = fmaf(p[i], v, acc[i][c]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < QI; i++) {
        const uint32_t query = ty * QI + i;
        if (query >= n) continue;
        const float inverse = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
        for (int c = 0; c < DIM / 16 && a.out != NULL; c++) {
            const uint32_t d = c * 16 + tx;
            if (d < head_dim) {
                store_as(a.out, a.out_dtype, (size_t)(q0 + query) * a.ldo + head * head_dim + d, acc[i][c] * inverse);
            }
        }
        if (a.lse != NULL && tx == 0) {
            a.lse[(size_t)head * a.queries.n + q0 + query] = sum[i] > 0 ? max[i] / LOG2E + logf(sum[i]) : -INFINITY;
        }
    }
}

template <int DIM, int QI>
static constexpr size_t shared_bytes(void) {
    return ((size_t)(16 * QI + KVF_PAGE_ROWS) * (DIM + 4) + 16 * QI * 33) * sizeof(float);
}

template <typename R, int DIM, int QI>
static cudaError_t launch_prefill(const prefill_args &a, cudaStream_t stream) {
    constexpr size_t bytes = shared_bytes<DIM, QI>();
    const cudaError_t e = cudaFuncSetAttribute(attention_prefill_kernel<R, DIM, QI>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    const dim3 grid(a.queries.n_head, cu_div_up(a.queries.n, 16 * QI));
    attention_prefill_kernel<R, DIM, QI><<<grid, 256, bytes, stream>>>(a);
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_prefill_dim(const prefill_args &a, cudaStream_t stream) {
    if (a.view.head_dim <= 64) return launch_prefill<R, 64, 4>(a, stream);
    if (a.view.head_dim <= 128) return launch_prefill<R, 128, 4>(a, stream);
    return launch_prefill<R, 256, 2>(a, stream);
}

int32_t cu_attention_prefill(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                             void *out, uint32_t out_dtype, uint32_t ldo, float *lse, kv_err err) {
    prefill_args a = {};
    cudaError_t e;
    a.view = *view, a.queries = *queries, a.out = out, a.out_dtype = out_dtype, a.ldo = ldo, a.lse = lse;
    a.scale = LOG2E / sqrtf((float)view->head_dim);
    if (queries->n == 0) return KVF_OK;
    if (!cu_attention_hopper(cu_of(dev), row_dtype, a, &e) && !cu_attention_tensor(row_dtype, a, cu_of(dev)->stream, &e)) {
        CU_WITH_TYPE(row_dtype, R, e = launch_prefill_dim<R>(a, cu_of(dev)->stream));
    }
    CU_TRY(e, "attention");
    return KVF_OK;
}

/* ---- Column masses ---- */

typedef struct mass_args {
    cu_view view;
    cu_queries queries;
    const float *lse;
    const uint8_t *sets;
    float *mass[KV_MAX_MASS];
    uint32_t n_set;
    uint32_t n_row;
    float scale;
} mass_args;

/* A block owns a page of one query head and walks the queries from the first that sees it. */
template <typename R, int DIM>
static __global__ void __launch_bounds__(256) mass_kernel(const mass_args a) {
    constexpr uint32_t STRIDE = DIM + 4, QUERIES = 32;
    extern __shared__ float4 shared4[];
    float *qs = (float *)shared4, *rows = qs + QUERIES * STRIDE, *ps = rows + KVF_PAGE_ROWS * STRIDE;
    __shared__ uint32_t position[KVF_PAGE_ROWS];
    __shared__ uint8_t set[QUERIES];
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16, head_dim = a.view.head_dim;
    const uint32_t head = blockIdx.y, stored = head / a.view.readers, row0 = blockIdx.x * KVF_PAGE_ROWS;
    const uint32_t n_row = min(a.view.rows[stored], a.n_row), window = a.queries.window;
    const uint32_t column = threadIdx.x % KVF_PAGE_ROWS, m = threadIdx.x / KVF_PAGE_ROWS;
    float sum = 0;
    if (row0 < n_row) {
        const uint32_t in_page = min((uint32_t)KVF_PAGE_ROWS, n_row - row0);
        void *page = a.view.pages[(size_t)stored * a.view.cap + row0 / KVF_PAGE_ROWS];
        fill_page(rows, STRIDE, page_keys<R>(page), in_page, head_dim);
        if (threadIdx.x < KVF_PAGE_ROWS) {
            position[threadIdx.x] =
                threadIdx.x < in_page ? page_positions<R>(page, head_dim)[threadIdx.x] : KV_NO_TOKEN;
        }
        __syncthreads();
        const uint32_t oldest = position[0], newest = position[in_page - 1];
        const uint32_t start = oldest > a.queries.position ? (oldest - a.queries.position) / QUERIES * QUERIES : 0;
        for (uint32_t q0 = start; q0 < a.queries.n; q0 += QUERIES) {
            const uint32_t n = min(QUERIES, a.queries.n - q0), first = a.queries.position + q0;
            if (window != 0 && newest + window <= first) break;
            const bool asked = threadIdx.x < n && a.sets[q0 + threadIdx.x] != 0;
            if (!__syncthreads_or(asked)) continue;
            fill_queries(qs, STRIDE, a.queries.q + head * a.queries.head_stride + (size_t)q0 * head_dim, n, QUERIES,
                         head_dim, a.scale);
            if (threadIdx.x < QUERIES) set[threadIdx.x] = threadIdx.x < n ? a.sets[q0 + threadIdx.x] : 0;
            __syncthreads();
            float s[2][2];
            score_tile<2>(s, qs, rows, STRIDE, head_dim);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t query = ty * 2 + i;
                const float lse = query < n ? a.lse[(size_t)head * a.queries.n + q0 + query] * LOG2E : 0.0f;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const bool seen = query < n && visible(first + query, position[tx + 16 * j], window);
                    ps[query * 33 + tx + 16 * j] = seen ? exp2f(s[i][j] - lse) : 0.0f;
                }
            }
            __syncthreads();
            if (m < a.n_set) {
                for (uint32_t i = 0; i < n; i++) {
                    if (set[i] >> m & 1) sum += ps[i * 33 + column];
                }
            }
        }
    }
    if (m < a.n_set && row0 + column < a.n_row) a.mass[m][(size_t)head * a.n_row + row0 + column] = sum;
}

template <typename R, int DIM>
static cudaError_t launch_mass(const mass_args &a, cudaStream_t stream) {
    constexpr size_t bytes = shared_bytes<DIM, 2>();
    const cudaError_t e =
        cudaFuncSetAttribute(mass_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    mass_kernel<R, DIM><<<dim3(cu_div_up(a.n_row, KVF_PAGE_ROWS), a.queries.n_head), 256, bytes, stream>>>(a);
    return cudaGetLastError();
}

int32_t cu_column_mass(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                       const float *lse, const uint8_t *sets, uint32_t n_set, float *const *mass, uint32_t n_row,
                       kv_err err) {
    mass_args a = {};
    cudaError_t e;
    a.view = *view, a.queries = *queries, a.lse = lse, a.sets = sets, a.n_set = n_set, a.n_row = n_row;
    for (uint32_t m = 0; m < n_set; m++) a.mass[m] = mass[m];
    a.scale = LOG2E / sqrtf((float)view->head_dim);
    if (n_row == 0) return KVF_OK;
    CU_WITH_TYPE(row_dtype, R, e = view->head_dim <= 128 ? (launch_mass<R, 128>(a, cu_of(dev)->stream))
                                                        : (launch_mass<R, 256>(a, cu_of(dev)->stream)));
    CU_TRY(e, "column masses");
    return KVF_OK;
}
