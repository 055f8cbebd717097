/* Packing pages, and formats. Nothing here waits for the device. */
#include "pack.cuh"

/* ---- Formats ---- */

static void turns_into(float *to, uint32_t n, uint32_t step, const float *inv_freq, uint32_t half) {
    for (uint32_t k = 0; k < n; k++) {
        for (uint32_t i = 0; i < half; i++) {
            const double angle = (double)k * step * (double)inv_freq[i];
            to[(size_t)k * half + i] = (float)cos(angle);
            to[(size_t)(n + k) * half + i] = (float)sin(angle);
        }
    }
}

/* Tables of rotation for all positions, on the device; NULL without memory. */
static int32_t make_turns(kvf_cache *cache, const float *inv_freq, cu_format *f, cu_format_impl *impl, kv_err err) {
    const uint32_t half = cache->config.head_dim / 2;
    const size_t n = (size_t)2 * half * (CU_LOW_TURNS + CU_MIDDLE_TURNS + CU_TOP_TURNS), bytes = n * sizeof(float);
    float *host = (float *)malloc(bytes);
    if (host == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot use the format as %zu bytes must be available", bytes);
    float *middle = host + (size_t)2 * half * CU_LOW_TURNS, *top = middle + (size_t)2 * half * CU_MIDDLE_TURNS;
    turns_into(host, CU_LOW_TURNS, 1, inv_freq, half);
    turns_into(middle, CU_MIDDLE_TURNS, CU_LOW_TURNS, inv_freq, half);
    turns_into(top, CU_TOP_TURNS, CU_LOW_TURNS * CU_MIDDLE_TURNS, inv_freq, half);
    int32_t status = cu_alloc(cache->dev, (void **)&impl->turns, bytes, "rotations", err);
    if (status == KVF_OK) status = be_upload(cache->dev, impl->turns, host, bytes, err);
    f->low = impl->turns, f->middle = impl->turns + (middle - host), f->top = impl->turns + (top - host);
    free(host);
    return status;
}

extern "C" int32_t be_format_open(kvf_cache *cache, kv_format *format, kv_err err) {
    cu_format f = {};
    CU_PASS(cu_enter(cache->dev, err));
    cu_format_impl *impl = (cu_format_impl *)calloc(1, sizeof *impl);
    if (impl == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot use the format as %zu bytes must be available", sizeof *impl);
    format->impl = impl;
    f.layout = kv_layout_of(&cache->config, &format->config);
    f.head_dim = cache->config.head_dim, f.dtype = cache->config.row_dtype;
    impl->kernel = f.kernel = cu_packed_kernel_of(cu_of(cache->dev), &cache->config, &format->config);
    int32_t status = cu_alloc(cache->dev, (void **)&impl->device, sizeof f, "a format", err);
    if (status == KVF_OK && format->inv_freq != NULL) status = make_turns(cache, format->inv_freq, &f, impl, err);
    if (status == KVF_OK) status = be_upload(cache->dev, impl->device, &f, sizeof f, err);
    if (status != KVF_OK) be_format_close(cache, format);
    return status;
}

extern "C" void be_format_close(kvf_cache *cache, kv_format *format) {
    cu_format_impl *impl = (cu_format_impl *)format->impl;
    if (impl == NULL) return;
    be_free(cache->dev, impl->device);
    be_free(cache->dev, impl->turns);
    free(impl);
    format->impl = NULL;
}

/* ---- Pages ---- */

/* kv_pack_job with the format's copy on the device. */
typedef struct pack_job {
    const cu_format *format;
    const void *frame, *from;
    void *to;
    uint32_t n_row;
} pack_job;

static __device__ void put_codes(const source &s, const float *between, uint8_t *page) {
    const kv_part &p = *s.part;
    const uint32_t bits = p.bits, n_run = p.ld / KV_RUN;
    for (uint32_t i = threadIdx.x; i < p.n_line * n_run; i += blockDim.x) {
        const uint32_t line = i / n_run, lane0 = i % n_run * KV_RUN;
        uint32_t word[8] = {};
#pragma unroll
        for (uint32_t k = 0; k < KV_RUN; k++) {
            const uint32_t lane = lane0 + k;
            if (!there(s, line, lane) || s.mark[line * s.stride + lane] != 0) continue;
            const uint32_t code = code_of(s, between, line, lane);
            if (bits == 8) {
                word[k / 2] |= code << 8 * (k % 2);
            } else if (bits == 4) {
                word[k % 2 * 2 + k / 8] |= code << k % 8 / 2 * 4;
            } else {
                word[k / 8] |= (code & 3u) << k % 8 * 2;
                word[2] |= code >> 2 << k;
            }
        }
        uint16_t *to = (uint16_t *)(page + p.codes + (size_t)i * 2 * bits);
#pragma unroll
        for (uint32_t k = 0; k < 8; k++) {
            if (k < bits) to[k] = (uint16_t)word[k];
        }
    }
}

/* left[r][slot]: what is lost of the slot's row along basis r. x is the loss. */
static __device__ void put_left(const source &s, const uint8_t *frame, uint8_t *page) {
    const kv_part &p = *s.part;
    const uint32_t n_channel = p.keys ? p.n_line : p.n_lane;
    uint16_t *left = (uint16_t *)(page + p.left);
    for (uint32_t i = threadIdx.x; i < p.rank * KVF_PAGE_ROWS; i += blockDim.x) {
        const uint32_t slot = i % KVF_PAGE_ROWS;
        const float *basis = (const float *)(frame + p.basis) + (size_t)(i / KVF_PAGE_ROWS) * n_channel;
        float sum = 0;
        for (uint32_t c = 0; c < n_channel; c++) {
            const float x = s.x[p.keys ? c * s.stride + slot : slot * s.stride + c];
            sum = __fadd_rn(sum, __fmul_rn(x, basis[c]));
        }
        left[i] = half_of(sum, false);
    }
}

/* A block per page and part. */
template <typename R>
static __global__ void __launch_bounds__(PACK_THREADS) pack_kernel(const pack_job *jobs) {
    extern __shared__ float shared[];
    __shared__ float between[16];
    const pack_job j = jobs[blockIdx.x];
    const cu_format &f = *j.format;
    const uint8_t *frame = (const uint8_t *)j.frame;
    uint8_t *page = (uint8_t *)j.to;
    const bool keys = blockIdx.y == 0;
    const source s = source_of(keys ? &f.layout.key : &f.layout.value, f.head_dim, j.n_row, shared);
    const kv_part &p = *s.part;
    read_source<R>(s, f, j.from, f.layout.pruned ? (const uint16_t *)frame : NULL, j.n_row);
    if (!keys && threadIdx.x < KVF_PAGE_ROWS) {
        uint32_t *positions = (uint32_t *)(page + f.layout.positions);
        positions[threadIdx.x] = threadIdx.x < j.n_row ? page_positions<R>((void *)j.from, f.head_dim)[threadIdx.x] : 0;
    }
    if (p.bits == 0) {
        for (uint32_t i = threadIdx.x; i < p.n_line * p.n_lane; i += blockDim.x) {
            store_as(page + p.codes, f.dtype, i, s.x[i / p.n_lane * s.stride + i % p.n_lane]);
        }
        return;
    }
    put_outliers(s, f.dtype, page);
    put_scales(s, page);
    read_between(p, frame, between);
    __syncthreads();
    put_codes(s, between, page);
    if (p.rank == 0) return;
    to_loss(s, frame, between);
    put_left(s, frame, page);
}

template <typename R>
static cudaError_t launch(kvf_cache *cache, const pack_job *jobs, uint32_t n) {
    const size_t bytes = source_bytes(cache->config.head_dim);
    const cudaError_t e = cudaFuncSetAttribute(pack_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    pack_kernel<R><<<dim3(n, 2), PACK_THREADS, bytes, cu_of(cache->dev)->stream>>>(jobs);
    return cudaGetLastError();
}

extern "C" int32_t be_pack_pages(kvf_cache *cache, const kv_pack_job *jobs, uint32_t n_job, kv_err err) {
    const uint32_t most = CU_STAGE_HALF / sizeof(pack_job) / 2;
    CU_PASS(cu_enter(cache->dev, err));
    if (n_job == 0) return KVF_OK;
    const uint32_t room = n_job < most ? n_job : most;
    pack_job *list = (pack_job *)malloc(room * sizeof *list);
    if (list == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot pack rows as %zu bytes must be available", room * sizeof *list);
    int32_t status = KVF_OK;
    for (uint32_t first = 0; first < n_job && status == KVF_OK; first += most) {
        const uint32_t n = n_job - first < most ? n_job - first : most;
        void *staged;
        for (uint32_t i = 0; i < n; i++) {
            const kv_pack_job *j = &jobs[first + i];
            list[i].format = cu_format_of(j->format), list[i].frame = j->frame, list[i].from = j->from;
            list[i].to = j->to, list[i].n_row = j->n_row;
        }
        status = cu_push(cache->dev, &staged, list, n * sizeof *list, err);
        if (status != KVF_OK) break;
        cudaError_t e;
        CU_WITH_TYPE(cache->config.row_dtype, R, e = (launch<R>(cache, (const pack_job *)staged, n)));
        status = cu_check(e, "packing rows", err);
    }
    free(list);
    return status;
}
