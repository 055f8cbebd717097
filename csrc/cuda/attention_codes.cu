/*
 * Attention of one step over tables whose packed pages hold evenly spaced codes of 2 or 4 bits, keys per channel and values
 * per token, without outliers or low rank, in 64 or 128 channels of 16-bit rows; the plain rows behind them are attended in
 * the same launch, in chunks of their own.
 *
 * A warp takes a page at a time. While it works on one, the whole next page comes by asynchronous copies into the warp's
 * own shared memory, so 8 or 16 warps keep as many pages of 3 to 6 KB in flight on a multiprocessor. Both products run on
 * tensor cores in f16: a lane takes the same few codes of two channels (of two slots), which one byte permutation brings
 * side by side; a mask and an exponent make exact f16 pairs of them, a multiply-add brings these to whole numbers and
 * another one to offset + scale * code, the rounding of f16 being the only one. Queries and weights are split into two f16
 * numbers that add up to them, in neighbouring columns, so nothing is lost there.
 *
 * Instructions per element of a page and lane, at 128 channels and up to four readers: 1.6 for the operand (1/4 loads, 1/8
 * permutation, 1/8 shift with 4 bits, 1/2 mask, 1 multiply-add, half of it for exactness; elements go in pairs), 1/8
 * tensor product, about 1/4 for parameters and 1/2 for the softmax and everything else that is done once a page: some 700
 * instructions of a warp a page. A multiprocessor that issues four of them a cycle needs 175 cycles a page; memory at
 * 4.3 TB/s brings a page of 4 bits in 280 and one of 2 bits in 170.
 */
#include "attention_tile.cuh"
#include "packed.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS, WEIGHT_STRIDE = 34 };

/* Bytes of a page at most, with groups of 16 channels; and of a warp's two pages in shared memory. */
template <int BITS, int DIM>
struct page_of {
    static constexpr int BYTES = (2 * DIM * 4 * BITS + 4 * DIM + KVF_PAGE_ROWS * (DIM / 16) * 4 + KVF_PAGE_ROWS * 4 + 63) / 64 * 64;
};

static __device__ __forceinline__ uint32_t load_word(const uint8_t *at) { return *(const uint32_t *)at; }

