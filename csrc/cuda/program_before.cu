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
    SPLIT = 2,    /* blocks of a multiprocessor that all choices are split into, as far as there are segments */
    SMALL = 16,   /* rows of the smallest block of which shared memory has room for all */
    HELD = 16384  /* as long as there are not more blocks */
};
#ifndef CU_HELD_BLOCKS
#define CU_HELD_BLOCKS HELD /* that may use it */
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

/* What one block selects with, in shared memory. */
typedef struct choice_state {
    cut_state cut;
    uint32_t part[32], last;
    uint2 count[2][WARPS];
} choice_state;

/* Queries of a choice in shared memory: the positive part of each tile's readers, then the negative one, channel by channel. */
static __host__ __device__ __forceinline__ size_t query_place(uint32_t head_dim, uint32_t reader, uint32_t d) {
    return ((size_t)(reader / READER_TILE) * head_dim + d) * 2 * READER_TILE + reader % READER_TILE;
}

/*
 * Shared memory of a choice, but for what holds keys and pages: queries; the new row's key; two places of partial sums. In
 * 16 bytes.
 */
static __host__ __device__ size_t choice_floats(uint32_t readers, uint32_t head_dim) {
    return query_place(head_dim, (readers + READER_TILE - 1) / READER_TILE * READER_TILE, 0) + (head_dim + 3) / 4 * 4 +
           2 * WARPS * READER_TILE * KV_BOUND_BLOCKS;
}

/* Shared memory of a choice that has room for so many blocks, and for half as many pages. */
static size_t choice_bytes(uint32_t readers, uint32_t head_dim, uint32_t held) {
    return (choice_floats(readers, head_dim) + held + held / 2) * sizeof(float);
}
/* Blocks for which there is room, as many as heads of n_row rows have if possible: a multiple of 8. */
static uint32_t held_blocks(const cu_device *d, uint32_t readers, uint32_t head_dim, uint32_t n_row) {
    const size_t wanted = cu_round_up(n_row / SMALL + 2, 8), own = choice_bytes(readers, head_dim, 0);
    const size_t room = d->shared_bytes > own ? (d->shared_bytes - own) / (choice_bytes(readers, head_dim, 8) - own) * 8 : 0;
    const size_t held = wanted < HELD ? wanted : (size_t)HELD;
    return (uint32_t)(held < room ? held : room);
}

/* The readers' scores of a block, one after the other, as one. */
static __device__ __forceinline__ float joined(const kvf_op &op, uint32_t reader, float x, float y) {
    return reader == 0 ? y : op.reduce == KVF_MAX ? (y > x ? y : x) : x + y;
}
static __device__ __forceinline__ float reduced(const kvf_op &op, uint32_t readers, float x) {
    if (op.reduce == KVF_MEAN) x /= (float)readers;
    return x == x ? x : -INFINITY;
}

/*
 * Bounds of the lane's block of a segment in N of the warp's channels: every WARPS-th from `first` on. WHOLE: heads have a
 * multiple of N * WARPS channels. (This is a short kernel whose instructions are fetched anew in every layer: tests that a
 * model never needs cost as much as the rest.)
 */
template <int N, bool WHOLE>
struct bounds_part {
    float high[N], low[N];
};
enum { NEXT = WARPS * (int)KV_BOUND_BLOCKS /* from the bounds of a warp's channel to those of its next one */ };

template <int N, bool WHOLE>
static __device__ __forceinline__ void read_bounds(const choice &c, uint32_t segment, uint32_t first,
                                                   bounds_part<N, WHOLE> *b) {
    const uint32_t dim = c.rows.head_dim, lane = threadIdx.x % 32;
    const float *high = c.bounds[segment] + (size_t)first * KV_BOUND_BLOCKS + lane, *low = high + (size_t)dim * KV_BOUND_BLOCKS;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const bool there = WHOLE || first + k * WARPS < dim;
        b->high[k] = there ? __ldcg(high + k * NEXT) : 0.0f;
        b->low[k] = there ? __ldcg(low + k * NEXT) : 0.0f;
    }
}

