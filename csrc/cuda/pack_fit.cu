/*
 * Fitting what the packed pages of a table share: levels and bases, as csrc/cpu/pack_fit.c does. Counts and sums of levels
 * are whole numbers, so levels are the same bits on both builds; bases come from sums in another order.
 */
#include "pack.cuh"

enum { FIT_PAGES = 16, BINS = 512, ROUNDS = 32 };

typedef struct fit_args {
    const cu_format *format;
    const void *const *pages; /* [n_sample] */
    const uint32_t *n_row;    /* [n_sample] */
    uint32_t n_sample;
    uint8_t *frame;
    uint8_t *page;    /* [2] packed pages to try things on, page_bytes apart */
    float *square;    /* [2][head_dim * head_dim] */
} fit_args;

/* Reads a sample's part and finds its outliers and scales, as packing would. */
template <typename R>
static __device__ source take_sample(const fit_args &a, uint32_t i, bool keys, uint8_t *page, float *shared) {
    const cu_format &f = *a.format;
    const source s = source_of(keys ? &f.layout.key : &f.layout.value, f.head_dim, a.n_row[i], shared);
    read_source<R>(s, f, a.pages[i], f.layout.pruned ? (const uint16_t *)a.frame : NULL, a.n_row[i]);
    put_outliers(s, f.dtype, page);
    put_scales(s, page);
    return s;
}

static __device__ __forceinline__ uint32_t bin_of(float t) {
    const float at = __fadd_rn(t, 1.0f) * (0.5f * BINS);
    return at > 0 ? (at < BINS - 1 ? (uint32_t)at : BINS - 1) : 0;
}

/* Lloyd's rounds on counts of where elements lie between the bounds of their groups, from evenly spaced levels. */
template <typename R>
static __device__ void fit_levels(const fit_args &a, bool keys, uint8_t *page, float *shared) {
    __shared__ int32_t count[BINS], sum[16], weight[16];
    __shared__ float levels[16];
    const kv_part &p = keys ? a.format->layout.key : a.format->layout.value;
    if (!p.fitted) return;
    const uint32_t n = 1u << p.bits;
    for (uint32_t b = threadIdx.x; b < BINS; b += blockDim.x) count[b] = 0;
    if (threadIdx.x < n) levels[threadIdx.x] = -1.0f + __fmul_rn(2.0f, (float)threadIdx.x) / (float)(n - 1);
    for (uint32_t i = 0; i < a.n_sample; i++) {
        const source s = take_sample<R>(a, i, keys, page, shared);
        for (uint32_t k = threadIdx.x; k < p.n_line * p.ld; k += blockDim.x) {
            const uint32_t line = line_of(s, k), lane = lane_of(s, k);
            if (!there(s, line, lane) || s.mark[line * s.stride + lane] != 0) continue;
            if (s.high[param_of(p, line, lane)] > 0) atomicAdd(&count[bin_of(place_of(s, line, lane))], 1);
        }
    }
    for (uint32_t round = 0; round < ROUNDS; round++) {
        __syncthreads();
        if (threadIdx.x < n) sum[threadIdx.x] = weight[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t b = threadIdx.x; b < BINS; b += blockDim.x) {
            const int32_t numerator = (int32_t)(2 * b + 1) - BINS; /* the bin's middle is that over BINS */
            const double t = (double)numerator / BINS;
            uint32_t at = 0;
            while (at + 1 < n && t > 0.5 * ((double)levels[at] + (double)levels[at + 1])) at++;
            atomicAdd(&sum[at], count[b] * numerator);
            atomicAdd(&weight[at], count[b]);
        }
        __syncthreads();
        if (threadIdx.x < n && weight[threadIdx.x] > 0) {
            levels[threadIdx.x] = (float)((double)sum[threadIdx.x] / BINS / (double)weight[threadIdx.x]);
        }
    }
    __syncthreads();
    if (threadIdx.x < n) ((float *)(a.frame + p.levels))[threadIdx.x] = levels[threadIdx.x];
    __syncthreads();
}

/* square += loss . loss^T over the rows of a sample; a thread owns an entry. */
static __device__ void add_square(const source &s, uint32_t n, float *square) {
    const bool keys = s.part->keys;
    for (uint32_t i = threadIdx.x; i < n * n; i += blockDim.x) {
        const uint32_t c = i / n, d = i % n;
        float sum = square[i];
        for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) {
            const float x = s.x[keys ? c * s.stride + slot : slot * s.stride + c];
            const float y = s.x[keys ? d * s.stride + slot : slot * s.stride + d];
            sum = fmaf(x, y, sum);
        }
        square[i] = sum;
    }
}

