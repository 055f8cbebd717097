/*
 * Products with a page of evenly spaced codes of 2 or 4 bits, keys per channel and values per token.
 *
 * Both products run on tensor cores in f16, and codes go in as they are: a mask leaves code * 2^(place - 24), a number of
 * f16 below its normal ones, which the product takes exactly; the power of two is made good in the sums. Scales go to the
 * other factor, of which there is far less: keys share a scale per channel, so a page's scales multiply the queries; values
 * share one per row and group of channels, so they multiply the weights. Offsets are products of their own, with the plain
 * queries and weights: ten of a page's 58 at 128 channels. Queries, weights and the scaled ones are pairs of f16 numbers,
 * the second what rounding lost in the first, so the result is that of f32.
 *
 * Queries are the rows of the first product, slots its columns. Then a lane has the weights of just those slots of one
 * reader that it must have for the second product, in which they are columns; nothing is exchanged.
 */
#ifndef KVF_CUDA_ATTENTION_CODES_H
#define KVF_CUDA_ATTENTION_CODES_H

#include "packed.cuh"
#include "ptx_hopper.cuh"

/*
 * Bytes of a page of which the keys' codes come first, and of one at most, with groups of 16 channels. Offsets come before
 * scales, positions after the values' ones.
 */
template <int BITS, int DIM>
struct page_of {
    static constexpr int KEYS = DIM * 4 * BITS, CODES = KEYS + 4 * DIM, PARAMS = CODES + DIM * 4 * BITS;
    static constexpr int BYTES = (PARAMS + KVF_PAGE_ROWS * (DIM / 16) * 4 + KVF_PAGE_ROWS * 4 + 63) / 64 * 64;
};

static __device__ __forceinline__ uint32_t load_word(const uint8_t *at) { return *(const uint32_t *)at; }
static __device__ __forceinline__ uint32_t load_short(const uint8_t *at) { return *(const uint16_t *)at; }

/* Products of two f16 each, and what the rounding of p = a * b lost. */
static __device__ __forceinline__ uint32_t product(uint32_t a, uint32_t b) { return fma_half2(a, b, 0x80008000u); }
static __device__ __forceinline__ uint32_t lost(uint32_t a, uint32_t b, uint32_t p) { return fma_half2(a, b, p ^ 0x80008000u); }

/* What rounding to a pair of f16 lost. */
static __device__ __forceinline__ uint32_t rest_pair(float x, float y, uint32_t rounded) {
    __half2 pair;
    memcpy(&pair, &rounded, sizeof pair);
    const float2 f = __half22float2(pair);
    return pack_pair(x - f.x, y - f.y, __half());
}

/* How the 16 bytes of a slot's values are shifted about. */
template <int BITS, int DIM>
static __device__ __forceinline__ uint32_t value_shift(uint32_t slot) {
    if (BITS == 4) return DIM == 64 ? slot / 16 : slot / 16 * 2 + slot / 2 % 2;
    return DIM == 64 ? slot / 8 * 2 : slot / 16 * 4 + slot / 8 % 2;
}

/*
 * Where the 16 bytes i of a page lie in shared memory. Codes are shifted about so that what is looked at together lies in
 * different banks: eight lines of a matrix, or the lines of keys of 2 bits that the four lanes of one g take, 8 apart.
 */
template <int BITS, int DIM>
static __device__ __forceinline__ uint32_t place_of(uint32_t i) {
    typedef page_of<BITS, DIM> page;
    constexpr uint32_t LINE = DIM * BITS / 128; /* of values */
    if (i < page::KEYS / 16) return i ^ (BITS == 4 ? i / 8 % 4 * 2 : i / 8 % 2);
    if (i < page::CODES / 16 || i >= page::PARAMS / 16) return i;
    return i ^ value_shift<BITS, DIM>((i - page::CODES / 16) / LINE);
}

/* Four codes of two bits of two words, byte `byte`, side by side; bytes 1 and 3 are masked away. */
static __device__ __forceinline__ uint32_t side_by_side(uint32_t a, uint32_t b, uint32_t byte) {
    return __byte_perm(a, b, 0x4400u + 0x1111u * byte);
}

/* Code j of four, of both sources, times 2^-power(j). */
template <int BITS>
static __device__ __forceinline__ uint32_t element(uint32_t x, int j) {
    if (BITS == 4 && j >= 2) x >>= 8;
    return x & (BITS == 4 ? 0x000f000fu << j % 2 * 4 : 0x00030003u << 2 * j);
}
template <int BITS>
static __device__ __forceinline__ int power(int j) {
    return 24 - (BITS == 4 ? j % 2 * 4 : 2 * j);
}

