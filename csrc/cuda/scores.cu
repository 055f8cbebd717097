/* Scores that read a layer's rows or prefill's records, and the records themselves. */
#include "numbers.cuh"
#include "program.h"
#include "window.cuh"

/* ---- Records ---- */

int32_t cu_observe_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *last, kv_err err) {
    kv_observations *o = s->observe;
    const uint32_t head_dim = cache->config.head_dim, n_head = cache->config.n_head;
    if (o->n_window == 0) return KVF_OK;
    const size_t row = (size_t)o->n_window * head_dim * sizeof(float);
    if (o->window_q[layer] == NULL) {
        CU_PASS(cu_alloc(cache->dev, (void **)&o->window_q[layer], row * n_head, "window queries", err));
    }
    CU_TRY(cudaMemcpy2DAsync(o->window_q[layer], row, last->q + (size_t)(last->n - o->n_window) * head_dim,
                             last->head_stride * sizeof(float), row, n_head, cudaMemcpyDeviceToDevice, cu_of(cache->dev)->stream),
           "recording queries");
    return KVF_OK;
}

int32_t cu_observe_lse(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *queries, const float *lse,
                       kv_err err) {
    kv_observations *o = s->observe;
    const uint32_t start = o->n_token - o->n_window, first = queries->position, end = first + queries->n;
    const uint32_t from = first > start ? first : start, n_head = cache->config.n_head;
    const size_t row = (size_t)o->n_window * sizeof(float);
    if (o->n_window == 0 || queries->window != 0 || from >= end) return KVF_OK;
    float **to = &o->window_lse[layer];
    if (*to == NULL) CU_PASS(cu_alloc(cache->dev, (void **)to, row * n_head, "sums of window queries", err));
    CU_TRY(cudaMemcpy2DAsync(*to + (from - start), row, lse + (from - first), queries->n * sizeof(float),
                             (end - from) * sizeof(float), n_head, cudaMemcpyDeviceToDevice, cu_of(cache->dev)->stream),
           "recording sums");
    return KVF_OK;
}

int32_t cu_observe_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *queries, const float *lse,
                        kv_err err) {
    kv_observations *o = s->observe;
    kvf_device *dev = cache->dev;
    const uint32_t n = queries->n, first = queries->position;
    float **mass = o->mass + (size_t)layer * o->n_mass;
    if (o->n_mass == 0) return KVF_OK;
    for (uint32_t m = 0; m < o->n_mass; m++) {
        if (mass[m] != NULL) continue;
        CU_PASS(cu_alloc(dev, (void **)&mass[m], (size_t)queries->n_head * o->n_token * sizeof(float), "column masses", err));
    }
    uint8_t *sets = (uint8_t *)calloc(n, 1);
    void *device_sets = be_alloc(dev, n);
    int32_t status = sets == NULL || device_sets == NULL ? kv_fail(err, KVF_ERR_MEMORY, "Cannot record column masses as memory ran out") : KVF_OK;
    for (uint32_t i = 0; i < o->n_range && status == KVF_OK; i++) {
        const uint32_t *range = o->range[i], end = range[2] < first + n ? range[2] : first + n;
        for (uint32_t k = range[1] > first ? range[1] : first; k < end; k++) sets[k - first] |= (uint8_t)(1u << range[0]);
    }
    if (status == KVF_OK) status = be_upload(dev, device_sets, sets, n, err);
    if (status == KVF_OK) {
        cu_view view;
        status = cu_layer_view(cache, s, layer, &view, err);
        if (status == KVF_OK) {
            status = cu_column_mass(dev, &view, cache->config.row_dtype, queries, lse, (const uint8_t *)device_sets, o->n_mass,
                                    mass, o->n_token, first > 0, err);
        }
    }
    be_free(dev, device_sets);
    free(sets);
    return status;
}

