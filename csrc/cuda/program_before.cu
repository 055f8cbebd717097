/*
 * Step programs before a layer's attention: pages are chosen by their bounds. Several blocks work on one stored head of one
 * slot, each on its segments of bounds, and the last one to arrive chooses.
 */
#include "program.cuh"
#include "select.cuh"

enum {
    THREADS = 256,
    WARPS = THREADS / 32,
    READER_TILE = 4,
    SPLIT = 8,    /* blocks of a choice */
    AHEAD = 16,   /* channels of a thread whose bounds are read before the query is there */
    HELD = 2048,  /* blocks, and pages, of a choice that shared memory has room for */
    COUNTED = 512 /* blocks whose ranks may be counted, rather than searched for */
};
#ifndef CU_HELD_BLOCKS
#define CU_HELD_BLOCKS HELD /* that it is used for */
#define CU_COUNTED_BLOCKS COUNTED
#endif

/* ---- Choice of pages ---- */

/* One head's choice. */
typedef struct choice {
    head_rows rows;
    kvf_op op;
    float *const *bounds;
    const float *q; /* [readers] queries, stride elements apart */
    size_t stride;
    uint32_t readers;
    uint32_t oldest; /* position: rows before it are not seen */
    float *score;    /* [blocks] room */
    uint32_t *mask;  /* [pages] room */
    uint2 *pick;     /* [pages] out */
    uint32_t *n_pick;
} choice;

/* What is chosen from: blocks [hidden, n_block) of rows [0, end), `wanted` of them; rows from `end` on in any case. */
typedef struct choice_plan {
    uint32_t end, n_block, hidden, wanted, left;
} choice_plan;

static __device__ choice_plan plan_of(const choice &c) {
    const uint32_t n_row = c.rows.n_row, size = c.op.page_rows;
    choice_plan p = {};
    if (c.op.keep >= n_row) return p;
    const uint32_t recent = min(c.op.last, c.op.keep), take = c.op.keep - recent;
    p.end = n_row - recent;
    if (take == 0) return p;
    p.n_block = (p.end - 1) / size + 1;
    uint32_t low = 0, high = c.oldest == 0 ? 0 : p.n_block; /* rows are in order of position */
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (position_of(c.rows, min((middle + 1) * size, p.end) - 1) >= c.oldest) high = middle;
        else low = middle + 1;
    }
    p.hidden = low;
    p.wanted = (take - 1) / size + 1;
    if (c.op.cut && p.end % size != 0) p.wanted++;
    p.wanted = min(p.wanted, p.n_block - p.hidden);
    p.left = c.op.cut ? take : p.end;
    return p;
}

/*
 * Shared memory of a choice, but for what holds keys and pages: the queries' positive parts, then their negative ones; partial
 * sums; one score per reader and block. In 16 bytes.
 */
static __host__ __device__ size_t choice_floats(uint32_t readers, uint32_t head_dim) {
    return (size_t)readers * ((2 * head_dim + 3) / 4 * 4 + KV_BOUND_BLOCKS) + WARPS * READER_TILE * KV_BOUND_BLOCKS;
}

static size_t choice_bytes(uint32_t readers, uint32_t head_dim) {
    return choice_floats(readers, head_dim) * sizeof(float) + 2 * HELD * sizeof(uint32_t);
}

/* The reduced score of a block, whose readers' are score[r * ld]. */
static __device__ float reduced(const choice &c, const float *score, size_t ld) {
    float x = score[0];
    for (uint32_t r = 1; r < c.readers; r++) x = c.op.reduce == KVF_MAX ? (score[r * ld] > x ? score[r * ld] : x) : x + score[r * ld];
    if (c.op.reduce == KVF_MEAN) x /= (float)c.readers;
    return x == x ? x : -INFINITY;
}

/* Bounds of this block's first segment, of the lane's block and the warp's channels. */
typedef struct bounds_ahead {
    bool known;
    uint32_t stale; /* a block whose bounds have changed since */
    float high[AHEAD], low[AHEAD];
} bounds_ahead;

