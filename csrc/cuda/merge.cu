/* Rows that take others in: merging by the likeness of keys, and values that spread over later rows. */
#include "numbers.cuh"

/* A warp per row: keys and values as f32, and the key with norm 1. */
template <typename R>
static __global__ void unit_kernel(void *const *pages, uint32_t n, uint32_t head_dim, float *keys, float *values,
                                   float *unit) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    void *page = pages[i / KVF_PAGE_ROWS];
    const size_t slot = i % KVF_PAGE_ROWS * head_dim, to = (size_t)i * head_dim;
    float square = 0;
    for (uint32_t d = lane; d < head_dim; d += 32) {
        const float k = to_f32(page_keys<R>(page)[slot + d]);
        keys[to + d] = k;
        values[to + d] = to_f32(page_values<R>(page, head_dim)[slot + d]);
        square = fmaf(k, k, square);
    }
    const float norm = fmaxf(sqrtf(warp_sum(square)), 1e-6f);
    for (uint32_t d = lane; d < head_dim; d += 32) unit[to + d] = keys[to + d] / norm;
}

/* A warp per row: the kept row whose key is most alike, the first among equals; n for rows that are kept themselves. */
static __global__ void search_kernel(const float *unit, const uint32_t *rows, uint32_t n, uint32_t n_row,
                                     uint32_t head_dim, uint32_t *target, float *cosine) {
    const uint32_t r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= n_row) return;
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (rows[mid] < r) low = mid + 1;
        else high = mid;
    }
    if (low < n && rows[low] == r) {
        if (lane == 0) target[r] = n;
        return;
    }
    float own[8], best = -INFINITY;
    uint32_t at = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) own[j] = lane + 32 * j < head_dim ? unit[(size_t)r * head_dim + lane + 32 * j] : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        const float *other = unit + (size_t)rows[i] * head_dim;
        float dot = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (lane + 32 * j < head_dim) dot = fmaf(own[j], other[lane + 32 * j], dot);
        }
        dot = warp_sum(dot);
        if (dot > best) best = dot, at = i;
    }
    if (lane != 0) return;
    target[r] = at;
    cosine[r] = best;
}

/* A block per kept row, a thread per dimension: all rows that go to it, in ascending order. */
static __global__ void __launch_bounds__(256) take_kernel(const float *keys, const float *values, const uint32_t *rows,
                                                          const uint32_t *target, const float *cosine, uint32_t n_row,
                                                          uint32_t head_dim, bool midpoint, float *to_k, float *to_v) {
    const uint32_t i = blockIdx.x, d = threadIdx.x;
    if (d >= head_dim) return;
    const size_t own = (size_t)rows[i] * head_dim + d;
    const double own_k = keys[own], own_v = values[own];
    double k = own_k, v = own_v, weight = 1;
    for (uint32_t r = 0; r < n_row; r++) {
        if (target[r] != i) continue;
        const size_t from = (size_t)r * head_dim + d;
        const double half = (cosine[r] + 1.0) / 2, g = half > 1e-6 ? half : 1e-6;
        weight += midpoint ? 1 : g;
        k += midpoint ? (own_k + keys[from]) / 2 : g * keys[from];
        v += midpoint ? (own_v + values[from]) / 2 : g * values[from];
    }
    to_k[(size_t)i * head_dim + d] = (float)(k / weight);
    to_v[(size_t)i * head_dim + d] = (float)(v / weight);
}

extern "C" int32_t be_merge_rows(kvf_cache *cache, const kv_table *t, const uint32_t *rows, uint32_t n, uint32_t merge,
                                 float *k, float *v, kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const uint32_t head_dim = cache->config.head_dim, n_row = t->rows;
    const size_t size = (size_t)n_row * head_dim;
    void *work, **pages;
    CU_PASS(cu_enter(dev, err));
    CU_PASS(cu_scratch(dev, &work, (3 * size + n_row) * sizeof(float) + n_row * sizeof(uint32_t), err));
    float *keys = (float *)work, *values = keys + size, *unit = values + size, *cosine = unit + size;
    uint32_t *target = (uint32_t *)(cosine + n_row);
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (unit_kernel<R><<<cu_div_up(n_row, 8), 256, 0, stream>>>(pages, n_row, head_dim, keys, values, unit)));
    CU_LAUNCHED("merging rows");
    search_kernel<<<cu_div_up(n_row, 8), 256, 0, stream>>>(unit, rows, n, n_row, head_dim, target, cosine);
    CU_LAUNCHED("merging rows");
    take_kernel<<<n, cu_round_up(head_dim, 32), 0, stream>>>(keys, values, rows, target, cosine, n_row, head_dim,
                                                            merge == KVF_MERGE_MIDPOINT, k, v);
    CU_LAUNCHED("merging rows");
    return KVF_OK;
}

/* ---- Spreading ---- */

/* A thread per dimension walks the rows in order: what a row takes in, it hands on. */
template <typename R>
static __global__ void spread_kernel(void *const *pages, const float *shares, uint32_t first, uint32_t span,
                                     uint32_t n_row, uint32_t head_dim) {
    const uint32_t d = blockIdx.x * blockDim.x + threadIdx.x;
    if (d >= head_dim) return;
    for (uint32_t row = first; row < n_row - span; row++) {
        const float share = shares[row];
        if (share == 0) continue;
        const float from = to_f32(page_values<R>(pages[row / KVF_PAGE_ROWS], head_dim)[row % KVF_PAGE_ROWS * head_dim + d]);
        const float part = from * share / (float)span;
        for (uint32_t next = row + 1; next <= row + span; next++) {
            R *to = &page_values<R>(pages[next / KVF_PAGE_ROWS], head_dim)[next % KVF_PAGE_ROWS * head_dim + d];
            from_f32(to, to_f32(*to) + part);
        }
    }
}

extern "C" int32_t be_spread_values(kvf_cache *cache, kv_table *t, const float *shares, uint32_t first, uint32_t span,
                                    kv_err err) {
    const uint32_t head_dim = cache->config.head_dim;
    void **pages;
    CU_PASS(cu_enter(cache->dev, err));
    if (span >= t->rows) return KVF_OK;
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (spread_kernel<R><<<cu_div_up(head_dim, 32), 32, 0, cu_of(cache->dev)->stream>>>(
                     pages, shares, first, span, t->rows, head_dim)));
    CU_LAUNCHED("spreading values");
    return KVF_OK;
}
