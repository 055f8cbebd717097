/*
 * The instructions of csrc/cuda/ptx_hopper.cuh. Products happen as late as they may: when a thread waits for them.
 * Descriptors are taken apart bit by bit and addresses swizzled as the hardware does it, so a wrong layout gives wrong
 * numbers here too; a product without its fence, or copies that are announced without theirs, end the process.
 */
#ifndef KVF_CUDA_PTX_HOPPER_H
#define KVF_CUDA_PTX_HOPPER_H

#include <deque>

#include "ptx.cuh"

#define __CUDA_ARCH_FEAT_SM90_ALL 1

/* Address within the block's shared memory. */
static inline uint32_t ptx_shared(const void *at) {
    return (uint32_t)((const char *)at - (const char *)emulator::dynamic_shared());
}

/* ---- Barriers in shared memory ---- */

struct ptx_barrier {
    uint16_t count, missing;
    uint32_t phase; /* phases completed */
};
static inline ptx_barrier *ptx_barrier_at(uint64_t *barrier) {
    if ((uintptr_t)barrier % 8 != 0) __builtin_trap();
    return (ptx_barrier *)barrier;
}

static inline void barrier_init(uint64_t *barrier, uint32_t count) {
    *ptx_barrier_at(barrier) = {(uint16_t)count, (uint16_t)count, 0};
}
static inline void barrier_arrive(uint64_t *barrier) {
    ptx_barrier *b = ptx_barrier_at(barrier);
    if (b->missing == 0 || b->missing > b->count) __builtin_trap(); /* never set up */
    if (ptx_unfenced[threadIdx.x]) __builtin_trap();
    if (--b->missing > 0) return;
    b->missing = b->count;
    b->phase++;
}

static inline void barrier_wait(uint64_t *barrier, uint32_t parity) {
    const ptx_barrier *b = ptx_barrier_at(barrier);
    while (b->phase % 2 == parity % 2) emulator::give_way();
}

static inline void named_wait(uint32_t id, uint32_t count) { emulator::named_barrier(id, count); }
static inline void named_arrive(uint32_t id, uint32_t count) { emulator::named_arrive(id, count); }
static inline void fence_products(void) { ptx_unfenced[threadIdx.x] = false; }

template <int N>
static inline void registers_give(void) {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers of a thread");
}
template <int N>
static inline void registers_take(void) {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "registers of a thread");
}

/* ---- Products ---- */

static inline uint64_t product_matrix(const void *at, uint32_t panel) {
    const uint64_t start = (ptx_shared(at) & 0x3ffff) >> 4, lead = panel >> 4, eight_rows = 1024 >> 4;
    return start | lead << 16 | eight_rows << 32 | (uint64_t)1 << 62;
}

/*
 * Element (row, column) of a matrix with the 128-byte swizzle, where a row is what follows at a distance of 128 bytes.
 * Descriptor: start / 16 in bits 0 to 13, offset of the next 64 columns / 16 in 16 to 29, that of the next eight rows / 16 in
 * 32 to 45, the kind of swizzle in 62 and 63. The swizzle exchanges bits of the address: 4 to 6 with 7 to 9.
 */
static inline uint16_t ptx_matrix_element(uint64_t matrix, uint32_t row, uint32_t column) {
    if (matrix >> 62 != 1) __builtin_trap();
    const uint32_t start = (matrix & 0x3fff) << 4, lead = (matrix >> 16 & 0x3fff) << 4, eight = (matrix >> 32 & 0x3fff) << 4;
    uint32_t at = start + row / 8 * eight + row % 8 * 128 + column / 64 * lead + column % 64 * 2;
    at ^= (at >> 7 & 7) << 4;
    uint16_t bits;
    memcpy(&bits, (const char *)emulator::dynamic_shared() + at, 2);
    return bits;
}

struct ptx_product {
    float *d;
    uint32_t n;
    const uint32_t *a; /* registers; NULL: in memory */
    uint64_t a_matrix, b_matrix;
    bool b_rows; /* what is summed runs over the rows of b */
    bool add;
    float (*number)(uint16_t bits);
    uint32_t group; /* number of its commit group, 0 before */
};
static std::deque<ptx_product> ptx_products[1024];
static uint32_t ptx_groups[1024];
static bool ptx_fenced[1024];