/* Two numbers as f16, or what that rounding loses of them. */
static __device__ __forceinline__ uint32_t split_pair(float x, float y, bool rest) {
    __half2 pair = __floats2half2_rn(x, y);
    if (rest) {
        const float2 rounded = __half22float2(pair);
        pair = __floats2half2_rn(x - rounded.x, y - rounded.y);
    }
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

/*
 * Four codes of two sources, side by side: of `half` (4 bits: which half of the words; 2 bits: which byte).
 * The permutation's selector is a constant where half is one.
 */
template <int BITS>
static __device__ __forceinline__ uint32_t side_by_side(uint32_t a, uint32_t b, uint32_t half) {
    if (BITS == 4) return __byte_perm(a, b, half == 0 ? 0x5410u : 0x7632u);
    return __byte_perm(a, b, 0x4400u + 0x1111u * half); /* bytes 1 and 3 are masked away */
}

/* offset + scale * code of code j, for both sources. */
template <int BITS>
static __device__ __forceinline__ uint32_t element(uint32_t x, int j, uint32_t scale, uint32_t offset) {
    const uint32_t magic = 0x64006400u; /* 1024, whose last bit is 1 */
    const int at = BITS == 4 ? j % 2 * 4 : 2 * j;
    if (BITS == 4 && j >= 2) x >>= 8;
    const uint32_t mask = (BITS == 4 ? 0x000f000fu : 0x00030003u) << at;
    /* 2^-at and -1024 * 2^-at */
    const uint32_t factor = (0x3c00u - ((uint32_t)at << 10)) * 0x10001u, minus = (0xe400u - ((uint32_t)at << 10)) * 0x10001u;
    return fma_half2(fma_half2((x & mask) | magic, factor, minus), scale, offset);
}

/* Where things lie in a page that begins with the keys' codes; scales follow their offsets. */
typedef struct places {
    uint32_t key_offsets, codes, offsets;
    uint32_t n_group; /* of values */
} places;

/* Slot of a page that is row g + 8 k of the scores' tile. */
template <int BITS>
static __device__ __forceinline__ uint32_t slot_of(uint32_t g, uint32_t k) {
    if (BITS == 4) return g / 4 * 16 + (g % 2 * 4 + k) * 2 + g / 2 % 2;
    return g / 4 * 16 + g % 4 * 4 + k;
}

/* c[m][j] += products of the page's keys with the queries. query[j][i]: channels 16 i + 2 t .. and 16 i + 8 + 2 t .. */
template <int BITS, int DIM, int TILES>
static __device__ __forceinline__ void add_keys(float c[2][TILES][4], const uint8_t *page, const places &p,
                                                const uint2 query[TILES][DIM / 16], uint32_t g, uint32_t t) {
    constexpr uint32_t LINE = 4 * BITS; /* bytes of a channel */
    const uint8_t *codes = page + (BITS == 4 ? g / 2 : g / 4) * 4;
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        uint32_t x[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t channel = 16 * i + 8 * h + 2 * t;
            const uint8_t *offsets = page + p.key_offsets + 2 * channel;
            const uint32_t offset = load_word(offsets), scale = load_word(offsets + 2 * DIM);
            const uint32_t both = side_by_side<BITS>(load_word(codes + channel * LINE), load_word(codes + (channel + 1) * LINE),
                                                     BITS == 4 ? g % 2 : g % 4);
#pragma unroll
            for (int j = 0; j < 4; j++) x[h][j] = element<BITS>(both, j, scale, offset);
        }
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const uint32_t keys[4] = {x[0][2 * m], x[0][2 * m + 1], x[1][2 * m], x[1][2 * m + 1]};
#pragma unroll
            for (int j = 0; j < TILES; j++) mma_16x8x16(c[m][j], keys, query[j][i].x, query[j][i].y, __half());
        }
    }
}

/* Channel of a lane's element e, of DIM / 8. */
template <int BITS, int DIM>
static __device__ __forceinline__ uint32_t channel_of(uint32_t g, uint32_t e) {
    if (BITS == 2) return g * (DIM / 8) + e;
    if (DIM == 128) return g * 16 + e % 8 * 2 + e / 8;
    return g / 2 * 16 + e * 2 + g % 2;
}

/*
 * acc[i][j] += weighted values; rows of tile i are the lane's elements 2 i and 2 i + 1, columns as in the scores. Column
 * 2 t + e of the products' first (second) half is slot 4 (4 k + e) + t (4 (4 k + 2 + e) + t). weight: [readers][WEIGHT_STRIDE]
 */