static __device__ __forceinline__ void read_ahead(const choice &c, bounds_ahead *b, uint32_t n_block) {
    const uint32_t dim = c.rows.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    b->known = blockIdx.x * KV_BOUND_BLOCKS < n_block;
    if (!b->known) return;
    const float *high = c.bounds[blockIdx.x] + lane, *low = high + (size_t)dim * KV_BOUND_BLOCKS;
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const uint32_t d = warp + k * WARPS;
        b->high[k] = d < dim ? __ldcg(high + d * KV_BOUND_BLOCKS) : 0.0f;
        b->low[k] = d < dim ? __ldcg(low + d * KV_BOUND_BLOCKS) : 0.0f;
    }
}

/* Scores of the segments that this block takes. */
static __device__ void score_blocks(const choice &c, const choice_plan &p, const bounds_ahead &ahead, float *shared) {
    const uint32_t dim = c.rows.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *above = shared, *below = above + c.readers * dim, *sums = below + c.readers * dim;
    float *found = sums + WARPS * READER_TILE * KV_BOUND_BLOCKS; /* [readers, KV_BOUND_BLOCKS] */
    for (uint32_t segment = blockIdx.x; segment * KV_BOUND_BLOCKS < p.n_block; segment += gridDim.x) {
        const float *high = c.bounds[segment] + lane, *low = high + (size_t)dim * KV_BOUND_BLOCKS;
        const uint32_t block = segment * KV_BOUND_BLOCKS + lane;
        const bool known = ahead.known && segment == blockIdx.x && block != ahead.stale;
        for (uint32_t r0 = 0; r0 < c.readers; r0 += READER_TILE) {
            float acc[READER_TILE] = {};
            const auto add = [&](uint32_t d, float h, float l) {
#pragma unroll
                for (int r = 0; r < READER_TILE; r++) {
                    if (r0 + r >= c.readers) break;
                    acc[r] = fmaf(above[(r0 + r) * dim + d], h, acc[r]);
                    acc[r] = fmaf(below[(r0 + r) * dim + d], l, acc[r]);
                }
            };
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                const uint32_t d = warp + k * WARPS;
                if (d >= dim) break;
                if (known) add(d, ahead.high[k], ahead.low[k]);
                else add(d, high[d * KV_BOUND_BLOCKS], low[d * KV_BOUND_BLOCKS]);
            }
#pragma unroll 8
            for (uint32_t d = warp + AHEAD * WARPS; d < dim; d += WARPS) add(d, high[d * KV_BOUND_BLOCKS], low[d * KV_BOUND_BLOCKS]);
            for (int r = 0; r < READER_TILE; r++) sums[(warp * READER_TILE + r) * KV_BOUND_BLOCKS + lane] = acc[r];
            __syncthreads();
            if (warp < READER_TILE && r0 + warp < c.readers) {
                float sum = 0;
                for (uint32_t w = 0; w < WARPS; w++) sum += sums[(w * READER_TILE + warp) * KV_BOUND_BLOCKS + lane];
                found[(r0 + warp) * KV_BOUND_BLOCKS + lane] = sum;
            }
            __syncthreads();
        }
        if (warp == 0 && block < p.n_block) c.score[block] = reduced(c, found + lane, KV_BOUND_BLOCKS);
        __syncthreads();
    }
}

/* The block at the end of the choice, whose stored bounds know rows beyond it. */
static __device__ void score_last(const choice &c, const choice_plan &p, float *shared) {
    const uint32_t dim = c.rows.head_dim, size = c.op.page_rows;
    const float *above = shared, *below = above + c.readers * dim;
    float *found = shared + 2 * c.readers * dim;
    float high = -INFINITY, low = INFINITY;
    for (uint32_t row = p.end - p.end % size; threadIdx.x < dim && row < p.end; row++) {
        const float x = key_of(c.rows, row, threadIdx.x);
        high = fmaxf(high, x);
        low = fminf(low, x);
    }
    for (uint32_t r = 0; r < c.readers; r++) {
        float x = 0;
        if (threadIdx.x < dim) x = above[r * dim + threadIdx.x] * high + below[r * dim + threadIdx.x] * low;
        x = block_sum(x);
        if (threadIdx.x == 0) found[r] = x;
    }
    __syncthreads();
    if (threadIdx.x == 0) c.score[p.n_block - 1] = reduced(c, found, 1);
    __syncthreads();
}

