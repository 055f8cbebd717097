/*
 * Attention of one step over 16-bit rows. A warp takes half a page at a time: copies bring keys and values to a ring of its own
 * in shared memory, new keys as soon as the scores of those before are there, new values as soon as these have been added up.
 * Loads into registers go through the L1 cache, and of that a step leaves next to nothing, as its products take all of a
 * multiprocessor for shared memory: too little would be on its way.
 *
 * Scores: query heads are the m side, rows the n side. A query is split into two 16-bit numbers that add up to it, eight rows
 * apart, so it loses nothing by the rounding and the two parts of a score lie in one thread. Those scores lie as the weights of
 * the second product need them: columns of values are the m side, heads the n side. Weights are split in the same way; up to
 * four heads take both halves of the n side, beyond that there are two products.
 */
#include "attention_tile.cuh"
#include "ptx_hopper.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, UNIT = KVF_PAGE_ROWS / 2, BLOCKS = 2 /* of a multiprocessor */ };

/* Weights of f16 are that many powers of two larger, so that small ones keep their digits. */
static __device__ __forceinline__ float raise_of(__half) { return 14; }
static __device__ __forceinline__ float raise_of(__nv_bfloat16) { return 0; }

static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
static __device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half) {
    __half2 half;
    memcpy(&half, &pair, sizeof half);
    return __half22float2(half);
}

/* The warps' shares of a chunk, in order: its partial result, or where there is no other one, the result. */
template <int READERS, int DIM>
static __device__ __forceinline__ void store_shares(const step_args &a, uint32_t stored, uint32_t readers, uint32_t chunk,
                                                    bool alone, const float *sums, const float *stat) {
    for (uint32_t i = threadIdx.x; i < readers * (DIM / 4); i += THREADS) {
        const uint32_t r = i / (DIM / 4), d = i % (DIM / 4) * 4, head = stored * readers + r;
        float most = -INFINITY, total[4] = {}, weights = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) most = fmaxf(most, stat[(w * READERS + r) * 2]);
        const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float factor = exp2f(stat[(w * READERS + r) * 2] - base);
            const float4 four = *(const float4 *)&sums[(w * READERS + r) * DIM + d];
            const float x[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int k = 0; k < 4; k++) total[k] = fmaf(factor, x[k], total[k]);
            weights = fmaf(factor, stat[(w * READERS + r) * 2 + 1], weights);
        }
        if (alone) {
            const size_t to = (size_t)blockIdx.z * a.ldo + head * DIM + d;
#pragma unroll
            for (int k = 0; k < 4; k++) store_as(a.out, a.out_dtype, to + k, total[k] / weights);
            if (d != 0 || !(a.work.acts & CU_WATCHES)) continue;
            a.work.norm[(size_t)blockIdx.z * a.n_head + head] = make_float2(most, weights);
        } else {
            float *to = partial_of(a, blockIdx.z, head, chunk);
            *(float4 *)(to + d) = make_float4(total[0], total[1], total[2], total[3]);
            if (d == 0) *(float2 *)(to + DIM) = make_float2(most, weights);
        }
    }
}

/* Half pages of a warp that are on their way. */
static __host__ __device__ constexpr int ring_of(int dim) { return dim == 256 ? 1 : dim == 128 ? 2 : 4; }