static inline void product_fence(void) { ptx_fenced[threadIdx.x] = true; }
static inline void product_commit(void) {
    const uint32_t group = ++ptx_groups[threadIdx.x];
    for (ptx_product &p : ptx_products[threadIdx.x]) {
        if (p.group == 0) p.group = group;
    }
}

/* A warp's rows of one product; the lanes fetch b together. */
static inline void ptx_multiply(const ptx_product &p) {
    const uint32_t lane = emulator::lane_id(), warp = threadIdx.x / 32 % 4, g = lane / 4, t = lane % 4;
    static float b[32][16][128];
    float (*mine)[128] = b[threadIdx.x / 32];
    for (uint32_t i = lane; i < 16 * p.n; i += 32) {
        const uint32_t k = i / p.n, j = i % p.n;
        mine[k][j] = p.number(p.b_rows ? ptx_matrix_element(p.b_matrix, k, j) : ptx_matrix_element(p.b_matrix, j, k));
    }
    emulator::exchange *e = emulator::next_exchange();
    if (p.a != nullptr) memcpy(e->lane[lane], p.a, 16);
    emulator::warp_barrier();
    for (uint32_t h = 0; h < 2; h++) {
        double sum[128] = {};
        for (uint32_t k = 0; k < 16; k++) {
            uint32_t pair;
            if (p.a != nullptr) memcpy(&pair, e->lane[g * 4 + k % 8 / 2] + 4 * (h + k / 8 * 2), 4);
            const uint16_t bits = p.a != nullptr ? (uint16_t)(pair >> k % 2 * 16)
                                                 : ptx_matrix_element(p.a_matrix, warp * 16 + h * 8 + g, k);
            const double a = p.number(bits);
            for (uint32_t j = 0; j < p.n / 8; j++) {
                sum[2 * j] += a * mine[k][8 * j + 2 * t];
                sum[2 * j + 1] += a * mine[k][8 * j + 2 * t + 1];
            }
        }
        for (uint32_t j = 0; j < p.n / 8; j++) {
            for (uint32_t i = 0; i < 2; i++) {
                float *d = &p.d[4 * j + 2 * h + i];
                *d = (float)((p.add ? *d : 0) + sum[2 * j + i]);
            }
        }
    }
    emulator::warp_barrier(); /* b may go */
}

template <int N>
static inline void product_wait(void) {
    std::deque<ptx_product> &queue = ptx_products[threadIdx.x];
    while (!queue.empty() && queue.front().group != 0 && queue.front().group + N <= ptx_groups[threadIdx.x]) {
        const ptx_product p = queue.front();
        queue.pop_front();
        ptx_multiply(p);
    }
    ptx_fenced[threadIdx.x] = false;
}
template <int N>
static inline void product_touched(float *) {}

static inline void ptx_start(ptx_product p) {
    if (!ptx_fenced[threadIdx.x]) __builtin_trap();
    ptx_products[threadIdx.x].push_back(p);
}

template <typename R>
static inline float ptx_number(uint16_t bits) {
    return ptx_f32(bits, R());
}
template <typename R>
static inline void product_scores(float *d, uint64_t a, uint64_t b, bool add, R) {
    ptx_start({d, 128, nullptr, a, b, false, add, ptx_number<R>, 0});
}
template <int N, typename R>
static inline void product_values(float *d, const uint32_t *a, uint64_t b, R) {
    static_assert(N == 64 || N == 128, "columns of values");
    ptx_start({d, N, a, 0, b, true, true, ptx_number<R>, 0});
}

/* ---- Numbers ---- */

static inline float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
static inline uint32_t pack_pair(float low, float high, __nv_bfloat16) {
    return (uint32_t)__float2bfloat16_rn(high).bits << 16 | __float2bfloat16_rn(low).bits;
}
static inline uint32_t pack_pair(float low, float high, __half) {
    return (uint32_t)__float2half_rn(high).bits << 16 | __float2half_rn(low).bits;
}

#endif
