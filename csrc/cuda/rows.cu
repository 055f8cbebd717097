/* Rows in pages: gathering, reading, writing, unions of row lists. */
#include "numbers.cuh"
#include "program.h"

extern "C" uint32_t be_page_bytes(const kvf_cache_config *config) {
    const size_t rows = 2 * (size_t)config->head_dim * cu_dtype_bytes(config->row_dtype) + sizeof(uint32_t);
    return cu_round_up((uint32_t)(KVF_PAGE_ROWS * rows), CU_SLOT_ALIGN);
}

/* A warp copies one row: key, value, position. */
template <typename R>
static __global__ void gather_kernel(void *const *dst, void *const *src, const uint32_t *rows, uint32_t n,
                                     uint32_t head_dim) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    const uint32_t row = rows[i];
    void *from = src[row / KVF_PAGE_ROWS], *to = dst[i / KVF_PAGE_ROWS];
    const uint32_t a = row % KVF_PAGE_ROWS, b = i % KVF_PAGE_ROWS;
    for (uint32_t d = lane; d < head_dim; d += 32) {
        page_keys<R>(to)[b * head_dim + d] = page_keys<R>(from)[a * head_dim + d];
        page_values<R>(to, head_dim)[b * head_dim + d] = page_values<R>(from, head_dim)[a * head_dim + d];
    }
    if (lane == 0) page_positions<R>(to, head_dim)[b] = page_positions<R>(from, head_dim)[a];
}

/* A warp reads one row of keys (what 0) or values (1) as f32. */
template <typename R>
static __global__ void read_kernel(float *to, void *const *pages, uint32_t n, uint32_t head_dim, uint32_t what) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    void *page = pages[i / KVF_PAGE_ROWS];
    const R *from = (what == 0 ? page_keys<R>(page) : page_values<R>(page, head_dim)) + i % KVF_PAGE_ROWS * head_dim;
    for (uint32_t d = lane; d < head_dim; d += 32) to[(size_t)i * head_dim + d] = to_f32(from[d]);
}

template <typename R>
static __global__ void positions_kernel(uint32_t *to, void *const *pages, uint32_t n, uint32_t head_dim) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = page_positions<R>(pages[i / KVF_PAGE_ROWS], head_dim)[i % KVF_PAGE_ROWS];
}

/* A warp writes one row; with `positions` its position too, which is its index. */
template <typename R>
static __global__ void write_kernel(void *const *pages, const float *k, const float *v, uint32_t n, uint32_t head_dim,
                                    bool positions) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    const uint32_t slot = i % KVF_PAGE_ROWS;
    void *page = pages[i / KVF_PAGE_ROWS];
    for (uint32_t d = lane; d < head_dim; d += 32) {
        from_f32(&page_keys<R>(page)[slot * head_dim + d], k[(size_t)i * head_dim + d]);
        from_f32(&page_values<R>(page, head_dim)[slot * head_dim + d], v[(size_t)i * head_dim + d]);
    }
    if (lane == 0 && positions) page_positions<R>(page, head_dim)[slot] = i;
}

extern "C" int32_t be_gather_rows(kvf_cache *cache, kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                                  kv_err err) {
    void **to, **from;
    CU_PASS(cu_enter(cache->dev, err));
    if (n == 0) return KVF_OK;
    if (src->packed > 0) return cu_gather_packed(cache, dst, src, rows, n, err);
    CU_PASS(cu_table_push(cache, dst, &to, err));
    CU_PASS(cu_table_push(cache, src, &from, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (gather_kernel<R><<<cu_div_up(n, 8), 256, 0, cu_of(cache->dev)->stream>>>(to, from, rows, n,
                                                                                         cache->config.head_dim)));
    CU_LAUNCHED("gathering rows");
    return KVF_OK;
}

/*
 * In place: a block owns eight columns of the keys or of the values (the last block the positions) and takes the rows in
 * ascending tiles: a tile is read whole before it is written, and later rows never come from below it.
 */
template <typename R>
static __global__ void __launch_bounds__(1024) compact_kernel(void *const *pages, const uint32_t *rows, uint32_t n,
                                                              uint32_t head_dim) {
    const uint32_t per_part = (head_dim + 7) / 8, r = threadIdx.x / 8;
    const bool is_position = blockIdx.x == 2 * per_part, is_value = blockIdx.x >= per_part;
    const uint32_t d = blockIdx.x % per_part * 8 + threadIdx.x % 8;
    for (uint32_t base = 0; base < n; base += 128) {
        const uint32_t i = base + r;
        const bool mine = i < n && (is_position ? threadIdx.x % 8 == 0 : d < head_dim);
        R value = R();
        uint32_t position = 0;
        if (mine) {
            void *from = pages[rows[i] / KVF_PAGE_ROWS];
            const uint32_t slot = rows[i] % KVF_PAGE_ROWS;
            if (is_position) position = page_positions<R>(from, head_dim)[slot];
            else value = (is_value ? page_values<R>(from, head_dim) : page_keys<R>(from))[slot * head_dim + d];
        }
        __syncthreads();
        if (mine) {
            void *to = pages[i / KVF_PAGE_ROWS];
            const uint32_t slot = i % KVF_PAGE_ROWS;
            if (is_position) page_positions<R>(to, head_dim)[slot] = position;
            else (is_value ? page_values<R>(to, head_dim) : page_keys<R>(to))[slot * head_dim + d] = value;
        }
        __syncthreads();
    }
}

extern "C" int32_t be_compact_rows(kvf_cache *cache, kv_table *t, const uint32_t *rows, uint32_t n, kv_err err) {
    void **pages;
    const uint32_t head_dim = cache->config.head_dim;
    CU_PASS(cu_enter(cache->dev, err));
    if (n == 0) return KVF_OK;
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (compact_kernel<R><<<2 * ((head_dim + 7) / 8) + 1, 1024, 0, cu_of(cache->dev)->stream>>>(pages, rows, n,
                                                                                                      head_dim)));
    CU_LAUNCHED("compacting rows");
    return KVF_OK;
}