/* PAIRED: at most four readers. WATCHED: step programs choose pages, or want to know the scores; results are the same. */
template <typename R, int DIM, bool PAIRED, bool WATCHED>
static __global__ void __launch_bounds__(THREADS, BLOCKS) tile_kernel(const step_args a) {
    constexpr int READERS = PAIRED ? 4 : 8, STEPS = DIM / 32, WORDS = DIM / 16; /* 32 columns of scores, 16 of values */
    constexpr uint32_t ROW = DIM / 8, HALF = UNIT * ROW; /* 16 bytes each, of a row and of half a page's keys */
    constexpr int RING = ring_of(DIM);
    extern __shared__ uint4 shared[];
    constexpr bool HELD = PAIRED && DIM <= 128; /* queries stay in registers */
    constexpr int SIDES = HELD ? 2 : 1;         /* places for a chunk's sums, in turn */
    __shared__ uint4 query[HELD ? 1 : STEPS * 2][32];
    __shared__ __align__(16) float sums[SIDES][WARPS * READERS * DIM];
    __shared__ float stat[SIDES][WARPS * READERS * 2], weight[READERS * CU_ATTENTION_CHUNKS];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const float raise = raise_of(R());
    uint4 *const ring = shared + warp * RING * 2 * HALF; /* keys and values, RING times */
    /*
     * The kernel before this one writes the queries and the row that is new, or chooses pages. Tables, and unless pages are
     * chosen, whole pages are as the step before left them, as what step programs do to a layer's rows follows its attention.
     * So they are loaded while that kernel runs.
     */
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y, n_stored = s->n_stored, cap = s->cap, run = __ldcg(&s->run);
    void *const *pages = s->pages;
    const uint32_t *rows = s->rows;
    const cu_packing *packing = s->packing;
    const size_t table = (size_t)a.layer * n_stored + stored;
    uint32_t last_row = 0, kernel = CU_ATTEND_ANY;
    /* A block's pages, its chunks one after the other: lanes hold the places of 32 of them, NULL where there are no more. */
    void *mine = NULL, *ahead = NULL;
    uint2 entry = make_uint2(0, 0), entry_ahead = make_uint2(0, 0); /* index of the page and, with WATCHED, its rows */
    const auto page_at = [](uint32_t i, uint32_t per_chunk) {
        return (blockIdx.x + i / per_chunk * gridDim.x) * per_chunk + i % per_chunk;
    };
    if (run && stored < n_stored) {
        pages += table * cap;
        last_row = __ldcg(&rows[table]), kernel = packing[table].kernel;
        const uint32_t at = page_at(lane, CU_TILE_PAGES); /* unless chunks turn out to be larger */
        if (!WATCHED && at < cap) mine = pages[at];
    }
    const uint32_t n_row = last_row + 1, readers = a.n_head / max(n_stored, 1u);
    watched w = {};
    if (WATCHED && kernel == CU_ATTEND_PLAIN) w = watch(a, s, stored, table, n_row);
    if (WATCHED && w.pick != NULL) { /* looked up while its number of pages is on its way; beyond that anything */
        const uint32_t at = page_at(lane, CU_TILE_PAGES);
        if (at < w.ld / KVF_PAGE_ROWS) entry = w.pick[at];
        if (at < w.ld / KVF_PAGE_ROWS && entry.x < cap) mine = pages[entry.x];
    }
    const uint32_t n_page = WATCHED ? w.n_page : (n_row - 1) / KVF_PAGE_ROWS + 1;
    /* An even number, so that a warp's part of a chunk does not depend on the chunks that the block took before. */
    const uint32_t per_chunk = max((uint32_t)CU_TILE_PAGES, (n_page + 2 * CU_TILE_CHUNKS - 1) / (2 * CU_TILE_CHUNKS) * 2);
    const uint32_t n_chunk = (n_page + per_chunk - 1) / per_chunk;
    if (kernel != CU_ATTEND_PLAIN || blockIdx.x >= n_chunk) {
        /* Blocks without rows make room at once. One is enough for this kernel not to end before the one before it. */
        if (blockIdx.x + blockIdx.y + blockIdx.z == 0) wait_previous();
        return;
    }

    const auto look_up = [&](uint32_t i, void **page, uint2 *what) {
        const uint32_t at = page_at(i + lane, per_chunk);
        *page = NULL;
        if (at >= n_page) return;
        if (WATCHED) *what = watched_page(w, at, n_row);
        *page = pages[WATCHED ? what->x : at];
    };
    struct half_page {
        uint32_t unit;  /* its number, of the block's pages; UINT32_MAX: there are no more */
        uint32_t valid; /* its rows that count */
        uint32_t row0;  /* the place of the first one */
        const R *keys;
    };
    const auto settle = [&](uint32_t unit) {
        const uint32_t from = unit / 2 % 32, half = unit % 2 * UNIT;
        half_page h = {unit, 0, 0, (const R *)__shfl_sync(0xffffffffu, (unsigned long long)mine, from)};
        if (h.keys == NULL) { /* only the last chunk is not full */
            h.unit = UINT32_MAX;
            return h;
        }
        h.keys += half * DIM;
        h.row0 = __shfl_sync(0xffffffffu, entry.x, from) * KVF_PAGE_ROWS + half;
        if (WATCHED) {
            h.valid = __shfl_sync(0xffffffffu, entry.y, from) >> half & 0xffffu;
        } else {
            h.valid = h.row0 >= n_row ? 0 : n_row - h.row0 >= UNIT ? 0xffffu : (1u << (n_row - h.row0)) - 1;
        }
        return h;
    };
    uint32_t unit = warp; /* of the half page that was settled last */
    const auto settle_next = [&] {
        unit += WARPS;
        if (unit % 64 < WARPS) { /* the next 32 pages */
            mine = ahead, entry = entry_ahead;
            if (!WATCHED) entry.x = page_at(unit / 64 * 32 + lane, per_chunk);
            look_up(unit / 64 * 32 + 32, &ahead, &entry_ahead);
        }
        return settle(unit);
    };
    /* Places of 16 bytes in shared memory, so that what a warp reads at once lies in different banks. */
    const auto key_place = [](uint32_t row, uint32_t at) { return row * ROW + (DIM == 32 ? at : at ^ row % 2 * 4); };
    const auto value_place = [](uint32_t row, uint32_t at) { return row * ROW + (at ^ (DIM == 32 ? row / 2 % 4 : row % 8)); };
    const auto load_keys = [&](const half_page &h, uint4 *to) {
        if (h.valid == 0xffffu) {
#pragma unroll
            for (uint32_t i = 0; i < HALF; i += 32) {
                copy_async(&to[key_place((i + lane) / ROW, (i + lane) % ROW)], h.keys + (i + lane) * 8);
            }
        } else if (h.valid != 0) { /* rows that do not count cost nothing */
#pragma unroll
            for (uint32_t i = lane; i < HALF; i += 32) {
                copy_async(&to[key_place(i / ROW, i % ROW)], h.keys + i * 8, h.valid >> i / ROW & 1);
            }
        }
        copy_commit();
    };
    const auto load_values = [&](const half_page &h, uint4 *to) {
        const R *from = h.keys + KVF_PAGE_ROWS * DIM;
        to += HALF;
        if (h.valid == 0xffffu) {
#pragma unroll
            for (uint32_t i = 0; i < HALF; i += 32) {
                copy_async(&to[value_place((i + lane) / ROW, (i + lane) % ROW)], from + (i + lane) * 8);
            }
        } else if (h.keys != NULL) { /* what lies beyond the rows may be anything, so it becomes zeros */
#pragma unroll
            for (uint32_t i = lane; i < HALF; i += 32) {
                copy_async(&to[value_place(i / ROW, i % ROW)], from + i * 8, h.valid >> i / ROW & 1);
            }
        }
        copy_commit();
    };
    if (!WATCHED) entry.x = page_at(lane, per_chunk);
    if (per_chunk != CU_TILE_PAGES || (WATCHED && w.pick == NULL)) look_up(0, &mine, &entry);
    else if (page_at(lane, CU_TILE_PAGES) >= n_page) mine = NULL;
    look_up(32, &ahead, &entry_ahead);
    half_page line[RING]; /* in the ring, the one that comes first in front */
    bool early = !WATCHED || w.pick == NULL;
#pragma unroll
    for (int i = 0; i < RING; i++) {
        line[i] = i == 0 ? settle(unit) : settle_next();
        early = early && line[i].row0 / KVF_PAGE_ROWS + 1 < n_page;
        if (early) load_keys(line[i], ring + i * 2 * HALF), load_values(line[i], ring + i * 2 * HALF);
    }
    wait_previous();
    allow_next();
    early = !WATCHED || w.pick == NULL;
#pragma unroll
    for (int i = 0; i < RING; i++) {
        early = early && line[i].row0 / KVF_PAGE_ROWS + 1 < n_page;
        if (!early) load_keys(line[i], ring + i * 2 * HALF), load_values(line[i], ring + i * 2 * HALF);
    }

    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * DIM;
    /* Parts of eight columns: rounded, and what the rounding lost. */
    const auto parts_of = [&](uint32_t step, uint32_t of, uint4 part[2]) {
        const uint32_t reader = PAIRED ? of % 16 / 4 : of / 4;
        part[0] = part[1] = make_uint4(0, 0, 0, 0);
        if (reader >= readers) return;
        const float *from = q + reader * DIM + step * 32 + of % 4 * 8;
        part[0] = query_part<R>(from, 0), part[1] = query_part<R>(from, 1);
    };
    uint4 held[HELD ? STEPS : 1][2];
    if constexpr (HELD) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) parts_of(i, lane, held[i]);
    } else {
        for (uint32_t i = threadIdx.x; i < STEPS * 32; i += THREADS) {
            uint4 part[2];
            parts_of(i / 32, i % 32, part);
            query[i / 32 * 2][i % 32] = part[0], query[i / 32 * 2 + 1][i % 32] = part[1];
        }
        __syncthreads();
    }

    uint32_t slot = 0, side = 0;
    for (uint32_t chunk = blockIdx.x, end = 2 * per_chunk; chunk < n_chunk; chunk += gridDim.x, end += 2 * per_chunk) {
        /* Of reader g (PAIRED: g % 4) and this thread's rows: */
        float max = -INFINITY, sum = 0;
        float acc[WORDS][4] = {}; /* columns g and g + 8 of 16, of readers 2 t and 2 t + 1 each */
        while (line[0].unit < end) {
            const half_page now = line[0];
            uint4 *const keys = ring + slot * 2 * HALF, *const values = keys + HALF;
            copy_wait_but<2 * RING - 1>();
            __syncwarp();
            float c[2][4] = {};
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                uint4 high, low;
                if constexpr (HELD) high = held[i][0], low = held[i][1];
                else high = query[2 * i][lane], low = query[2 * i + 1][lane];
                const uint32_t left[4] = {high.x, low.x, high.y, low.y}, right[4] = {high.z, low.z, high.w, low.w};
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const uint4 key = keys[key_place(8 * n + g, i * 4 + t)];
                    mma_16x8x16(c[n], left, key.x, key.y, R());
                    mma_16x8x16(c[n], right, key.z, key.w, R());
                }
            }

            float x[4], most = -INFINITY;
