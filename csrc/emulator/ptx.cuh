/* The instructions of csrc/cuda/ptx.cuh, carried out by exchanging operands within the warp. */
#ifndef KVF_CUDA_PTX_H
#define KVF_CUDA_PTX_H

#include <vector>

#include "cuda.h"

static inline float ptx_f32(uint16_t bits, __nv_bfloat16) { return __bfloat162float({bits}); }
static inline float ptx_f32(uint16_t bits, __half) { return __half2float({bits}); }

/* Element i (0 or 1) of a pair. */
template <typename W>
static inline float ptx_element(uint32_t pair, uint32_t i) {
    return ptx_f32((uint16_t)(pair >> 16 * i), W());
}

template <typename W>
static inline void mma_16x8x16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, W) {
    const uint32_t lane = emulator::lane_id(), g = lane / 4, t = lane % 4;
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    emulator::exchange *e = emulator::next_exchange();
    memcpy(e->lane[lane], mine, sizeof mine);
    emulator::warp_barrier();
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t row = g + i / 2 * 8, col = 2 * t + i % 2;
        double sum = 0;
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t pair;
            memcpy(&pair, e->lane[row % 8 * 4 + k % 8 / 2] + 4 * (row / 8 + k / 8 * 2), 4);
            const float x = ptx_element<W>(pair, k % 2);
            memcpy(&pair, e->lane[col * 4 + k % 8 / 2] + 4 * (4 + k / 8), 4);
            sum += (double)x * ptx_element<W>(pair, k % 2);
        }
        c[i] = (float)(c[i] + sum);
    }
}

static inline uint32_t fma_half2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (uint32_t i = 0; i < 2; i++) {
        const double x = ptx_element<__half>(a, i), y = ptx_element<__half>(b, i), z = ptx_element<__half>(c, i);
        d |= (uint32_t)__float2half_rn((float)(x * y + z)).bits << 16 * i;
    }
    return d;
}

static inline uint32_t add_in_order(uint32_t *to, uint32_t x) { return atomicAdd(to, x); }

static inline uint4 load_rows(const void *at) {
    if ((uintptr_t)at % 16 != 0) __builtin_trap();
    return *(const uint4 *)at;
}

static inline void wait_previous(void) {}
static inline void allow_next(void) {}

/* Addresses go to the other lanes; matrix i lies in what lanes 8 i to 8 i + 7 point to. */
static inline void ptx_load_matrix(uint32_t r[4], const uint4 *row, bool turned) {
    const uint32_t lane = emulator::lane_id();
    emulator::exchange *e = emulator::next_exchange();
    memcpy(e->lane[lane], row, sizeof *row);
    emulator::warp_barrier();
    for (uint32_t i = 0; i < 4; i++) {
        uint16_t pair[2];
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t a = lane / 4, b = 2 * (lane % 4) + k;
            memcpy(&pair[k], e->lane[8 * i + (turned ? b : a)] + 2 * (turned ? a : b), 2);
        }
        memcpy(&r[i], pair, sizeof pair);
    }
}
static inline void load_matrix(uint32_t r[4], const uint4 *row) { ptx_load_matrix(r, row, false); }
static inline void load_matrix_turned(uint32_t r[4], const uint4 *row) { ptx_load_matrix(r, row, true); }

/* Copies happen as late as they may. Uncommitted ones are not waited for. */
struct ptx_copy {
    uint4 *to;
    const void *from;
    bool inside;
    uint32_t group; /* number of its commit group, 0 before */
};
static std::vector<ptx_copy> ptx_copies[1024];
static uint32_t ptx_copy_groups[1024];
static inline void copy_async(uint4 *to, const void *from, bool inside) {
    if ((uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0) __builtin_trap();
    ptx_copies[threadIdx.x].push_back({to, from, inside, 0});
}
static inline void copy_async(uint4 *to, const void *from) { copy_async(to, from, true); }
static inline void copy_async_if(uint4 *to, const void *from, bool inside, bool wanted) {
    if (wanted) copy_async(to, from, inside);
}
static inline void copy_commit(void) {
    const uint32_t group = ++ptx_copy_groups[threadIdx.x];
    for (ptx_copy &c : ptx_copies[threadIdx.x]) {
        if (c.group == 0) c.group = group;
    }
}
/* This thread's copies have landed where products do not see them before a fence. */
static bool ptx_unfenced[1024];
template <int N>
static inline void copy_wait_but(void) {
    std::vector<ptx_copy> left;
    ptx_unfenced[threadIdx.x] = true;
    for (const ptx_copy &c : ptx_copies[threadIdx.x]) {
        if (c.group == 0 || c.group + N > ptx_copy_groups[threadIdx.x]) left.push_back(c);
        else *c.to = c.inside ? *(const uint4 *)c.from : uint4{0, 0, 0, 0};
    }
    ptx_copies[threadIdx.x].swap(left);
}
static inline void copy_wait(void) { copy_wait_but<0>(); }

#endif