/* The new row widens the bounds of its block, which are stored. first: it is the block's first one, whose place held anything */
template <int N, bool WHOLE>
static __device__ __forceinline__ void widen(const choice &c, uint32_t segment, uint32_t channel, const float *key, bool first,
                                             bounds_part<N, WHOLE> *b) {
    const uint32_t dim = c.rows.head_dim, lane = threadIdx.x % 32;
    float *high = c.bounds[segment] + (size_t)channel * KV_BOUND_BLOCKS + lane, *low = high + (size_t)dim * KV_BOUND_BLOCKS;
    key += channel;
#pragma unroll
    for (int k = 0; k < N; k++) {
        if (!WHOLE && channel + k * WARPS >= dim) continue;
        b->high[k] = first ? key[k * WARPS] : fmaxf(key[k * WARPS], b->high[k]);
        b->low[k] = first ? key[k * WARPS] : fminf(key[k * WARPS], b->low[k]);
        high[k * NEXT] = b->high[k];
        low[k * NEXT] = b->low[k];
    }
}

/*
 * Scores of the segments that this block takes. now: the beginning of the first one's bounds. added: a row whose key has still
 * to widen the bounds of its block, which is the last of n_block; UINT32_MAX: none.
 */
template <int N, bool WHOLE>
static __device__ __forceinline__ void score_blocks(const choice &c, const choice_plan &p, uint32_t n_block, uint32_t added,
                                                    bounds_part<N, WHOLE> now, const float *query, const float *key,
                                                    float *sums) {
    const uint32_t dim = c.rows.head_dim, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t side = 0;
    for (uint32_t segment = blockIdx.x; segment * KV_BOUND_BLOCKS < n_block; segment += gridDim.x) {
        const uint32_t block = segment * KV_BOUND_BLOCKS + lane, next = segment + gridDim.x;
        const bool grows = added != UINT32_MAX && block == added / c.op.page_rows, starts = added % c.op.page_rows == 0;
        float x = 0;
        for (uint32_t r0 = 0; r0 < c.readers; r0 += READER_TILE) {
            float acc[READER_TILE] = {}, *sum = sums + side * WARPS * READER_TILE * KV_BOUND_BLOCKS;
            for (uint32_t first = warp; first < dim; first += N * WARPS) {
                if (first != warp || (r0 > 0 && dim > N * WARPS)) read_bounds(c, segment, first, &now);
                if (grows && r0 == 0) widen(c, segment, first, key, starts, &now);
                const float4 *const part = (const float4 *)&query[query_place(dim, r0, first)];
#pragma unroll
                for (int k = 0; k < N; k++) {
                    if (!WHOLE && first + k * WARPS >= dim) continue;
                    const float4 above = part[k * 2 * WARPS], below = part[k * 2 * WARPS + 1];
                    const float a[READER_TILE] = {above.x, above.y, above.z, above.w};
                    const float b[READER_TILE] = {below.x, below.y, below.z, below.w};
#pragma unroll
                    for (int r = 0; r < READER_TILE; r++) acc[r] = fmaf(b[r], now.low[k], fmaf(a[r], now.high[k], acc[r]));
                }
            }
            if (r0 + READER_TILE >= c.readers && next * KV_BOUND_BLOCKS < n_block) read_bounds(c, next, warp, &now);
#pragma unroll
            for (int r = 0; r < READER_TILE; r++) sum[(warp * READER_TILE + r) * KV_BOUND_BLOCKS + lane] = acc[r];
            __syncthreads(); /* the other place is free again, too */
            side ^= 1;
            if (warp != 0) continue;
#pragma unroll
            for (uint32_t r = 0; r < READER_TILE; r++) {
                float y = 0;
#pragma unroll
                for (uint32_t w = 0; w < WARPS; w++) y += sum[(w * READER_TILE + r) * KV_BOUND_BLOCKS + lane];
                if (r0 + r < c.readers) x = joined(c.op, r0 + r, x, y);
            }
        }
        if (warp == 0 && block < p.n_block) c.score[block] = reduced(c.op, c.readers, x);
    }
}

