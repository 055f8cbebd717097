/*
 * Products of decode: few tokens, weights read once. 16-bit weights go through mma with 16 weight rows as m and 8 tokens as
 * n, whatever the batch, so a token's sums have one order. A block owns 16 rows; its eight warps split the columns in steps
 * of 32, and their partial sums are added in warp order.
 *
 * A product does not care in which order k is taken as long as both sides agree: every lane loads 16 bytes of k that lie
 * together, and the fragments of two mma steps are cut from them.
 */
#include "numbers.cuh"
#include "ptx.cuh"

enum { WARPS = 8, UNROLL = 4 };

typedef struct skinny_args {
    const void *w;
    const void *x;
    const float *bias;
    float *out;
    void *act;
    const cu_slot *slot;
    const uint32_t *chosen; /* expert of each entry, or NULL: dense */
    size_t expert_stride;   /* elements */
    uint32_t x_div;         /* entries that share one row of x */
    uint32_t ld;
    uint32_t n_row; /* of the result */
    uint32_t n;     /* tokens, or entries */
    uint32_t ldo;
} skinny_args;

template <typename W, int EPILOGUE>
static __device__ __forceinline__ void finish(const skinny_args &a, uint32_t token, uint32_t row, float y, float up) {
    if (EPILOGUE == CU_STORE) {
        a.out[(size_t)token * a.ldo + row] = y;
    } else if (EPILOGUE == CU_ADD) {
        a.out[(size_t)token * a.ldo + row] += a.bias != NULL ? y + a.bias[row] : y;
    } else if (EPILOGUE == CU_SWIGLU) {
        from_f32((W *)a.act + (size_t)token * a.ldo + row, y / (1.0f + expf(-y)) * up);
    } else if (a.slot[token].run) {
        a.slot[token].logits[row] = y;
    }
}

/* TILES groups of eight tokens per block; blockIdx.y is the group of groups, or the entry. */
template <typename W, int TILES, int EPILOGUE>
static __global__ void __launch_bounds__(32 * WARPS) skinny_kernel(const skinny_args a) {
    __shared__ float part[WARPS][TILES * 8][17];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t rows = EPILOGUE == CU_SWIGLU ? 8 : 16, row0 = blockIdx.x * rows;
    const W *w = (const W *)a.w, *x = (const W *)a.x;
    uint32_t token0 = blockIdx.y * TILES * 8, n = a.n;
    allow_next();
    if (a.chosen != NULL) {
        wait_previous();
        token0 = 0;
        n = 1;
        w += a.chosen[blockIdx.y] * a.expert_stride;
        x += (size_t)(blockIdx.y / a.x_div) * a.ld;
    }
    /* The rows of a SwiGLU tile are eight of gate and the same eight of up. */
    const uint32_t low = min(row0 + g, a.n_row - 1);
    const uint32_t high = EPILOGUE == CU_SWIGLU ? a.n_row + low : min(row0 + g + 8, a.n_row - 1);
    const W *w_low = w + (size_t)low * a.ld + t * 8, *w_high = w + (size_t)high * a.ld + t * 8;
    const uint32_t steps = a.ld / 32;
    uint4 lo[UNROLL], hi[UNROLL];
    const auto load = [&](uint32_t s0) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const uint32_t s = s0 + u * WARPS;
            if (s < steps) {
                lo[u] = load_stream(w_low + (size_t)s * 32);
                hi[u] = load_stream(w_high + (size_t)s * 32);
            }
        }
    };
    /* Weights never change: the first of them come while the kernel before this one still runs. */
    load(warp);
    if (a.chosen == NULL) wait_previous();
    float acc[TILES][4] = {};
    for (uint32_t s0 = warp; s0 < steps; s0 += WARPS * UNROLL) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const uint32_t s = s0 + u * WARPS;
            if (s >= steps) break;
            const uint32_t first[4] = {lo[u].x, hi[u].x, lo[u].y, hi[u].y};
            const uint32_t second[4] = {lo[u].z, hi[u].z, lo[u].w, hi[u].w};
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const uint32_t token = token0 + i * 8 + g;
                uint4 v = make_uint4(0, 0, 0, 0);
                if (token < n) v = *(const uint4 *)(x + (size_t)token * a.ld + s * 32 + t * 8);
                mma_16x8x16(acc[i], first, v.x, v.y, W());
                mma_16x8x16(acc[i], second, v.z, v.w, W());
            }
        }
        load(s0 + WARPS * UNROLL);
    }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        part[warp][i * 8 + 2 * t][g] = acc[i][0];
        part[warp][i * 8 + 2 * t + 1][g] = acc[i][1];
        part[warp][i * 8 + 2 * t][g + 8] = acc[i][2];
        part[warp][i * 8 + 2 * t + 1][g + 8] = acc[i][3];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < TILES * 8 * rows; i += 32 * WARPS) {
        const uint32_t r = i % rows, k = i / rows;
        if (token0 + k >= n || row0 + r >= a.n_row) continue;
        float y = 0, up = 0;
        for (int j = 0; j < WARPS; j++) {
            y += part[j][k][r];
            if (EPILOGUE == CU_SWIGLU) up += part[j][k][r + 8];
        }
        finish<W, EPILOGUE>(a, a.chosen != NULL ? blockIdx.y : token0 + k, row0 + r, y, up);
    }
}