extern "C" int32_t be_record_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, const float *q, kv_err err) {
    kv_observations *o = s->observe;
    kvf_device *dev = cache->dev;
    const uint32_t n_head = cache->config.n_head, head_dim = cache->config.head_dim;
    const size_t bytes = (size_t)n_head * o->n_token * head_dim * sizeof(float);
    float *device_q = NULL, *lse = NULL;
    cu_view view;
    cu_queries queries = {};
    CU_PASS(cu_enter(dev, err));
    CU_PASS(cu_alloc(dev, (void **)&device_q, bytes, "queries", err));
    queries.q = device_q, queries.head_stride = (size_t)o->n_token * head_dim, queries.n = o->n_token, queries.n_head = n_head;
    int32_t status = be_upload(dev, device_q, q, bytes, err);
    if (status == KVF_OK) status = cu_observe_window(cache, s, layer, &queries, err);
    if (status == KVF_OK && o->n_mass > 0) {
        status = cu_alloc(dev, (void **)&lse, (size_t)n_head * o->n_token * sizeof(float), "sums", err);
        if (status == KVF_OK) status = cu_layer_view(cache, s, layer, &view, err);
        if (status == KVF_OK) {
            status = cu_attention_prefill(dev, &view, cache->config.row_dtype, &queries, NULL, 0, 0, lse, err);
        }
        if (status == KVF_OK) status = cu_observe_mass(cache, s, layer, &queries, lse, err);
    }
    be_free(dev, lse);
    be_free(dev, device_q);
    return status;
}

/* ---- Scores ---- */

/* out[stored, row] = reduction over the group of mass[head, row] * scale. */
static __global__ void reduce_kernel(float *out, const float *mass, uint32_t n_row, uint32_t stride, uint32_t readers,
                                     uint32_t reduce, float divide) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x, stored = blockIdx.y;
    if (row >= n_row) return;
    float x = 0;
    for (uint32_t r = 0; r < readers; r++) {
        const float y = mass[(size_t)(stored * readers + r) * stride + row] / divide;
        x = r == 0 ? y : reduce == KVF_MAX ? fmaxf(x, y) : x + y;
    }
    out[(size_t)stored * n_row + row] = reduce == KVF_MEAN ? x / (float)readers : x;
}

/*
 * be_scores_window over the rows of a view, which are plain and in order of position.
 * own: they are the rows that prefill attended to, so that its log-sum-exp is theirs
 */
static int32_t window_scores(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_view view, bool own, uint32_t window,
                             uint32_t flags, uint32_t reduce, float *out, uint32_t n_row, kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const kv_observations *o = s->observe;
    const uint32_t head_dim = cache->config.head_dim, n_head = cache->config.n_head, dtype = cache->config.row_dtype;
    cu_queries queries = {};
    queries.q = o->window_q[layer] + (size_t)(o->n_window - window) * head_dim;
    queries.head_stride = (size_t)o->n_window * head_dim;
    queries.n = window, queries.n_head = n_head, queries.position = o->n_token - window;
    void *work;
    const size_t lse_bytes = (size_t)n_head * window * sizeof(float), mass_bytes = (size_t)n_head * n_row * sizeof(float);
    const size_t partial_bytes = cu_window_bytes(n_head, window, o->n_token);
    const bool maxima = flags & KVF_WINDOW_REDUCE_FIRST && reduce == KVF_MAX && s->n_stored_head < n_head;
    const bool hits = flags & KVF_WINDOW_HITS;
    cudaError_t ran;
    CU_PASS(cu_scratch(dev, &work, partial_bytes + lse_bytes + mass_bytes + window, err));
    float *lse = (float *)((char *)work + partial_bytes), *mass = lse + (size_t)n_head * window;
    uint8_t *sets = (uint8_t *)(mass + (size_t)n_head * n_row);
    cu_window w = {};
    w.partial = work, w.lse = lse, w.reduce = reduce, w.maxima = maxima;
    w.divide = flags & KVF_WINDOW_MEAN ? (float)window : 1.0f;
    if (own && o->window_lse[layer] != NULL) w.known = o->window_lse[layer] + (o->n_window - window);
    w.known_stride = o->n_window;
    if (!hits && cu_window_scores(dev, &view, dtype, &queries, &w, o->n_token, out, n_row, &ran)) {
        CU_TRY(ran, "window scores");
        return KVF_OK;
    }
    if (maxima || hits) {
        const cu_kept kept = {o->window_q[layer], queries.head_stride, o->n_window, o->n_token - o->n_window, queries.position, window};
        return cu_kept_scores(cache, &view, &kept, flags, reduce, o->n_token - n_row, o->n_token, out, n_row, err);
    }
    CU_PASS(cu_attention_prefill(dev, &view, dtype, &queries, NULL, 0, 0, lse, err));
    /* Sums and means commute with the sum over the queries: both orders are one. */
    CU_TRY(cudaMemsetAsync(sets, 1, window, stream), "window scores");
    CU_PASS(cu_column_mass(dev, &view, dtype, &queries, lse, sets, 1, &mass, n_row, false, err));
    reduce_kernel<<<dim3(cu_div_up(n_row, 256), s->n_stored_head), 256, 0, stream>>>(out, mass, n_row, n_row, view.readers,
                                                                                 reduce, w.divide);
    CU_LAUNCHED("window scores");
    return KVF_OK;
}

