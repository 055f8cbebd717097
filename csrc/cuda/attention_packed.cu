/*
 * Attention of one step over tables with packed rows of any format or with rows that another layer shares: a block unpacks a page into shared memory as f32, its
 * warps share the channels of the scores, and its threads the columns of the output. Costs some 20 operations an element;
 * formats that matter for speed have kernels of their own (attention_codes.cu).
 */
#include "attention_decode.cuh"
#include "packed.cuh"

enum { THREADS = 256, WARPS = THREADS / 32 };

/*
 * Shared memory: a page's rows [32, head_dim + 1], queries [readers, head_dim], scores [WARPS, readers, 32], whose first
 * part becomes the weights, the chunk so far [readers, head_dim], its maximum, sum of weights and last change of scale
 * [readers] each.
 */
static size_t shared_bytes(uint32_t head_dim, uint32_t readers) {
    return (KVF_PAGE_ROWS * (head_dim + 1) + readers * (2 * head_dim + WARPS * KVF_PAGE_ROWS + 3)) * sizeof(float);
}

/* plain_rows of a table that may share its first rows; row0: the page's first */
template <typename R>
static __device__ __forceinline__ void own_rows(float *tile, uint32_t stride, const void *page, uint32_t head_dim, uint32_t row0,
                                                uint32_t n, const cu_own &own, uint32_t what) {
    plain_rows<R>(tile, stride, page, head_dim, n, what);
    if (row0 >= own.shared) return;
    const uint32_t m = min(n, (uint32_t)own.shared - row0);
    for (uint32_t i = threadIdx.x; i < m * head_dim; i += THREADS) {
        const float length = own.length[what][row0 + i / head_dim];
        float *x = &tile[i / head_dim * stride + i % head_dim];
        *x = length < 0 ? to_f32(own_exact<R>(own, what, length, head_dim)[i % head_dim]) : *x * length;
    }
    __syncthreads();
}