/* f32 weights: a warp per row of the result, lanes over columns, token after token. */
template <int EPILOGUE>
static __global__ void __launch_bounds__(32 * WARPS) skinny_f32_kernel(const skinny_args a) {
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    wait_previous();
    allow_next();
    if (row >= a.n_row) return;
    const float *w = (const float *)a.w;
    const uint32_t entry = blockIdx.y;
    uint32_t x_row = entry;
    if (a.chosen != NULL) {
        w += a.chosen[entry] * a.expert_stride;
        x_row = entry / a.x_div;
    }
    const float *x = (const float *)a.x + (size_t)x_row * a.ld;
    const float *first = w + (size_t)row * a.ld, *second = w + (size_t)(a.n_row + row) * a.ld;
    float y = 0, up = 0;
    for (uint32_t k = lane; k < a.ld; k += 32) {
        y = fmaf(first[k], x[k], y);
        if (EPILOGUE == CU_SWIGLU) up = fmaf(second[k], x[k], up);
    }
    y = warp_sum(y);
    if (EPILOGUE == CU_SWIGLU) up = warp_sum(up);
    if (lane == 0) finish<float, EPILOGUE>(a, entry, row, y, up);
}

template <typename W, int EPILOGUE>
static cudaError_t launch(const cu_device *d, const skinny_args &a) {
    const uint32_t x = cu_div_up(a.n_row, EPILOGUE == CU_SWIGLU ? 8 : 16);
    const dim3 block(32 * WARPS);
    if (a.chosen != NULL) return cu_launch_next(d, skinny_kernel<W, 1, EPILOGUE>, dim3(x, a.n), block, 0, a);
    if (a.n <= 8) return cu_launch_next(d, skinny_kernel<W, 1, EPILOGUE>, dim3(x), block, 0, a);
    if (a.n <= 16) return cu_launch_next(d, skinny_kernel<W, 2, EPILOGUE>, dim3(x), block, 0, a);
    return cu_launch_next(d, skinny_kernel<W, 4, EPILOGUE>, dim3(x, cu_div_up(a.n, 32)), block, 0, a);
}

template <int EPILOGUE>
static cudaError_t launch_type(const cu_device *d, uint32_t dtype, const skinny_args &a) {
    if (dtype == KVF_F16) return launch<__half, EPILOGUE>(d, a);
    if (dtype == KVF_BF16) return launch<__nv_bfloat16, EPILOGUE>(d, a);
    return cu_launch_next(d, skinny_f32_kernel<EPILOGUE>, dim3(cu_div_up(a.n_row, WARPS), a.n), dim3(32 * WARPS), 0, a);
}

static int32_t run(kvf_device *dev, uint32_t dtype, uint32_t epilogue, const skinny_args &a, kv_err err) {
    const cu_device *d = cu_of(dev);
    cudaError_t e;
    if (a.n == 0 || a.n_row == 0) return KVF_OK;
    if (epilogue == CU_STORE) e = launch_type<CU_STORE>(d, dtype, a);
    else if (epilogue == CU_ADD) e = launch_type<CU_ADD>(d, dtype, a);
    else if (epilogue == CU_SWIGLU) e = launch_type<CU_SWIGLU>(d, dtype, a);
    else e = launch_type<CU_LOGITS>(d, dtype, a);
    return cu_check(e, "a product of decode", err);
}

int32_t cu_skinny(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t n, cu_skinny_out out,
                  kv_err err) {
    skinny_args a = {};
    a.w = w->data, a.x = x, a.ld = w->ld, a.n = n;
    a.n_row = out.epilogue == CU_SWIGLU ? w->n_row / 2 : w->n_row;
    a.out = out.out, a.act = out.act, a.ldo = out.ld, a.bias = out.bias, a.slot = out.slot;
    return run(dev, dtype, out.epilogue, a, err);
}

int32_t cu_skinny_experts(kvf_device *dev, uint32_t dtype, const cu_matrix *w, uint32_t n_row, const uint32_t *chosen,
                          uint32_t x_div, const void *x, uint32_t n_entry, cu_skinny_out out, kv_err err) {
    skinny_args a = {};
    a.w = w->data, a.x = x, a.ld = w->ld, a.n = n_entry;
    a.n_row = out.epilogue == CU_SWIGLU ? n_row / 2 : n_row;
    a.out = out.out, a.act = out.act, a.ldo = out.ld, a.bias = out.bias;
    a.chosen = chosen, a.x_div = x_div, a.expert_stride = (size_t)n_row * w->ld;
    return run(dev, dtype, out.epilogue, a, err);
}