/* The block at the end of the choice, whose stored bounds know rows beyond it. */
static __device__ void score_last(const choice &c, const choice_plan &p, const float *query) {
    const uint32_t dim = c.rows.head_dim, size = c.op.page_rows, d = threadIdx.x;
    float high = -INFINITY, low = INFINITY, x = 0;
    for (uint32_t row = p.end - p.end % size; d < dim && row < p.end; row++) {
        const float k = key_of(c.rows, row, d);
        high = fmaxf(high, k);
        low = fminf(low, k);
    }
    for (uint32_t r = 0; r < c.readers; r++) {
        float y = 0;
        if (d < dim) y = query[query_place(dim, r, d)] * high + query[query_place(dim, r, d) + READER_TILE] * low;
        x = joined(c.op, r, x, block_sum(y));
    }
    if (d == 0) c.score[p.n_block - 1] = reduced(c.op, c.readers, x);
    __syncthreads();
}

/* Marks rows [first, end). */
static __device__ __noinline__ void mark(uint32_t *mask, uint32_t first, uint32_t end) {
    while (first < end) {
        const uint32_t slot = first % KVF_PAGE_ROWS, n = min(KVF_PAGE_ROWS - slot, end - first);
        atomicOr(&mask[first / KVF_PAGE_ROWS], (n == 32 ? 0xffffffffu : (1u << n) - 1) << slot);
        first += n;
    }
}

/*
 * Cuts the `wanted` highest of n keys off: what is above *cut belongs to them, and *ties of those equal to it. There are enough
 * above 0. Two bits at a time, until no key is left to tell apart. key: shared
 */
static __device__ __forceinline__ void find_cut(choice_state *state, const uint32_t *key, uint32_t n, uint32_t wanted,
                                                uint32_t *cut, uint32_t *ties) {
    uint32_t prefix = 0;
#pragma unroll 1
    for (int shift = 30, side = 0; shift >= 0; shift -= 2, side ^= 1) {
        uint32_t low = 0, high = 0; /* those whose next digit is 1, and above them 2; 3 */
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            const uint32_t digit = (key[i] ^ prefix) >> shift; /* above 3: another prefix */
            low += digit == 1 ? 1u : digit == 2 ? 1u << 16 : 0u;
            high += digit == 3;
        }
        low = __reduce_add_sync(0xffffffffu, low);
        high = __reduce_add_sync(0xffffffffu, high);
        if (threadIdx.x % 32 == 0) state->count[side][threadIdx.x / 32] = make_uint2(low, high);
        __syncthreads();
        low = high = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) low += state->count[side][w].x, high += state->count[side][w].y;
        uint32_t digit = 3, those = high;
        if (those < wanted) wanted -= those, digit = 2, those = low >> 16;
        if (digit == 2 && those < wanted) wanted -= those, digit = 1, those = low & 0xffffu;
        if (digit == 1 && those < wanted) wanted -= those, digit = 0;
        prefix |= digit << shift;
        if (digit > 0 && those == wanted) { /* all of them, whatever follows */
            *cut = prefix - 1, *ties = 0;
            return;
        }
    }
    *cut = prefix, *ties = wanted;
}

/* A number that orders as the score of block i does, 0 where it cannot be chosen. */
static __device__ __forceinline__ uint32_t key_of_score(const choice_plan &p, uint32_t i, float score) {
    return i < p.hidden || i >= p.n_block ? 0u : order_key(score);
}
static __device__ __forceinline__ uint32_t block_key(const float *score, const choice_plan &p, uint32_t i) {
    return key_of_score(p, i, __ldcg(score + i));
}

/*
 * Marks the chosen blocks of `size` rows where their order decides: the first `ties` of those whose keys equal the cut, and no
 * more rows than are left.
 */
