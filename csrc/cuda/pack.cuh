/*
 * The steps of filling a packed page, by all threads of a block; used to fill pages and to fit what they share. Offsets,
 * scales, codes and places follow csrc/cpu/pack.c operation by operation, so both builds fill pages with the same bytes
 * except for what sums or rotation precede.
 */
#ifndef KVF_CUDA_PACK_H
#define KVF_CUDA_PACK_H

#include "packed.cuh"

enum { PACK_THREADS = 256 };

/* What one part of a page is made from, in shared memory. Elements (line, lane) at line * stride + lane. */
typedef struct source {
    const kv_part *part;
    float *x;
    uint8_t *mark;    /* 1: stored as it is, takes no part in scales and codes */
    float *low, *high; /* [n_param] */
    uint32_t stride;   /* ld + 1, so that neighbouring lines lie in different banks */
    uint32_t n_line, n_lane; /* that are there */
} source;

/* Elements of a part with the ends of its lines, at most; a multiple of 4. */
static inline __host__ __device__ size_t source_elements(uint32_t head_dim) {
    const size_t channels = (head_dim + KV_RUN - 1) / KV_RUN * KV_RUN;
    return channels * KVF_PAGE_ROWS + (channels > KVF_PAGE_ROWS ? channels : KVF_PAGE_ROWS);
}
/* Shared memory of a source for any format. */
static inline __host__ __device__ size_t source_bytes(uint32_t head_dim) {
    return source_elements(head_dim) * (sizeof(float) + 1) + 2 * 512 * sizeof(float);
}

static __device__ __forceinline__ source source_of(const kv_part *part, uint32_t head_dim, uint32_t n_row, float *shared) {
    source s;
    s.part = part;
    s.x = shared;
    s.low = shared + source_elements(head_dim);
    s.high = s.low + 512;
    s.mark = (uint8_t *)(s.high + 512);
    s.stride = part->ld + 1;
    s.n_line = part->keys ? part->n_line : n_row;
    s.n_lane = part->keys ? n_row : part->n_lane;
    return s;
}

/* Element (line, lane) of an index that runs over all lines and ld. */
static __device__ __forceinline__ uint32_t line_of(const source &s, uint32_t i) { return i / s.part->ld; }
static __device__ __forceinline__ uint32_t lane_of(const source &s, uint32_t i) { return i % s.part->ld; }
static __device__ __forceinline__ uint32_t there(const source &s, uint32_t line, uint32_t lane) {
    return line < s.n_line && lane < s.n_lane;
}

/* Reads the first n_row slots of a plain page: the kept channels of the keys (channels NULL: all), turned back, or the values. */
template <typename R>
static __device__ void read_source(const source &s, const cu_format &f, const void *page, const uint16_t *channels,
                                   uint32_t n_row) {
    const uint32_t dim = f.head_dim;
    const kv_part &p = *s.part;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.n_line * p.ld; i += blockDim.x) {
        /* neighbouring threads read neighbouring channels */
        const uint32_t slot = p.keys ? i / p.n_line : i / p.ld, channel = p.keys ? i % p.n_line : i % p.ld;
        const uint32_t line = p.keys ? channel : slot, lane = p.keys ? slot : channel;
        float x = 0;
        if (there(s, line, lane)) {
            const R *from = p.keys ? page_keys<R>((void *)page) : page_values<R>((void *)page, dim);
            x = to_f32(from[slot * dim + (p.keys && channels != NULL ? channels[channel] : channel)]);
        }
        s.x[line * s.stride + lane] = x;
    }
    __syncthreads();
    if (!p.keys || f.low == NULL) return;
    const uint32_t *positions = page_positions<R>((void *)page, dim);
    const uint32_t half = dim / 2;
    for (uint32_t k = threadIdx.x; k < n_row * half; k += blockDim.x) {
        const uint32_t slot = k / half, i = k % half;
        const float2 turn = turn_of(f, positions[slot], i);
        float *x = s.x + i * s.stride + slot, *y = s.x + (i + half) * s.stride + slot;
        const float a = *x, b = *y;
        *x = a * turn.x + b * turn.y;
        *y = b * turn.x - a * turn.y;
    }
    __syncthreads();
}

/* ---- Numbers ---- */

static __device__ __forceinline__ uint16_t half_bits(float x) {
    const __half h = __float2half_rn(x);
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}
static __device__ __forceinline__ float bits_half(uint16_t bits) {
    __half h;
    memcpy(&h, &bits, sizeof bits);
    return to_f32(h);
}

