/*
 * Rows of tables that hold packed pages, for everything but decode attention: a block unpacks a page into shared memory,
 * where its rows have the values that attention sees, and hands them on.
 */
#include "packed.cuh"

enum { THREADS = 256 };

/* One table. */
typedef struct table_view {
    void *const *pages;
    const cu_format *format;
    const uint8_t *frame;
    uint32_t packed, rows; /* true numbers */
    uint32_t head_dim;
} table_view;

static size_t tile_bytes(uint32_t head_dim) { return (size_t)KVF_PAGE_ROWS * (head_dim + 1) * sizeof(float); }

/* First row of a page and the number of its rows. */
static __device__ __forceinline__ uint32_t first_row(const table_view &t, uint32_t page) {
    const uint32_t n = packed_pages(t.packed);
    return page < n ? page * KVF_PAGE_ROWS : t.packed + (page - n) * KVF_PAGE_ROWS;
}
static __device__ __forceinline__ uint32_t rows_in(const table_view &t, uint32_t page) {
    const uint32_t end = page < packed_pages(t.packed) ? t.packed : t.rows;
    return min((uint32_t)KVF_PAGE_ROWS, end - first_row(t, page));
}
template <typename R>
static __device__ __forceinline__ const uint32_t *positions_of(const table_view &t, uint32_t page) {
    if (page >= packed_pages(t.packed)) return page_positions<R>(t.pages[page], t.head_dim);
    return (const uint32_t *)((const uint8_t *)t.pages[page] + t.format->layout.positions);
}
template <typename R>
static __device__ __forceinline__ uint32_t position_of(const table_view &t, uint32_t row) {
    const uint32_t n = packed_pages(t.packed), plain = row - t.packed;
    if (row < t.packed) return positions_of<R>(t, row / KVF_PAGE_ROWS)[row % KVF_PAGE_ROWS];
    return positions_of<R>(t, n + plain / KVF_PAGE_ROWS)[plain % KVF_PAGE_ROWS];
}

/* A page's keys (what 0) or values (1), [slot][head_dim + 1] f32. All threads of the block. */
template <typename R>
static __device__ __forceinline__ void take_page(float *tile, const table_view &t, uint32_t page, uint32_t what) {
    __syncthreads();
    if (page < packed_pages(t.packed)) {
        unpack_rows(tile, t.head_dim + 1, *t.format, (const uint8_t *)t.pages[page], t.frame, what);
    } else {
        plain_rows<R>(tile, t.head_dim + 1, t.pages[page], t.head_dim, rows_in(t, page), what);
    }
}

/* Index of the first entry of an ascending list that is at least `row`. */
static __device__ __forceinline__ uint32_t lower_bound(const uint32_t *list, uint32_t n, uint32_t row) {
    uint32_t low = 0;
    while (low < n) {
        const uint32_t mid = (low + n) / 2;
        if (list[mid] < row) low = mid + 1;
        else n = mid;
    }
    return low;
}

/* A block per page of the source: its rows among rows[n] go to the plain pages dst at their index in the list. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) gather_kernel(table_view t, void *const *dst, const uint32_t *rows,
                                                                uint32_t n) {
    extern __shared__ float tile[];
    const uint32_t page = blockIdx.x, row0 = first_row(t, page), in_page = rows_in(t, page), dim = t.head_dim;
    const uint32_t first = lower_bound(rows, n, row0), end = lower_bound(rows, n, row0 + in_page);
    if (first == end) return;
    for (uint32_t what = 0; what < 2; what++) {
        take_page<R>(tile, t, page, what);
        for (uint32_t i = threadIdx.x; i < (end - first) * dim; i += THREADS) {
            const uint32_t at = first + i / dim, d = i % dim;
            void *to = dst[at / KVF_PAGE_ROWS];
            R *row = (what == 0 ? page_keys<R>(to) : page_values<R>(to, dim)) + at % KVF_PAGE_ROWS * dim;
            from_f32(&row[d], tile[(rows[at] - row0) * (dim + 1) + d]);
        }
    }
    for (uint32_t at = first + threadIdx.x; at < end; at += THREADS) {
        page_positions<R>(dst[at / KVF_PAGE_ROWS], dim)[at % KVF_PAGE_ROWS] = positions_of<R>(t, page)[rows[at] - row0];
    }
}

/* A block per page: rows as f32 [rows, head_dim], or their norms. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) read_kernel(table_view t, uint32_t what, float *to, bool norms) {
    extern __shared__ float tile[];
    const uint32_t page = blockIdx.x, row0 = first_row(t, page), in_page = rows_in(t, page), dim = t.head_dim;
    const uint32_t lane = threadIdx.x % 32;
    take_page<R>(tile, t, page, what);
    if (!norms) {
        for (uint32_t i = threadIdx.x; i < in_page * dim; i += THREADS) {
            to[(size_t)row0 * dim + i] = tile[i / dim * (dim + 1) + i % dim];
        }
        return;
    }
    for (uint32_t row = threadIdx.x / 32; row < in_page; row += THREADS / 32) {
        float sum = 0;
        for (uint32_t d = lane; d < dim; d += 32) sum = fmaf(tile[row * (dim + 1) + d], tile[row * (dim + 1) + d], sum);
        sum = warp_sum(sum);
        if (lane == 0) to[row0 + row] = sqrtf(sum);
    }
}

template <typename R>
static __global__ void positions_kernel(table_view t, uint32_t *to) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < t.rows) to[row] = position_of<R>(t, row);
}

/* ---- The host's side ---- */

