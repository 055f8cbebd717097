/*
 * Attention of one step for rows of any type and width. Work item: a chunk of a stored head's rows; all query heads of the
 * group read its keys and values once. The grid is sized for capacity; blocks without rows leave at once.
 */
#include "attention_decode.cuh"

enum { READER_TILE = 4, THREADS = 256 };

/* Eight lanes share a row's dot product: lane l of them holds columns l * VEC, (l + 8) * VEC, ... */
template <typename R, int VEC>
static __device__ __forceinline__ void load_key(const R *key, uint32_t head_dim, uint32_t part, float k[32]) {
#pragma unroll
    for (int i = 0; i < 32 / VEC; i++) {
        const uint32_t d = (part + 8 * i) * VEC;
        if (d < head_dim) {
            if (VEC == 8) {
                load8(key + d, k + i * VEC);
            } else {
#pragma unroll
                for (int j = 0; j < VEC; j++) k[i * VEC + j] = to_f32(key[d + j]);
            }
        } else {
#pragma unroll
            for (int j = 0; j < VEC; j++) k[i * VEC + j] = 0;
        }
    }
}

template <int VEC>
static __device__ __forceinline__ float dot_key(const float k[32], const float *q, uint32_t head_dim, uint32_t part) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 32 / VEC; i++) {
        const uint32_t d = (part + 8 * i) * VEC;
        if (d >= head_dim) break;
#pragma unroll
        for (int j = 0; j < VEC; j++) sum = fmaf(k[i * VEC + j], q[d + j], sum);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
}

/*
 * Shared memory: q [readers, head_dim], scores [readers, 256], sums [groups, READER_TILE, head_dim], the chunk so far
 * [readers, head_dim], its maximum, sum of weights and last change of scale [readers] each. A chunk of more than 256 rows
 * is taken in pieces of 256.
 */