/* The highest f16 not above x, or the lowest not below it; within the finite range. */
static __device__ __forceinline__ uint16_t half_of(float x, bool up) {
    x = x > 65504.0f ? 65504.0f : x > -65504.0f ? x : -65504.0f;
    const uint16_t h = half_bits(x);
    const float y = bits_half(h);
    if ((up && y >= x) || (!up && y <= x)) return h;
    if ((h & 0x7fffu) == 0) return up ? 0x0001u : 0x8001u;
    return (uint16_t)(((h & 0x8000u) != 0) == up ? h - 1 : h + 1);
}

/* ---- Groups ---- */

/* Lowest and highest element of each group, marked ones left out; 0 where a group has none. A thread per group. */
static __device__ __forceinline__ void bounds_of(const source &s) {
    const kv_part &p = *s.part;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.n_param; i += blockDim.x) {
        float low = INFINITY, high = -INFINITY;
        const uint32_t major = p.by_line ? i / p.n_group : i / p.ld * p.group; /* the line, or the first one of them */
        const uint32_t minor = p.by_line ? i % p.n_group * p.group : i % p.ld; /* the first lane, or the lane */
        for (uint32_t k = 0; k < p.group; k++) {
            const uint32_t line = p.by_line ? major : major + k, lane = p.by_line ? minor + k : minor;
            if (!there(s, line, lane)) break;
            const uint32_t at = line * s.stride + lane;
            if (s.mark[at] != 0) continue;
            const float x = s.x[at];
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        if (!(low <= high)) low = high = 0;
        s.low[i] = low;
        s.high[i] = high;
    }
    __syncthreads();
}

/* ---- Outliers ---- */

/* Sum over the threads before this one, and over all. */
static __device__ __forceinline__ uint32_t block_before(uint32_t x, uint32_t *all) {
    __shared__ uint32_t part[PACK_THREADS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = x;
#pragma unroll
    for (uint32_t step = 1; step < 32; step *= 2) {
        const uint32_t from = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += from;
    }
    __syncthreads();
    if (lane == 31) part[warp] = sum;
    __syncthreads();
    uint32_t before = sum - x;
    *all = 0;
    for (uint32_t w = 0; w < PACK_THREADS / 32; w++) {
        if (w < warp) before += part[w];
        *all += part[w];
    }
    return before;
}

/* Marks the n_outlier elements farthest from the middle of their groups, and writes them: ascending by place. */
static __device__ void put_outliers(const source &s, uint32_t dtype, uint8_t *page) {
    const kv_part &p = *s.part;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.n_line * s.stride; i += blockDim.x) s.mark[i] = 0;
    if (p.n_outlier == 0) return;
    bounds_of(s);
    const uint32_t n_channel = p.keys ? p.n_line : p.n_lane;
    /* Bits of the distance of place [channel][slot], + 1; 0 for none. Those of floats that are not negative are in order. */
    const auto distance = [&](uint32_t place) -> uint32_t {
        const uint32_t channel = place / KVF_PAGE_ROWS, slot = place % KVF_PAGE_ROWS;
        const uint32_t line = p.keys ? channel : slot, lane = p.keys ? slot : channel;
        if (!there(s, line, lane)) return 0;
        const uint32_t g = param_of(p, line, lane);
        const float middle = __fmul_rn(0.5f, __fadd_rn(s.low[g], s.high[g]));
        return __float_as_uint(fabsf(__fadd_rn(s.x[line * s.stride + lane], -middle))) + 1;
    };
    /* The n_outlier-th highest of them, bit by bit from above. */
    uint32_t limit = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        uint32_t count = 0, all;
        for (uint32_t i = threadIdx.x; i < n_channel * KVF_PAGE_ROWS; i += blockDim.x) count += distance(i) >= (limit | bit);
        block_before(count, &all);
        if (all >= p.n_outlier) limit |= bit;
    }
    /* Those above it, and the first ones of those at it; a thread owns a channel, so places ascend with threads. */
    if (limit == 0) limit = 1; /* fewer elements than outliers: all of them */
    uint32_t above = 0, equal = 0, all_above, all_equal, written = 0;
    const uint32_t channel = threadIdx.x;
    for (uint32_t slot = 0; slot < KVF_PAGE_ROWS && channel < n_channel; slot++) {
        const uint32_t d = distance(channel * KVF_PAGE_ROWS + slot);
        above += d > limit;
        equal += d == limit;
    }
    block_before(above, &all_above);
    uint32_t rank = block_before(equal, &all_equal); /* of this channel's first one at the limit */
    const uint32_t wanted = p.n_outlier - all_above;
    uint32_t chosen = above + (rank >= wanted ? 0 : min(equal, wanted - rank)), all_chosen;
    uint32_t to = block_before(chosen, &all_chosen);
    uint16_t *places = (uint16_t *)(page + p.places);
    for (uint32_t slot = 0; slot < KVF_PAGE_ROWS && channel < n_channel; slot++) {
        const uint32_t place = channel * KVF_PAGE_ROWS + slot, d = distance(place);
        if (d < limit || (d == limit && rank++ >= wanted)) continue;
        const uint32_t at = p.keys ? channel * s.stride + slot : slot * s.stride + channel;
        places[to + written] = (uint16_t)place;
        store_as(page + p.outliers, dtype, to + written, s.x[at]);
        s.mark[at] = 1;
        written++;
    }
    for (uint32_t i = all_chosen + threadIdx.x; i < p.n_outlier; i += blockDim.x) {
        places[i] = KV_NO_PLACE;
        store_as(page + p.outliers, dtype, i, 0);
    }
    __syncthreads();
}

