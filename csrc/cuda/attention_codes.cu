/*
 * Attention of one step over tables whose packed pages hold evenly spaced codes of 2 or 4 bits, keys per channel and values
 * per token, without outliers or low rank, in 64 or 128 channels of 16-bit rows; the plain rows behind them are attended in
 * the same launch, in chunks of their own.
 *
 * A warp takes a page at a time, and several of a chunk before the warps' shares are merged. While it works on one, the
 * next come by asynchronous copies into the warp's own shared memory, so 16 warps of two blocks keep as many pages of 3 to
 * 6 KB in flight on a multiprocessor.
 */
#include "attention_codes.cuh"
#include "attention_tile.cuh"

/* LEAST_STAGES: pages of a warp that are in shared memory or on their way there; one more of 2 bits where there is room. */
enum { WARPS = 8, THREADS = 32 * WARPS, WEIGHT_STRIDE = 34, LEAST_STAGES = 2 };
/*
 * Barriers: the shares of a chunk are there; they are merged. A merger does not wait for its own merging, so it may come to
 * wait for the next one's before all others have waited for its own: chunks take turns with two barriers.
 */
enum { FULL = 1, FREE = 2 };

/*
 * The softmax's step for a page: x[k] is the score of row g + 8 k for reader 4 j + t, which becomes its weight; returns by
 * how much what was added before shrinks.
 */
static __device__ __forceinline__ float weigh(float x[4], float &max, float &sum) {
    float most = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), total = 0;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
    most = fmaxf(most, max);
    const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        x[k] = exp2f(x[k] - base);
        total += x[k];
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    const float shrink = exp2f(max - base);
    sum = sum * shrink + total;
    max = most;
    return shrink;
}

/*
 * One warp's half pages of the plain ones [begin, end); its share of the chunk goes into sums [READERS, DIM]. The last page
 * has `in_last` rows. Rows are few here: nothing is loaded ahead of a page.
 */
template <typename R, int DIM, int TILES>
static __device__ __forceinline__ void plain_chunk(const step_args &a, const cu_slot *s, void *const *pages, uint32_t begin,
                                                   uint32_t end, uint32_t in_last, uint32_t readers, const float *q,
                                                   float *weight, float *sums, float max[TILES], float sum[TILES]) {
    constexpr int READERS = 4 * TILES, LANES = DIM / 8, PER = 32 / LANES, AHEAD = 16 / PER;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float acc[READERS][8] = {};
    for (uint32_t unit = 2 * begin + threadIdx.x / 32; unit < 2 * end; unit += WARPS) {
        const uint32_t page = unit / 2, half = unit % 2;
        const R *keys = (const R *)pages[page], *values = keys + KVF_PAGE_ROWS * DIM;
        const uint32_t in_page = page + 1 == end ? in_last : KVF_PAGE_ROWS;
        float c[2][TILES][4] = {};
#pragma unroll 2
        for (int i = 0; i < DIM / 32; i++) {
            uint4 query[TILES];
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                const uint32_t reader = 4 * j + g / 2;
                query[j] = make_uint4(0, 0, 0, 0);
                if (reader < readers) query[j] = query_part<R>(q + reader * DIM + i * 32 + t * 8, g % 2);
            }
#pragma unroll
            for (int m = 0; m < 2; m++) {
                if (m != (int)half) continue;
                const uint4 low = load_rows(keys + (m * 16 + g) * DIM + i * 32 + t * 8);
                const uint4 high = load_rows(keys + (m * 16 + g + 8) * DIM + i * 32 + t * 8);
                const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
                for (int j = 0; j < TILES; j++) {
                    mma_16x8x16(c[m][j], first, query[j].x, query[j].y, R());
                    mma_16x8x16(c[m][j], second, query[j].z, query[j].w, R());
                }
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            float x[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const uint32_t row = g + 8 * k;
                bool seen = row < in_page && row / 16 == half;
                if (seen && a.window != 0) seen = s->position - page_positions<R>((void *)keys, DIM)[row] < a.window;
                x[k] = seen ? (c[k / 2][j][k % 2 * 2] + c[k / 2][j][k % 2 * 2 + 1]) * a.scale : -INFINITY;
                if (a.work.acts & CU_WATCHES && row < in_page && row / 16 == half) {
                    note(a, 4 * j + t, page * KVF_PAGE_ROWS + row, x[k]);
                }
            }
            const float shrink = weigh(x, max[j], sum[j]);
#pragma unroll
            for (int k = 0; k < 4; k++) weight[(4 * j + t) * WEIGHT_STRIDE + g + 8 * k] = x[k];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float factor = __shfl_sync(0xffffffffu, shrink, r);
#pragma unroll
                for (int k = 0; k < 8; k++) acc[4 * j + r][k] *= factor;
            }
        }
        __syncwarp();
#pragma unroll 1
        for (uint32_t first = 16 * half + lane / LANES; first < 16 * half + 16; first += AHEAD * PER) {
            uint4 raw[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const uint32_t row = first + i * PER;
                raw[i] = make_uint4(0, 0, 0, 0); /* what lies beyond the rows may be anything */
                if (row < in_page) raw[i] = load_rows(values + row * DIM + lane % LANES * 8);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                float v[8];
                unpack8(raw[i], v, R());
#pragma unroll
                for (int r = 0; r < READERS; r++) {
                    const float w = weight[r * WEIGHT_STRIDE + first + i * PER];
#pragma unroll
                    for (int k = 0; k < 8; k++) acc[r][k] = fmaf(w, v[k], acc[r][k]);
                }
            }
        }
        __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < READERS; r++) {
#pragma unroll
        for (int k = 0; k < 8; k++) {
#pragma unroll
            for (int step = LANES; step < 32; step *= 2) acc[r][k] += __shfl_xor_sync(0xffffffffu, acc[r][k], step);
            if (lane < LANES) sums[r * DIM + lane * 8 + k] = acc[r][k];
        }
    }
}

