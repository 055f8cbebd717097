/*
 * Scores by queries that were recorded in prefill or kept in decode: two passes over the rows, nothing of size queries x rows
 * reaches memory. A query sees the rows up to its own position, wherever they lie. The first pass finds each query's highest
 * score, sum and number of rows seen; the second adds up, for each row, what the queries give to it.
 */
#include "program.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, TILE = 8 /* queries that read a row together */, SPLIT = 8 };

typedef struct kept_args {
    /* In a step: the slots, and where heads leave results; otherwise zeros. */
    const cu_slot *slot;
    cu_program_work work;
    uint32_t layer;
    /* Otherwise: one layer, its queries, and where results go. */
    cu_view view;
    cu_kept kept;
    cu_query_stat *stat; /* [n_head, kept.n] */
    float *out;
    uint32_t ld, less, flags, reduce;
    uint32_t n_head, head_dim, dtype;
    float scale; /* with log2(e) folded in */
} kept_args;

/* One stored head and its queries. */
typedef struct kept_head {
    head_rows rows;
    cu_kept kept; /* q: of the head's first query head */
    cu_query_stat *stat; /* [readers, n_stat] */
    float *out;   /* [n_out] */
    uint32_t readers, n_stat, n_out, flags, reduce;
} kept_head;

/* False: nothing to do. */
static __device__ bool find_head(const kept_args &a, uint32_t stored, uint32_t slot, kept_head *h) {
    h->rows.head_dim = a.head_dim, h->rows.dtype = a.dtype;
    if (a.slot == NULL) {
        h->readers = a.view.readers;
        h->rows.pages = a.view.pages + (size_t)stored * a.view.cap, h->rows.n_row = a.view.rows[stored];
        h->kept = a.kept;
        h->kept.q += (size_t)stored * h->readers * a.kept.stride;
        h->n_stat = a.kept.n;
        h->stat = a.stat + (size_t)stored * h->readers * h->n_stat;
        h->out = a.out + (size_t)stored * a.ld;
        h->n_out = h->rows.n_row > a.less ? h->rows.n_row - a.less : 0;
        h->flags = a.flags, h->reduce = a.reduce;
        return h->n_out > 0;
    }
    const cu_slot *s = &a.slot[slot];
    if (!s->run || stored >= s->n_stored) return false;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    const cu_program *p = program_of(s, table);
    const uint32_t n_row = s->rows[table] + 1, seen = s->position + 1;
    if (p == NULL || p->evict.statistic < KVF_STAT_WINDOW || !evicts(p, n_row, seen)) return false;
    h->readers = a.n_head / s->n_stored;
    h->rows.pages = s->pages + table * s->cap, h->rows.n_row = n_row;
    h->kept.q = p->ring, h->kept.stride = (size_t)p->ring_size * a.head_dim, h->kept.size = p->ring_size, h->kept.origin = 0;
    h->kept.n = min(p->ring_size, seen - p->ring_first), h->kept.first = seen - h->kept.n;
    h->n_stat = a.work.n_query;
    h->stat = a.work.stat + ((size_t)slot * a.n_head + stored * h->readers) * h->n_stat;
    h->out = head_line(a.work, slot, stored), h->n_out = n_row;
    h->flags = p->evict.statistic == KVF_STAT_HITS ? (uint32_t)KVF_WINDOW_HITS : 0, h->reduce = p->evict.reduce;
    return true;
}

static __device__ __forceinline__ const float *query_of(const kept_head &h, uint32_t reader, uint32_t i) {
    return h.kept.q + reader * h.kept.stride + (size_t)((h.kept.first + i - h.kept.origin) % h.kept.size) * h.rows.head_dim;
}

/* Joins maxima and sums of exp2 over two sets of rows. */
static __device__ __forceinline__ void join(float *most, float *sum, float other_most, float other_sum) {
    const float high = fmaxf(*most, other_most), base = high == -INFINITY ? 0.0f : high;
    *sum = *sum * exp2f(*most - base) + other_sum * exp2f(other_most - base);
    *most = high;
}