static int32_t view_of(kvf_cache *cache, const kv_table *t, table_view *view, kv_err err) {
    void **pages;
    CU_PASS(cu_table_push(cache, t, &pages, err));
    view->pages = pages, view->format = t->packed > 0 ? cu_format_of(t->format) : NULL;
    view->frame = (const uint8_t *)kv_frame_data(cache, t), view->packed = t->packed, view->rows = t->rows;
    view->head_dim = cache->config.head_dim;
    return KVF_OK;
}

int32_t cu_gather_packed(kvf_cache *cache, const kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                         kv_err err) {
    table_view t = {};
    void **to;
    CU_PASS(view_of(cache, src, &t, err));
    CU_PASS(cu_table_push(cache, dst, &to, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (gather_kernel<R><<<kv_table_pages(src), THREADS, tile_bytes(t.head_dim), cu_of(cache->dev)->stream>>>(
                     t, to, rows, n)));
    CU_LAUNCHED("gathering rows");
    return KVF_OK;
}

static int32_t read_pages(kvf_cache *cache, const kv_table *table, uint32_t what, float *to, bool norms, kv_err err) {
    table_view t = {};
    CU_PASS(view_of(cache, table, &t, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (read_kernel<R><<<kv_table_pages(table), THREADS, tile_bytes(t.head_dim), cu_of(cache->dev)->stream>>>(
                     t, what, to, norms)));
    CU_LAUNCHED("reading rows");
    return KVF_OK;
}

int32_t cu_read_packed(kvf_cache *cache, const kv_table *t, uint32_t what, float *to, kv_err err) {
    return read_pages(cache, t, what, to, false, err);
}

int32_t cu_packed_norms(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err) {
    return read_pages(cache, t, what, out, true, err);
}

int32_t cu_packed_positions(kvf_cache *cache, const kv_table *table, uint32_t *to, kv_err err) {
    table_view t = {};
    CU_PASS(view_of(cache, table, &t, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (positions_kernel<R><<<cu_div_up(t.rows, 256), 256, 0, cu_of(cache->dev)->stream>>>(t, to)));
    CU_LAUNCHED("reading positions");
    return KVF_OK;
}

/* ---- A layer as if it were plain ---- */

/* Rank of each row: its own index in its part, and the rows of the other part before it. */
template <typename R>
static __global__ void rank_kernel(table_view t, uint32_t *rank) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= t.rows) return;
    const bool packed = row < t.packed;
    const uint32_t position = position_of<R>(t, row), other = packed ? t.packed : 0, n = packed ? t.rows - t.packed : t.packed;
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (position_of<R>(t, other + mid) < position) low = mid + 1;
        else high = mid;
    }
    rank[row] = (packed ? row : row - t.packed) + low;
}

