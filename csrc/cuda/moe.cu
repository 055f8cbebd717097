/*
 * Mixture of experts. A token's experts are taken in ascending order of their ids everywhere, so prefill and decode add in
 * one order.
 */
#include "numbers.cuh"

/* A thread per token: softmax over all experts, the n_used most likely ones, ascending ids. */
static __global__ void route_kernel(uint32_t *chosen, float *weight, const float *router, uint32_t n, uint32_t n_expert,
                                    uint32_t n_used, bool normalise) {
    const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= n) return;
    const float *logit = router + (size_t)token * n_expert;
    uint32_t *ids = chosen + (size_t)token * n_used;
    float *out = weight + (size_t)token * n_used;
    float max = -INFINITY, sum = 0, used = 0;
    for (uint32_t e = 0; e < n_expert; e++) max = fmaxf(max, logit[e]);
    for (uint32_t e = 0; e < n_expert; e++) sum += expf(logit[e] - max);
    for (uint32_t k = 0; k < n_used; k++) {
        uint32_t best = n_expert;
        for (uint32_t e = 0; e < n_expert; e++) {
            bool taken = false;
            for (uint32_t j = 0; j < k; j++) taken |= ids[j] == e;
            if (!taken && (best == n_expert || logit[e] > logit[best])) best = e;
        }
        ids[k] = best;
    }
    for (uint32_t k = 1; k < n_used; k++) {
        const uint32_t id = ids[k];
        uint32_t j = k;
        for (; j > 0 && ids[j - 1] > id; j--) ids[j] = ids[j - 1];
        ids[j] = id;
    }
    for (uint32_t k = 0; k < n_used; k++) {
        out[k] = expf(logit[ids[k]] - max) / sum;
        used += out[k];
    }
    for (uint32_t k = 0; k < n_used && normalise; k++) out[k] /= used;
}

/* x[token, i] += sum over the token's experts. */
static __global__ void combine_kernel(float *x, const float *y, const float *weight, uint32_t n_used, uint32_t hidden) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, token = blockIdx.y;
    if (i >= hidden) return;
    float sum = x[(size_t)token * hidden + i];
    for (uint32_t k = 0; k < n_used; k++) {
        const uint32_t entry = token * n_used + k;
        sum = fmaf(weight[entry], y[(size_t)entry * hidden + i], sum);
    }
    x[(size_t)token * hidden + i] = sum;
}

int32_t cu_route(kvf_model *model, const float *router, uint32_t n, uint32_t *chosen, float *weight, kv_err err) {
    const kvf_model_config *c = &model->config;
    route_kernel<<<cu_div_up(n, 128), 128, 0, cu_of(model->dev)->stream>>>(chosen, weight, router, n, c->n_expert,
                                                                         c->n_expert_used,
                                                                         (c->flags & KVF_NORM_EXPERT_PROB) != 0);
    CU_LAUNCHED("choosing experts");
    return KVF_OK;
}

int32_t cu_experts_step(kvf_model *model, const cu_layer *layer, const void *h, uint32_t n, float *x,
                        const cu_expert_work *work, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t n_entry = n * c->n_expert_used;
    cu_skinny_out out = {};
    out.epilogue = CU_STORE, out.out = work->router, out.ld = c->n_expert;
    CU_PASS(cu_skinny(dev, c->weight_dtype, &layer->router, h, n, out, err));
    CU_PASS(cu_route(model, work->router, n, work->chosen, work->weight, err));
    out.epilogue = CU_SWIGLU, out.act = work->act, out.ld = layer->down.ld;
    CU_PASS(cu_skinny_experts(dev, c->weight_dtype, &layer->gate_up, 2 * c->intermediate, work->chosen, c->n_expert_used, h,
                              n_entry, out, err));
    out.epilogue = CU_STORE, out.out = work->y, out.ld = c->hidden;
    CU_PASS(cu_skinny_experts(dev, c->weight_dtype, &layer->down, c->hidden, work->chosen, 1, work->act, n_entry, out,
                              err));
    combine_kernel<<<dim3(cu_div_up(c->hidden, 256), n), 256, 0, cu_of(dev)->stream>>>(x, work->y, work->weight,
                                                                                   c->n_expert_used, c->hidden);
    CU_LAUNCHED("adding experts");
    return KVF_OK;
}

/* ---- Prefill ---- */

/* A block per expert lists its entries (token * n_used + k) in ascending order. */
static __global__ void __launch_bounds__(256) list_kernel(uint32_t *list, uint32_t *count, const uint32_t *chosen,
                                                          uint32_t n_entry) {
    __shared__ uint32_t before[256];
    const uint32_t expert = blockIdx.x;
    uint32_t *mine = list + (size_t)expert * n_entry;
    uint32_t total = 0;
    for (uint32_t base = 0; base < n_entry; base += 256) {
        const uint32_t entry = base + threadIdx.x;
        const uint32_t is = entry < n_entry && chosen[entry] == expert;
        before[threadIdx.x] = is;
        __syncthreads();
        for (uint32_t step = 1; step < 256; step *= 2) {
            const uint32_t add = threadIdx.x >= step ? before[threadIdx.x - step] : 0;
            __syncthreads();
            before[threadIdx.x] += add;
            __syncthreads();
        }
        if (is) mine[total + before[threadIdx.x] - 1] = entry;
        total += before[255];
        __syncthreads();
    }
    if (threadIdx.x == 0) count[expert] = total;
}