/*
 * The warps' shares of a chunk of plain rows, in order, by one warp. sums: shared [WARPS, READERS, DIM]   stat: [WARPS, READERS, 2], maximum
 * and sum
 */
template <int READERS, int DIM>
static __device__ __forceinline__ void merge_warps(const step_args &a, uint32_t stored, uint32_t readers, uint32_t chunk,
                                                   const float *sums, const float *stat) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t r = 0; r < readers; r++) {
        const uint32_t at = lane % WARPS * READERS + r;
        const float most = warp_max(stat[at * 2]), own = exp2_fast(stat[at * 2] - (most == -INFINITY ? 0.0f : most));
        float weights = 0, total[DIM / 32] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float factor = __shfl_sync(0xffffffffu, own, w);
            weights = fmaf(factor, stat[(w * READERS + r) * 2 + 1], weights);
#pragma unroll
            for (int k = 0; k < DIM / 32; k++) total[k] = fmaf(factor, sums[(w * READERS + r) * DIM + lane + 32 * k], total[k]);
        }
        float *to = partial_of(a, blockIdx.z, stored * readers + r, chunk);
#pragma unroll
        for (int k = 0; k < DIM / 32; k++) to[lane + 32 * k] = total[k];
        if (lane == 0) to[DIM] = most, to[DIM + 1] = weights;
    }
    __syncwarp();
}

/*
 * A warp's share of a chunk of packed pages, as it lies in registers: powers of two and offsets are made good once, when shares
 * are merged. own: shared [READERS * DIM]   offsets: [8, READERS], of each group of channels
 */
template <int DIM, int TILES>
static __device__ __forceinline__ void store_share(const float acc[DIM / 16][4], float base[4], float *own, float *offsets,
                                                   uint32_t g, uint32_t t) {
    constexpr int READERS = 4 * TILES, PER = 2 * TILES; /* PER: of a product's sums that a lane keeps */
#pragma unroll
    for (int n = 0; n < DIM / 16 * PER / 4; n++) {
        float x[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int i = (4 * n + k) / PER, e = (4 * n + k) % PER;
            x[k] = acc[i][e];
            if (TILES == 1) { /* the rest's columns are two lanes further; either lane adds one of the two rows up */
                const float other = __shfl_xor_sync(0xffffffffu, t < 2 ? acc[i][2 + e] : acc[i][e], 2);
                x[k] = (t < 2 ? acc[i][e] : acc[i][2 + e]) + other;
            }
        }
        ((float4 *)own)[32 * n + 4 * g + t] = make_float4(x[0], x[1], x[2], x[3]);
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (TILES == 1) base[e] += __shfl_xor_sync(0xffffffffu, base[e], 2);
        if (TILES == 2 || t < 2) offsets[g * READERS + 2 * t + e] = base[e];
    }
}

