/* Arithmetic on scores. */
#include "numbers.cuh"

static __global__ void pool_kernel(float *out, const float *in, uint32_t n_row, uint32_t kind, uint32_t width) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, half = width / 2;
    if (i >= n_row) return;
    const float *x = in + (size_t)blockIdx.y * n_row;
    const uint32_t low = i > half ? i - half : 0, high = half < n_row - 1 - i ? i + half : n_row - 1;
    float value = x[low];
    for (uint32_t k = low + 1; k <= high; k++) {
        if (kind == 1) value += x[k];
        else if (x[k] > value || isnan(value)) value = x[k]; /* NaN never hides a number */
    }
    out[(size_t)blockIdx.y * n_row + i] = kind == 1 ? value / (float)width : value;
}

static __global__ void affine_kernel(float *out, const float *in, size_t n, float a, float b) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = __fadd_rn(__fmul_rn(a, in[i]), b);
}

static __global__ void combine_kernel(float *out, const float *x, const float *y, size_t n, uint32_t what) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = what == 0 ? x[i] + y[i] : what == 1 ? x[i] * y[i] : x[i] < y[i] ? 1.0f : 0.0f;
}

static __global__ void fill_kernel(float *inout, uint32_t n_row, uint32_t first, uint32_t end, float value) {
    const uint32_t i = first + blockIdx.x * blockDim.x + threadIdx.x;
    if (i < end) inout[(size_t)blockIdx.y * n_row + i] = value;
}

static __global__ void random_kernel(float *out, uint32_t n_row, uint32_t seed, uint32_t layer) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_row) return;
    uint32_t words[4];
    philox(i, blockIdx.y, layer, 0, seed, 0x73636f72u, words);
    out[(size_t)blockIdx.y * n_row + i] = ((float)(words[0] >> 8) + 1.0f) * 0x1p-24f;
}

extern "C" int32_t be_scores_pool(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                                  uint32_t kind, uint32_t width, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n_row == 0) return KVF_OK;
    pool_kernel<<<dim3(cu_div_up(n_row, 256), n_head), 256, 0, cu_of(dev)->stream>>>(out, in, n_row, kind, width);
    CU_LAUNCHED("pooling");
    return KVF_OK;
}

extern "C" int32_t be_scores_affine(kvf_device *dev, const float *in, float *out, size_t n, float a, float b,
                                    kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n == 0) return KVF_OK;
    affine_kernel<<<cu_div_up(n, 256), 256, 0, cu_of(dev)->stream>>>(out, in, n, a, b);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}

extern "C" int32_t be_scores_combine(kvf_device *dev, const float *x, const float *y, float *out, size_t n, uint32_t what,
                                     kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n == 0) return KVF_OK;
    combine_kernel<<<cu_div_up(n, 256), 256, 0, cu_of(dev)->stream>>>(out, x, y, n, what);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}

extern "C" int32_t be_scores_fill(kvf_device *dev, float *inout, uint32_t n_head, uint32_t n_row, uint32_t first,
                                  uint32_t end, float value, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (first >= end) return KVF_OK;
    fill_kernel<<<dim3(cu_div_up(end - first, 256), n_head), 256, 0, cu_of(dev)->stream>>>(inout, n_row, first, end,
                                                                                       value);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}

extern "C" int32_t be_scores_random(kvf_device *dev, float *out, uint32_t n_head, uint32_t n_row, uint32_t seed,
                                    uint32_t layer, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n_row == 0) return KVF_OK;
    random_kernel<<<dim3(cu_div_up(n_row, 256), n_head), 256, 0, cu_of(dev)->stream>>>(out, n_row, seed, layer);
    CU_LAUNCHED("random scores");
    return KVF_OK;
}