template <typename R, int VEC>
static __global__ void __launch_bounds__(THREADS) attention_step_kernel(const step_args a) {
    extern __shared__ float shared[];
    __shared__ void *page[CU_ATTENTION_CHUNK / KVF_PAGE_ROWS];
    __shared__ uint2 entry[CU_ATTENTION_CHUNK / KVF_PAGE_ROWS]; /* index of the page, and its rows */
    wait_previous();
    allow_next();
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y, head_dim = a.head_dim;
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    if (s->packing[table].kernel != CU_ATTEND_PLAIN) return;
    const uint32_t n_row = s->rows[table] + 1, readers = a.n_head / s->n_stored;
    const watched w = watch(a, s, stored, table, n_row);
    const uint32_t n_slot = w.n_page * KVF_PAGE_ROWS, per_chunk = chunk_rows(n_slot), n_chunk = (n_slot - 1) / per_chunk + 1;
    if (blockIdx.x >= n_chunk) return;
    uint32_t pairs = 1;
    while (pairs < head_dim / 2) pairs *= 2;
    const uint32_t groups = THREADS / pairs, group = threadIdx.x / pairs, d = threadIdx.x % pairs * 2;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *qs = shared, *score = qs + readers * head_dim, *sums = score + readers * CU_ATTENTION_CHUNK;
    float *so_far = sums + groups * READER_TILE * head_dim, *most = so_far + readers * head_dim;
    float *weights = most + readers, *shrink = weights + readers;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * head_dim;
    for (uint32_t i = threadIdx.x; i < readers * head_dim; i += THREADS) qs[i] = q[i] * a.scale;
    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        const uint32_t end = min((chunk + 1) * per_chunk, n_slot);
        for (uint32_t i = threadIdx.x; i < readers * head_dim; i += THREADS) so_far[i] = 0;
        for (uint32_t r = threadIdx.x; r < readers; r += THREADS) most[r] = -INFINITY, weights[r] = 0;
        for (uint32_t row0 = chunk * per_chunk; row0 < end; row0 += CU_ATTENTION_CHUNK) {
            const uint32_t n = min((uint32_t)CU_ATTENTION_CHUNK, end - row0);
            __syncthreads();
            if (threadIdx.x < CU_ATTENTION_CHUNK / KVF_PAGE_ROWS && threadIdx.x * KVF_PAGE_ROWS < n) {
                entry[threadIdx.x] = watched_page(w, row0 / KVF_PAGE_ROWS + threadIdx.x, n_row);
                page[threadIdx.x] = s->pages[table * s->cap + entry[threadIdx.x].x];
            }
            __syncthreads();
            /* Scores: each warp takes four rows at a time; all lanes stay for the shuffles. */
            for (uint32_t base = warp * 4; base < n; base += THREADS / 8) {
                const uint32_t row = base + lane / 8, index = row / KVF_PAGE_ROWS;
                const bool there = row < n && entry[index].y >> row % KVF_PAGE_ROWS & 1;
                bool seen = there;
                uint32_t position = 0;
                float k[32] = {};
                if (seen) {
                    void *p = page[row / KVF_PAGE_ROWS];
                    load_key<R, VEC>(page_keys<R>(p) + row % KVF_PAGE_ROWS * head_dim, head_dim, lane % 8, k);
                    position = page_positions<R>(p, head_dim)[row % KVF_PAGE_ROWS];
                    seen = a.window == 0 || s->position - position < a.window;
                }
                for (uint32_t r = 0; r < readers; r++) {
                    const float dot = dot_key<VEC>(k, qs + r * head_dim, head_dim, lane % 8);
                    if (lane % 8 != 0 || row >= n) continue;
                    float x = seen ? dot : -INFINITY;
                    if (there) x = noted(w, r, entry[index].x * KVF_PAGE_ROWS + row % KVF_PAGE_ROWS, position, x);
                    score[r * CU_ATTENTION_CHUNK + row] = x;
                }
            }
            __syncthreads();
            for (uint32_t r = warp; r < readers; r += THREADS / 32) {
                float *p = score + r * CU_ATTENTION_CHUNK, max = most[r], sum = 0;
                for (uint32_t i = lane; i < n; i += 32) max = fmaxf(max, p[i]);
                max = warp_max(max);
                const float base = max == -INFINITY ? 0.0f : max;
                for (uint32_t i = lane; i < n; i += 32) {
                    const float weight = exp2f(p[i] - base);
                    p[i] = weight;
                    sum += weight;
                }
                sum = warp_sum(sum);
                const float factor = exp2f(most[r] - base);
                __syncwarp();
                if (lane == 0) shrink[r] = factor, weights[r] = weights[r] * factor + sum, most[r] = max;
            }
            __syncthreads();
            /* Values: a thread owns two columns; groups of threads take rows in turn, and their sums are added in order. */
            for (uint32_t r0 = 0; r0 < readers; r0 += READER_TILE) {
                float acc[READER_TILE][2] = {};
                if (d < head_dim) {
                    for (uint32_t i = group; i < n; i += groups) {
                        if (!(entry[i / KVF_PAGE_ROWS].y >> i % KVF_PAGE_ROWS & 1)) continue; /* may be anything */
                        const R *v = page_values<R>(page[i / KVF_PAGE_ROWS], head_dim) + i % KVF_PAGE_ROWS * head_dim + d;
                        const float v0 = to_f32(v[0]), v1 = to_f32(v[1]);
#pragma unroll
                        for (int r = 0; r < READER_TILE; r++) {
                            if (r0 + r >= readers) break;
                            const float weight = score[(r0 + r) * CU_ATTENTION_CHUNK + i];
                            acc[r][0] = fmaf(weight, v0, acc[r][0]);
                            acc[r][1] = fmaf(weight, v1, acc[r][1]);
                        }
                    }
                    for (int r = 0; r < READER_TILE; r++) {
                        sums[(group * READER_TILE + r) * head_dim + d] = acc[r][0];
                        sums[(group * READER_TILE + r) * head_dim + d + 1] = acc[r][1];
                    }
                }
                __syncthreads();
                for (uint32_t i = threadIdx.x; i < READER_TILE * head_dim; i += THREADS) {
                    const uint32_t r = i / head_dim, c = i % head_dim;
                    if (r0 + r >= readers) continue;
                    float sum = so_far[(r0 + r) * head_dim + c] * shrink[r0 + r];
                    for (uint32_t g = 0; g < groups; g++) sum += sums[(g * READER_TILE + r) * head_dim + c];
                    so_far[(r0 + r) * head_dim + c] = sum;
                }
                __syncthreads();
            }
        }
        for (uint32_t i = threadIdx.x; i < readers * head_dim; i += THREADS) {
            const uint32_t r = i / head_dim, c = i % head_dim;
            float *to = partial_of(a, blockIdx.z, stored * readers + r, chunk);
            to[c] = so_far[i];
            if (c == 0) to[head_dim] = most[r], to[head_dim + 1] = weights[r];
        }
        __syncthreads();
    }
    /* The scores' place holds the weights of 64 chunks. */
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), score);
}