/* out[stored, row] = in[stored, rank of the row]. */
static __global__ void reorder_kernel(float *out, const float *in, const uint32_t *rank, const uint32_t *rows, uint32_t n_row,
                                      uint32_t n_in) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x, stored = blockIdx.y;
    if (row >= n_row || row >= rows[stored]) return;
    out[(size_t)stored * n_row + row] = in[(size_t)stored * n_in + rank[(size_t)stored * n_in + row]];
}

/*
 * Scores of a layer's rows by score(view, own, n_row, out), which wants plain rows in order of position: of packed tables
 * all n_row rows are scored that way, and put where the rows are. own: the view is of the tables. n_out: rows of `out`.
 */
template <typename Score>
static int32_t score_plain(kvf_cache *cache, kv_sequence *s, uint32_t layer, float *out, uint32_t n_out, Score score, kv_err err) {
    cu_plain plain;
    CU_PASS(cu_plain_open(cache, s, layer, &plain, err));
    if (plain.data == NULL) return score(plain.view, true, n_out, out);
    float *all = NULL;
    int32_t status = cu_alloc(cache->dev, (void **)&all, (size_t)s->n_stored_head * plain.n_row * sizeof *all, "scores", err);
    if (status == KVF_OK) status = score(plain.view, false, plain.n_row, all);
    if (status == KVF_OK) {
        reorder_kernel<<<dim3(cu_div_up(n_out, 256), s->n_stored_head), 256, 0, cu_of(cache->dev)->stream>>>(
            out, all, plain.rank, plain.view.rows, n_out, plain.n_row);
        status = cu_check(cudaGetLastError(), "scores", err);
    }
    be_free(cache->dev, all);
    cu_plain_close(cache, &plain);
    return status;
}

extern "C" int32_t be_scores_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                                    uint32_t reduce, float *out, uint32_t n_row, kv_err err) {
    CU_PASS(cu_enter(cache->dev, err));
    bool formats = false; /* rows that were packed once are not what they were */
    for (uint32_t h = 0; h < s->n_stored_head; h++) formats = formats || kv_table_of(s, layer, h)->format != NULL;
    const auto score = [=](const cu_view &view, bool own, uint32_t n, float *to) {
        return window_scores(cache, s, layer, view, own && !formats, window, flags, reduce, to, n, err);
    };
    return score_plain(cache, s, layer, out, n_row, score, err);
}

extern "C" int32_t be_scores_kept(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                                  uint32_t reduce, float *out, uint32_t ld, kv_err err) {
    const kv_step *step = kv_step_of(s, layer);
    const uint32_t size = step->queries.last, less = flags & KVF_WINDOW_ALL_ROWS ? 0 : window;
    const cu_kept kept = {step->ring, (size_t)size * cache->config.head_dim, size, 0, s->position - window, window};
    CU_PASS(cu_enter(cache->dev, err));
    /* Heads hold different numbers of rows: a packed layer's are all scored, so what lies behind a head's own is cut off. */
    const auto score = [=](const cu_view &view, bool, uint32_t n, float *to) {
        return cu_kept_scores(cache, &view, &kept, flags, reduce, n == ld ? less : 0, ld + less, to, n, err);
    };
    return score_plain(cache, s, layer, out, ld, score, err);
}

extern "C" int32_t be_scores_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t mass, uint32_t reduce,
                                  float *out, uint32_t n_row, kv_err err) {
    const float *x = s->observe->mass[(size_t)layer * s->observe->n_mass + mass];
    CU_PASS(cu_enter(cache->dev, err));
    reduce_kernel<<<dim3(cu_div_up(n_row, 256), s->n_stored_head), 256, 0, cu_of(cache->dev)->stream>>>(
        out, x, n_row, s->observe->n_token, kv_readers(cache, s), reduce, 1.0f);
    CU_LAUNCHED("column masses");
    return KVF_OK;
}

/* A warp per row. */
template <typename R>
static __global__ void norm_kernel(float *out, void *const *pages, uint32_t n, uint32_t head_dim, uint32_t what) {
    const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    void *page = pages[i / KVF_PAGE_ROWS];
    const R *from = (what == 0 ? page_keys<R>(page) : page_values<R>(page, head_dim)) + i % KVF_PAGE_ROWS * head_dim;
    float sum = 0;
    for (uint32_t d = lane; d < head_dim; d += 32) sum = fmaf(to_f32(from[d]), to_f32(from[d]), sum);
    sum = warp_sum(sum);
    if (lane == 0) out[i] = sqrtf(sum);
}