extern "C" int32_t be_read_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *to_host, kv_err err) {
    void **pages, *rows;
    const size_t bytes = (size_t)t->rows * cache->config.head_dim * sizeof(float);
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_scratch(cache->dev, &rows, bytes, err));
    if (t->packed > 0) {
        CU_PASS(cu_read_packed(cache, t, what, (float *)rows, err));
        return be_download(cache->dev, to_host, rows, bytes, err);
    }
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (read_kernel<R><<<cu_div_up(t->rows, 8), 256, 0, cu_of(cache->dev)->stream>>>(
                     (float *)rows, pages, t->rows, cache->config.head_dim, what)));
    CU_LAUNCHED("reading rows");
    CU_PASS(cu_restore_rows(cache, t, what, (float *)rows, err));
    return be_download(cache->dev, to_host, rows, bytes, err);
}

int32_t cu_positions(kvf_cache *cache, const kv_table *t, uint32_t *to, kv_err err) {
    void **pages;
    if (t->packed > 0) return cu_packed_positions(cache, t, to, err);
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (positions_kernel<R><<<cu_div_up(t->rows, 256), 256, 0, cu_of(cache->dev)->stream>>>(
                     to, pages, t->rows, cache->config.head_dim)));
    CU_LAUNCHED("reading positions");
    return KVF_OK;
}

extern "C" int32_t be_read_positions(kvf_cache *cache, const kv_table *t, uint32_t *to_host, kv_err err) {
    void *positions;
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_scratch(cache->dev, &positions, t->rows * sizeof(uint32_t), err));
    CU_PASS(cu_positions(cache, t, (uint32_t *)positions, err));
    return be_download(cache->dev, to_host, positions, t->rows * sizeof(uint32_t), err);
}

/* ---- Order ---- */

/* order[k] becomes the row with the k-th position: a thread counts how many positions are before its own. */
static __global__ void __launch_bounds__(256) order_kernel(uint32_t *order, const uint32_t *position, uint32_t n) {
    __shared__ uint32_t tile[256];
    const uint32_t i = blockIdx.x * 256 + threadIdx.x, mine = i < n ? position[i] : 0;
    uint32_t before = 0;
    for (uint32_t base = 0; base < n; base += 256) {
        __syncthreads();
        tile[threadIdx.x] = base + threadIdx.x < n ? position[base + threadIdx.x] : KV_NO_TOKEN;
        __syncthreads();
        for (int k = 0; k < 256; k++) before += tile[k] < mine;
    }
    if (i < n) order[before] = i;
}

static __global__ void count_kernel(uint32_t *list, uint32_t n) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) list[i] = i;
}