/* A block per page: its rows go to plain pages, `page_bytes` apart, at their ranks. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) copy_kernel(table_view t, char *pages, size_t page_bytes, const uint32_t *rank) {
    extern __shared__ float tile[];
    const uint32_t page = blockIdx.x, row0 = first_row(t, page), in_page = rows_in(t, page), dim = t.head_dim;
    for (uint32_t what = 0; what < 2; what++) {
        take_page<R>(tile, t, page, what);
        for (uint32_t i = threadIdx.x; i < in_page * dim; i += THREADS) {
            const uint32_t at = rank[row0 + i / dim], d = i % dim;
            void *to = pages + at / KVF_PAGE_ROWS * page_bytes;
            R *row = (what == 0 ? page_keys<R>(to) : page_values<R>(to, dim)) + at % KVF_PAGE_ROWS * dim;
            from_f32(&row[d], tile[i / dim * (dim + 1) + d]);
        }
    }
    for (uint32_t i = threadIdx.x; i < in_page; i += THREADS) {
        const uint32_t at = rank[row0 + i];
        page_positions<R>(pages + at / KVF_PAGE_ROWS * page_bytes, dim)[at % KVF_PAGE_ROWS] = positions_of<R>(t, page)[i];
    }
}

/* Copies of the packed tables, and lists of all tables' pages and rows. */
static int32_t copy_tables(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_plain *plain, void **list, uint32_t *rows,
                           kv_err err) {
    const uint32_t cap = plain->view.cap, n = s->n_stored_head;
    char *pages = (char *)plain->data;
    uint32_t *rank = (uint32_t *)(pages + (size_t)n * cap * cache->page_bytes);
    for (uint32_t h = 0; h < n; h++, pages += (size_t)cap * cache->page_bytes, rank += plain->n_row) {
        const kv_table *table = kv_table_of(s, layer, h);
        table_view t = {};
        rows[h] = table->rows;
        for (uint32_t i = 0; i < cap; i++) list[h * cap + i] = pages + (size_t)i * cache->page_bytes;
        if (table->rows == 0) continue;
        CU_PASS(view_of(cache, table, &t, err));
        cudaStream_t stream = cu_of(cache->dev)->stream;
        CU_WITH_TYPE(cache->config.row_dtype, R, {
            (rank_kernel<R><<<cu_div_up(t.rows, 256), 256, 0, stream>>>(t, rank));
            (copy_kernel<R><<<kv_table_pages(table), THREADS, tile_bytes(t.head_dim), stream>>>(t, pages, cache->page_bytes,
                                                                                           rank));
        });
        CU_LAUNCHED("unpacking rows");
    }
    return KVF_OK;
}

int32_t cu_plain_open(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_plain *plain, kv_err err) {
    bool packed = false;
    memset(plain, 0, sizeof *plain);
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const kv_table *t = kv_table_of(s, layer, h);
        packed |= t->packed > 0;
        if (t->rows > plain->n_row) plain->n_row = t->rows;
    }
    if (!packed) return cu_layer_view(cache, s, layer, &plain->view, err);
    const uint32_t n = s->n_stored_head, cap = cu_div_up(plain->n_row, KVF_PAGE_ROWS);
    const size_t page_bytes = (size_t)n * cap * cache->page_bytes, rank_bytes = (size_t)n * plain->n_row * sizeof(uint32_t);
    const size_t list_bytes = (size_t)n * cap * sizeof(void *), rows_bytes = n * sizeof(uint32_t);
    void **list = (void **)malloc(list_bytes);
    uint32_t *rows = (uint32_t *)malloc(rows_bytes);
    plain->view.cap = cap, plain->view.readers = kv_readers(cache, s), plain->view.head_dim = cache->config.head_dim;
    int32_t status = list == NULL || rows == NULL ? kv_fail(err, KVF_ERR_MEMORY, "Cannot unpack rows as memory ran out") : KVF_OK;
    if (status == KVF_OK) {
        status = cu_alloc(cache->dev, &plain->data, page_bytes + rank_bytes + list_bytes + rows_bytes + 16, "unpacked rows", err);
    }
    if (status == KVF_OK) status = copy_tables(cache, s, layer, plain, list, rows, err);
    if (status == KVF_OK) {
        const size_t at = (page_bytes + rank_bytes + 15) / 16 * 16;
        plain->rank = (const uint32_t *)((char *)plain->data + page_bytes);
        plain->view.pages = (void *const *)((char *)plain->data + at);
        plain->view.rows = (uint32_t *)((char *)plain->data + at + list_bytes);
        status = be_upload(cache->dev, (char *)plain->data + at, list, list_bytes, err);
        if (status == KVF_OK) status = be_upload(cache->dev, plain->view.rows, rows, rows_bytes, err);
    }
    free(list);
    free(rows);
    if (status != KVF_OK) cu_plain_close(cache, plain);
    return status;
}