size_t cu_partial_bytes(const kvf_model_config *c, uint32_t n, uint32_t n_chunk) {
    return (size_t)n * c->n_head * n_chunk * partial_stride(c->head_dim) * sizeof(float);
}

uint32_t cu_attention_chunks(uint32_t n_row) {
    const uint32_t most = CU_ATTENTION_CHUNK * CU_ATTENTION_CHUNKS, tile = CU_TILE_PAGES * KVF_PAGE_ROWS;
    const uint32_t chunks = cu_div_up(n_row < most ? n_row : most, CU_ATTENTION_CHUNK);
    const uint32_t tiles = cu_div_up(n_row < tile * CU_TILE_CHUNKS ? n_row : tile * CU_TILE_CHUNKS, tile);
    return chunks > tiles ? chunks : tiles;
}

template <typename R, int VEC>
static cudaError_t launch_step(const cu_device *d, const step_args &a, dim3 grid, size_t bytes) {
    /* The device's limit, not this model's: one that is lowered would not do for graphs of a model that needs more. */
    cudaError_t e = cudaFuncSetAttribute(attention_step_kernel<R, VEC>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         (int)d->shared_bytes);
    if (e == cudaSuccess) e = cu_all_shared(attention_step_kernel<R, VEC>);
    return e != cudaSuccess ? e : cu_launch_next(d, attention_step_kernel<R, VEC>, grid, dim3(THREADS), bytes, a);
}

/* Tables of plain rows. */
static cudaError_t attend_plain(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid) {
    cudaError_t e;
    if (cu_attention_tile(d, row_dtype, readers, a, grid, &e)) return e;
    uint32_t pairs = 1;
    while (pairs < a.head_dim / 2) pairs *= 2;
    const size_t bytes = ((size_t)readers * (2 * a.head_dim + CU_ATTENTION_CHUNK + 3) +
                          (size_t)(THREADS / pairs) * READER_TILE * a.head_dim) * sizeof(float);
    if (a.head_dim % 8 == 0) {
        CU_WITH_TYPE(row_dtype, R, e = (launch_step<R, 8>(d, a, grid, bytes)));
    } else {
        CU_WITH_TYPE(row_dtype, R, e = (launch_step<R, 2>(d, a, grid, bytes)));
    }
    return e;
}

int32_t cu_attention_step(kvf_model *model, uint32_t layer, uint32_t row_dtype, const cu_slot *slot, uint32_t n,
                          uint32_t max_stored, uint32_t n_chunk, uint32_t kernels, const float *q, void *out, uint32_t ldo,
                          float *partial, uint32_t *arrived, const cu_program_work *work, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_device *d = cu_of(model->dev);
    step_args a = {};
    a.slot = slot, a.q = q, a.partial = partial, a.arrived = arrived, a.out = out, a.out_dtype = c->weight_dtype;
    a.ldo = ldo, a.layer = layer, a.n_head = c->n_head, a.head_dim = c->head_dim;
    a.scale = LOG2E / sqrtf((float)c->head_dim), a.n_chunk = n_chunk, a.window = model->layer_window[layer];
    a.work = *work;
    /* At least eight blocks a multiprocessor, as far as there are chunks; which block takes a chunk changes no result. */
    const uint32_t wanted = cu_div_up((size_t)8 * d->n_sm, (size_t)n * max_stored);
    const dim3 grid(wanted < n_chunk ? wanted : n_chunk, max_stored, n);
    const uint32_t readers = c->n_head / c->n_kv_head; /* at most; fewer where query heads are stored */
    cudaError_t e = cudaSuccess;
    if (kernels & 1u << CU_ATTEND_PLAIN) e = attend_plain(d, row_dtype, readers, a, grid);
    if (e == cudaSuccess && (kernels & 1u << CU_ATTEND_ANY)) e = cu_attention_packed(d, row_dtype, readers, a, grid);
    for (uint32_t kernel = CU_ATTEND_CODES_4; kernel <= CU_ATTEND_CODES_2; kernel++) {
        if (e == cudaSuccess && (kernels & 1u << kernel)) e = cu_attention_codes(d, kernel, row_dtype, readers, a, grid);
    }
    return cu_check(e, "attention of a step", err);
}