static __device__ __noinline__ void take_ranked(const float *score, choice_plan p, uint32_t size, choice_state *state,
                                                uint32_t *mask, uint32_t cut, uint32_t ties) {
    if (threadIdx.x == 0) state->last = 0;
    for_each_ranked(state->part, p.n_block, [=](uint32_t i) { return block_key(score, p, i) == cut; },
                    [=](uint32_t i, uint32_t rank) {
                        if (rank + 1 == ties) state->last = i + 1;
                    });
    __syncthreads();
    const uint32_t through = state->last;
    const auto is = [=](uint32_t i) {
        const uint32_t key = block_key(score, p, i);
        return key > cut || (key == cut && i < through);
    };
    for_each_ranked(state->part, p.n_block, is, [=](uint32_t i, uint32_t rank) {
        const uint32_t first = i * size, done = rank * size;
        if (done < p.left) mark(mask, first, min(min(first + size, p.end), first + (p.left - done)));
    });
}

/* Marks the chosen blocks. key: shared, [n_block] and some more */
static __device__ __forceinline__ void take(const choice &c, const choice_plan &p, choice_state *state, uint32_t *key,
                                            uint32_t *mask) {
    const uint32_t size = c.op.page_rows;
    uint32_t cut, ties;
#pragma unroll 1
    for (uint32_t i = 4 * threadIdx.x; i < p.n_block; i += 4 * THREADS) { /* lines of scores have whole groups of four */
        const float4 four = __ldcg((const float4 *)(c.score + i));
        *(uint4 *)(key + i) = make_uint4(key_of_score(p, i, four.x), key_of_score(p, i + 1, four.y),
                                         key_of_score(p, i + 2, four.z), key_of_score(p, i + 3, four.w));
    }
    __syncthreads();
    find_cut(state, key, p.n_block, p.wanted, &cut, &ties);
    if (ties > 0 || c.op.cut) {
        take_ranked(c.score, p, size, state, mask, cut, ties);
        return;
    }
    const bool within = KVF_PAGE_ROWS % size == 0;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < p.n_block; i += THREADS) {
        const uint32_t first = i * size, n = min(size, p.end - first);
        if (key[i] <= cut) continue;
        if (within) atomicOr(&mask[first / KVF_PAGE_ROWS], 0xffffffffu >> (32 - n) << first % KVF_PAGE_ROWS);
        else mark(mask, first, first + n);
    }
}

/*
 * All scores are there: the choice as a list of pages. Called by one block. key, mask: shared, for the blocks and pages that
 * there are; NULL: they have no room
 */
static __device__ __forceinline__ void choose(const choice &c, const choice_plan &p, uint32_t *key, uint32_t *shared_mask) {
    __shared__ choice_state state;
    const uint32_t n_row = c.rows.n_row, n_page = (n_row - 1) / KVF_PAGE_ROWS + 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t *mask = key != NULL ? shared_mask : c.mask;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n_page; i += THREADS) mask[i] = 0;
    if (p.wanted == 0) {
        __syncthreads(); /* nothing but the last rows */
    } else if (key != NULL) {
        take(c, p, &state, key, mask);
    } else {
        uint32_t cut, ties;
        const float *score = c.score;
        __syncthreads();
        radix_cut(&state.cut, [=](size_t i) { return block_key(score, p, (uint32_t)i); }, p.n_block, p.wanted, &cut, &ties);
        take_ranked(score, p, c.op.page_rows, &state, mask, cut, ties);
    }
    for (uint32_t page = p.end / KVF_PAGE_ROWS + threadIdx.x; page < n_page; page += THREADS) {
        mark(mask, max(page * KVF_PAGE_ROWS, p.end), min((page + 1) * KVF_PAGE_ROWS, n_row));
    }
    __syncthreads();
    /* The pages with any row, in order: each warp counts, then lists, a stretch of them. */
    const auto mask_of = [&](uint32_t i) { return i >= n_page ? 0u : key != NULL ? mask[i] : __ldcg(mask + i); };
    const uint32_t share = (n_page + THREADS - 1) / THREADS * 32;
    uint32_t n = 0, before = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < share; i += 32) n += __popc(__ballot_sync(0xffffffffu, mask_of(warp * share + i + lane) != 0));
    if (lane == 0) state.part[warp] = n;
    __syncthreads();
    n = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        if (w == warp) before = n;
        n += state.part[w];
    }
    if (threadIdx.x == 0) *c.n_pick = n;
