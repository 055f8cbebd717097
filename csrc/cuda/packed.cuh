/*
 * Packed pages on the device; their layout is that of core/packed.h.
 *
 * Device copies of tables count rows by slots: where the last packed page is only partly filled, its empty slots count as
 * rows that nobody sees, so that row / KVF_PAGE_ROWS is a row's page whatever the table holds.
 */
#ifndef KVF_CUDA_PACKED_H
#define KVF_CUDA_PACKED_H

#include "numbers.cuh"

extern "C" {
#include "../core/packed.h"
}

/* ---- Formats ---- */

/*
 * Cosines and sines of all positions by three small tables, as a position is top * 32768 + middle * 32 + low and angles
 * add up; each is [2][n][half], cosines first.
 */
enum { CU_LOW_TURNS = KVF_PAGE_ROWS, CU_MIDDLE_TURNS = 1024, CU_TOP_TURNS = KV_MAX_TOKEN / CU_LOW_TURNS / CU_MIDDLE_TURNS };

/* A format as kernels see it; kv_format.impl holds its address in device memory. */
struct cu_format {
    kv_layout layout;
    const float *low, *middle, *top; /* NULL: keys are packed as they were rotated */
    uint32_t head_dim;
    uint32_t dtype;  /* of rows */
    uint32_t kernel; /* cu_packed_kernel */
};

/* kv_format.impl */
typedef struct cu_format_impl {
    cu_format *device;
    float *turns; /* NULL: none */
    uint32_t kernel;
} cu_format_impl;

static inline const cu_format *cu_format_of(const kv_format *f) { return ((const cu_format_impl *)f->impl)->device; }

/* ---- Rotation ---- */

/* Cosine and sine of pair i at a position. */
static __device__ __forceinline__ float2 turn_of(const cu_format &f, uint32_t position, uint32_t i) {
    const uint32_t half = f.head_dim / 2;
    const uint32_t l = position % CU_LOW_TURNS, m = position / CU_LOW_TURNS % CU_MIDDLE_TURNS;
    const uint32_t t = position / (CU_LOW_TURNS * CU_MIDDLE_TURNS);
    const float lc = f.low[l * half + i], ls = f.low[(CU_LOW_TURNS + l) * half + i];
    const float mc = f.middle[m * half + i], ms = f.middle[(CU_MIDDLE_TURNS + m) * half + i];
    const float tc = f.top[t * half + i], ts = f.top[(CU_TOP_TURNS + t) * half + i];
    const float hc = mc * tc - ms * ts, hs = ms * tc + mc * ts;
    return make_float2(hc * lc - hs * ls, hs * lc + hc * ls);
}

/* Turns the keys of a tile of rows by their positions, or back. All threads of the block; they must meet afterwards. */
static __device__ __forceinline__ void turn_rows(float *tile, uint32_t stride, const cu_format &f, const uint32_t *positions,
                                                 uint32_t n_row, bool back) {
    const uint32_t half = f.head_dim / 2;
    for (uint32_t k = threadIdx.x; k < n_row * half; k += blockDim.x) {
        const uint32_t slot = k / half, i = k % half;
        const float2 turn = turn_of(f, positions[slot], i);
        const float s = back ? -turn.y : turn.y;
        float *x = tile + slot * stride + i;
        const float a = x[0], b = x[half];
        x[0] = a * turn.x - b * s;
        x[half] = b * turn.x + a * s;
    }
}

/* ---- Reading ---- */

/* The sixteen codes of a run. */
static __device__ __forceinline__ void read_run(const uint8_t *run, uint32_t bits, uint32_t code[KV_RUN]) {
    uint32_t word[8]; /* 16-bit words, as many as bits */
    for (uint32_t i = 0; i < 8; i++) word[i] = i < bits ? ((const uint16_t *)run)[i] : 0;
    if (bits == 8) {
#pragma unroll
        for (uint32_t i = 0; i < KV_RUN; i++) code[i] = word[i / 2] >> 8 * (i % 2) & 255u;
        return;
    }
    const uint32_t first = word[0] | word[1] << 16, second = word[2] | word[3] << 16;
    if (bits == 4) {
#pragma unroll
        for (uint32_t i = 0; i < KV_RUN; i++) code[i] = (i % 2 == 0 ? first : second) >> i / 2 * 4 & 15u;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < KV_RUN; i++) code[i] = (first >> 2 * i & 3u) | (second >> i & 1u) << 2;
}