/* First pass. A block takes TILE queries of one query head at a time. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) stat_kernel(const kept_args a) {
    __shared__ float query[TILE * 256], most_of[WARPS][TILE], sum_of[WARPS][TILE];
    __shared__ uint32_t seen_of[WARPS][TILE];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = a.head_dim;
    kept_head h = {};
    wait_previous();
    allow_next();
    if (a.slot != NULL && !a.slot[blockIdx.z].run) return;
    const uint32_t readers = a.slot == NULL ? a.view.readers : a.n_head / a.slot[blockIdx.z].n_stored;
    const uint32_t stored = blockIdx.y / readers, reader = blockIdx.y % readers;
    if (!find_head(a, stored, blockIdx.z, &h)) return;
    for (uint32_t first = blockIdx.x * TILE; first < h.kept.n; first += gridDim.x * TILE) {
        const uint32_t n = min((uint32_t)TILE, h.kept.n - first);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < TILE * dim; i += THREADS) {
            query[i] = i / dim < n ? query_of(h, reader, first + i / dim)[i % dim] : 0.0f;
        }
        __syncthreads();
        float most[TILE], sum[TILE];
        uint32_t seen[TILE];
#pragma unroll
        for (int k = 0; k < TILE; k++) most[k] = -INFINITY, sum[k] = 0, seen[k] = 0;
        for (uint32_t row = threadIdx.x; row < h.rows.n_row; row += THREADS) {
            const R *key = (const R *)h.rows.pages[row / KVF_PAGE_ROWS] + row % KVF_PAGE_ROWS * dim;
            const uint32_t position = position_of(h.rows, row);
            float dot[TILE] = {};
            for (uint32_t d = 0; d < dim; d++) {
                const float x = to_f32(key[d]);
#pragma unroll
                for (int k = 0; k < TILE; k++) dot[k] = fmaf(query[k * dim + d], x, dot[k]);
            }
#pragma unroll
            for (int k = 0; k < TILE; k++) {
                if (position > h.kept.first + first + k) continue;
                join(&most[k], &sum[k], dot[k] * a.scale, 1.0f);
                seen[k]++;
            }
        }
#pragma unroll
        for (int k = 0; k < TILE; k++) {
            for (int step = 16; step > 0; step /= 2) {
                join(&most[k], &sum[k], __shfl_xor_sync(0xffffffffu, most[k], step), __shfl_xor_sync(0xffffffffu, sum[k], step));
                seen[k] += __shfl_xor_sync(0xffffffffu, seen[k], step);
            }
            if (lane == 0) most_of[warp][k] = most[k], sum_of[warp][k] = sum[k], seen_of[warp][k] = seen[k];
        }
        __syncthreads();
        if (threadIdx.x >= n) continue;
        float high = most_of[0][threadIdx.x], total = sum_of[0][threadIdx.x];
        uint32_t count = seen_of[0][threadIdx.x];
        for (uint32_t w = 1; w < WARPS; w++) {
            join(&high, &total, most_of[w][threadIdx.x], sum_of[w][threadIdx.x]);
            count += seen_of[w][threadIdx.x];
        }
        const cu_query_stat found = {high, total > 0 ? 1.0f / total : 0.0f, 1.0f / (float)count};
        h.stat[(size_t)reader * h.n_stat + first + threadIdx.x] = found;
    }
}

/* What one query gives to a row: its probability, or whether that is at least the average. */
static __device__ __forceinline__ float given(const kept_head &h, uint32_t reader, uint32_t i, uint32_t position, const float *key,
                                              float scale) {
    const float *q = query_of(h, reader, i);
    const cu_query_stat stat = h.stat[(size_t)reader * h.n_stat + i];
    float dot = 0;
    for (uint32_t d = 0; d < h.rows.head_dim; d++) dot = fmaf(q[d], key[d], dot);
    if (position > h.kept.first + i || stat.factor == 0) return 0;
    const float p = exp2f(dot * scale - stat.most) * stat.factor;
    return h.flags & KVF_WINDOW_HITS ? (p >= stat.average ? 1.0f : 0.0f) : p;
}

/* Sum over the warps, in order; lane's own. Valid in warp 0. */
static __device__ float add_warps(float part[WARPS][32], float x) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
    part[warp][lane] = x;
    __syncthreads();
    float sum = 0;
    for (uint32_t w = 0; w < WARPS; w++) sum += part[w][lane];
    return sum;
}

static __device__ __forceinline__ float combined(float x, float y, uint32_t reader, uint32_t reduce) {
    return reader == 0 ? y : reduce == KVF_MAX ? fmaxf(x, y) : x + y;
}