template <int BITS, int DIM, int TILES>
static __device__ __forceinline__ void add_values(float acc[DIM / 16][TILES][4], const uint8_t *page, const places &p,
                                                  const float *weight, uint32_t group, uint32_t g, uint32_t t) {
    constexpr uint32_t OWN = DIM / 8, BYTES = OWN * BITS / 8, LINE = DIM * BITS / 8;
    constexpr int UNITS = OWN / 4;
    const uint8_t *codes = page + p.codes + g * BYTES;
    const __half *offsets = (const __half *)(page + p.offsets), *scales = offsets + KVF_PAGE_ROWS * p.n_group;
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t x[2][OWN], w[TILES][2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t a = 4 * (4 * k + 2 * h) + t, b = a + 4;
            uint32_t word[2][2] = {};
            if (BYTES == 8) {
                const uint2 one = *(const uint2 *)(codes + a * LINE), two = *(const uint2 *)(codes + b * LINE);
                word[0][0] = one.x, word[0][1] = one.y, word[1][0] = two.x, word[1][1] = two.y;
            } else if (BYTES == 4) {
                word[0][0] = load_word(codes + a * LINE), word[1][0] = load_word(codes + b * LINE);
            } else {
                word[0][0] = *(const uint16_t *)(codes + a * LINE), word[1][0] = *(const uint16_t *)(codes + b * LINE);
            }
            uint32_t scale, offset;
            const __half s[2] = {scales[a * p.n_group + group], scales[b * p.n_group + group]};
            const __half o[2] = {offsets[a * p.n_group + group], offsets[b * p.n_group + group]};
            memcpy(&scale, s, sizeof scale);
            memcpy(&offset, o, sizeof offset);
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                const uint32_t both = BITS == 4 ? side_by_side<4>(word[0][u / 2], word[1][u / 2], u % 2)
                                                : side_by_side<2>(word[0][0], word[1][0], u);
#pragma unroll
                for (int j = 0; j < 4; j++) x[h][4 * u + j] = element<BITS>(both, j, scale, offset);
            }
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                const float *from = weight + (4 * j + g / 2) * WEIGHT_STRIDE;
                w[j][h] = split_pair(from[a], from[b], g % 2 != 0);
            }
        }
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            const uint32_t values[4] = {x[0][2 * i], x[0][2 * i + 1], x[1][2 * i], x[1][2 * i + 1]};
#pragma unroll
            for (int j = 0; j < TILES; j++) mma_16x8x16(acc[i][j], values, w[j][0], w[j][1], __half());
        }
    }
}

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
 * One warp's plain pages [page, end) in steps of WARPS; its share of the chunk goes into sums [READERS, DIM]. The last page
 * has `in_last` rows. Rows are few here: nothing is loaded ahead.
 */