/* Marks rows [first, end). */
static __device__ void mark(uint32_t *mask, uint32_t first, uint32_t end) {
    while (first < end) {
        const uint32_t slot = first % KVF_PAGE_ROWS, n = min(KVF_PAGE_ROWS - slot, end - first);
        atomicOr(&mask[first / KVF_PAGE_ROWS], (n == 32 ? 0xffffffffu : (1u << n) - 1) << slot);
        first += n;
    }
}

/*
 * Calls use(i, rank) for the `wanted` blocks of the highest keys, the lower one among equals, in order. key: shared, with zeros
 * up to a multiple of four
 */
template <typename Use>
static __device__ void for_each_counted(uint32_t *part, const uint32_t *key, uint32_t n, uint32_t wanted, Use use) {
    uint32_t above[COUNTED / THREADS] = {}, n_above = 0; /* keys above the thread's own */
#pragma unroll
    for (uint32_t k = 0; k < COUNTED / THREADS; k++) {
        const uint32_t i = threadIdx.x + k * THREADS, own = i < n ? key[i] : 0;
        if (k * THREADS >= n) break;
#pragma unroll 4
        for (uint32_t j = 0; j < n; j += 4) {
            const uint4 four = *(const uint4 *)(key + j);
            above[k] += (four.x > own) + (four.y > own) + (four.z > own) + (four.w > own);
        }
        const uint32_t vote = __ballot_sync(0xffffffffu, i < n && above[k] < wanted);
        __syncthreads();
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = __popc(vote);
        __syncthreads();
        for (uint32_t w = 0; w < WARPS; w++) n_above += part[w];
    }
    if (n_above > wanted) { /* equal ones are too many */
#pragma unroll
        for (uint32_t k = 0; k < COUNTED / THREADS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS;
            for (uint32_t j = 0; i < n && j < i; j++) above[k] += key[j] == key[i];
        }
    }
    for_each_ranked(part, n, [&](uint32_t i) { return (i < THREADS ? above[0] : above[1]) < wanted; }, use);
}

/* What one block chooses with, in shared memory. */
typedef struct choice_state {
    cut_state cut;
    uint32_t part[32], last;
} choice_state;

