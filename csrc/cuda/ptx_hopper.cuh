/*
 * Instructions of compute capability 9.0 without an intrinsic: products of a warpgroup (four warps, the first one's index
 * divisible by four) whose operands lie in shared memory, barriers in memory, and registers handed from group to group.
 * The second of the two files with assembly; the emulator has its own version of it. Whatever uses the products must be
 * inside `#ifdef __CUDA_ARCH_FEAT_SM90_ALL`, as other targets do not know them.
 */
#ifndef KVF_CUDA_PTX_HOPPER_H
#define KVF_CUDA_PTX_HOPPER_H

#include "ptx.cuh"

/* ---- Barriers in shared memory ---- */

static __device__ __forceinline__ uint32_t ptx_shared(const void *at) { return (uint32_t)__cvta_generic_to_shared(at); }

/* A barrier that completes a phase whenever `count` arrivals have come. One thread; others must not use it before a
 * __syncthreads. */
static __device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(ptx_shared(barrier)), "r"(count) : "memory");
}
/* One arrival; what this thread did before is seen by those who wait. */
static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" : : "r"(ptx_shared(barrier)) : "memory");
}
/* Waits until the phase of that parity is complete; the phase before the first one counts as complete, with parity 1. */
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n.reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n}"
            : "=r"(done)
            : "r"(ptx_shared(barrier)), "r"(parity)
            : "memory");
    } while (done == 0);
}

/* Barriers 1 to 15 of the block, for `count` threads: wait for all, or only be counted. */
static __device__ __forceinline__ void named_wait(uint32_t id, uint32_t count) {
    asm volatile("bar.sync %0, %1;" : : "r"(id), "r"(count) : "memory");
}
static __device__ __forceinline__ void named_arrive(uint32_t id, uint32_t count) {
    asm volatile("bar.arrive %0, %1;" : : "r"(id), "r"(count) : "memory");
}

/* In every thread that wrote to shared memory, copy_async included, and before it tells those whose products read there. */
static __device__ __forceinline__ void fence_products(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- Registers ---- */

/* A whole warpgroup gives registers back, or takes them and waits until there are as many: N per thread, a multiple of 8. */
template <int N>
static __device__ __forceinline__ void registers_give(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(N));
}
template <int N>
static __device__ __forceinline__ void registers_take(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(N));
}

/* ---- Products ---- */

/*
 * A matrix of 16-bit elements in shared memory at an address divisible by 1024, in panels of 64 columns: a row of a panel is
 * 128 bytes, whose 16-byte column c lies at c ^ row % 8. Where the product sums over the columns, `panel` is not used;
 * where it sums over the rows, it is the number of bytes from one panel to the next. Adding to the result moves the start
 * by 16 bytes each: 16 columns further in a panel are 2, 16 rows further are 128.
 */
static __device__ __forceinline__ uint64_t product_matrix(const void *at, uint32_t panel) {
    const uint64_t start = (ptx_shared(at) & 0x3ffff) >> 4, lead = panel >> 4, eight_rows = 1024 >> 4;
    return start | lead << 16 | eight_rows << 32 | (uint64_t)1 << 62 /* swizzle of 128 bytes */;
}

/* Before the first product, and between any other access to registers that a product uses and that product. */
static __device__ __forceinline__ void product_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static __device__ __forceinline__ void product_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* Waits until at most N committed groups are left. */
template <int N>
static __device__ __forceinline__ void product_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(N) : "memory");
}
/* Tells the compiler that these registers change here, as it does not see products end. */
template <int N>
static __device__ __forceinline__ void product_touched(float *x) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i]) : : "memory");
}

#define PTX_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_F16(d, i) PTX_F4(d, i), PTX_F4(d, i + 4), PTX_F4(d, i + 8), PTX_F4(d, i + 12)
#define PTX_F32(d) PTX_F16(d, 0), PTX_F16(d, 16)
#define PTX_F64(d) PTX_F32(d), PTX_F16(d, 32), PTX_F16(d, 48)
#define PTX_LIST_32                                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31}"
#define PTX_LIST_64                                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"   \
    "%57,%58,%59,%60,%61,%62,%63}"

/*
 * Starts d [64, N] (+)= a [64, 16] * b [16, N]. Warp w of the group holds rows 16 w to 16 w + 15 of d and of an `a` in
 * registers, each thread what mma_16x8x16 gives it: d[4 j + i] is element i of the columns 8 j to 8 j + 7.
 *
 * product_scores: N = 128, both matrices hold what is summed in their columns, that is b is [128, 16] in memory.
 * product_values: N = 2 * n, `a` in registers, b [16, N] in memory as it stands.
 */
#define PTX_PRODUCTS(TYPE, NAME)                                                                                          \
    static __device__ __forceinline__ void product_scores(float *d, uint64_t a, uint64_t b, bool add, TYPE) {             \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " " PTX_LIST_64                         \
                     ", %64, %65, add, 1, 1, 0, 0;\n}"                                                                    \
                     : PTX_F64(d)                                                                                         \
                     : "l"(a), "l"(b), "r"((int)add));                                                                    \
    }                                                                                                                     \
    static __device__ __forceinline__ void product_values_64(float *d, const uint32_t *a, uint64_t b, TYPE) {             \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                                       \
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " " PTX_LIST_32                          \
                     ", {%32, %33, %34, %35}, %36, add, 1, 1, 1;\n}"                                                      \
                     : PTX_F32(d)                                                                                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                               \
    }                                                                                                                     \
    static __device__ __forceinline__ void product_values_128(float *d, const uint32_t *a, uint64_t b, TYPE) {            \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, 1, 0;\n"                                                       \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " " PTX_LIST_64                         \
                     ", {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n}"                                                      \
                     : PTX_F64(d)                                                                                         \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                               \
    }
PTX_PRODUCTS(__nv_bfloat16, "bf16")
PTX_PRODUCTS(__half, "f16")

template <int N, typename R>
static __device__ __forceinline__ void product_values(float *d, const uint32_t *a, uint64_t b, R r) {
    if constexpr (N == 64) product_values_64(d, a, b, r);
    else product_values_128(d, a, b, r);
}

/* ---- Numbers ---- */

/* 2^x to about 2 units in the last place; results below 2^-126 are zero. */
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* Two elements, rounded to nearest, the first in the lower half. */
static __device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
static __device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

#endif