template <typename R>
static __global__ void __launch_bounds__(THREADS) packed_step_kernel(const step_args a) {
    extern __shared__ float shared[];
    wait_previous();
    allow_next();
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y, dim = a.head_dim, stride = dim + 1;
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    const cu_packing packing = s->packing[table];
    if (packing.kernel != CU_ATTEND_ANY && (packing.packed == 0 || !chooses(a, s, table))) return;
    const cu_format *f = packing.format; /* NULL where rows are shared, not packed */
    const uint8_t *frame = (const uint8_t *)packing.frame;
    const uint32_t n_row = s->rows[table] + 1, readers = a.n_head / s->n_stored, n_packed = packed_pages(packing.packed);
    const watched list = watch(a, s, stored, table, n_row);
    const uint32_t per_chunk = chunk_rows(list.n_page * KVF_PAGE_ROWS) / KVF_PAGE_ROWS, n_chunk = (list.n_page - 1) / per_chunk + 1;
    if (blockIdx.x >= n_chunk) return;
    void *const *pages = s->pages + table * s->cap;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *tile = shared, *qs = tile + KVF_PAGE_ROWS * stride, *score = qs + readers * dim;
    float *so_far = score + WARPS * readers * KVF_PAGE_ROWS, *most = so_far + readers * dim, *weights = most + readers;
    float *shrink = weights + readers;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * dim;
    for (uint32_t i = threadIdx.x; i < readers * dim; i += THREADS) qs[i] = q[i] * a.scale;
    const uint32_t per_warp = (dim + WARPS - 1) / WARPS, d0 = min(warp * per_warp, dim), d1 = min(d0 + per_warp, dim);
    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < readers * dim; i += THREADS) so_far[i] = 0;
        for (uint32_t r = threadIdx.x; r < readers; r += THREADS) most[r] = -INFINITY, weights[r] = 0;
        const uint32_t end = min((chunk + 1) * per_chunk, list.n_page);
        for (uint32_t i = chunk * per_chunk; i < end; i++) {
            const uint2 entry = watched_page(list, i, n_row);
            const uint32_t page = entry.x;
            const uint8_t *data = (const uint8_t *)pages[page];
            const bool packed = page < n_packed;
            const uint32_t in_page = min((uint32_t)KVF_PAGE_ROWS, (packed ? packing.packed : n_row) - page * KVF_PAGE_ROWS);
            const uint32_t *positions = packed ? (const uint32_t *)(data + f->layout.positions)
                                               : page_positions<R>((void *)data, dim);
            __syncthreads(); /* the tile and the scores are free */
            if (packed) unpack_rows(tile, stride, *f, data, frame, 0);
            else own_rows<R>(tile, stride, data, dim, page * KVF_PAGE_ROWS, in_page, packing.own, 0);
            for (uint32_t r = 0; r < readers; r++) {
                float dot = 0;
                for (uint32_t d = d0; d < d1; d++) dot = fmaf(tile[lane * stride + d], qs[r * dim + d], dot);
                score[(warp * readers + r) * KVF_PAGE_ROWS + lane] = dot;
            }
            __syncthreads();
            for (uint32_t r = warp; r < readers; r += WARPS) {
                float x = 0;
                for (uint32_t w = 0; w < WARPS; w++) x += score[(w * readers + r) * KVF_PAGE_ROWS + lane];
                const bool there = lane < in_page && (entry.y >> lane & 1);
                bool seen = there;
                if (seen && a.window != 0) seen = s->position - positions[lane] < a.window;
                if (!seen) x = -INFINITY;
                if (there) x = noted(list, r, page * KVF_PAGE_ROWS + lane, positions[lane], x);
                const float max = fmaxf(most[r], warp_max(x)), base = max == -INFINITY ? 0.0f : max;
                const float weight = exp2f(x - base), sum = warp_sum(weight), factor = exp2f(most[r] - base);
                __syncwarp();
                score[r * KVF_PAGE_ROWS + lane] = weight; /* warp 0's part of this reader, which only this warp reads */
                if (lane == 0) {
                    shrink[r] = factor;
                    weights[r] = weights[r] * factor + sum;
                    most[r] = max;
                }
                __syncwarp();
            }
            if (packed) unpack_rows(tile, stride, *f, data, frame, 1);
            else own_rows<R>(tile, stride, data, dim, page * KVF_PAGE_ROWS, in_page, packing.own, 1);
            for (uint32_t i = threadIdx.x; i < readers * dim; i += THREADS) {
                const uint32_t r = i / dim, d = i % dim;
                float sum = so_far[i] * shrink[r];
                for (uint32_t row = 0; row < in_page; row++) sum = fmaf(score[r * KVF_PAGE_ROWS + row], tile[row * stride + d], sum);
                so_far[i] = sum;
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < readers * dim; i += THREADS) {
            const uint32_t r = i / dim, c = i % dim;
            float *to = partial_of(a, blockIdx.z, stored * readers + r, chunk);
            to[c] = so_far[i];
            if (c == 0) to[dim] = most[r], to[dim + 1] = weights[r];
        }
    }
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), score);
}

template <typename R>
static cudaError_t launch(const cu_device *d, uint32_t readers, const step_args &a, dim3 grid) {
    static_assert(WARPS * KVF_PAGE_ROWS >= CU_ATTENTION_CHUNKS, "the last block's weights fit");
    const size_t bytes = shared_bytes(a.head_dim, readers);
    cudaError_t e = cudaFuncSetAttribute(packed_step_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)d->shared_bytes); /* as for plain rows */
    if (e == cudaSuccess) e = cu_all_shared(packed_step_kernel<R>);
    return e != cudaSuccess ? e : cu_launch_next(d, packed_step_kernel<R>, grid, dim3(THREADS), bytes, a);
}

cudaError_t cu_attention_packed(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid) {
    CU_WITH_TYPE(row_dtype, R, return launch<R>(d, readers, a, grid));
}