#pragma unroll 1
    for (uint32_t i = 0; i < share; i += 32) {
        const uint32_t page = warp * share + i + lane, rows = mask_of(page);
        const uint32_t vote = __ballot_sync(0xffffffffu, rows != 0);
        if (rows != 0) c.pick[before + __popc(vote & ((1u << lane) - 1))] = make_uint2(page, rows);
        before += __popc(vote);
    }
}

/*
 * arrived: 0 between launches; blocks of this head that have scored. n_block, added, ahead: as in score_blocks. page: of the
 * row that was added. held: blocks that shared memory has room for
 */
template <int N, bool WHOLE>
static __device__ __forceinline__ void choose_pages(const choice &c, const choice_plan &p, uint32_t n_block, uint32_t added,
                                                    const void *page, const bounds_part<N, WHOLE> &ahead, uint32_t held,
                                                    float *shared, uint32_t *arrived) {
    __shared__ bool last;
    const uint32_t dim = c.rows.head_dim, tiles = (c.readers + READER_TILE - 1) / READER_TILE;
    const uint32_t n_segment = (n_block - 1) / KV_BOUND_BLOCKS + 1, n_choosing = min(gridDim.x, n_segment);
    float *query = shared, *key = query + query_place(dim, tiles * READER_TILE, 0), *sums = key + (dim + 3) / 4 * 4;
    float mine = 0;
    if (page != NULL && threadIdx.x < dim) {
        mine = load_as(page, c.rows.dtype, (size_t)(added % KVF_PAGE_ROWS) * dim + threadIdx.x);
    }
    /* A thread brings a channel of two readers at a time. */
    const uint32_t wide = dim <= THREADS / 2 ? THREADS / 2 : THREADS, d = threadIdx.x % wide, turns = THREADS / wide;
    for (uint32_t r = threadIdx.x / wide; d < dim && r < tiles * READER_TILE; r += 2 * turns) {
        float x[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) x[i] = r + i * turns < c.readers ? c.q[(r + i * turns) * c.stride + d] : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            float *to = query + query_place(dim, r + i * turns, d);
            to[0] = x[i] >= 0 ? x[i] : 0.0f;
            to[READER_TILE] = x[i] >= 0 ? 0.0f : x[i];
        }
    }
    if (threadIdx.x < dim) key[threadIdx.x] = mine;
    __syncthreads();
    score_blocks(c, p, n_block, added, ahead, query, key, sums);
    __syncwarp();
    if (threadIdx.x == 0) { /* whose warp has stored the scores */
        last = add_in_order(arrived, 1u) == n_choosing - 1;
        if (last) *arrived = 0;
    }
    __syncthreads();
    if (!last) return;
    if (p.n_block > 0 && p.end % c.op.page_rows != 0 && p.end < c.rows.n_row) score_last(c, p, query);
    uint32_t *room = (uint32_t *)(shared + choice_floats(c.readers, dim));
    const bool fits = p.n_block <= min(held, (uint32_t)CU_HELD_BLOCKS) && (c.rows.n_row - 1) / KVF_PAGE_ROWS < held / 2;
    choose(c, p, fits ? room : NULL, room + held);
}

/* ---- A step ---- */

typedef struct before_args {
    const cu_slot *slot;
    const float *q; /* [n, n_head, head_dim] */
    uint32_t *arrived; /* [n, n_head] */
    cu_program_work work;
    uint32_t layer, n_head, head_dim, dtype, window, held;
} before_args;