/* ---- Scales ---- */

/* Scales of all groups into the page, and as f32 into low (offsets) and high (scales). */
static __device__ void put_scales(const source &s, uint8_t *page) {
    const kv_part &p = *s.part;
    const float steps = (float)((1u << p.bits) - 1);
    uint16_t *offsets = (uint16_t *)(page + p.offsets), *scales = (uint16_t *)(page + p.scales);
    bounds_of(s);
    for (uint32_t i = threadIdx.x; i < p.n_param; i += blockDim.x) {
        const float low = s.low[i], high = s.high[i];
        float reach;
        uint16_t offset;
        if (p.fitted) { /* levels lie in [-1, 1] */
            offset = half_of(__fadd_rn(__fmul_rn(0.5f, low), __fmul_rn(0.5f, high)), false);
            const float middle = bits_half(offset);
            reach = high - middle > middle - low ? high - middle : middle - low;
        } else {
            offset = half_of(low, false);
            reach = (high - bits_half(offset)) / steps;
        }
        const uint16_t scale = half_of(reach > 0 ? reach : 0, true);
        offsets[i] = offset;
        scales[i] = scale;
        s.low[i] = bits_half(offset);
        s.high[i] = bits_half(scale);
    }
    __syncthreads();
}

/* Where an element lies between the bounds of its group, after put_scales. */
static __device__ __forceinline__ float place_of(const source &s, uint32_t line, uint32_t lane) {
    const uint32_t g = param_of(*s.part, line, lane);
    return s.high[g] > 0 ? __fadd_rn(s.x[line * s.stride + lane], -s.low[g]) / s.high[g] : 0.0f;
}

/* ---- Codes ---- */

/* Code of an element that is there and not marked, after put_scales; between: middles between levels. */
static __device__ __forceinline__ uint32_t code_of(const source &s, const float *between, uint32_t line, uint32_t lane) {
    const kv_part &p = *s.part;
    const float t = place_of(s, line, lane), top = (float)((1u << p.bits) - 1);
    if (!p.fitted) return (uint32_t)rintf(t > 0 ? (t < top ? t : top) : 0.0f); /* half to even; NaN is 0 */
    uint32_t code = 0;
    for (uint32_t k = 0; k + 1 < 1u << p.bits; k++) code += t > between[k];
    return code;
}

/* Middles between the frame's levels, for code_of; by all threads, which must meet afterwards. */
static __device__ __forceinline__ void read_between(const kv_part &p, const uint8_t *frame, float between[16]) {
    if (!p.fitted || threadIdx.x + 1 >= 1u << p.bits) return;
    const float *levels = (const float *)(frame + p.levels);
    between[threadIdx.x] = __fmul_rn(0.5f, __fadd_rn(levels[threadIdx.x], levels[threadIdx.x + 1]));
}

/* x becomes what the codes lose; 0 for marked elements and those that are not there. */
static __device__ void to_loss(const source &s, const uint8_t *frame, const float *between) {
    const kv_part &p = *s.part;
    const float *levels = (const float *)(frame + p.levels);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < p.n_line * p.ld; i += blockDim.x) {
        const uint32_t line = line_of(s, i), lane = lane_of(s, i), at = line * s.stride + lane;
        float loss = 0;
        if (there(s, line, lane) && s.mark[at] == 0) {
            const uint32_t code = code_of(s, between, line, lane), g = param_of(p, line, lane);
            loss = s.x[at] - fmaf(s.high[g], p.fitted ? levels[code] : (float)code, s.low[g]);
        }
        s.x[at] = loss;
    }
    __syncthreads();
}

#endif
