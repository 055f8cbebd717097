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

/* a * b + c of two f16 each. */
static __device__ __forceinline__ uint32_t fma_half2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/*
 * atomicAdd that is seen after all that came before it and before all that comes after it, of this thread and of those that it
 * has met at a barrier.
 */
static __device__ __forceinline__ uint32_t add_in_order(uint32_t *to, uint32_t x) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(x) : "memory");
    return before;
}

/* 16 bytes of rows, which a kernel before this one may have written, and which nobody reads again soon. */
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

/*
 * Four 8x8 matrices of 16-bit elements from shared memory: lanes 8 i to 8 i + 7 give the rows of matrix i; r[i] is the lane's
 * pair of it (row lane / 4, columns 2 (lane % 4) and the next). Turned: the same of the transposed matrices.
 */
static __device__ __forceinline__ void load_matrix(uint32_t r[4], const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}
static __device__ __forceinline__ void load_matrix_turned(uint32_t r[4], const uint4 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/* 16 bytes from global to shared memory, zeros where not `inside`; done when copy_wait says so. */
static __device__ __forceinline__ void copy_async(uint4 *to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_async(uint4 *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}
/* The same where `wanted`, without a branch. */
static __device__ __forceinline__ void copy_async_if(uint4 *to, const void *from, bool inside, bool wanted) {
    asm volatile("{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %3, 0;\n@wanted cp.async.cg.shared.global [%0], [%1], 16, %2;\n}"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0), "r"((int)wanted)
                 : "memory");
}
static __device__ __forceinline__ void copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Waits for all groups that this thread has committed. */
static __device__ __forceinline__ void copy_wait(void) { asm volatile("cp.async.wait_group 0;" ::: "memory"); }
/* Waits for all but the last N of them. */
template <int N>
static __device__ __forceinline__ void copy_wait_but(void) {
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

#endif
