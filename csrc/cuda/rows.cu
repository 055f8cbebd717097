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

enum { COMPACT_THREADS = 1024, HEADS_AT_ONCE = 32 };

/* Row lists of the heads from `first` on, by value: nothing is copied to the device for them. */
typedef struct compact_lists {
    kv_row_list list[HEADS_AT_ONCE];
} compact_lists;

/*
 * In place: a block owns one U of the columns of one head's keys or values (the last block the positions), a thread a row. It
 * takes the rows in ascending tiles: a tile is read whole before it is written. Later rows never come from below their tile,
 * so the next tile may be read before this one is written.
 * row_units: U of a row
 */
template <typename U>
static __global__ void __launch_bounds__(COMPACT_THREADS) compact_kernel(cu_view view, const __grid_constant__ compact_lists lists,
                                                                         uint32_t first, uint32_t row_units) {
    const uint32_t *rows = lists.list[blockIdx.y].rows, n = lists.list[blockIdx.y].n;
    void *const *pages = view.pages + (size_t)(first + blockIdx.y) * view.cap;
    const uint32_t in_value = blockIdx.x >= row_units ? KVF_PAGE_ROWS : 0, unit = blockIdx.x % row_units;
    const bool is_position = blockIdx.x == 2 * row_units;
    const auto positions = [=](void *page) { return (uint32_t *)((U *)page + (size_t)2 * KVF_PAGE_ROWS * row_units); };
    U value = {}, next = {};
    uint32_t position = 0, next_position = 0;
    for (uint32_t base = 0; base < n + COMPACT_THREADS; base += COMPACT_THREADS) {
        const uint32_t i = base + threadIdx.x;
        if (i < n) {
            const uint32_t row = rows[i], slot = row % KVF_PAGE_ROWS;
            void *from = pages[row / KVF_PAGE_ROWS];
            if (is_position) next_position = positions(from)[slot];
            else next = ((const U *)from)[(size_t)(in_value + slot) * row_units + unit];
        }
        if (base > 0) {
            __syncthreads();
            const uint32_t to = i - COMPACT_THREADS, slot = to % KVF_PAGE_ROWS;
            if (to < n) {
                void *page = pages[to / KVF_PAGE_ROWS];
                if (is_position) positions(page)[slot] = position;
                else ((U *)page)[(size_t)(in_value + slot) * row_units + unit] = value;
            }
        }
        value = next, position = next_position;
    }
}

extern "C" int32_t be_compact_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, const kv_row_list *list, kv_err err) {
    const uint32_t row_bytes = cache->config.head_dim * (uint32_t)cu_dtype_bytes(cache->config.row_dtype);
    cudaStream_t stream = cu_of(cache->dev)->stream;
    cu_view view;
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    for (uint32_t first = 0; first < s->n_stored_head; first += HEADS_AT_ONCE) {
        compact_lists lists = {};
        const uint32_t left = s->n_stored_head - first, n_head = left < HEADS_AT_ONCE ? left : (uint32_t)HEADS_AT_ONCE;
        memcpy(lists.list, list + first, n_head * sizeof *list);
        if (row_bytes % sizeof(uint4) == 0) {
            const uint32_t units = row_bytes / sizeof(uint4);
            compact_kernel<uint4><<<dim3(2 * units + 1, n_head), COMPACT_THREADS, 0, stream>>>(view, lists, first, units);
        } else {
            const uint32_t units = row_bytes / sizeof(uint16_t);
            compact_kernel<uint16_t><<<dim3(2 * units + 1, n_head), COMPACT_THREADS, 0, stream>>>(view, lists, first, units);
        }
        CU_LAUNCHED("compacting rows");
    }
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

/* One head's union: [0, first), the selected rows in [first, window), [window, rows). */
typedef struct union_job {
    const uint32_t *sel;
    uint32_t *out;
    uint32_t n_sel;
    uint32_t first;
    uint32_t window;
    uint32_t rows;
} union_job;

typedef struct union_jobs {
    union_job job[HEADS_AT_ONCE];
} union_jobs;

/* The middle is one run of the ascending list: a block per head finds its ends and copies it. */
static __global__ void __launch_bounds__(1024) union_kernel(const __grid_constant__ union_jobs jobs, uint32_t *count) {
    __shared__ uint32_t bounds[2];
    const union_job &job = jobs.job[blockIdx.x];
    const uint32_t *sel = job.sel, n_sel = job.n_sel, first = job.first, window = job.window;
    uint32_t *out = job.out;
    if (threadIdx.x < 2) bounds[threadIdx.x] = n_sel;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_sel; i += blockDim.x) {
        const uint32_t row = sel[i], before = i > 0 ? sel[i - 1] : 0;
        if (row >= first && (i == 0 || before < first)) bounds[0] = i;
        if (row >= window && (i == 0 || before < window)) bounds[1] = i;
    }
    __syncthreads();
    const uint32_t begin = bounds[0], n = bounds[1] - begin;
    for (uint32_t i = threadIdx.x; i < first; i += blockDim.x) out[i] = i;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) out[first + i] = sel[begin + i];
    for (uint32_t i = threadIdx.x; i < job.rows - window; i += blockDim.x) out[first + n + i] = window + i;
    if (threadIdx.x == 0) count[blockIdx.x] = first + n + job.rows - window;
}

extern "C" int32_t be_rows_union(kvf_device *dev, kv_union *heads, uint32_t n_head, kv_err err) {
    void *count;
    CU_PASS(cu_enter(dev, err));
    CU_PASS(cu_scratch(dev, &count, n_head * sizeof(uint32_t), err));
    bool known = true; /* with a selection that may overlap the others the count depends on values that only the device has */
    for (uint32_t first = 0; first < n_head; first += HEADS_AT_ONCE) {
        union_jobs jobs = {};
        const uint32_t left = n_head - first, n = left < HEADS_AT_ONCE ? left : (uint32_t)HEADS_AT_ONCE;
        for (uint32_t i = 0; i < n; i++) {
            kv_union *u = &heads[first + i];
            const uint32_t window = u->rows - u->last > u->first ? u->rows - u->last : u->first;
            const union_job job = {u->sel, u->out.rows, u->n_sel, u->first, window, u->rows};
            jobs.job[i] = job;
            const bool none = u->n_sel == 0 || window == u->first;
            u->out.n = u->first + (none ? 0 : u->n_sel) + u->rows - window;
            known = known && (none || (u->first == 0 && u->end <= window));
        }
        union_kernel<<<n, 1024, 0, cu_of(dev)->stream>>>(jobs, (uint32_t *)count + first);
        CU_LAUNCHED("joining rows");
    }
    if (known) return KVF_OK;
    uint32_t *counts = (uint32_t *)malloc(n_head * sizeof *counts);
    int32_t status = counts == NULL ? kv_fail(err, KVF_ERR_MEMORY, "Cannot join rows as memory ran out")
                                    : be_download(dev, counts, count, n_head * sizeof *counts, err);
    for (uint32_t h = 0; h < n_head && status == KVF_OK; h++) heads[h].out.n = counts[h];
    free(counts);
    return status;
}
