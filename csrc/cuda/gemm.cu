/*
 * Products of prefill. cuBLASLt carries them where it is found; this tiled kernel is the one that is always there. Both
 * accumulate in f32.
 */
#include "numbers.cuh"

enum { TILE = 64, DEPTH = 16 };

/* A block owns 64 tokens x 64 rows; each of 256 threads 4 x 4 of them. */
template <typename T, typename O>
static __global__ void __launch_bounds__(256) gemm_kernel(O *out, uint32_t ldo, const T *x, uint32_t ldx, const T *w,
                                                          uint32_t ldw, uint32_t n, uint32_t n_row, uint32_t depth,
                                                          bool add) {
    __shared__ float xs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
    const uint32_t token0 = blockIdx.y * TILE, row0 = blockIdx.x * TILE;
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float acc[4][4] = {};
    for (uint32_t k0 = 0; k0 < depth; k0 += DEPTH) {
        for (uint32_t i = threadIdx.x; i < TILE * DEPTH; i += 256) {
            const uint32_t k = i % DEPTH, r = i / DEPTH;
            const bool inside = k0 + k < depth;
            xs[k][r] = inside && token0 + r < n ? to_f32(x[(size_t)(token0 + r) * ldx + k0 + k]) : 0.0f;
            ws[k][r] = inside && row0 + r < n_row ? to_f32(w[(size_t)(row0 + r) * ldw + k0 + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = xs[k][ty * 4 + i], b[i] = ws[k][tx * 4 + i];
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            const uint32_t token = token0 + ty * 4 + i, row = row0 + tx * 4 + j;
            if (token >= n || row >= n_row) continue;
            O *to = &out[(size_t)token * ldo + row];
            from_f32(to, add ? to_f32(*to) + acc[i][j] : acc[i][j]);
        }
    }
}

int32_t cu_gemm(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, float *out,
                uint32_t ldo, bool add, kv_err err) {
    if (n == 0 || w->n_row == 0) return KVF_OK;
    if (cu_blas_gemm(cu_of(dev), dtype, w, x, ldx, n, out, KVF_F32, ldo, add)) return KVF_OK;
    const dim3 grid(cu_div_up(w->n_row, TILE), cu_div_up(n, TILE));
    CU_WITH_TYPE(dtype, T,
                 (gemm_kernel<T, float><<<grid, 256, 0, cu_of(dev)->stream>>>(out, ldo, (const T *)x, ldx, (const T *)w->data,
                                                                      w->ld, n, w->n_row, w->n_col, add)));
    CU_LAUNCHED("a matrix product");
    return KVF_OK;
}

uint32_t cu_wide_dtype(uint32_t dtype) { return dtype == KVF_BF16 ? KVF_BF16 : KVF_F32; }

int32_t cu_gemm_wide(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, void *out,
                     uint32_t ldo, kv_err err) {
    if (cu_wide_dtype(dtype) == KVF_F32) return cu_gemm(dev, dtype, w, x, ldx, n, (float *)out, ldo, false, err);
    if (n == 0 || w->n_row == 0) return KVF_OK;
    if (cu_blas_gemm(cu_of(dev), dtype, w, x, ldx, n, out, KVF_BF16, ldo, false)) return KVF_OK;
    const dim3 grid(cu_div_up(w->n_row, TILE), cu_div_up(n, TILE));
    using T = __nv_bfloat16;
    gemm_kernel<T, T><<<grid, 256, 0, cu_of(dev)->stream>>>((T *)out, ldo, (const T *)x, ldx, (const T *)w->data, w->ld, n,
                                                            w->n_row, w->n_col, false);
    CU_LAUNCHED("a matrix product");
    return KVF_OK;
}