/* Those shares, in order, by one warp. sums: [WARPS, READERS * DIM]   offsets: [WARPS, 8, READERS]   stat: as above */
template <int BITS, int DIM, int TILES>
static __device__ __forceinline__ void merge_codes(const step_args &a, uint32_t stored, uint32_t readers, uint32_t chunk,
                                                   uint32_t group, const float *sums, const float *offsets, const float *stat) {
    constexpr int READERS = 4 * TILES, PER = 2 * TILES, N = DIM / 16 * PER;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, reader = (TILES == 1 ? t % 2 : t) * 2;
    float most[2] = {-INFINITY, -INFINITY}, weights[2] = {}, base[2] = {}, total[N] = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
#pragma unroll
        for (int e = 0; e < 2; e++) most[e] = fmaxf(most[e], stat[(w * READERS + reader + e) * 2]);
    }
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        float factor[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float *own = stat + (w * READERS + reader + e) * 2;
            factor[e] = exp2_fast(own[0] - (most[e] == -INFINITY ? 0.0f : most[e]));
            weights[e] = fmaf(factor[e], own[1], weights[e]);
            base[e] = fmaf(factor[e], offsets[(w * 8 + g) * READERS + reader + e], base[e]);
        }
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            const float4 x = ((const float4 *)(sums + w * READERS * DIM))[8 * n + lane];
            total[n] = fmaf(factor[0], x.x, total[n]), total[n + 1] = fmaf(factor[1], x.y, total[n + 1]);
            total[n + 2] = fmaf(factor[0], x.z, total[n + 2]), total[n + 3] = fmaf(factor[1], x.w, total[n + 3]);
        }
    }
    const uint32_t inverse = 65536 / (group / 16) + 1; /* of a group in 16 channels, for numbers below 8 */
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int e = n % 2;
        const uint32_t i = n / PER, j = i % 2 * 2 + (TILES == 1 ? t / 2 : n % PER / 2), channel = i / 2 * 32 + channel_of<BITS>(g, j);
        const float offset = __shfl_sync(0xffffffffu, base[e], (channel / 16 * inverse >> 16) * 4 + t);
        const float x = fmaf(total[n], (float)(1u << power<BITS>(j)), offset);
        if (reader + e < readers) partial_of(a, blockIdx.z, stored * readers + reader + e, chunk)[channel] = x;
    }
#pragma unroll
    for (int e = 0; e < 2; e++) {
        if (g != 0 || reader + e >= readers || (TILES == 1 && t >= 2)) continue;
        float *to = partial_of(a, blockIdx.z, stored * readers + reader + e, chunk);
        to[DIM] = most[e], to[DIM + 1] = weights[e];
    }
    __syncwarp();
}

/*
 * Packed pages of a chunk, at least as many as plain ones: at most about 32 chunks, so that merging costs little, and one
 * sequence of eight heads has as many as there is room for.
 */
static __device__ __forceinline__ uint32_t pages_of_chunk(uint32_t n_page, uint32_t n_stored, uint32_t plain) {
    const uint32_t most = n_stored >= 8 ? 32 : 60, least = n_page > 8 * WARPS ? 2 : 1;
    return max(plain, WARPS * max(least, (n_page + WARPS * most - 1) / (WARPS * most)));
}