/* All scores are there: the choice as a list of pages. Called by one block. HELDS: key and mask are shared */
template <bool HELDS>
static __device__ void choose_in(const choice &c, const choice_plan &p, choice_state *state, uint32_t *key, uint32_t *mask) {
    uint32_t *part = state->part;
    const uint32_t n_row = c.rows.n_row, size = c.op.page_rows, n_page = (n_row - 1) / KVF_PAGE_ROWS + 1;
    const float *score = c.score;
    const uint32_t hidden = p.hidden;
    const auto find_key = [score, hidden](uint32_t i) { return i < hidden ? 0u : order_key(__ldcg(score + i)); };
    const auto key_of = [=](size_t i) { return HELDS ? key[i] : find_key((uint32_t)i); };
    const auto mask_of = [mask](uint32_t i) { return HELDS ? mask[i] : __ldcg(mask + i); };
    for (uint32_t i = threadIdx.x; HELDS && i < (p.n_block + 3) / 4 * 4; i += THREADS) key[i] = i < p.n_block ? find_key(i) : 0;
    for (uint32_t i = threadIdx.x; i < n_page; i += THREADS) mask[i] = 0;
    __syncthreads();
    const auto take = [&](uint32_t i, uint32_t rank) {
        const uint32_t first = i * size, end = min(first + size, p.end), done = rank * size;
        if (done < p.left) mark(mask, first, min(end, first + (p.left - done)));
    };
    if (HELDS && p.wanted > 0 && p.n_block <= CU_COUNTED_BLOCKS) {
        for_each_counted(part, key, p.n_block, p.wanted, take);
    } else if (p.wanted > 0) {
        uint32_t cut, ties;
        radix_cut(&state->cut, key_of, p.n_block, p.wanted, &cut, &ties);
        if (threadIdx.x == 0) state->last = 0;
        for_each_ranked(part, p.n_block, [&](uint32_t i) { return key_of(i) == cut; }, [&](uint32_t i, uint32_t rank) {
            if (rank + 1 == ties) state->last = i;
        });
        __syncthreads();
        const uint32_t through = state->last;
        for_each_ranked(part, p.n_block, [&](uint32_t i) { return key_of(i) > cut || (key_of(i) == cut && i <= through); }, take);
    }
    for (uint32_t page = p.end / KVF_PAGE_ROWS + threadIdx.x; page < n_page; page += THREADS) {
        mark(mask, max(page * KVF_PAGE_ROWS, p.end), min((page + 1) * KVF_PAGE_ROWS, n_row));
    }
    __syncthreads();
    uint2 *pick = c.pick;
    const uint32_t n = for_each_ranked(part, n_page, [&](uint32_t i) { return mask_of(i) != 0; },
                                       [&](uint32_t i, uint32_t rank) { pick[rank] = make_uint2(i, mask_of(i)); });
    if (threadIdx.x == 0) *c.n_pick = n;
}

/* room: shared, [2 * HELD] */
static __device__ void choose(const choice &c, const choice_plan &p, uint32_t *room) {
    __shared__ choice_state state;
    if (p.n_block <= CU_HELD_BLOCKS && c.rows.n_row <= HELD * KVF_PAGE_ROWS) choose_in<true>(c, p, &state, room, room + HELD);
    else choose_in<false>(c, p, &state, NULL, c.mask);
}

/* Bounds of the block of a row that was appended, if this thread block takes its segment. */
static __device__ void bound_row(const choice &c, uint32_t row) {
    const uint32_t dim = c.rows.head_dim, size = c.op.page_rows, block = row / size, d = threadIdx.x;
    if (block / KV_BOUND_BLOCKS % gridDim.x != blockIdx.x || d >= dim) return;
    float *high = c.bounds[block / KV_BOUND_BLOCKS] + (size_t)d * KV_BOUND_BLOCKS + block % KV_BOUND_BLOCKS;
    float *low = high + (size_t)dim * KV_BOUND_BLOCKS;
    const float x = key_of(c.rows, row, d);
    const bool first = row % size == 0; /* the place held anything */
    *high = first ? x : fmaxf(x, *high);
    *low = first ? x : fminf(x, *low);
}

/* arrived: 0 between launches; blocks of this head that have scored. */
static __device__ void choose_pages(const choice &c, const choice_plan &p, const bounds_ahead &ahead, float *shared,
                                    uint32_t *arrived) {
    __shared__ bool last;
    const uint32_t n = c.readers * c.rows.head_dim;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        const float x = c.q[i / c.rows.head_dim * c.stride + i % c.rows.head_dim];
        shared[i] = x >= 0 ? x : 0.0f;
        shared[n + i] = x >= 0 ? 0.0f : x;
    }
    __syncthreads();
    score_blocks(c, p, ahead, shared);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
        if (last) *arrived = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (p.n_block > 0 && p.end % c.op.page_rows != 0 && p.end < c.rows.n_row) score_last(c, p, shared);
    choose(c, p, (uint32_t *)(shared + choice_floats(c.readers, c.rows.head_dim)));
}

/* ---- A step ---- */