#pragma unroll
            for (int k = 0; k < 4; k++) x[k] = (c[k / 2][k % 2] + c[k / 2][k % 2 + 2]) * a.scale;
            if (now.valid != 0xffffu || a.window != 0 || (WATCHED && w.moves > 0)) {
                void *page = (void *)(now.keys - now.row0 % KVF_PAGE_ROWS * DIM);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const uint32_t row = k / 2 * 8 + 2 * t + k % 2, in_page = now.row0 % KVF_PAGE_ROWS + row;
                    bool seen = now.valid >> row & 1;
                    if (seen && a.window != 0) seen = s->position - page_positions<R>(page, DIM)[in_page] < a.window;
                    if (!seen) x[k] = -INFINITY;
                    if (WATCHED && now.row0 + row < w.moves && now.valid >> row & 1 && g % READERS < readers) {
                        if (page_positions<R>(page, DIM)[in_page] >= w.moves) continue;
                        x[k] = w.line[g % READERS * w.ld + now.row0 + row];
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < 4; k++) most = fmaxf(most, x[k]);
            if (WATCHED && w.notes && g < readers) { /* beyond the rows: anything */
                float *to = w.line + (size_t)g * w.ld + now.row0 + 2 * t;
                *(float2 *)to = make_float2(x[0], x[1]);
                *(float2 *)(to + 8) = make_float2(x[2], x[3]);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i + 1 < RING; i++) line[i] = line[i + 1];
            line[RING - 1] = settle_next();
            load_keys(line[RING - 1], keys);
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            if (__ballot_sync(0xffffffffu, most > max) != 0) { /* seldom after the first rows */
                most = fmaxf(most, max);
                const float shrink = max == -INFINITY ? 0.0f : exp2_fast(max - most);
                const float factor[2] = {__shfl_sync(0xffffffffu, shrink, 8 * t), __shfl_sync(0xffffffffu, shrink, 8 * t + 4)};
                sum *= shrink;
                max = most;
#pragma unroll
                for (int i = 0; i < WORDS; i++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) acc[i][e] *= factor[e % 2];
                }
            }
            const float base = max == -INFINITY ? 0.0f : max - raise;
            uint32_t p[2], rest[2];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float y[2] = {exp2_fast(x[2 * n] - base), exp2_fast(x[2 * n + 1] - base)};
                sum += y[0] + y[1];
                p[n] = pack_pair(y[0], y[1], R());
                const float2 rounded = unpack_pair(p[n], R());
                rest[n] = pack_pair(y[0] - rounded.x, y[1] - rounded.y, R());
                if (PAIRED && g >= 4) p[n] = rest[n];
            }
            copy_wait_but<2 * RING - 1>();
            __syncwarp();