/* TILES: groups of four readers. */
template <typename R, int BITS, int DIM, int TILES>
static __global__ void __launch_bounds__(THREADS, TILES == 1 ? 2 : 1) codes_kernel(const step_args a, const uint32_t most_stages) {
    typedef page_of<BITS, DIM> page_type;
    constexpr int READERS = 4 * TILES, PAGE_BYTES = page_type::BYTES;
    const uint32_t stages = BITS == 2 ? most_stages : (uint32_t)LEAST_STAGES;
    constexpr int PIECES = (PAGE_BYTES / 16 + 31) / 32;
    extern __shared__ uint4 shared4[];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    uint8_t *stage = (uint8_t *)shared4 + warp * stages * PAGE_BYTES;  /* [stages, PAGE_BYTES] */
    uint8_t *behind = (uint8_t *)shared4 + WARPS * stages * PAGE_BYTES;
    uint4 *queries = (uint4 *)behind + lane;                           /* [DIM / 16, 32] */
    /* A block's plain chunks come last, when the queries are not needed any more. */
    float *weight = (float *)behind + warp * READERS * WEIGHT_STRIDE;
    float *sums = (float *)behind + WARPS * READERS * WEIGHT_STRIDE;
    static_assert(DIM * 32 <= WARPS * READERS * WEIGHT_STRIDE * (int)sizeof(float), "queries fit");
    float *stat = sums + WARPS * READERS * DIM;                                           /* [WARPS, READERS, 2] */
    float *offsets = stat + WARPS * READERS * 2;                                          /* [WARPS, 8, READERS] */
    /*
     * The kernel before this one brings the queries and the new row. Tables and packed pages are as the step before left them:
     * they are read while it runs.
     */
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y;
    const cu_packing *packing = NULL;
    size_t table = 0;
    if (__ldcg(&s->run) && stored < s->n_stored) {
        table = (size_t)a.layer * s->n_stored + stored;
        packing = &s->packing[table];
        if (packing->packed == 0 || packing->kernel != (BITS == 4 ? CU_ATTEND_CODES_4 : CU_ATTEND_CODES_2)) packing = NULL;
        else if (chooses(a, s, table)) packing = NULL;
    }
    if (packing == NULL) {
        /* One block is enough for this kernel not to end before the one before it. */
        if (blockIdx.x + blockIdx.y + blockIdx.z == 0) wait_previous();
        return;
    }
    const uint32_t packed = packing->packed, n_row = __ldcg(&s->rows[table]) + 1;
    const kv_part &value = packing->format->layout.value;
    const uint32_t group = value.group, n_group = value.n_group;
    const uint32_t readers = a.n_head / s->n_stored, n_packed = packed_pages(packed);
    const uint32_t n_plain = packed_pages(n_row) - n_packed, plain_chunk_pages = chunk_rows(n_row) / KVF_PAGE_ROWS;
    const uint32_t per_chunk = pages_of_chunk(n_packed, s->n_stored, plain_chunk_pages);
    const uint32_t packed_chunks = (n_packed - 1) / per_chunk + 1;
    const uint32_t n_chunk = packed_chunks + (n_plain - 1) / plain_chunk_pages + 1;
    if (blockIdx.x >= n_chunk) return; /* never the first block */
    void *const *pages = s->pages + table * s->cap;
    const uint32_t positions = page_type::PARAMS + 4 * KVF_PAGE_ROWS * n_group;
    const uint32_t n_piece = (positions + 4 * KVF_PAGE_ROWS + 63) / 64 * 4;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * DIM;

    /* The page after those that are fetched, and where it lies. */
    walk next = {blockIdx.x, blockIdx.x * per_chunk + warp};
    settle(&next, packed_chunks, n_packed, per_chunk, warp);
    const uint4 *next_page = NULL;
    const auto look_ahead = [&] {
        if (next.chunk < packed_chunks) next_page = (const uint4 *)pages[next.page];
    };
    look_ahead();
    const auto fetch = [&](uint32_t to) {
        if (next.chunk < packed_chunks) {
            uint8_t *at = stage + to * PAGE_BYTES;
            const uint4 *from = next_page + lane;
#pragma unroll
            for (int n = 0; n < PIECES; n++) {
                const uint32_t i = lane + 32 * n;
                if (n >= page_type::PARAMS / 512 && i >= n_piece) continue;
                copy_async((uint4 *)at + place_of<BITS, DIM>(i), from + 32 * n, true);
            }
            next.page += WARPS;
            settle(&next, packed_chunks, n_packed, per_chunk, warp);
            look_ahead();
        }
        copy_commit();
    };
    for (uint32_t i = 0; i + 1 < stages; i++) fetch(i);
    uint32_t now = 0; /* stage of the page that comes next */
    wait_previous();
    allow_next();

    /*
     * Queries are brought to [1, 2) by a power of two, for the range of f16. A lane's part is the same in all warps.
     */
    const uint32_t reader = TILES == 1 ? g % 4 : g;
    float scale; /* of the reader's scores */
    {
        float x[DIM / 32][8] = {}, most = 0;
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            if (reader < readers) load8(q + reader * DIM + 32 * i + 8 * t, x[i]);
#pragma unroll
            for (int k = 0; k < 8; k++) most = fmaxf(most, fabsf(x[i][k]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const uint32_t exponent = min(max(__float_as_uint(most) >> 23, 1u), 253u);
        const float factor = __uint_as_float((254 - exponent) << 23);
        scale = __uint_as_float(exponent << 23) * a.scale;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            uint32_t query[4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float *pair = &x[i / 2][i % 2 * 4 + 2 * h];
                query[2 * h] = pack_pair(pair[0] * factor, pair[1] * factor, __half());
                query[2 * h + 1] = rest_pair(pair[0] * factor, pair[1] * factor, query[2 * h]);
            }
            if (warp == 0) queries[i * 32] = make_uint4(query[0], query[1], query[2], query[3]);
        }
    }
    __syncthreads();

    /* Warps take turns in merging; the others go on with the next chunk. */
    uint32_t merger = 0, last = WARPS; /* of this chunk, and of the one before; even and odd in turn */
    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        const auto may_write = [&] { /* all warps are done with the chunk before, and it is merged */
            if (last != WARPS && warp != last) named_wait(FREE + last % 2, THREADS);
        };
        float *own = sums + warp * READERS * DIM;
        if (chunk >= packed_chunks) {
            may_write(); /* nobody needs the queries any more either */
            float max[TILES], sum[TILES];
#pragma unroll
            for (int j = 0; j < TILES; j++) max[j] = -INFINITY, sum[j] = 0;
            const uint32_t first = n_packed + (chunk - packed_chunks) * plain_chunk_pages;
            const uint32_t end = min(first + plain_chunk_pages, n_packed + n_plain);
            const uint32_t in_last = min((uint32_t)KVF_PAGE_ROWS, n_row - (end - 1) * KVF_PAGE_ROWS);
            plain_chunk<R, DIM, TILES>(a, s, pages, first, end, in_last, readers, q, weight, own, max, sum);
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                if (g != 0) continue;
                stat[(warp * READERS + 4 * j + t) * 2] = max[j];
                stat[(warp * READERS + 4 * j + t) * 2 + 1] = sum[j];
            }
        } else {
            /*
             * Weights go up to 2^lift rather than 1, so that those times their scales keep clear of the end of f16. Where
             * that is too much, with scales above 255, the chunk is done again.
             */
            const uint32_t end = min((chunk + 1) * per_chunk, n_packed);
            float lift = 8;
            float acc[DIM / 16][4], base[4], max, sum;
            for (;;) {
                const bool again = lift < 0;
#pragma unroll
                for (int i = 0; i < DIM / 16; i++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) acc[i][e] = 0;
                }
#pragma unroll
                for (int e = 0; e < 4; e++) base[e] = 0;
                max = -INFINITY, sum = 0;
                for (uint32_t index = chunk * per_chunk + warp; index < end; index += WARPS) {
                    const uint32_t row0 = index * KVF_PAGE_ROWS, in_page = min((uint32_t)KVF_PAGE_ROWS, packed - row0);
                    const uint32_t before = now == 0 ? stages - 1 : now - 1;
                    const uint8_t *page = stage + (again ? before : now) * PAGE_BYTES;
                    if (again) {
                        __syncwarp();
                        const uint4 *from = (const uint4 *)pages[index];
                        for (uint32_t i = lane; i < n_piece; i += 32) ((uint4 *)page)[place_of<BITS, DIM>(i)] = from[i];
                        __syncwarp();
                    } else {
                        if (BITS == 2 && stages == 3) copy_wait_but<1>();
                        else copy_wait_but<0>();
                        __syncwarp(); /* the page is there, and nobody reads the one before it any more */
                        fetch(before);
                        now = now + 1 == stages ? 0 : now + 1;
                    }
                    float c[4][4] = {}, x[8], key_base[4] = {};
                    add_keys<BITS, DIM>(c, key_base, page, queries, g, t);
                    const float offset = (key_base[0] + key_base[2]) * scale;
#pragma unroll
                    for (int u = 0; u < 8; u++) { /* slot u of the lane */
                        const float factor = scale * (float)(1u << power<BITS>(u % 4));
                        x[u] = fmaf(c[u % 4][u / 4] + c[u % 4][u / 4 + 2], factor, offset);
                    }
                    if (in_page < KVF_PAGE_ROWS || a.window != 0 || a.work.acts & CU_WATCHES) {
#pragma unroll
                        for (int u = 0; u < 8; u++) {
                            const uint32_t slot = slot_of<BITS>(2 * t + u / 4, u % 4);
                            bool seen = slot < in_page;
                            if (seen && a.window != 0) seen = s->position - load_word(page + positions + 4 * slot) < a.window;
                            if (!seen) x[u] = -INFINITY;
                            if (a.work.acts & CU_WATCHES && slot < in_page && g < READERS) note(a, reader, row0 + slot, x[u]);
                        }
                    }
                    float most = x[0];
#pragma unroll
                    for (int u = 1; u < 8; u++) most = fmaxf(most, x[u]);
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                    if (__ballot_sync(0xffffffffu, most > max) != 0) {
                        most = fmaxf(most, max);
                        const float shrink = exp2_fast(max - (most == -INFINITY ? 0.0f : most));
                        max = most;
                        sum *= shrink;
                        const float one = __shfl_sync(0xffffffffu, shrink, 8 * t);
                        const float two = __shfl_sync(0xffffffffu, shrink, 8 * t + 4);
#pragma unroll
                        for (int i = 0; i < DIM / 16; i++) acc[i][0] *= one, acc[i][1] *= two, acc[i][2] *= one, acc[i][3] *= two;
                        base[0] *= one, base[1] *= two;
                    }
                    const float from = (max == -INFINITY ? 0.0f : max) - lift;
#pragma unroll
                    for (int u = 0; u < 8; u++) {
                        x[u] = exp2_fast(x[u] - from);
                        sum += x[u];
                    }
                    uint32_t hi[2][2], rest[2][2];
#pragma unroll
                    for (int u = 0; u < 8; u += 2) {
                        hi[u / 4][u / 2 % 2] = pack_pair(x[u], x[u + 1], __half());
                        rest[u / 4][u / 2 % 2] = rest_pair(x[u], x[u + 1], hi[u / 4][u / 2 % 2]);
                    }
                    if (group == 32) add_values<BITS, DIM, TILES, 32>(acc, base, page, hi, rest, group, n_group, g, t);
                    else if (group == 64) add_values<BITS, DIM, TILES, 64>(acc, base, page, hi, rest, group, n_group, g, t);
                    else if (group == DIM) add_values<BITS, DIM, TILES, DIM>(acc, base, page, hi, rest, group, n_group, g, t);
                    else add_values<BITS, DIM, TILES, 16>(acc, base, page, hi, rest, group, n_group, g, t);
                }
                float all = 0;
#pragma unroll
                for (int i = 0; i < DIM / 16; i++) all += fabsf(acc[i][0]) + fabsf(acc[i][1]) + fabsf(acc[i][2]) + fabsf(acc[i][3]);
                if (again || __ballot_sync(0xffffffffu, all < INFINITY) == 0xffffffffu) break;
                lift = -8;
            }
            may_write();
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            store_share<DIM, TILES>(acc, base, own, offsets + warp * 8 * READERS, g, t);
            if (t == 0 && g < READERS) {
                stat[(warp * READERS + g) * 2] = max - lift;
                stat[(warp * READERS + g) * 2 + 1] = sum;
            }
        }
        if (warp == merger) {
            named_wait(FULL, THREADS);
            if (chunk < packed_chunks) merge_codes<BITS, DIM, TILES>(a, stored, readers, chunk, group, sums, offsets, stat);
            else merge_warps<READERS, DIM>(a, stored, readers, chunk, sums, stat);
            named_arrive(FREE + merger % 2, THREADS);
        } else {
            named_arrive(FULL, THREADS);
        }
        last = merger, merger = (merger + 1) % WARPS;
    }
    if (warp != last) named_wait(FREE + last % 2, THREADS);
    copy_wait();
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), sums);
}

