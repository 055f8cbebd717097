/* The highest scores: per head as ascending rows, or counted over all heads. Ties go to the lowest row, NaN comes last. */
#include "select.cuh"

enum { THREADS = 1024 };

/* A block per head. */
static __global__ void __launch_bounds__(THREADS) top_kernel(uint32_t *rows, const float *scores, uint32_t n_row,
                                                             const uint32_t *counts, const uint32_t *offsets) {
    __shared__ cut_state state;
    __shared__ uint32_t part[THREADS / 32];
    const float *x = scores + (size_t)blockIdx.x * n_row;
    if (counts[blockIdx.x] == 0) return;
    top_rows<THREADS>(&state, part, [x](size_t i) { return order_key(x[i]); }, n_row, counts[blockIdx.x],
                      rows + offsets[blockIdx.x]);
}

extern "C" int32_t be_select_top(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row,
                                 const uint32_t *counts, uint32_t *rows, kv_err err) {
    uint32_t host[2 * KV_MAX_HEAD], at = 0;
    void *device;
    CU_PASS(cu_enter(dev, err));
    if (n_head > KV_MAX_HEAD) return kv_fail(err, KVF_ERR_ARG, "Cannot select from %u heads", n_head);
    for (uint32_t h = 0; h < n_head; h++) {
        host[h] = counts[h];
        host[n_head + h] = at;
        at += counts[h];
    }
    CU_PASS(cu_push(dev, &device, host, 2 * n_head * sizeof *host, err));
    top_kernel<<<n_head, THREADS, 0, cu_of(dev)->stream>>>(rows, scores, n_row, (const uint32_t *)device,
                                                          (const uint32_t *)device + n_head);
    CU_LAUNCHED("selecting rows");
    return KVF_OK;
}

/* One block; heads in order, so that ties go to the lowest head first. */
static __global__ void __launch_bounds__(THREADS) share_kernel(uint32_t *counts, const float *scores, uint32_t n_head,
                                                               uint32_t n_row, uint32_t total) {
    __shared__ cut_state state;
    __shared__ uint32_t found[2];
    uint32_t cut, ties, equal = 0;
    radix_cut(&state, [scores](size_t i) { return order_key(scores[i]); }, (size_t)n_head * n_row, total, &cut, &ties);
    for (uint32_t h = 0; h < n_head; h++) {
        if (threadIdx.x < 2) found[threadIdx.x] = 0;
        __syncthreads();
        uint32_t mine_above = 0, mine_equal = 0;
        for (uint32_t i = threadIdx.x; i < n_row; i += THREADS) {
            const uint32_t key = order_key(scores[(size_t)h * n_row + i]);
            mine_above += key > cut;
            mine_equal += key == cut;
        }
        atomicAdd(&found[0], mine_above);
        atomicAdd(&found[1], mine_equal);
        __syncthreads();
        if (threadIdx.x == 0) counts[h] = found[0] + min(equal + found[1], ties) - min(equal, ties);
        equal += found[1];
        __syncthreads();
    }
}

extern "C" int32_t be_scores_share(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, uint32_t total,
                                   uint32_t *counts, kv_err err) {
    void *device;
    CU_PASS(cu_enter(dev, err));
    memset(counts, 0, n_head * sizeof *counts);
    if (total == 0) return KVF_OK;
    CU_PASS(cu_scratch(dev, &device, n_head * sizeof *counts, err));
    share_kernel<<<1, THREADS, 0, cu_of(dev)->stream>>>((uint32_t *)device, scores, n_head, n_row, total);
    CU_LAUNCHED("sharing rows");
    return be_download(dev, counts, device, n_head * sizeof *counts, err);
}