/* Slot that is code j of a column's four. */
template <int BITS>
static __device__ __forceinline__ uint32_t slot_of(uint32_t g, uint32_t j) {
    if (BITS == 4) return g / 4 * 16 + (g % 2 * 4 + j) * 2 + g / 2 % 2;
    return 4 * g + j;
}
/* Channel of 32 that is code j of a row's four. */
template <int BITS>
static __device__ __forceinline__ uint32_t channel_of(uint32_t g, uint32_t j) {
    return BITS == 4 ? slot_of<4>(g, j) : g % 4 * 8 + g / 4 * 4 + j;
}

/*
 * c[j] += products of the queries with code j of each column's four, base += those with the offsets. Pair p of h of product
 * i is the lane's channels 32 (i / 2) + 8 t + 2 p and the next, p = 2 (i % 2) + h. queries: shared, the lane's
 * part of product i at 32 i, its words rows g and g + 8 of h = 0, then of h = 1
 */
template <int BITS, int DIM>
static __device__ __forceinline__ void add_keys(float c[4][4], float base[4], const uint8_t *page,
                                                const uint4 *queries, uint32_t g, uint32_t t) {
    const uint8_t *params = page + page_of<BITS, DIM>::KEYS + 16 * t;
    /* 4 bits: the line that the lane gives to load_matrix: matrix p has the lanes' pairs p, place_of them */
    const uint32_t row = threadIdx.x % 8, matrix = threadIdx.x / 8 % 4;
    const uint4 *line = (const uint4 *)page + row / 2 * 8 + 2 * (matrix ^ row / 2) + row % 2;
    uint32_t pair[4];
#pragma unroll
    for (int i = 0; i < DIM / 16; i++) {
        if (BITS == 4 && i % 2 == 0) load_matrix_turned(pair, line + i / 2 * 32);
        const uint4 offsets = *(const uint4 *)(params + i / 2 * 64), scales = *(const uint4 *)(params + 2 * DIM + i / 2 * 64);
        const uint32_t offset[4] = {offsets.x, offsets.y, offsets.z, offsets.w};
        const uint32_t scale[4] = {scales.x, scales.y, scales.z, scales.w};
        const uint4 words = queries[i * 32];
        const uint32_t query[4] = {words.x, words.y, words.z, words.w};
        uint32_t x[2][4], scaled[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int p = i % 2 * 2 + h;
            if (BITS == 2) { /* place_of the pair's 16 bytes */
                const uint8_t *codes = page + (i / 2 * 16 + 4 * t + (p ^ t / 2)) * 16 + g / 4 * 4;
                pair[p] = side_by_side(load_word(codes), load_word(codes + 8), g % 4);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) x[h][j] = element<BITS>(pair[p], j);
            scaled[2 * h] = product(query[2 * h], scale[p]);
            scaled[2 * h + 1] = fma_half2(query[2 * h + 1], scale[p], lost(query[2 * h], scale[p], scaled[2 * h]));
        }
        mma_16x8x16(base, query, offset[i % 2 * 2], offset[i % 2 * 2 + 1], __half());
#pragma unroll
        for (int j = 0; j < 4; j++) mma_16x8x16(c[j], scaled, x[0][j], x[1][j], __half());
    }
}

/*
 * acc[2 b + m] += weighted codes of channels 32 b to 32 b + 31: rows g and g + 8 are codes 2 m and 2 m + 1 of the lane's four,
 * columns readers as for the weights. base += weighted offsets: row g is group g of channels. hi, rest: weights of the lane's
 * slots 4 k + 2 h and the next in pair h of product k, and what rounding lost; with up to four readers columns 4 to 7 are
 * the rest of 0 to 3. GROUP: channels that share a scale; 16: any multiple of it, `group`.
 */
