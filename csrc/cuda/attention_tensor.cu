/*
 * Attention of a prefill on tensor cores, for 16-bit rows and results: the loop of FlashAttention-2 over pages. A block owns
 * 128 queries of one head, each of its four warps 32 of them; keys and values come two pages at a time into a ring of two
 * stages by asynchronous copies. Positions decide who sees whom, as in the general kernel. Queries must be rounded to the
 * rows' type already.
 */
#include "tensor_tile.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, QUERIES = 32 * WARPS, ROWS = TENSOR_ROWS };

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
    constexpr int COLUMNS = DIM / 8;
    extern __shared__ uint4 shared4[];
    uint4 *queries = shared4, *keys = queries + QUERIES * COLUMNS, *values = keys + 2 * ROWS * COLUMNS;
    uint4 *positions = values + 2 * ROWS * COLUMNS; /* [2, ROWS / 4] */
    const uint32_t warp = threadIdx.x / 32, head = blockIdx.x, stored = head / a.view.readers;
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
    place_queries<R, DIM>(queries, a.queries.q + head * a.queries.head_stride + (size_t)q0 * DIM, n, QUERIES);
    tensor_state<DIM, 2> x;
    clear_state(x);
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

        float s[2][TENSOR_TILES][4] = {};
        score_rows<R, DIM, 2>(s, queries, warp * 32, k_now);
        const uint32_t row0 = tile * ROWS, query0 = first + warp * 32;
        const bool masked = !dense || row0 + ROWS > n_row || row0 + ROWS - 1 > query0 || (window != 0 && row0 + window <= query0 + 31);
        weigh_rows(x, s, a.scale, masked, [=](uint32_t query, uint32_t row) {
            return row0 + row >= n_row || !visible(query0 + query, position[row], window);
        });
        add_rows<R, DIM, 2>(x, s, v_now);
    }
    copy_wait();
    store_state<R, DIM, 2>(x, a, head, q0, warp * 32, n);
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