typedef struct before_args {
    const cu_slot *slot;
    const float *q; /* [n, n_head, head_dim] */
    uint32_t *arrived; /* [n, n_head] */
    cu_program_work work;
    uint32_t layer, n_head, head_dim, dtype, window;
} before_args;

static __global__ void __launch_bounds__(THREADS) before_kernel(const before_args a) {
    extern __shared__ uint4 shared4[];
    float *shared = (float *)shared4;
    /*
     * The kernel before this one brings the queries and the new row, and lets this one begin only when all before it is there:
     * all else is read while it runs.
     */
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y, dim = a.head_dim;
    size_t table = 0;
    const cu_program *p = NULL;
    if (__ldcg(&s->run) && stored < s->n_stored) {
        table = (size_t)a.layer * s->n_stored + stored;
        p = program_of(s, table);
        if (p != NULL && p->pages.size == 0) p = NULL;
    }
    if (p == NULL) {
        /* One block is enough for this kernel not to end before the one before it. */
        if (blockIdx.x + blockIdx.y + blockIdx.z == 0) wait_previous();
        return;
    }
    const uint32_t readers = a.n_head / s->n_stored, head0 = stored * readers, position = s->position;
    const head_rows h = {s->pages + table * s->cap, __ldcg(&s->rows[table]) + 1, dim, a.dtype, s->packing + table};
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + head0) * dim;
    choice c = {};
    c.rows = h, c.op = p->pages, c.bounds = p->segment, c.q = q, c.stride = dim, c.readers = readers;
    c.oldest = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    c.score = head_line(a.work, blockIdx.z, stored);
    c.mask = (uint32_t *)score_line(a.work, blockIdx.z, head0);
    c.pick = pick_line(a.work, blockIdx.z, stored);
    c.n_pick = &a.work.n_pick[(size_t)blockIdx.z * a.work.max_stored + stored];
    bounds_ahead ahead;
    ahead.stale = (h.n_row - 1) / c.op.page_rows;
    read_ahead(c, &ahead, ahead.stale); /* whole blocks */
    wait_previous();
    allow_next();
    bound_row(c, h.n_row - 1);
    choose_pages(c, plan_of(c), ahead, shared, &a.arrived[(size_t)blockIdx.z * a.n_head + stored]);
}

int32_t cu_programs_before(kvf_model *model, uint32_t layer, uint32_t row_dtype, const cu_slot *slot, const float *q,
                           const cu_program_work *work, uint32_t *arrived, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_device *d = cu_of(model->dev);
    if (!(work->acts & CU_CHOOSES)) return KVF_OK;
    before_args a = {};
    a.slot = slot, a.q = q, a.arrived = arrived, a.work = *work;
    a.layer = layer, a.n_head = c->n_head, a.head_dim = c->head_dim, a.dtype = row_dtype;
    a.window = model->layer_window[layer];
    const size_t bytes = choice_bytes(c->n_head / c->n_kv_head, c->head_dim);
    const dim3 grid(SPLIT, work->max_stored, work->n);
    /* the device's limit, not this model's: graphs of other models keep theirs */
    CU_TRY(cudaFuncSetAttribute(before_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)d->shared_bytes), "a step program");
    CU_TRY(cu_all_shared(before_kernel), "a step program");
    return cu_check(cu_launch_next(d, before_kernel, grid, dim3(THREADS), bytes, a), "a step program", err);
}

/* ---- What core asks for ---- */

/* Bounds of a block of rows. */
static __global__ void __launch_bounds__(THREADS) bounds_kernel(const head_rows h, const cu_program *p) {
    const uint32_t size = p->pages.page_rows, first = blockIdx.x * size, end = min(first + size, h.n_row), d = threadIdx.x;
    if (d >= h.head_dim) return;
    float high = -INFINITY, low = INFINITY;
    for (uint32_t row = first; row < end; row++) {
        const float x = key_of(h, row, d);
        high = fmaxf(high, x);
        low = fminf(low, x);
    }
    float *to = p->segment[blockIdx.x / KV_BOUND_BLOCKS] + (size_t)d * KV_BOUND_BLOCKS + blockIdx.x % KV_BOUND_BLOCKS;
    to[0] = high;
    to[(size_t)h.head_dim * KV_BOUND_BLOCKS] = low;
}