template <int N, bool WHOLE>
static __global__ void __launch_bounds__(THREADS, 2) before_kernel(const before_args a) {
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
    const uint32_t n_block = (h.n_row - 1) / c.op.page_rows + 1;
    if (blockIdx.x * KV_BOUND_BLOCKS >= n_block) return;
    const void *page = h.pages[(h.n_row - 1) / KVF_PAGE_ROWS];
    bounds_part<N, WHOLE> ahead;
    read_bounds(c, blockIdx.x, threadIdx.x / 32, &ahead);
    choice_plan plan;
    if (c.oldest == 0) plan = plan_of(c);
    wait_previous();
    allow_next();
    if (c.oldest > 0) plan = plan_of(c); /* by positions, the new row's too */
    choose_pages(c, plan, n_block, h.n_row - 1, page, ahead, a.held, shared,
                 &a.arrived[(size_t)blockIdx.z * a.n_head + stored]);
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
    const uint32_t readers = c->n_head / c->n_kv_head; /* at most */
    a.held = held_blocks(d, readers, c->head_dim, work->ld);
    const size_t bytes = choice_bytes(readers, c->head_dim, a.held);
    const uint32_t wanted = SPLIT * d->n_sm / (work->max_stored * work->n), most = cu_div_up(work->ld, KV_BOUND_BLOCKS);
    const dim3 grid(wanted < 1 ? 1 : wanted < most ? wanted : most, work->max_stored, work->n);
    void (*kernel)(before_args) = c->head_dim % (16 * WARPS) == 0 ? before_kernel<16, true>
                                  : c->head_dim % (8 * WARPS) == 0 ? before_kernel<8, true>
                                                                   : before_kernel<8, false>;
    /* the device's limit, not this model's: graphs of other models keep theirs */
    CU_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)d->shared_bytes), "a step program");
    CU_TRY(cu_all_shared(kernel), "a step program");
    return cu_check(cu_launch_next(d, kernel, grid, dim3(THREADS), bytes, a), "a step program", err);
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

static __global__ void __launch_bounds__(THREADS) rows_kernel(choice c, const cu_program *p, uint32_t held, uint32_t *arrived) {
    extern __shared__ uint4 shared4[];
    float *shared = (float *)shared4;
    c.op = p->pages, c.bounds = p->segment;
    bounds_part<8, false> ahead;
    read_bounds(c, 0, threadIdx.x / 32, &ahead);
    choose_pages(c, plan_of(c), (c.rows.n_row - 1) / c.op.page_rows + 1, UINT32_MAX, NULL, ahead, held, shared, arrived);
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
    /* scores in whole groups of four, then picks, their number, the counter of arrivals and masks */
    const size_t score_bytes = (size_t)cu_round_up(n_row, 4) * sizeof(float);
    CU_PASS(cu_scratch(dev, &work, score_bytes + pick_bytes + (2 + (size_t)n_page) * sizeof(uint32_t), err));
    c.score = (float *)work;
    c.pick = (uint2 *)((char *)work + score_bytes);
    c.n_pick = (uint32_t *)((char *)c.pick + pick_bytes);
    c.mask = c.n_pick + 2;
    c.q = q, c.stride = ld_q, c.readers = readers;
    CU_TRY(cudaMemsetAsync(c.n_pick, 0, 2 * sizeof(uint32_t), stream), "choosing pages");
    const uint32_t held = held_blocks(cu_of(dev), readers, c.rows.head_dim, n_row);
    const size_t bytes = choice_bytes(readers, c.rows.head_dim, held);
    const int most = (int)cu_of(dev)->shared_bytes;
    CU_TRY(cudaFuncSetAttribute(rows_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "choosing pages");
    rows_kernel<<<1, THREADS, bytes, stream>>>(c, p + head, held, c.n_pick + 1);
    CU_LAUNCHED("choosing pages");
    uint2 *pick = (uint2 *)malloc(pick_bytes + sizeof(uint32_t));
    if (pick == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot choose pages as %zu bytes must be available", pick_bytes);
    int32_t status = be_download(dev, pick, c.pick, pick_bytes + sizeof(uint32_t), err);
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