/* Second pass. A block takes a page at a time; lanes are its rows, warps take the queries in turn. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) row_kernel(const kept_args a) {
    extern __shared__ float keys[]; /* [KVF_PAGE_ROWS, head_dim + 1] */
    __shared__ float part[WARPS][32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = a.head_dim, stride = dim + 1;
    kept_head h = {};
    wait_previous();
    allow_next();
    if (!find_head(a, blockIdx.y, blockIdx.z, &h)) return;
    const float divide = h.flags & KVF_WINDOW_MEAN ? (float)h.kept.n : 1.0f;
    for (uint32_t page = blockIdx.x; page * KVF_PAGE_ROWS < h.n_out; page += gridDim.x) {
        const uint32_t row = page * KVF_PAGE_ROWS + lane, n = min((uint32_t)KVF_PAGE_ROWS, h.rows.n_row - page * KVF_PAGE_ROWS);
        const R *from = (const R *)h.rows.pages[page];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * dim; i += THREADS) {
            keys[i / dim * stride + i % dim] = i / dim < n ? to_f32(from[i]) : 0.0f;
        }
        __syncthreads();
        const uint32_t position = lane < n ? positions_at(h.rows, page)[lane] : KV_NO_TOKEN;
        float x = 0;
        if (h.flags & KVF_WINDOW_REDUCE_FIRST) {
            for (uint32_t i = warp; i < h.kept.n; i += WARPS) {
                float y = 0;
                for (uint32_t r = 0; r < h.readers; r++) {
                    y = combined(y, given(h, r, i, position, keys + lane * stride, a.scale), r, h.reduce);
                }
                x += h.reduce == KVF_MEAN ? y / (float)h.readers : y;
            }
            x = add_warps(part, x) / divide;
        } else {
            for (uint32_t r = 0; r < h.readers; r++) {
                float sum = 0;
                for (uint32_t i = warp; i < h.kept.n; i += WARPS) sum += given(h, r, i, position, keys + lane * stride, a.scale);
                x = combined(x, add_warps(part, sum) / divide, r, h.reduce);
            }
            if (h.reduce == KVF_MEAN) x /= (float)h.readers;
        }
        if (warp == 0 && row < h.n_out) h.out[row] = x;
    }
}

static int32_t run(const cu_device *d, const kept_args &a, dim3 stat_grid, dim3 row_grid, kv_err err) {
    const size_t bytes = (size_t)KVF_PAGE_ROWS * (a.head_dim + 1) * sizeof(float);
    cudaError_t e;
    CU_WITH_TYPE(a.dtype, R, e = cu_launch_next(d, stat_kernel<R>, stat_grid, dim3(THREADS), 0, a));
    CU_TRY(e, "scores by queries");
    CU_WITH_TYPE(a.dtype, R, e = cu_launch_next(d, row_kernel<R>, row_grid, dim3(THREADS), bytes, a));
    return cu_check(e, "scores by queries", err);
}

int32_t cu_kept_scores(kvf_cache *cache, const cu_view *view, const cu_kept *kept, uint32_t flags, uint32_t reduce,
                       uint32_t less, uint32_t most_rows, float *out, uint32_t ld, kv_err err) {
    const kvf_cache_config *c = &cache->config;
    kept_args a = {};
    void *stat;
    CU_PASS(cu_scratch(cache->dev, &stat, (size_t)c->n_head * kept->n * sizeof *a.stat, err));
    a.view = *view, a.kept = *kept, a.stat = (cu_query_stat *)stat, a.out = out, a.ld = ld, a.less = less, a.flags = flags;
    a.reduce = reduce, a.n_head = c->n_head, a.head_dim = c->head_dim, a.dtype = c->row_dtype;
    a.scale = LOG2E / sqrtf((float)c->head_dim);
    return run(cu_of(cache->dev), a, dim3(cu_div_up(kept->n, TILE), c->n_head),
               dim3(cu_div_up(most_rows, KVF_PAGE_ROWS), c->n_head / view->readers), err);
}

int32_t cu_kept_step(kvf_device *dev, uint32_t layer, uint32_t row_dtype, uint32_t head_dim, const cu_slot *slot,
                     const cu_program_work *work, kv_err err) {
    kept_args a = {};
    a.slot = slot, a.work = *work, a.layer = layer, a.n_head = work->n_head, a.head_dim = head_dim, a.dtype = row_dtype;
    a.scale = LOG2E / sqrtf((float)head_dim);
    return run(cu_of(dev), a, dim3(SPLIT, work->n_head, work->n), dim3(SPLIT, work->max_stored, work->n), err);
}