void cu_plain_close(kvf_cache *cache, cu_plain *plain) {
    be_free(cache->dev, plain->data);
    plain->data = NULL;
}

/* ---- Channels ---- */

enum { CHUNK_PAGES = 8 };

/* A block per chunk of a stored head's pages: squares of its keys by channel, added up in order of the rows. */
template <typename R>
static __global__ void __launch_bounds__(THREADS) square_kernel(cu_view view, float *partial) {
    extern __shared__ float tile[];
    const uint32_t stored = blockIdx.y, dim = view.head_dim, slots = view.rows[stored];
    const cu_packing packing = view.packing[stored];
    table_view t;
    t.pages = view.pages + (size_t)stored * view.cap, t.format = packing.format, t.frame = (const uint8_t *)packing.frame;
    t.packed = packing.packed, t.rows = slots - packed_pages(packing.packed) * KVF_PAGE_ROWS + packing.packed, t.head_dim = dim;
    const uint32_t n_page = packed_pages(slots);
    float sum = 0;
    for (uint32_t i = 0; i < CHUNK_PAGES; i++) {
        const uint32_t page = blockIdx.x * CHUNK_PAGES + i;
        if (page >= n_page) break;
        take_page<R>(tile, t, page, 0);
        for (uint32_t row = 0; row < rows_in(t, page) && threadIdx.x < dim; row++) {
            sum = fmaf(tile[row * (dim + 1) + threadIdx.x], tile[row * (dim + 1) + threadIdx.x], sum);
        }
    }
    if (threadIdx.x < dim) partial[((size_t)stored * gridDim.x + blockIdx.x) * dim + threadIdx.x] = sum;
}

/* A thread per channel of a stored head. q: [n_head, n_window, head_dim] from the first query that counts */
static __global__ void channels_kernel(cu_view view, const float *partial, uint32_t n_chunk, const float *q, size_t head_stride,
                                       uint32_t window, uint32_t reduce, float *out) {
    const uint32_t stored = blockIdx.x, dim = view.head_dim, d = threadIdx.x, packed = view.packing[stored].packed;
    const uint32_t rows = view.rows[stored] - packed_pages(packed) * KVF_PAGE_ROWS + packed;
    if (d >= dim) return;
    float keys = 0, queries = 0;
    for (uint32_t c = 0; c < n_chunk; c++) keys += partial[((size_t)stored * n_chunk + c) * dim + d];
    for (uint32_t r = 0; r < view.readers; r++) {
        const float *from = q + (stored * view.readers + r) * head_stride + d;
        float sum = 0;
        for (uint32_t i = 0; i < window; i++) sum = fmaf(from[(size_t)i * dim], from[(size_t)i * dim], sum);
        sum /= (float)window;
        queries = r == 0 ? sum : reduce == KVF_MAX ? fmaxf(queries, sum) : queries + sum;
    }
    if (reduce == KVF_MEAN) queries /= (float)view.readers;
    out[(size_t)stored * dim + d] = queries * (keys / (float)(rows > 0 ? rows : 1));
}

extern "C" int32_t be_scores_channels(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t reduce,
                                      float *out, kv_err err) {
    const kv_observations *o = s->observe;
    const uint32_t dim = cache->config.head_dim;
    cudaStream_t stream = cu_of(cache->dev)->stream;
    uint32_t longest = 1;
    void *partial;
    cu_view view;
    CU_PASS(cu_enter(cache->dev, err));
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t n = kv_table_pages(kv_table_of(s, layer, h));
        if (n > longest) longest = n;
    }
    const uint32_t n_chunk = cu_div_up(longest, CHUNK_PAGES);
    CU_PASS(cu_scratch(cache->dev, &partial, (size_t)s->n_stored_head * n_chunk * dim * sizeof(float), err));
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (square_kernel<R><<<dim3(n_chunk, s->n_stored_head), THREADS, tile_bytes(dim), stream>>>(view, (float *)partial)));
    CU_LAUNCHED("squares of keys");
    channels_kernel<<<s->n_stored_head, THREADS, 0, stream>>>(
        view, (const float *)partial, n_chunk, o->window_q[layer] + (size_t)(o->n_window - window) * dim,
        (size_t)o->n_window * dim, window, reduce, out);
    CU_LAUNCHED("scores of channels");
    return KVF_OK;
}