/* Parameter that element (line, lane) goes by. */
static __device__ __forceinline__ uint32_t param_of(const kv_part &p, uint32_t line, uint32_t lane) {
    return p.by_line ? line * p.n_group + lane / p.group : line / p.group * p.ld + lane;
}
static __device__ __forceinline__ float half_at(const void *at, uint32_t i) { return to_f32(((const __half *)at)[i]); }

/*
 * One part of a packed page as f32 rows, [slot][channel] at `stride` floats; channels that are not stored are 0. All threads
 * of the block; they meet at the end. An odd stride keeps lanes that hold neighbouring slots in different banks.
 */
static __device__ __forceinline__ void unpack_rows(float *tile, uint32_t stride, const cu_format &f, const uint8_t *page,
                                                   const uint8_t *frame, uint32_t what) {
    const kv_part &p = what == 0 ? f.layout.key : f.layout.value;
    const uint16_t *channels = what == 0 && f.layout.pruned ? (const uint16_t *)frame : NULL;
    const uint32_t bits = p.bits, n_line = p.n_line, n_lane = p.n_lane, dtype = f.dtype;
    if (channels != NULL) {
        for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * stride; i += blockDim.x) tile[i] = 0;
        __syncthreads();
    }
    /* where element (line, lane) goes */
    const auto at = [&](uint32_t line, uint32_t lane) {
        const uint32_t channel = what == 0 ? line : lane, slot = what == 0 ? lane : line;
        return slot * stride + (channels != NULL ? channels[channel] : channel);
    };
    if (bits == 0) {
        for (uint32_t i = threadIdx.x; i < n_line * n_lane; i += blockDim.x) {
            tile[at(i / n_lane, i % n_lane)] = load_as(page + p.codes, dtype, i);
        }
        __syncthreads();
        return;
    }
    const uint32_t n_run = p.ld / KV_RUN, rank = p.rank, n_channel = what == 0 ? n_line : n_lane;
    const float *levels = (const float *)(frame + p.levels), *basis = (const float *)(frame + p.basis);
    const uint8_t *left = page + p.left;
    for (uint32_t i = threadIdx.x; i < n_line * n_run; i += blockDim.x) {
        const uint32_t line = i / n_run, lane0 = i % n_run * KV_RUN;
        uint32_t code[KV_RUN];
        read_run(page + p.codes + (size_t)i * 2 * bits, bits, code);
        float offset = 0, scale = 0;
        if (p.by_line) { /* groups are whole runs */
            offset = half_at(page + p.offsets, param_of(p, line, lane0));
            scale = half_at(page + p.scales, param_of(p, line, lane0));
        }
#pragma unroll
        for (uint32_t k = 0; k < KV_RUN; k++) {
            const uint32_t lane = lane0 + k;
            if (lane >= n_lane) break;
            if (!p.by_line) {
                offset = half_at(page + p.offsets, param_of(p, line, lane));
                scale = half_at(page + p.scales, param_of(p, line, lane));
            }
            float x = fmaf(scale, p.fitted ? levels[code[k]] : (float)code[k], offset);
            const uint32_t channel = what == 0 ? line : lane, slot = what == 0 ? lane : line;
            for (uint32_t r = 0; r < rank; r++) {
                x = fmaf(half_at(left, r * KVF_PAGE_ROWS + slot), basis[(size_t)r * n_channel + channel], x);
            }
            tile[at(line, lane)] = x;
        }
    }
    __syncthreads();
    if (p.n_outlier > 0) {
        const uint16_t *places = (const uint16_t *)(page + p.places);
        for (uint32_t i = threadIdx.x; i < p.n_outlier; i += blockDim.x) {
            const uint32_t place = places[i];
            if (place == KV_NO_PLACE) continue;
            const uint32_t channel = place / KVF_PAGE_ROWS, slot = place % KVF_PAGE_ROWS;
            tile[slot * stride + (channels != NULL ? channels[channel] : channel)] = load_as(page + p.outliers, dtype, i);
        }
        __syncthreads();
    }
    if (what == 0 && f.low != NULL) {
        turn_rows(tile, stride, f, (const uint32_t *)(page + f.layout.positions), KVF_PAGE_ROWS, false);
        __syncthreads();
    }
}

