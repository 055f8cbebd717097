/*
 * Attention of one step. Work item: (slot, stored head, chunk of 256 rows); all query heads of the group read the chunk's
 * keys and values once. Partial results carry their maximum and sum and are merged in the order of the chunks, so a
 * sequence's result depends on its own rows only. The grid is sized for capacity; blocks without rows leave at once.
 */
#include "numbers.cuh"

enum { READER_TILE = 4, THREADS = 256 };

typedef struct step_args {
    const cu_slot *slot;
    const float *q;
    float *partial; /* [n, n_head, n_chunk, head_dim + 2]: sums, then maximum and sum of weights */
    float scale;
    uint32_t layer;
    uint32_t n_head;
    uint32_t head_dim;
    uint32_t n_chunk;
    uint32_t window;
} step_args;

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

/* Shared memory: q [readers, head_dim], scores [readers, 256], sums [groups, READER_TILE, head_dim]. */
template <typename R, int VEC>
static __global__ void __launch_bounds__(THREADS) attention_step_kernel(const step_args a) {
    extern __shared__ float shared[];
    __shared__ void *page[CU_ATTENTION_CHUNK / KVF_PAGE_ROWS];
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y, chunk = blockIdx.x, head_dim = a.head_dim;
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    const uint32_t n_row = s->rows[table] + 1, row0 = chunk * CU_ATTENTION_CHUNK;
    if (row0 >= n_row) return;
    const uint32_t n = min((uint32_t)CU_ATTENTION_CHUNK, n_row - row0), readers = a.n_head / s->n_stored;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *qs = shared, *score = qs + readers * head_dim, *sums = score + readers * CU_ATTENTION_CHUNK;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * head_dim;
    for (uint32_t i = threadIdx.x; i < readers * head_dim; i += THREADS) qs[i] = q[i] * a.scale;
    if (threadIdx.x < CU_ATTENTION_CHUNK / KVF_PAGE_ROWS && threadIdx.x * KVF_PAGE_ROWS < n) {
        page[threadIdx.x] = s->pages[table * s->cap + row0 / KVF_PAGE_ROWS + threadIdx.x];
    }
    __syncthreads();
    /* Scores: each warp takes four rows at a time; all lanes stay for the shuffles. */
    for (uint32_t base = warp * 4; base < n; base += THREADS / 8) {
        const uint32_t row = base + lane / 8;
        bool seen = row < n;
        float k[32] = {};
        if (seen) {
            void *p = page[row / KVF_PAGE_ROWS];
            load_key<R, VEC>(page_keys<R>(p) + row % KVF_PAGE_ROWS * head_dim, head_dim, lane % 8, k);
            const uint32_t position = page_positions<R>(p, head_dim)[row % KVF_PAGE_ROWS];
            seen = a.window == 0 || s->position - position < a.window;
        }
        for (uint32_t r = 0; r < readers; r++) {
            const float dot = dot_key<VEC>(k, qs + r * head_dim, head_dim, lane % 8);
            if (lane % 8 == 0 && row < n) score[r * CU_ATTENTION_CHUNK + row] = seen ? dot : -INFINITY;
        }
    }
    __syncthreads();
    float *out = a.partial + (((size_t)blockIdx.z * a.n_head + stored * readers) * a.n_chunk + chunk) * (head_dim + 2);
    const size_t out_stride = (size_t)a.n_chunk * (head_dim + 2);
    for (uint32_t r = warp; r < readers; r += THREADS / 32) {
        float *p = score + r * CU_ATTENTION_CHUNK, max = -INFINITY, sum = 0;
        for (uint32_t i = lane; i < n; i += 32) max = fmaxf(max, p[i]);
        max = warp_max(max);
        const float base = max == -INFINITY ? 0.0f : max;
        for (uint32_t i = lane; i < n; i += 32) {
            const float weight = exp2f(p[i] - base);
            p[i] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            out[r * out_stride + head_dim] = max;
            out[r * out_stride + head_dim + 1] = sum;
        }
    }
    __syncthreads();
    /* Values: a thread owns two columns; groups of threads take rows in turn, and their sums are added in order. */
    uint32_t pairs = 1;
    while (pairs < head_dim / 2) pairs *= 2;
    const uint32_t groups = THREADS / pairs, group = threadIdx.x / pairs, d = threadIdx.x % pairs * 2;
    for (uint32_t r0 = 0; r0 < readers; r0 += READER_TILE) {
        float acc[READER_TILE][2] = {};
        if (d < head_dim) {
            for (uint32_t i = group; i < n; i += groups) {
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
            float sum = 0;
            for (uint32_t g = 0; g < groups; g++) sum += sums[(g * READER_TILE + r) * head_dim + c];
            out[(r0 + r) * out_stride + c] = sum;
        }
        __syncthreads();
    }
}

/* A block per slot and query head: chunks in order. */
static __global__ void attention_merge_kernel(const step_args a, void *out, uint32_t out_dtype, uint32_t ldo) {
    const cu_slot *s = &a.slot[blockIdx.y];
    if (!s->run) return;
    const uint32_t head = blockIdx.x, stored = head / (a.n_head / s->n_stored);
    const uint32_t n_row = s->rows[(size_t)a.layer * s->n_stored + stored] + 1;
    const uint32_t n = (n_row + CU_ATTENTION_CHUNK - 1) / CU_ATTENTION_CHUNK;
    const float *part = a.partial + ((size_t)blockIdx.y * a.n_head + head) * a.n_chunk * (a.head_dim + 2);
    float max = -INFINITY, total = 0;
    for (uint32_t c = 0; c < n; c++) max = fmaxf(max, part[(size_t)c * (a.head_dim + 2) + a.head_dim]);
    for (uint32_t c = 0; c < n; c++) {
        const float *p = part + (size_t)c * (a.head_dim + 2);
        total += p[a.head_dim + 1] * exp2f(p[a.head_dim] - max);
    }
    for (uint32_t d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
        float sum = 0;
        for (uint32_t c = 0; c < n; c++) {
            const float *p = part + (size_t)c * (a.head_dim + 2);
            sum = fmaf(p[d], exp2f(p[a.head_dim] - max), sum);
        }
        store_as(out, out_dtype, (size_t)blockIdx.y * ldo + head * a.head_dim + d, sum / total);
    }
}

size_t cu_partial_bytes(const kvf_model_config *c, uint32_t n, uint32_t n_chunk) {
    return (size_t)n * c->n_head * n_chunk * (c->head_dim + 2) * sizeof(float);
}

template <typename R, int VEC>
static cudaError_t launch_step(const step_args &a, dim3 grid, size_t bytes, cudaStream_t stream) {
    const cudaError_t e = cudaFuncSetAttribute(attention_step_kernel<R, VEC>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    attention_step_kernel<R, VEC><<<grid, THREADS, bytes, stream>>>(a);
    return cudaGetLastError();
}

int32_t cu_attention_step(kvf_model *model, uint32_t layer, uint32_t row_dtype, const cu_slot *slot, uint32_t n,
                          uint32_t max_stored, uint32_t n_chunk, const float *q, void *out, uint32_t ldo, float *partial,
                          kv_err err) {
    const kvf_model_config *c = &model->config;
    cudaStream_t stream = cu_of(model->dev)->stream;
    step_args a = {};
    a.slot = slot, a.q = q, a.partial = partial, a.layer = layer, a.n_head = c->n_head, a.head_dim = c->head_dim;
    a.scale = LOG2E / sqrtf((float)c->head_dim), a.n_chunk = n_chunk, a.window = model->layer_window[layer];
    const uint32_t readers = c->n_head / c->n_kv_head; /* at most; fewer where query heads are stored */
    uint32_t pairs = 1;
    while (pairs < c->head_dim / 2) pairs *= 2;
    const size_t bytes = ((size_t)readers * (c->head_dim + CU_ATTENTION_CHUNK) +
                          (size_t)(THREADS / pairs) * READER_TILE * c->head_dim) * sizeof(float);
    const dim3 grid(n_chunk, max_stored, n);
    cudaError_t e;
    if (c->head_dim % 8 == 0) {
        CU_WITH_TYPE(row_dtype, R, e = (launch_step<R, 8>(a, grid, bytes, stream)));
    } else {
        CU_WITH_TYPE(row_dtype, R, e = (launch_step<R, 2>(a, grid, bytes, stream)));
    }
    CU_TRY(e, "attention of a step");
    attention_merge_kernel<<<dim3(c->n_head, n), 128, 0, stream>>>(a, out, model->config.weight_dtype, ldo);
    CU_LAUNCHED("merging attention");
    return KVF_OK;
}