/* One block a head: the share of the head's sum that its chosen rows make up, then the scaled copy. Fixed order. */
static __global__ void concentrate_kernel(const float *in, float *out, const uint32_t *rows, uint32_t n_row,
                                          uint32_t count) {
    const float *x = in + (size_t)blockIdx.x * n_row;
    const uint32_t *chosen = rows + (size_t)blockIdx.x * count;
    __shared__ double part[2][256];
    double all = 0, top = 0;
    for (uint32_t i = threadIdx.x; i < n_row; i += 256) all += x[i] == -INFINITY ? 0.0f : x[i];
    for (uint32_t i = threadIdx.x; i < count; i += 256) top += x[chosen[i]] == -INFINITY ? 0.0f : x[chosen[i]];
    part[0][threadIdx.x] = all;
    part[1][threadIdx.x] = top;
    __syncthreads();
    for (uint32_t half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            part[0][threadIdx.x] += part[0][threadIdx.x + half];
            part[1][threadIdx.x] += part[1][threadIdx.x + half];
        }
        __syncthreads();
    }
    const float factor = part[0][0] > 0 ? (float)(part[1][0] / part[0][0]) : 1.0f;
    for (uint32_t i = threadIdx.x; i < n_row; i += 256) {
        out[(size_t)blockIdx.x * n_row + i] = x[i] == -INFINITY ? x[i] : x[i] * factor;
    }
}

extern "C" int32_t be_scores_concentrate(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                                         uint32_t count, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n_row == 0) return KVF_OK;
    uint32_t counts[KV_MAX_HEAD];
    for (uint32_t h = 0; h < n_head && h < KV_MAX_HEAD; h++) counts[h] = count;
    uint32_t *rows = (uint32_t *)be_alloc(dev, (size_t)n_head * (count > 0 ? count : 1) * sizeof *rows);
    if (rows == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot concentrate the scores as memory ran out");
    int32_t status = count > 0 ? be_select_top(dev, in, n_head, n_row, counts, rows, err) : KVF_OK;
    if (status == KVF_OK) {
        concentrate_kernel<<<n_head, 256, 0, cu_of(dev)->stream>>>(in, out, rows, n_row, count);
        status = cu_check(cudaGetLastError(), "concentrating scores", err);
    }
    be_free(dev, rows);
    return status;
}

static __global__ void log_kernel(float *out, const float *in, size_t n) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = logf(in[i]);
}

static __global__ void fill_selected_kernel(float *inout, const uint32_t *rows, uint32_t n, float value) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) inout[rows[i]] = value;
}

/* Each score over the highest of the first `lead` and of the `span` from itself on, within [0, 1]; NaN is 0. */
static __global__ void relative_kernel(float *out, const float *in, uint32_t n_row, uint32_t lead, uint32_t span) {
    __shared__ float part[256];
    const float *x = in + (size_t)blockIdx.y * n_row;
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    float most = -INFINITY;
    for (uint32_t k = threadIdx.x; k < lead; k += 256) most = x[k] > most ? x[k] : most;
    part[threadIdx.x] = most;
    __syncthreads();
    for (uint32_t half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] = fmaxf(part[threadIdx.x], part[threadIdx.x + half]);
        __syncthreads();
    }
    if (i >= n_row) return;
    most = part[0];
    const uint32_t end = span < n_row - i ? i + span : n_row;
    for (uint32_t k = i; k < end; k++) most = x[k] > most ? x[k] : most;
    const float share = x[i] / most;
    out[(size_t)blockIdx.y * n_row + i] = share > 0 ? (share < 1 ? share : 1.0f) : 0.0f;
}

extern "C" int32_t be_scores_log(kvf_device *dev, const float *in, float *out, size_t n, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n == 0) return KVF_OK;
    log_kernel<<<cu_div_up(n, 256), 256, 0, cu_of(dev)->stream>>>(out, in, n);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}

extern "C" int32_t be_scores_fill_selected(kvf_device *dev, float *inout, const uint32_t *rows, uint32_t n, float value,
                                           kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n == 0) return KVF_OK;
    fill_selected_kernel<<<cu_div_up(n, 256), 256, 0, cu_of(dev)->stream>>>(inout, rows, n, value);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}

extern "C" int32_t be_scores_relative(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                                      uint32_t lead, uint32_t span, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (n_row == 0) return KVF_OK;
    relative_kernel<<<dim3(cu_div_up(n_row, 256), n_head), 256, 0, cu_of(dev)->stream>>>(out, in, n_row, lead, span);
    CU_LAUNCHED("score algebra");
    return KVF_OK;
}