template <int BITS, int DIM>
static constexpr size_t shared_bytes(size_t tiles, uint32_t stages = LEAST_STAGES) {
    return (size_t)WARPS * stages * page_of<BITS, DIM>::BYTES + WARPS * 4 * tiles * (WEIGHT_STRIDE + DIM + 2 + 8) * sizeof(float);
}

template <typename R, int BITS, int DIM, int TILES>
static cudaError_t launch(const cu_device *d, const step_args &a, dim3 grid) {
    constexpr uint32_t PER_SM = TILES == 1 ? 2 : 1; /* blocks of a multiprocessor; 1 KiB is the driver's in each */
    const bool three = BITS == 2 && PER_SM * (shared_bytes<BITS, DIM>(TILES, 3) + 1024) <= d->shared_bytes + 1024;
    const uint32_t stages = three ? 3 : (uint32_t)LEAST_STAGES;
    const size_t bytes = shared_bytes<BITS, DIM>(TILES, stages);
    /* Blocks that are on the device at once: starting and ending one costs as much as several pages. */
    const uint32_t room = PER_SM * d->n_sm / (grid.y * grid.z);
    grid.x = room < 1 ? 1 : room < grid.x ? room : grid.x;
    static_assert(WARPS * DIM >= CU_ATTENTION_CHUNKS + 1, "the last block's weights fit");
    const auto kernel = codes_kernel<R, BITS, DIM, TILES>;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e == cudaSuccess) e = cu_all_shared(kernel);
    return e != cudaSuccess ? e : cu_launch_next(d, kernel, grid, dim3(THREADS), bytes, a, stages);
}