extern "C" int32_t be_order_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t n = t->rows, n_page = cu_div_up(n, KVF_PAGE_ROWS), head_dim = cache->config.head_dim;
    const size_t list_bytes = ((size_t)n * sizeof(uint32_t) + 255) / 256 * 256;
    void *work, **to, **from, **places;
    CU_PASS(cu_enter(dev, err));
    if (n == 0) return KVF_OK;
    /* Positions, later every row's own number; the order; then pages in order, or masses in order. */
    const size_t mass_bytes = (size_t)kv_readers(cache, s) * n * sizeof(float), page_bytes = (size_t)n_page * cache->page_bytes;
    CU_PASS(cu_scratch(dev, &work, 2 * list_bytes + (mass_bytes > page_bytes ? mass_bytes : page_bytes), err));
    uint32_t *position = (uint32_t *)work, *order = (uint32_t *)((char *)work + list_bytes);
    char *room = (char *)work + 2 * list_bytes;
    CU_PASS(cu_positions(cache, t, position, err));
    order_kernel<<<cu_div_up(n, 256), 256, 0, stream>>>(order, position, n);
    CU_LAUNCHED("ordering rows");
    CU_PASS(cu_masses_order(cache, s, layer, head, order, n, (float *)room, err));
    places = (void **)malloc(n_page * sizeof *places);
    if (places == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot put rows in order as memory ran out");
    for (uint32_t i = 0; i < n_page; i++) places[i] = room + (size_t)i * cache->page_bytes;
    const int32_t pushed = cu_push(dev, (void **)&to, places, n_page * sizeof *places, err);
    free(places);
    CU_PASS(pushed);
    CU_PASS(cu_table_push(cache, t, &from, err));
    count_kernel<<<cu_div_up(n, 256), 256, 0, stream>>>(position, n);
    CU_LAUNCHED("ordering rows");
    CU_WITH_TYPE(cache->config.row_dtype, R, (gather_kernel<R><<<cu_div_up(n, 8), 256, 0, stream>>>(to, from, order, n, head_dim)));
    CU_LAUNCHED("ordering rows");
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (gather_kernel<R><<<cu_div_up(n, 8), 256, 0, stream>>>(from, to, position, n, head_dim)));
    CU_LAUNCHED("ordering rows");
    return KVF_OK;
}

static int32_t write_rows(kvf_cache *cache, const kv_table *t, const float *k, const float *v, uint32_t n, bool positions,
                          kv_err err) {
    const uint32_t head_dim = cache->config.head_dim;
    void **pages;
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (write_kernel<R><<<cu_div_up(n, 8), 256, 0, cu_of(cache->dev)->stream>>>(pages, k, v, n, head_dim,
                                                                                        positions)));
    CU_LAUNCHED("writing rows");
    return KVF_OK;
}

extern "C" int32_t be_write_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err) {
    void *rows;
    CU_PASS(cu_enter(cache->dev, err));
    if (n == 0) return KVF_OK;
    const size_t bytes = (size_t)n * cache->config.head_dim * sizeof(float);
    CU_PASS(cu_scratch(cache->dev, &rows, 2 * bytes, err));
    CU_PASS(be_upload(cache->dev, rows, k, bytes, err));
    CU_PASS(be_upload(cache->dev, (char *)rows + bytes, v, bytes, err));
    return write_rows(cache, t, (const float *)rows, (const float *)((char *)rows + bytes), n, true, err);
}

extern "C" int32_t be_replace_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err) {
    CU_PASS(cu_enter(cache->dev, err));
    return n == 0 ? KVF_OK : write_rows(cache, t, k, v, n, false, err);
}

/*
 * The union is [0, first), the selected rows in [first, window), [window, rows). The middle is one run of the ascending
 * list: one block finds its ends and copies it.
 */
static __global__ void union_kernel(uint32_t *out, uint32_t *count, const uint32_t *sel, uint32_t n_sel, uint32_t first,
                                    uint32_t window, uint32_t rows) {
    __shared__ uint32_t bounds[2];
    if (threadIdx.x < 2) {
        const uint32_t limit = threadIdx.x == 0 ? first : window;
        uint32_t low = 0, high = n_sel;
        while (low < high) {
            const uint32_t mid = (low + high) / 2;
            if (sel[mid] < limit) low = mid + 1;
            else high = mid;
        }
        bounds[threadIdx.x] = low;
    }
    __syncthreads();
    const uint32_t begin = bounds[0], n = bounds[1] - begin;
    for (uint32_t i = threadIdx.x; i < first; i += blockDim.x) out[i] = i;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) out[first + i] = sel[begin + i];
    for (uint32_t i = threadIdx.x; i < rows - window; i += blockDim.x) out[first + n + i] = window + i;
    if (threadIdx.x == 0) *count = first + n + rows - window;
}

extern "C" int32_t be_rows_union(kvf_device *dev, const uint32_t *sel, uint32_t n_sel, uint32_t end, uint32_t first,
                                 uint32_t last, uint32_t rows, uint32_t *out, kv_err err) {
    void *count;
    uint32_t n = 0;
    CU_PASS(cu_enter(dev, err));
    if (first > rows) first = rows;
    uint32_t window = rows - (last < rows ? last : rows);
    if (window < first) window = first;
    CU_PASS(cu_scratch(dev, &count, sizeof n, err));
    union_kernel<<<1, 1024, 0, cu_of(dev)->stream>>>(out, (uint32_t *)count, sel, n_sel, first, window, rows);
    CU_LAUNCHED("joining rows");
    /* With a selection that may overlap the others the count depends on values that only the device has. */
    if (n_sel == 0 || window == first) return (int32_t)(first + rows - window);
    if (first == 0 && end <= window) return (int32_t)(n_sel + rows - window);
    CU_PASS(be_download(dev, &n, count, sizeof n, err));
    return (int32_t)n;
}