template <int BITS, int DIM, int TILES, int GROUP>
static __device__ __forceinline__ void add_values(float acc[DIM / 16][4], float base[4], const uint8_t *page,
                                                  const uint32_t hi[2][2], const uint32_t rest[2][2], uint32_t group,
                                                  uint32_t n_group, uint32_t g, uint32_t t) {
    constexpr uint32_t LINE = DIM * BITS / 128, STEP = BITS == 4 ? 2 : 1; /* LINE: in 16 bytes */
    constexpr int COLUMNS = TILES; /* products with weights, and with the rest */
    const uint32_t first = BITS == 4 ? t / 2 * 16 + t % 2 : 8 * t; /* of the lane's slots, STEP apart */
    const uint8_t *offsets = page + page_of<BITS, DIM>::PARAMS + first * 2 * n_group;
    const uint8_t *scales = offsets + 2 * KVF_PAGE_ROWS * n_group;
    const uint32_t stride = STEP * 2 * n_group;
    const auto columns = [&](uint32_t w[COLUMNS], uint32_t a, uint32_t b) {
        if (COLUMNS == 1) w[0] = g < 4 ? a : b;
        else w[0] = a, w[COLUMNS - 1] = b;
    };
    {
        const uint8_t *own = offsets + 2 * min(g, n_group - 1);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t a[4] = {}, w[2][COLUMNS];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const uint8_t *at = own + (4 * k + 2 * h) * stride;
                a[2 * h] = __byte_perm(load_short(at), load_short(at + stride), 0x5410);
                columns(w[h], hi[k][h], rest[k][h]);
            }
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) mma_16x8x16(base, a, w[0][j], w[1][j], __half());
        }
    }
    constexpr int HALVES = GROUP == 16 ? 2 : 1; /* groups of 32 channels, each of half the lanes */
    uint32_t raw[8][2];
    if (GROUP != 16) {
#pragma unroll
        for (int u = 0; u < 8; u++) {
            if (DIM / GROUP == 4) {
                const uint2 four = *(const uint2 *)(scales + u * stride);
                raw[u][0] = four.x, raw[u][1] = four.y;
            } else {
                raw[u][0] = DIM / GROUP == 2 ? load_word(scales + u * stride) : load_short(scales + u * stride);
            }
        }
    }
    /*
     * The line that the lane gives to load_matrix: matrix i has the lanes' slots 2 i and 2 i + 1. Its columns are 4 codes of 4
     * bits, or 8 of 2 bits: those of 32 channels and those of the next 32, and the lanes of either half exchange them.
     */
    const uint32_t row = threadIdx.x % 8, matrix = threadIdx.x / 8 % 4;
    const uint32_t line = BITS == 4 ? row / 4 * 16 + row / 2 % 2 + 4 * matrix + row % 2 * 2 : row / 2 * 8 + 2 * matrix + row % 2;
    const uint4 *lines = (const uint4 *)(page + page_of<BITS, DIM>::CODES);
    const uint32_t place = line * LINE ^ value_shift<BITS, DIM>(line);
    const uint32_t first_half = g < 4 ? 0x4240u : 0x4745u, second_half = g < 4 ? 0x4644u : 0x4341u;
    uint32_t pair[4], other[4];
    uint32_t w[HALVES][2][2][COLUMNS];
#pragma unroll
    for (int b = 0; b < DIM / 32; b++) {
        if (GROUP == 16 || b * 32 % GROUP == 0) {
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                const uint32_t index = GROUP == 16 ? (32u * b + 16u * half) / group : b * 32 / GROUP;
#pragma unroll
                for (int k = 0; k < 2; k++) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const int u = 4 * k + 2 * h;
                        uint32_t scale;
                        if (GROUP == 16) {
                            const uint8_t *at = scales + 2 * index + u * stride;
                            scale = __byte_perm(load_short(at), load_short(at + stride), 0x5410);
                        } else {
                            scale = __byte_perm(raw[u][index / 2], raw[u + 1][index / 2], index % 2 == 0 ? 0x5410 : 0x7632);
                        }
                        const uint32_t p = product(hi[k][h], scale);
                        columns(w[half][k][h], p, fma_half2(rest[k][h], scale, lost(hi[k][h], scale, p)));
                    }
                }
            }
        }
        if (BITS == 4 || b % 2 == 0) load_matrix_turned(pair, lines + (place ^ (BITS == 4 ? b : b / 2)));
        uint32_t x[2][2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (BITS == 2 && b % 2 == 0) other[i] = __shfl_xor_sync(0xffffffffu, pair[i], 16);
            const uint32_t both = BITS == 4 ? pair[i] : __byte_perm(pair[i], other[i], b % 2 == 0 ? first_half : second_half);
#pragma unroll
            for (int j = 0; j < 4; j++) x[i / 2][i % 2][j] = element<BITS>(both, j);
        }
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const uint32_t own = HALVES == 1 || channel_of<BITS>(g, 0) / 16 == (uint32_t)half ? 0xffffffffu : 0;
#pragma unroll
            for (int m = 0; m < 2; m++) {
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    const uint32_t values[4] = {x[k][0][2 * m] & own, x[k][0][2 * m + 1] & own, x[k][1][2 * m] & own,
                                                x[k][1][2 * m + 1] & own};
#pragma unroll
                    for (int j = 0; j < COLUMNS; j++) {
                        mma_16x8x16(acc[2 * b + m], values, w[half][k][0][j], w[half][k][1][j], __half());
                    }
                }
            }
        }
    }
}

#endif