static __device__ __forceinline__ double warp_sum_double(double x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* v = square . v, scaled to length 1; returns the length before. A warp per row. v, next: [n] shared */
static __device__ float power_step(const float *square, uint32_t n, float *v, double *next) {
    __shared__ double length;
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t i = threadIdx.x / 32; i < n; i += blockDim.x / 32) {
        double sum = 0;
        for (uint32_t k = lane; k < n; k += 32) sum += (double)square[(size_t)i * n + k] * (double)v[k];
        sum = warp_sum_double(sum);
        if (lane == 0) next[i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        double sum = 0;
        for (uint32_t i = lane; i < n; i += 32) sum += next[i] * next[i];
        sum = warp_sum_double(sum);
        if (lane == 0) length = sqrt(sum);
    }
    __syncthreads();
    const double l = length;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        v[i] = l > 0 && isfinite(l) ? (float)((double)(float)next[i] / l) : 0.0f;
    }
    __syncthreads();
    return (float)l;
}

/* The directions along which the codes lose most, by power iteration with deflation. */
template <typename R>
static __device__ void fit_basis(const fit_args &a, bool keys, uint8_t *page, float *square, float *shared) {
    __shared__ float v[256], between[16];
    __shared__ double next[256];
    const kv_part &p = keys ? a.format->layout.key : a.format->layout.value;
    const uint32_t n = keys ? p.n_line : p.n_lane;
    if (p.rank == 0) return;
    read_between(p, a.frame, between);
    for (uint32_t i = threadIdx.x; i < n * n; i += blockDim.x) square[i] = 0;
    for (uint32_t i = 0; i < a.n_sample; i++) {
        const source s = take_sample<R>(a, i, keys, page, shared);
        to_loss(s, a.frame, between);
        add_square(s, n, square);
    }
    for (uint32_t r = 0; r < p.rank; r++) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) v[i] = 1.0f + 0.125f * (float)(i % 7); /* along no axis */
        __syncthreads();
        float length = 0;
        for (uint32_t round = 0; round < ROUNDS; round++) length = power_step(square, n, v, next);
        for (uint32_t i = threadIdx.x; i < n * n; i += blockDim.x) square[i] -= length * v[i / n] * v[i % n];
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) ((float *)(a.frame + p.basis))[r * n + i] = v[i];
    }
}

/* Block 0 fits the keys' part, block 1 the values'. */
template <typename R>
static __global__ void __launch_bounds__(PACK_THREADS) fit_kernel(const fit_args a) {
    extern __shared__ float shared[];
    const bool keys = blockIdx.x == 0;
    const cu_format &f = *a.format;
    uint8_t *page = a.page + (size_t)blockIdx.x * f.layout.page_bytes;
    fit_levels<R>(a, keys, page, shared);
    fit_basis<R>(a, keys, page, a.square + (size_t)blockIdx.x * f.head_dim * f.head_dim, shared);
}

template <typename R>
static cudaError_t launch(kvf_cache *cache, const fit_args &a) {
    const size_t bytes = source_bytes(cache->config.head_dim);
    const cudaError_t e = cudaFuncSetAttribute(fit_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    fit_kernel<R><<<2, PACK_THREADS, bytes, cu_of(cache->dev)->stream>>>(a);
    return cudaGetLastError();
}

extern "C" int32_t be_pack_fit(kvf_cache *cache, kv_format *format, const void *const *pages, uint32_t n_row,
                               const uint16_t *channels, void *frame, kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const kvf_format *c = &format->config;
    const uint32_t n_page = cu_div_up(n_row, KVF_PAGE_ROWS), dim = cache->config.head_dim;
    struct {
        const void *page[FIT_PAGES];
        uint32_t n_row[FIT_PAGES];
    } sample;
    void *staged, *work;
    fit_args a = {};
    CU_PASS(cu_enter(dev, err));
    CU_TRY(cudaMemsetAsync(frame, 0, format->frame_bytes, stream), "clearing a frame");
    if (channels != NULL) CU_PASS(be_upload(dev, frame, channels, c->key_channels * sizeof *channels, err));
    if (c->key_levels + c->value_levels + c->key_rank + c->value_rank == 0) return KVF_OK;
    a.n_sample = n_page < FIT_PAGES ? n_page : (uint32_t)FIT_PAGES;
    for (uint32_t i = 0; i < a.n_sample; i++) {
        const uint32_t at = (uint32_t)((uint64_t)i * n_page / a.n_sample), rest = n_row - at * KVF_PAGE_ROWS;
        sample.page[i] = pages[at];
        sample.n_row[i] = rest < KVF_PAGE_ROWS ? rest : KVF_PAGE_ROWS;
    }
    CU_PASS(cu_push(dev, &staged, &sample, sizeof sample, err));
    const size_t square = (size_t)2 * dim * dim * sizeof(float);
    CU_PASS(cu_scratch(dev, &work, square + 2 * (size_t)format->page_bytes, err));
    a.format = cu_format_of(format), a.frame = (uint8_t *)frame;
    a.pages = (const void *const *)staged, a.n_row = (const uint32_t *)((char *)staged + sizeof sample.page);
    a.square = (float *)work, a.page = (uint8_t *)work + square;
    cudaError_t e;
    CU_WITH_TYPE(cache->config.row_dtype, R, e = (launch<R>(cache, a)));
    return cu_check(e, "fitting a format", err);
}