#pragma unroll
            for (int i = 0; i < WORDS; i++) {
                uint32_t v[4]; /* columns of eight rows each: of the first rows, and of the others */
                load_matrix_turned(v, &values[value_place(lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2)]);
                mma_16x8x16(acc[i], v, p[0], p[1], R());
                if (!PAIRED) mma_16x8x16(acc[i], v, rest[0], rest[1], R());
            }
            __syncwarp();
            load_values(line[RING - 1], keys);
            slot = slot + 1 == RING ? 0 : slot + 1;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (t == 0 && g < READERS) {
            stat[side][(warp * READERS + g) * 2] = max - raise;
            stat[side][(warp * READERS + g) * 2 + 1] = sum;
        }
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            if (PAIRED) {
#pragma unroll
                for (int e = 0; e < 4; e++) acc[i][e] += __shfl_xor_sync(0xffffffffu, acc[i][e], 2);
            }
            if (2 * t >= READERS) continue;
            float *to = &sums[side][(warp * READERS + 2 * t) * DIM + i * 16 + g];
            to[0] = acc[i][0], to[8] = acc[i][2];
            to[DIM] = acc[i][1], to[DIM + 8] = acc[i][3];
        }
        __syncthreads();
        store_shares<READERS, DIM>(a, stored, readers, chunk, n_chunk == 1, sums[side], stat[side]);
        if (n_chunk == 1) return;
        if (SIDES == 1) __syncthreads();
        side = side + 1 == SIDES ? 0 : side + 1;
    }
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), weight);
}

