/*
 * Attention of many queries over a layer's pages, with an online softmax, and the sums over its columns that policies ask
 * for. A block owns a tile of queries of one head and walks the pages. Positions decide who sees whom, so evicted rows leave
 * no trace here.
 */
#include "query_tile.cuh"

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
    query_tile<DIM, QI> x;
    clear_tile(x);
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
        }
        weigh_scores(x, s, ps);
        if (a.out == NULL) continue;
        __syncthreads();
        fill_page(rows, STRIDE, page_values<R>(page, head_dim), in_page, head_dim);
        __syncthreads();
        add_values(x, ps, rows, in_page);
    }
    store_tile(x, a, head, q0, n);
}

template <typename R, int DIM, int QI>
static cudaError_t launch_prefill(const prefill_args &a, cudaStream_t stream) {
    constexpr size_t bytes = tile_bytes<DIM, QI>();
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
    bool add;
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
    float *mine = NULL; /* the sum that this thread makes */
#pragma unroll
    for (uint32_t k = 0; k < KV_MAX_MASS; k++) {
        if (k == m && m < a.n_set && row0 + column < a.n_row) mine = a.mass[k] + (size_t)head * a.n_row + row0 + column;
    }
    float sum = mine != NULL && a.add ? *mine : 0.0f;
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
    if (mine != NULL) *mine = sum;
}

template <typename R, int DIM>
static cudaError_t launch_mass(const mass_args &a, cudaStream_t stream) {
    constexpr size_t bytes = tile_bytes<DIM, 2>();
    const cudaError_t e =
        cudaFuncSetAttribute(mass_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    mass_kernel<R, DIM><<<dim3(cu_div_up(a.n_row, KVF_PAGE_ROWS), a.queries.n_head), 256, bytes, stream>>>(a);
    return cudaGetLastError();
}

int32_t cu_column_mass(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                       const float *lse, const uint8_t *sets, uint32_t n_set, float *const *mass, uint32_t n_row, bool add,
                       kv_err err) {
    mass_args a = {};
    cudaError_t e;
    a.view = *view, a.queries = *queries, a.lse = lse, a.sets = sets, a.n_set = n_set, a.n_row = n_row, a.add = add;
    for (uint32_t m = 0; m < n_set; m++) a.mass[m] = mass[m];
    a.scale = LOG2E / sqrtf((float)view->head_dim);
    if (n_row == 0) return KVF_OK;
    CU_WITH_TYPE(row_dtype, R, e = view->head_dim <= 128 ? (launch_mass<R, 128>(a, cu_of(dev)->stream))
                                                        : (launch_mass<R, 256>(a, cu_of(dev)->stream)));
    CU_TRY(e, "column masses");
    return KVF_OK;
}