template <typename R, int DIM, int TILES>
static __device__ void plain_chunk(const step_args &a, const cu_slot *s, void *const *pages, uint32_t page, uint32_t end,
                                   uint32_t in_last, uint32_t readers, const float *q, float *weight, float *sums,
                                   float max[TILES], float sum[TILES]) {
    constexpr int READERS = 4 * TILES, LANES = DIM / 8, PER = 32 / LANES;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float acc[READERS][8] = {};
    for (; page < end; page += WARPS) {
        const R *keys = (const R *)pages[page], *values = keys + KVF_PAGE_ROWS * DIM;
        const uint32_t in_page = page + 1 == end ? in_last : KVF_PAGE_ROWS;
        float c[2][TILES][4] = {};
#pragma unroll 1
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
                bool seen = row < in_page;
                if (seen && a.window != 0) seen = s->position - page_positions<R>((void *)keys, DIM)[row] < a.window;
                x[k] = seen ? (c[k / 2][j][k % 2 * 2] + c[k / 2][j][k % 2 * 2 + 1]) * a.scale : -INFINITY;
                if (a.work.acts & CU_WATCHES && row < in_page) note(a, 4 * j + t, page * KVF_PAGE_ROWS + row, x[k]);
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
        for (uint32_t row = lane / LANES; row < in_page; row += PER) {
            float v[8];
            unpack8(load_rows(values + row * DIM + lane % LANES * 8), v, R());
#pragma unroll
            for (int r = 0; r < READERS; r++) {
                const float w = weight[r * WEIGHT_STRIDE + row];
#pragma unroll
                for (int k = 0; k < 8; k++) acc[r][k] = fmaf(w, v[k], acc[r][k]);
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

/* TILES: groups of four readers. */
template <typename R, int BITS, int DIM, int TILES>
static __global__ void __launch_bounds__(THREADS, TILES == 1 ? 2 : 1) codes_kernel(const step_args a) {
    constexpr int READERS = 4 * TILES, PAGE_BYTES = page_of<BITS, DIM>::BYTES;
    extern __shared__ uint4 shared4[];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    uint8_t *stage = (uint8_t *)shared4 + warp * 2 * PAGE_BYTES;                          /* [2, PAGE_BYTES] */
    float *weight = (float *)((uint8_t *)shared4 + WARPS * 2 * PAGE_BYTES) + warp * READERS * WEIGHT_STRIDE;
    float *sums = (float *)((uint8_t *)shared4 + WARPS * 2 * PAGE_BYTES) + WARPS * READERS * WEIGHT_STRIDE;
    float *stat = sums + WARPS * READERS * DIM;                                           /* [WARPS, READERS, 2] */
    wait_previous();
    allow_next();
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y;
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    const cu_packing packing = s->packing[table];
    if (packing.packed == 0 || packing.kernel != (BITS == 4 ? CU_ATTEND_CODES_4 : CU_ATTEND_CODES_2)) return;
    if (chooses(a, s, table)) return;
    const kv_layout &l = packing.format->layout;
    const uint32_t n_row = s->rows[table] + 1, readers = a.n_head / s->n_stored, n_packed = packed_pages(packing.packed);
    const uint32_t n_plain = packed_pages(n_row) - n_packed, per_chunk = chunk_rows(n_row) / KVF_PAGE_ROWS;
    const uint32_t packed_chunks = (n_packed - 1) / per_chunk + 1, n_chunk = packed_chunks + (n_plain - 1) / per_chunk + 1;
    if (blockIdx.x >= n_chunk) return;
    void *const *pages = s->pages + table * s->cap;
    const uint32_t n_copy = l.page_bytes / 16;
    const places p = {l.key.offsets, l.value.codes, l.value.offsets, l.value.n_group};
    const uint32_t group = (DIM == 128 ? g : g / 2) * 16 / l.value.group, positions = l.positions;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * DIM;

    walk next = {blockIdx.x, blockIdx.x * per_chunk + warp};
    settle(&next, packed_chunks, n_packed, per_chunk, warp);
    const auto fetch = [&](uint32_t to) {
        if (next.chunk < packed_chunks) {
            const uint4 *from = (const uint4 *)pages[next.page];
            for (uint32_t i = lane; i < n_copy; i += 32) copy_async((uint4 *)(stage + to * PAGE_BYTES) + i, from + i, true);
        }
        copy_commit();
    };
    uint32_t now = 0; /* the page that comes next goes there */
    fetch(now);

    /* Queries are brought to [1, 2) by a power of two, for the range of f16. */
    uint2 query[TILES][DIM / 16];
    float scale[TILES]; /* of reader 4 j + t's scores */
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        float factor = 0;
        scale[j] = 0;
#pragma unroll
        for (uint32_t r = 0; r < 4; r++) {
            float most = 0;
            if (4 * j + r < readers) {
                for (uint32_t d = lane; d < DIM; d += 32) most = fmaxf(most, fabsf(q[(4 * j + r) * DIM + d]));
            }
            const uint32_t exponent = min(max(__float_as_uint(warp_max(most)) >> 23, 1u), 253u);
            if (g / 2 == r) factor = __uint_as_float((254 - exponent) << 23);
            if (t == r) scale[j] = __uint_as_float(exponent << 23) * a.scale;
        }
        const uint32_t reader = 4 * j + g / 2;
#pragma unroll
        for (int i = 0; i < DIM / 16; i++) {
            query[j][i] = make_uint2(0, 0);
            if (reader >= readers) continue;
            const float *from = q + reader * DIM + 16 * i + 2 * t;
            query[j][i].x = split_pair(from[0] * factor, from[1] * factor, g % 2 != 0);
            query[j][i].y = split_pair(from[8] * factor, from[9] * factor, g % 2 != 0);
        }
    }

    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        float max[TILES], sum[TILES];
#pragma unroll
        for (int j = 0; j < TILES; j++) max[j] = -INFINITY, sum[j] = 0;
        float *own = sums + warp * READERS * DIM;
        if (chunk >= packed_chunks) {
            const uint32_t first = n_packed + (chunk - packed_chunks) * per_chunk, last = min(first + per_chunk, n_packed + n_plain);
            const uint32_t in_last = min((uint32_t)KVF_PAGE_ROWS, n_row - (last - 1) * KVF_PAGE_ROWS);
            plain_chunk<R, DIM, TILES>(a, s, pages, first + warp, last, in_last, readers, q, weight, own, max, sum);
        } else {
            float acc[DIM / 16][TILES][4] = {};
            while (next.chunk == chunk) {
                const uint8_t *page = stage + now * PAGE_BYTES;
                const uint32_t row0 = next.page * KVF_PAGE_ROWS, in_page = min((uint32_t)KVF_PAGE_ROWS, packing.packed - row0);
                next.page += WARPS;
                settle(&next, packed_chunks, n_packed, per_chunk, warp);
                copy_wait();
                __syncwarp(); /* the page is there, and nobody reads the one before it any more */
                now ^= 1;
                fetch(now);
                float c[2][TILES][4] = {};
                add_keys<BITS, DIM, TILES>(c, page, p, query, g, t);
#pragma unroll
                for (int j = 0; j < TILES; j++) {
                    float x[4];
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        const uint32_t slot = slot_of<BITS>(g, k);
                        bool seen = slot < in_page;
                        if (seen && a.window != 0) seen = s->position - load_word(page + positions + 4 * slot) < a.window;
                        x[k] = seen ? (c[k / 2][j][k % 2 * 2] + c[k / 2][j][k % 2 * 2 + 1]) * scale[j] : -INFINITY;
                        if (a.work.acts & CU_WATCHES && slot < in_page) note(a, 4 * j + t, row0 + slot, x[k]);
                    }
                    const float shrink = weigh(x, max[j], sum[j]);
#pragma unroll
                    for (int k = 0; k < 4; k++) weight[(4 * j + t) * WEIGHT_STRIDE + slot_of<BITS>(g, k)] = x[k];
#pragma unroll
                    for (int i = 0; i < DIM / 16; i++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) acc[i][j][e] *= shrink;
                    }
                }
                __syncwarp();
                add_values<BITS, DIM, TILES>(acc, page, p, weight, group, g, t);
            }
#pragma unroll
            for (int j = 0; j < TILES; j++) {
#pragma unroll
                for (int e = 0; e < DIM / 8; e++) {
                    own[(4 * j + t) * DIM + channel_of<BITS, DIM>(g, e)] = acc[e / 2][j][e % 2 * 2] + acc[e / 2][j][e % 2 * 2 + 1];
                }
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (g != 0) continue;
            stat[(warp * READERS + 4 * j + t) * 2] = max[j];
            stat[(warp * READERS + 4 * j + t) * 2 + 1] = sum[j];
        }
        __syncthreads();
        store_chunk<READERS, DIM, WARPS>(a, stored, readers, chunk, sums, stat);
        __syncthreads();
    }
    copy_wait();
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), sums);
}

template <int BITS, int DIM>
static constexpr size_t shared_bytes(size_t tiles) {
    return (size_t)WARPS * 2 * page_of<BITS, DIM>::BYTES + WARPS * 4 * tiles * (WEIGHT_STRIDE + DIM + 2) * sizeof(float);
}

template <typename R, int BITS, int DIM, int TILES>
static cudaError_t launch(const cu_device *d, const step_args &a, dim3 grid) {
    constexpr size_t bytes = shared_bytes<BITS, DIM>(TILES);
    static_assert(WARPS * DIM >= CU_ATTENTION_CHUNKS + 1, "the last block's weights fit");
    const cudaError_t e = cudaFuncSetAttribute(codes_kernel<R, BITS, DIM, TILES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)bytes);
    return e != cudaSuccess ? e : cu_launch_next(d, codes_kernel<R, BITS, DIM, TILES>, grid, dim3(THREADS), bytes, a);
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