/* Code i of a run. */
static __device__ __forceinline__ uint32_t code_at(const uint8_t *run, uint32_t bits, uint32_t i) {
    if (bits == 8) return run[i];
    if (bits == 4) return run[i % 2 * 4 + i / 4] >> i / 2 % 2 * 4 & 15u;
    return (run[i / 4] >> i % 4 * 2 & 3u) | (bits == 3 ? (uint32_t)(run[4 + i / 8] >> i % 8 & 1) << 2 : 0u);
}

/* One element of the keys as it is stored, of one of the channels that are; for who needs few of them. */
static __device__ inline float stored_key(const cu_format &f, const uint8_t *page, const uint8_t *frame, uint32_t slot, uint32_t channel) {
    const kv_part &p = f.layout.key;
    if (p.bits == 0) return load_as(page + p.codes, f.dtype, (size_t)channel * p.n_lane + slot);
    const uint16_t *places = (const uint16_t *)(page + p.places);
    const uint32_t place = channel * KVF_PAGE_ROWS + slot;
    uint32_t low = 0, high = p.n_outlier;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (places[mid] < place) low = mid + 1;
        else high = mid;
    }
    if (low < p.n_outlier && places[low] == place) return load_as(page + p.outliers, f.dtype, low);
    const uint8_t *run = page + p.codes + (channel * (p.ld / KV_RUN) + slot / KV_RUN) * 2 * p.bits;
    const uint32_t code = code_at(run, p.bits, slot % KV_RUN), g = param_of(p, channel, slot);
    const float level = p.fitted ? ((const float *)(frame + p.levels))[code] : (float)code;
    float x = fmaf(half_at(page + p.scales, g), level, half_at(page + p.offsets, g));
    for (uint32_t r = 0; r < p.rank; r++) {
        x = fmaf(half_at(page + p.left, r * KVF_PAGE_ROWS + slot), ((const float *)(frame + p.basis))[r * p.n_line + channel], x);
    }
    return x;
}

/* The same as attention sees it, of any channel. */
static __device__ inline float packed_key(const cu_format &f, const uint8_t *page, const uint8_t *frame, uint32_t slot, uint32_t channel) {
    if (f.layout.pruned) {
        const uint16_t *channels = (const uint16_t *)frame;
        uint32_t i = 0;
        while (i < f.layout.n_channel && channels[i] < channel) i++;
        return i < f.layout.n_channel && channels[i] == channel ? stored_key(f, page, frame, slot, i) : 0.0f;
    }
    if (f.low == NULL) return stored_key(f, page, frame, slot, channel);
    const uint32_t half = f.head_dim / 2, i = channel % half;
    const float2 turn = turn_of(f, ((const uint32_t *)(page + f.layout.positions))[slot], i);
    const float a = stored_key(f, page, frame, slot, i), b = stored_key(f, page, frame, slot, i + half);
    return channel < half ? a * turn.x - b * turn.y : b * turn.x + a * turn.y;
}

/* A plain page's rows as unpack_rows makes them; only its first n rows, zeros behind them. */
template <typename R>
static __device__ __forceinline__ void plain_rows(float *tile, uint32_t stride, const void *page, uint32_t head_dim,
                                                  uint32_t n, uint32_t what) {
    const R *from = what == 0 ? page_keys<R>((void *)page) : page_values<R>((void *)page, head_dim);
    for (uint32_t i = threadIdx.x; i < KVF_PAGE_ROWS * head_dim; i += blockDim.x) {
        const uint32_t slot = i / head_dim;
        tile[slot * stride + i % head_dim] = slot < n ? to_f32(from[i]) : 0.0f;
    }
    __syncthreads();
}

static __device__ __forceinline__ uint32_t packed_pages(uint32_t packed) { return (packed + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS; }

#endif
