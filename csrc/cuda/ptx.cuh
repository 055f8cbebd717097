/*
 * Instructions without an intrinsic. This is the only file of the build with assembly; the emulator has its own version of
 * it.
 */
#ifndef KVF_CUDA_PTX_H
#define KVF_CUDA_PTX_H

#include "cuda.h"

/*
 * c [16, 8] += a [16, 16] * b [16, 8] within a warp, lane = 4 * g + t. Pairs are two 16-bit elements, lower column first.
 * a: rows g, g + 8, g, g + 8; columns 2t.. of the first half (a[0], a[1]) and of the second (a[2], a[3])
 * b0, b1: rows 2t.. of the first and the second half, column g     c: rows g, g, g + 8, g + 8; columns 2t, 2t + 1
 */
static __device__ __forceinline__ void mma_16x8x16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1,
                                                   __nv_bfloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void mma_16x8x16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, __half) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 16 bytes that nobody reads again soon. */
static __device__ __forceinline__ uint4 load_stream(const void *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

/* The same for rows, which a kernel before this one may have written. */
static __device__ __forceinline__ uint4 load_rows(const void *at) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

/* Waits until the kernel before this one has ended and its writes are seen. Nothing where kernels do not overlap. */
static __device__ __forceinline__ void wait_previous(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/* Lets the next kernel's blocks start as soon as all blocks of this one have said so and there is room. */
static __device__ __forceinline__ void allow_next(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