/* A head's rows. */
static int32_t rows_of(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, head_rows *h, kv_err err) {
    cu_view view;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    h->pages = view.pages + (size_t)head * view.cap;
    h->n_row = kv_table_of(s, layer, head)->rows;
    h->head_dim = cache->config.head_dim;
    h->dtype = cache->config.row_dtype;
    h->packing = view.packing + head;
    return KVF_OK;
}

extern "C" int32_t be_live_bounds(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    head_rows h;
    const cu_program *p;
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(rows_of(cache, s, layer, head, &h, err));
    CU_PASS(cu_layer_program(cache, s, layer, &p, err));
    const uint32_t n_block = cu_div_up(h.n_row, kv_step_of(s, layer)->pages.page_rows);
    bounds_kernel<<<n_block, THREADS, 0, cu_of(cache->dev)->stream>>>(h, p + head);
    CU_LAUNCHED("bounds of pages");
    return KVF_OK;
}

static __global__ void __launch_bounds__(THREADS) rows_kernel(choice c, const cu_program *p, uint32_t *arrived) {
    extern __shared__ uint4 shared4[];
    float *shared = (float *)shared4;
    c.op = p->pages, c.bounds = p->segment;
    bounds_ahead ahead;
    ahead.known = false, ahead.stale = 0;
    choose_pages(c, plan_of(c), ahead, shared, arrived);
}

extern "C" int32_t be_program_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const float *q, size_t ld_q,
                                   uint32_t *to_host, kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    choice c = {};
    const cu_program *p;
    void *work;
    CU_PASS(cu_enter(dev, err));
    CU_PASS(rows_of(cache, s, layer, head, &c.rows, err));
    CU_PASS(cu_layer_program(cache, s, layer, &p, err));
    const uint32_t n_row = c.rows.n_row, n_page = cu_div_up(n_row, KVF_PAGE_ROWS), readers = kv_readers(cache, s);
    const size_t pick_bytes = (size_t)n_page * sizeof(uint2);
    /* picks, then their number, the counter of arrivals, masks and scores */
    CU_PASS(cu_scratch(dev, &work, pick_bytes + (2 + (size_t)n_page + n_row) * sizeof(uint32_t), err));
    c.pick = (uint2 *)work;
    c.n_pick = (uint32_t *)((char *)work + pick_bytes);
    c.mask = c.n_pick + 2;
    c.score = (float *)(c.mask + n_page);
    c.q = q, c.stride = ld_q, c.readers = readers;
    CU_TRY(cudaMemsetAsync(c.n_pick, 0, 2 * sizeof(uint32_t), stream), "choosing pages");
    const size_t bytes = choice_bytes(readers, c.rows.head_dim);
    const int most = (int)cu_of(dev)->shared_bytes;
    CU_TRY(cudaFuncSetAttribute(rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "choosing pages");
    rows_kernel<<<1, THREADS, bytes, stream>>>(c, p + head, c.n_pick + 1);
    CU_LAUNCHED("choosing pages");
    uint2 *pick = (uint2 *)malloc(pick_bytes + sizeof(uint32_t));
    if (pick == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot choose pages as %zu bytes must be available", pick_bytes);
    int32_t status = be_download(dev, pick, work, pick_bytes + sizeof(uint32_t), err);
    uint32_t n, count = 0;
    memcpy(&n, (char *)pick + pick_bytes, sizeof n);
    for (uint32_t i = 0; i < n && status == KVF_OK; i++) {
        for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) {
            if (pick[i].y >> slot & 1) to_host[count++] = pick[i].x * KVF_PAGE_ROWS + slot;
        }
    }
    free(pick);
    return status == KVF_OK ? (int32_t)count : status;
}