template <typename R, int BITS>
static cudaError_t launch_dim(const cu_device *d, uint32_t readers, const step_args &a, dim3 grid) {
    if (a.head_dim == 64) return readers <= 4 ? launch<R, BITS, 64, 1>(d, a, grid) : launch<R, BITS, 64, 2>(d, a, grid);
    return readers <= 4 ? launch<R, BITS, 128, 1>(d, a, grid) : launch<R, BITS, 128, 2>(d, a, grid);
}

template <typename R>
static cudaError_t launch_bits(const cu_device *d, uint32_t kernel, uint32_t readers, const step_args &a, dim3 grid) {
    return kernel == CU_ATTEND_CODES_4 ? launch_dim<R, 4>(d, readers, a, grid) : launch_dim<R, 2>(d, readers, a, grid);
}

cudaError_t cu_attention_codes(const cu_device *d, uint32_t kernel, uint32_t row_dtype, uint32_t readers, const step_args &a,
                               dim3 grid) {
    return row_dtype == KVF_F16 ? launch_bits<__half>(d, kernel, readers, a, grid)
                                : launch_bits<__nv_bfloat16>(d, kernel, readers, a, grid);
}

/* Some GPUs have 99 KiB for a block, which is less than two pages of 4 bits for each warp. */
template <int BITS>
static bool fits(const cu_device *d, const kvf_cache_config *c) {
    const size_t tiles = c->n_head / c->n_kv_head <= 4 ? 1 : 2;
    return (c->head_dim == 64 ? shared_bytes<BITS, 64>(tiles) : shared_bytes<BITS, 128>(tiles)) <= d->shared_bytes;
}

uint32_t cu_packed_kernel_of(const cu_device *d, const kvf_cache_config *c, const kvf_format *f) {
    const bool rows = c->row_dtype != KVF_F32 && (c->head_dim == 64 || c->head_dim == 128) && c->n_head / c->n_kv_head <= 8;
    const bool codes = f->key_bits == f->value_bits && f->key_axis == KVF_PER_CHANNEL && f->value_axis == KVF_PER_TOKEN;
    const bool more = f->key_channels > 0 || (f->flags & KVF_KEYS_UNROTATED) != 0 || f->key_levels + f->value_levels > 0 ||
                      f->key_outliers + f->value_outliers > 0 || f->key_rank + f->value_rank > 0;
    if (rows && codes && !more && f->key_bits == 4 && fits<4>(d, c)) return CU_ATTEND_CODES_4;
    if (rows && codes && !more && f->key_bits == 2 && fits<2>(d, c)) return CU_ATTEND_CODES_2;
    return CU_ATTEND_ANY;
}