extern "C" int32_t be_scores_norm(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err) {
    void **pages;
    CU_PASS(cu_enter(cache->dev, err));
    if (t->rows == 0) return KVF_OK;
    if (t->packed > 0) return cu_packed_norms(cache, t, what, out, err);
    CU_PASS(cu_table_push(cache, t, &pages, err));
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (norm_kernel<R><<<cu_div_up(t->rows, 8), 256, 0, cu_of(cache->dev)->stream>>>(
                     out, pages, t->rows, cache->config.head_dim, what)));
    CU_LAUNCHED("norms of rows");
    return KVF_OK;
}

/* ---- Maps ---- */

/*
 * A block sums the probabilities of one query block [at] for the rows of one row block, and divides by the number of its
 * recorded queries. map: [n_head, n_block, n_block], zeros
 */
template <typename R>
static __global__ void __launch_bounds__(256) map_kernel(float *map, cu_view view, cu_queries queries, const float *lse,
                                                         uint32_t block, float scale) {
    const uint32_t at = blockIdx.y, head = blockIdx.z, n_block = gridDim.x, head_dim = view.head_dim;
    const uint32_t n_token = queries.position + queries.n;
    if (blockIdx.x > at) return;
    const uint32_t row0 = blockIdx.x * block, first = max(at * block, queries.position);
    const uint32_t end = block < n_token - at * block ? (at + 1) * block : n_token;
    const uint32_t rows = min(block, n_token - row0);
    if (first >= end) return;
    void *const *pages = view.pages + (size_t)(head / view.readers) * view.cap;
    float sum = 0;
    for (size_t i = threadIdx.x; i < (size_t)(end - first) * rows; i += 256) {
        const uint32_t query = first + (uint32_t)(i / rows), row = row0 + (uint32_t)(i % rows);
        if (row > query) continue;
        const float *q = queries.q + head * queries.head_stride + (size_t)(query - queries.position) * head_dim;
        const R *k = page_keys<R>(pages[row / KVF_PAGE_ROWS]) + row % KVF_PAGE_ROWS * head_dim;
        float dot = 0;
        for (uint32_t d = 0; d < head_dim; d++) dot = fmaf(q[d], to_f32(k[d]), dot);
        sum += exp2f(dot * scale - lse[(size_t)head * queries.n + query - queries.position] * LOG2E);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) map[((size_t)head * n_block + at) * n_block + blockIdx.x] = sum / (float)(end - first);
}

extern "C" int32_t be_attention_map(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t block, float *to_host,
                                    kv_err err) {
    kvf_device *dev = cache->dev;
    cudaStream_t stream = cu_of(dev)->stream;
    const kv_observations *o = s->observe;
    const uint32_t n_head = cache->config.n_head, dtype = cache->config.row_dtype, n_block = (o->n_token - 1) / block + 1;
    const size_t map_bytes = (size_t)n_head * n_block * n_block * sizeof(float);
    cu_plain plain;
    cu_queries queries = {};
    void *work;
    CU_PASS(cu_enter(dev, err));
    if (n_block > 65535) return kv_fail(err, KVF_ERR_ARG, "Cannot map attention as 65535 blocks are the most: %u", n_block);
    CU_PASS(cu_scratch(dev, &work, map_bytes + (size_t)n_head * o->n_window * sizeof(float), err));
    float *map = (float *)work, *lse = map + map_bytes / sizeof(float);
    queries.q = o->window_q[layer], queries.head_stride = (size_t)o->n_window * cache->config.head_dim;
    queries.n = o->n_window, queries.n_head = n_head, queries.position = o->n_token - o->n_window;
    CU_PASS(cu_plain_open(cache, s, layer, &plain, err));
    int32_t status = cu_attention_prefill(dev, &plain.view, dtype, &queries, NULL, 0, 0, lse, err);
    if (status == KVF_OK) status = cu_check(cudaMemsetAsync(map, 0, map_bytes, stream), "mapping attention", err);
    if (status == KVF_OK) {
        const float scale = LOG2E / sqrtf((float)cache->config.head_dim);
        CU_WITH_TYPE(dtype, R,
                     (map_kernel<R><<<dim3(n_block, n_block, n_head), 256, 0, stream>>>(map, plain.view, queries, lse, block,
                                                                                      scale)));
        status = cu_check(cudaGetLastError(), "mapping attention", err);
    }
    cu_plain_close(cache, &plain);
    return status != KVF_OK ? status : be_download(dev, to_host, map, map_bytes, err);
}