/* Rows of h for the listed entries; 2-byte or 4-byte elements. */
static __global__ void pick_kernel(char *to, const char *h, const uint32_t *list, uint32_t n_used, size_t row_bytes) {
    const char *from = h + (size_t)(list[blockIdx.x] / n_used) * row_bytes;
    for (size_t i = (size_t)threadIdx.x * 2; i < row_bytes; i += (size_t)blockDim.x * 2) {
        *(uint16_t *)(to + blockIdx.x * row_bytes + i) = *(const uint16_t *)(from + i);
    }
}

/* x[token] += weight * y for the listed entries of one expert; a token occurs once in a list. */
static __global__ void spread_kernel(float *x, const float *y, const uint32_t *list, const float *weight, uint32_t n_used,
                                     uint32_t hidden) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, entry = list[blockIdx.y];
    if (i >= hidden) return;
    float *to = &x[(size_t)(entry / n_used) * hidden + i];
    *to = fmaf(weight[entry], y[(size_t)blockIdx.y * hidden + i], *to);
}

/* Parts of one scratch block. */
static void *cut(char **at, size_t bytes) {
    void *part = *at;
    *at += (bytes + 255) / 256 * 256;
    return part;
}

size_t cu_experts_bytes(const kvf_model *model, uint32_t n) {
    const kvf_model_config *c = &model->config;
    const cu_layer *l = cu_weights(model)->layer;
    const size_t n_entry = (size_t)n * c->n_expert_used, element = cu_dtype_bytes(c->weight_dtype);
    const size_t gate_up = 2 * (size_t)c->intermediate * cu_dtype_bytes(cu_wide_dtype(c->weight_dtype));
    const size_t lists = (size_t)n * c->n_expert * 4 + n_entry * 8 + (size_t)c->n_expert * (n_entry + 1) * 4;
    const size_t token = l->gate_up.ld * element + gate_up + l->down.ld * element + (size_t)c->hidden * 4;
    return lists + n * token + 16 * 256;
}

int32_t cu_experts_prefill(kvf_model *model, const cu_layer *layer, const void *h, uint32_t ldh, uint32_t n, float *x,
                           kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const uint32_t n_entry = n * c->n_expert_used, width = 2 * c->intermediate;
    const size_t element = cu_dtype_bytes(c->weight_dtype), row_bytes = ldh * element;
    uint32_t *count = (uint32_t *)malloc(c->n_expert * sizeof *count);
    char *work = NULL, *at;
    const size_t bytes = cu_experts_bytes(model, n);
    if (count == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot run the experts as memory ran out");
    int32_t status = cu_alloc(dev, (void **)&work, bytes, "experts", err);
    at = work;
    float *router = (float *)cut(&at, (size_t)n * c->n_expert * 4);
    uint32_t *chosen = (uint32_t *)cut(&at, (size_t)n_entry * 4);
    float *weight = (float *)cut(&at, (size_t)n_entry * 4);
    uint32_t *list = (uint32_t *)cut(&at, (size_t)c->n_expert * n_entry * 4);
    uint32_t *counts = (uint32_t *)cut(&at, c->n_expert * 4);
    char *rows = (char *)cut(&at, n * row_bytes);
    void *gate_up = cut(&at, (size_t)n * width * cu_dtype_bytes(cu_wide_dtype(c->weight_dtype)));
    void *act = cut(&at, (size_t)n * layer->down.ld * element);
    float *y = (float *)cut(&at, (size_t)n * c->hidden * 4);
    if (status == KVF_OK) status = cu_check(cudaMemsetAsync(act, 0, (size_t)n * layer->down.ld * element, stream), "experts", err);
    if (status == KVF_OK) status = cu_gemm(dev, c->weight_dtype, &layer->router, h, ldh, n, router, c->n_expert, false, err);
    if (status == KVF_OK) status = cu_route(model, router, n, chosen, weight, err);
    if (status == KVF_OK) {
        list_kernel<<<c->n_expert, 256, 0, stream>>>(list, counts, chosen, n_entry);
        status = cu_check(cudaGetLastError(), "listing experts", err);
    }
    if (status == KVF_OK) status = be_download(dev, count, counts, c->n_expert * sizeof *count, err);
    for (uint32_t e = 0; e < c->n_expert && status == KVF_OK; e++) {
        if (count[e] == 0) continue;
        const cu_matrix up = cu_expert(&layer->gate_up, c->weight_dtype, width, e);
        const cu_matrix down = cu_expert(&layer->down, c->weight_dtype, c->hidden, e);
        const uint32_t *mine = list + (size_t)e * n_entry;
        pick_kernel<<<count[e], 128, 0, stream>>>(rows, (const char *)h, mine, c->n_expert_used, row_bytes);
        status = cu_check(cudaGetLastError(), "picking tokens", err);
        if (status == KVF_OK) status = cu_gemm_wide(dev, c->weight_dtype, &up, rows, ldh, count[e], gate_up, width, err);
        if (status == KVF_OK) status = cu_swiglu(dev, c->weight_dtype, act, down.ld, gate_up, count[e], c->intermediate, err);
        if (status == KVF_OK) status = cu_gemm(dev, c->weight_dtype, &down, act, down.ld, count[e], y, c->hidden, false, err);
        if (status != KVF_OK) break;
        spread_kernel<<<dim3(cu_div_up(c->hidden, 256), count[e]), 256, 0, stream>>>(x, y, mine, weight, c->n_expert_used,
                                                                                 c->hidden);
        status = cu_check(cudaGetLastError(), "adding experts", err);
    }
    be_free(dev, work);
    free(count);
    return status;
}