template <typename R, int DIM, bool PAIRED>
static cudaError_t launch(const cu_device *d, const step_args &a, dim3 grid) {
    const bool watches = (a.work.acts & CU_WATCHES) != 0;
    void (*kernel)(step_args) = watches ? tile_kernel<R, DIM, PAIRED, true> : tile_kernel<R, DIM, PAIRED, false>;
    const size_t bytes = (size_t)WARPS * ring_of(DIM) * 2 * UNIT * DIM * sizeof(R);
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e == cudaSuccess) e = cu_all_shared(kernel);
    return e != cudaSuccess ? e : cu_launch_next(d, kernel, grid, dim3(THREADS), bytes, a);
}

template <typename R>
static cudaError_t launch_dim(const cu_device *d, uint32_t readers, const step_args &a, dim3 grid) {
    const bool paired = readers <= 4;
    if (a.head_dim == 32) return paired ? launch<R, 32, true>(d, a, grid) : launch<R, 32, false>(d, a, grid);
    if (a.head_dim == 64) return paired ? launch<R, 64, true>(d, a, grid) : launch<R, 64, false>(d, a, grid);
    if (a.head_dim == 128) return paired ? launch<R, 128, true>(d, a, grid) : launch<R, 128, false>(d, a, grid);
    return paired ? launch<R, 256, true>(d, a, grid) : launch<R, 256, false>(d, a, grid);
}

bool cu_attention_tile(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid,
                       cudaError_t *status) {
    const uint32_t dim = a.head_dim;
    /* As many blocks as have room at once: those that come later would begin with empty hands. */
    const size_t room = (size_t)BLOCKS * d->n_sm / ((size_t)grid.y * grid.z);
    grid.x = room < 1 ? 1 : room < a.n_chunk ? (uint32_t)room : a.n_chunk;
    if (row_dtype == KVF_F32 || readers > 8 || (dim != 32 && dim != 64 && dim != 128 && dim != 256)) return false;
    *status = row_dtype == KVF_F16 ? launch_dim<__half>(d, readers, a, grid) : launch_dim<__nv_bfloat16>(d, readers, a, grid);
    return true;
}
