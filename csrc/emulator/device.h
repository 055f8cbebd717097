/* What device code sees: its place in the grid, barriers, warp operations, atomics and intrinsics. */
#ifndef KVF_EMULATOR_DEVICE_H
#define KVF_EMULATOR_DEVICE_H

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

/* Waits for all threads of the block that have not returned. */
void block_barrier(void);
/* Named barrier `id` for `count` threads. */
void named_barrier(uint32_t id, uint32_t count);
/* Counts for it without waiting. */
void named_arrive(uint32_t id, uint32_t count);
/* Waits for all lanes of the warp that have not returned. */
void warp_barrier(void);
/* Lets the other threads go on; for loops that poll. */
void give_way(void);
/*
 * 256 bytes per lane for exchanges within the warp. Consecutive exchanges alternate between two buffers, so one barrier
 * between writing and reading is enough.
 */
struct exchange {
    char lane[32][256];
};
exchange *next_exchange(void);
/* Running counts of the block, for __syncthreads_or and the like. */
uint32_t block_reduce_or(uint32_t value);
static inline uint32_t lane_id(void) {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

template <typename T>
static inline T shuffle(T value, uint32_t from, bool valid) {
    exchange *e = next_exchange();
    memcpy(e->lane[lane_id()], &value, sizeof value);
    warp_barrier();
    T out = value;
    if (valid) memcpy(&out, e->lane[from], sizeof out);
    return out;
}

}  // namespace emulator

static inline void __syncthreads(void) { emulator::block_barrier(); }
static inline void __syncwarp(uint32_t = 0xffffffffu) { emulator::warp_barrier(); }
static inline int __syncthreads_or(int value) { return (int)emulator::block_reduce_or(value != 0); }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

template <typename T>
static inline T __shfl_xor_sync(uint32_t, T value, int mask) {
    return emulator::shuffle(value, emulator::lane_id() ^ (uint32_t)mask, true);
}
template <typename T>
static inline T __shfl_up_sync(uint32_t, T value, unsigned by) {
    const uint32_t lane = emulator::lane_id();
    return emulator::shuffle(value, lane - by, lane >= by);
}
template <typename T>
static inline T __shfl_down_sync(uint32_t, T value, unsigned by) {
    const uint32_t lane = emulator::lane_id();
    return emulator::shuffle(value, lane + by, lane + by < 32);
}
template <typename T>
static inline T __shfl_sync(uint32_t, T value, int from) {
    return emulator::shuffle(value, (uint32_t)from % 32, true);
}
static inline uint32_t __ballot_sync(uint32_t, bool vote) {
    emulator::exchange *e = emulator::next_exchange();
    e->lane[emulator::lane_id()][0] = vote;
    /* lanes that returned do not vote */
    e->lane[emulator::lane_id()][1] = 1;
    emulator::warp_barrier();
    uint32_t out = 0;
    for (uint32_t i = 0; i < 32; i++) out |= (uint32_t)(e->lane[i][0] != 0) << i;
    return out;
}

static inline uint32_t __reduce_add_sync(uint32_t, uint32_t value) {
    emulator::exchange *e = emulator::next_exchange();
    memcpy(e->lane[emulator::lane_id()], &value, sizeof value);
    emulator::warp_barrier();
    uint32_t sum = 0;
    for (uint32_t i = 0; i < 32; i++) {
        memcpy(&value, e->lane[i], sizeof value);
        sum += value;
    }
    return sum;
}

template <typename T>
static inline T atomicAdd(T *to, T value) {
    const T old = *to;
    *to = old + value;
    return old;
}
template <typename T>
static inline T atomicMax(T *to, T value) {
    const T old = *to;
    if (value > old) *to = value;
    return old;
}
template <typename T>
static inline T atomicOr(T *to, T value) {
    const T old = *to;
    *to = old | value;
    return old;
}
template <typename T>
static inline T atomicExch(T *to, T value) {
    const T old = *to;
    *to = value;
    return old;
}

static inline uint32_t __float_as_uint(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float __uint_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
/* Byte i of the result is byte (s >> 4 i) & 7 of the eight bytes x, y. */
static inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t s) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++) out |= (uint32_t)(bytes >> 8 * (s >> 4 * i & 7) & 255) << 8 * i;
    return out;
}
static inline int __popc(uint32_t x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline float __fmul_rn(float a, float b) {
    volatile float y = a * b;
    return y;
}
static inline float __fadd_rn(float a, float b) {
    volatile float y = a + b;
    return y;
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename T>
static inline T __ldcs(const T *from) {
    return *from;
}
template <typename T>
static inline T __ldg(const T *from) {
    return *from;
}
template <typename T>
static inline T __ldcg(const T *from) {
    return *from;
}
/* As the device's overloads: by value, mixed unsigned types widened. */
template <typename A, typename B>
static inline std::common_type_t<A, B> min(A a, B b) {
    return (std::common_type_t<A, B>)a < (std::common_type_t<A, B>)b ? (std::common_type_t<A, B>)a : (std::common_type_t<A, B>)b;
}
template <typename A, typename B>
static inline std::common_type_t<A, B> max(A a, B b) {
    return (std::common_type_t<A, B>)a > (std::common_type_t<A, B>)b ? (std::common_type_t<A, B>)a : (std::common_type_t<A, B>)b;
}

#endif
