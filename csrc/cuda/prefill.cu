/*
 * Prefill: one sequence, layer by layer. Everything but three things goes through in chunks of tokens of a fixed size, so
 * results depend on the prompt only. For the whole prompt there are, besides the layer's own rows:
 *   the residual stream      n * hidden f32
 *   the layer's queries      n * n_head * head_dim f32, rotated
 * Where they do not fit beside the rest, queries are computed again for each chunk of the attention; where that is not
 * enough, the residual stream lies in pinned host memory too and its chunks come and go. All three ways give the same bits.
 *
 * So the peak of a prefill that is compressed layer by layer is
 *   weights + rows of one layer, full + rows of the others, compressed + n * (hidden + n_head * head_dim) * 4
 *   + chunks (2048 * (qkv in f32 or gate_up in cu_wide_dtype, hidden and intermediate in weight_dtype)
 *             + 8192 * n_head * head_dim) + logits
 */
#include "numbers.cuh"

/* Tokens of a product, and queries of an attention: a multiple of the other and of every kernel's tile. */
#ifndef CU_CHUNK
#define CU_CHUNK 2048u
#define CU_QUERY_CHUNK 8192u
#endif
#define LOGIT_CHUNK (CU_CHUNK < 256u ? CU_CHUNK : 256u)

typedef struct cu_prefill {
    bool again;      /* queries are computed again for each chunk of the attention */
    uint32_t n_last; /* with `again`: tokens of last_q */
    uint32_t n_q;    /* tokens that q has room for */
    float *away;     /* pinned host [n_token, hidden]: the residual stream; NULL: x holds it */
    float *x;        /* [n_token, hidden]; a chunk's [CU_CHUNK, hidden] with `away` */
    float *q;        /* [n_head, n_q, head_dim], rotated, of the layer that is running */
    float *last_q;   /* [n_head, n_last, head_dim]: the last ones, with `again` */
    void *attention; /* [CU_QUERY_CHUNK, ld of o] in weight_dtype */
    void *h;         /* [CU_CHUNK, ld of qkv] in weight_dtype: normalised input of a product */
    void *wide;      /* [CU_CHUNK] of qkv in f32, or of gate_up in cu_wide_dtype */
    void *act;       /* [CU_CHUNK, ld of down] in weight_dtype */
    float *lse;      /* [n_head, CU_QUERY_CHUNK]; NULL where nothing is observed */
} cu_prefill;

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
static uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* ---- Memory ---- */

/* One array of the activations. */
typedef struct array {
    void **at;
    size_t bytes;
} array;
enum { ARRAYS = 8 };

/* How much a prefill keeps for the whole prompt, in the order in which it is tried. */
enum keep { KEEP_ALL, KEEP_STREAM, KEEP_NOTHING, KEEPS };

static void plan(const kvf_model *model, const kv_sequence *s, uint32_t keep, cu_prefill *p, array arrays[ARRAYS]) {
    const kvf_model_config *c = &model->config;
    const cu_layer *l = cu_weights(model)->layer;
    const uint32_t n_token = s->prefill->n_token;
    const size_t element = cu_dtype_bytes(c->weight_dtype), head = (size_t)c->n_head * c->head_dim * sizeof(float);
    /* products of decode, which make logits, read whole groups of 8 tokens */
    const size_t chunk = min_u32(CU_CHUNK, cu_round_up(n_token, 8)), queries = min_u32(CU_QUERY_CHUNK, n_token);
    const size_t gate_up = (c->n_expert > 0 ? 0 : 2 * (size_t)c->intermediate) * cu_dtype_bytes(cu_wide_dtype(c->weight_dtype));
    const size_t qkv = cu_qkv_width(c) * sizeof(float);
    p->again = keep != KEEP_ALL;
    p->n_last = p->again ? min_u32(n_token, max_u32(CU_LAST_QUERIES, s->observe->n_window)) : 0;
    p->n_q = p->again ? (uint32_t)queries : n_token;
    const array all[ARRAYS] = {
        {(void **)&p->x, (keep == KEEP_NOTHING ? chunk : n_token) * c->hidden * sizeof(float)},
        {(void **)&p->q, p->n_q * head},
        {(void **)&p->last_q, p->n_last * head},
        {&p->attention, queries * l->o.ld * element},
        {&p->h, chunk * l->qkv.ld * element},
        {&p->wide, chunk * (qkv > gate_up ? qkv : gate_up)},
        {&p->act, c->n_expert > 0 ? 0 : chunk * l->down.ld * element},
        {(void **)&p->lse, s->observe->n_mass + s->observe->n_window > 0 ? queries * c->n_head * sizeof(float) : 0},
    };
    memcpy(arrays, all, sizeof all);
}

/* Bytes that the prefill will take beside its activations and rows: logits, observations, scores, experts. */
static double beside(const kvf_model *model, const kv_sequence *s) {
    const kvf_model_config *c = &model->config;
    const double n = s->prefill->n_token, head = (double)c->n_head * sizeof(float);
    const double window = c->n_layer * head * s->observe->n_window * (c->head_dim + 1.0);
    const double masses = c->n_layer * head * n * s->observe->n_mass;
    const double experts = c->n_expert > 0 ? (double)cu_experts_bytes(model, min_u32(CU_CHUNK, s->prefill->n_token)) : 0;
    return window + masses + experts + 3 * head * n + n * sizeof(uint32_t) + c->vocab * (double)sizeof(float);
}

static double bytes_of(const array arrays[ARRAYS]) {
    double bytes = 0;
    for (int i = 0; i < ARRAYS; i++) bytes += (double)arrays[i].bytes;
    return bytes;
}

static int32_t make(kvf_model *model, const array *a, kv_err err) {
    if (a->bytes == 0) return KVF_OK;
    CU_PASS(cu_alloc(model->dev, a->at, a->bytes, "the activations of a prefill", err));
    /* Pads of products must be zeros. */
    CU_TRY(cudaMemsetAsync(*a->at, 0, a->bytes, cu_of(model->dev)->stream), "clearing activations");
    return KVF_OK;
}

/* ---- The residual stream ---- */

/* Tokens [first, first + n) of it, n at most CU_CHUNK, on the device until the next call. */
static int32_t open_stream(kvf_model *model, const cu_prefill *p, uint32_t first, uint32_t n, float **x, kv_err err) {
    const size_t hidden = model->config.hidden;
    *x = p->away == NULL ? p->x + first * hidden : p->x;
    if (p->away == NULL) return KVF_OK;
    CU_TRY(cudaMemcpyAsync(p->x, p->away + first * hidden, n * hidden * sizeof(float), cudaMemcpyHostToDevice,
                           cu_of(model->dev)->stream),
           "copying activations to the device");
    return KVF_OK;
}

/* Keeps what became of them. */
static int32_t close_stream(kvf_model *model, const cu_prefill *p, uint32_t first, uint32_t n, kv_err err) {
    const size_t hidden = model->config.hidden;
    if (p->away == NULL) return KVF_OK;
    CU_TRY(cudaMemcpyAsync(p->away + first * hidden, p->x, n * hidden * sizeof(float), cudaMemcpyDeviceToHost,
                           cu_of(model->dev)->stream),
           "copying activations from the device");
    return KVF_OK;
}

static int32_t begin(kvf_model *model, kvf_cache *cache, kv_sequence *s, cu_prefill *p, kv_err err) {
    const size_t n = s->prefill->n_token;
    const double other = beside(model, s), least = cu_chunk_bytes(model->dev, kv_prefill_row_bytes(cache, s));
    /* Where it is not known how much of their rows layers keep, a way is taken in which an eighth of them has room. */
    const double layer = kv_prefill_layer_bytes(cache, s);
    const double kept = s->prefill->kept_bytes > 0
                            ? least
                            : cu_chunk_bytes(model->dev, layer + layer * (model->config.n_layer - 1) / 8);
    array arrays[ARRAYS];
    uint32_t keep = KEEP_ALL;
    plan(model, s, keep, p, arrays);
    const double free_bytes = cu_room(model->dev, bytes_of(arrays) + other + kept);
    while (keep + 1 < KEEPS && bytes_of(arrays) + other + kept > free_bytes) plan(model, s, ++keep, p, arrays);
    CU_PASS(cu_check_room(model->dev, bytes_of(arrays) + other + least, "begin the prefill", err));
    for (int i = 0; i < ARRAYS; i++) CU_PASS(make(model, &arrays[i], err));
    if (keep == KEEP_NOTHING) {
        const size_t bytes = n * model->config.hidden * sizeof(float);
        if (cudaHostAlloc((void **)&p->away, bytes, cudaHostAllocDefault) != cudaSuccess) {
            cudaGetLastError();
            return kv_fail(err, KVF_ERR_MEMORY, "Cannot begin the prefill as %zu bytes of host memory must be free to be pinned", bytes);
        }
    }
    void *tokens;
    CU_PASS(cu_scratch(model->dev, &tokens, n * sizeof(uint32_t), err));
    CU_PASS(be_upload(model->dev, tokens, s->prefill->tokens, n * sizeof(uint32_t), err));
    for (uint32_t first = 0; first < n; first += CU_CHUNK) {
        const uint32_t m = min_u32(CU_CHUNK, (uint32_t)n - first);
        float *x;
        CU_PASS(open_stream(model, p, first, m, &x, err));
        CU_PASS(cu_embed(model, x, (const uint32_t *)tokens + first, m, err));
        CU_PASS(close_stream(model, p, first, m, err));
    }
    return KVF_OK;
}

extern "C" int32_t be_prefill_begin(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    CU_PASS(cu_enter(model->dev, err));
    cu_prefill *p = (cu_prefill *)calloc(1, sizeof *p);
    if (p == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot begin a prefill as memory ran out");
    s->prefill->impl = p;
    const int32_t status = begin(model, cache, s, p, err);
    if (status != KVF_OK) be_prefill_abort(cache, s);
    return status;
}

extern "C" void be_prefill_abort(kvf_cache *cache, kv_sequence *s) {
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    if (p == NULL) return;
    be_free(cache->dev, p->x);
    be_free(cache->dev, p->q);
    be_free(cache->dev, p->last_q);
    be_free(cache->dev, p->attention);
    be_free(cache->dev, p->h);
    be_free(cache->dev, p->wide);
    be_free(cache->dev, p->act);
    be_free(cache->dev, p->lse);
    if (p->away != NULL) {
        cudaStreamSynchronize(cu_of(cache->dev)->stream); /* its copies have no other end */
        cudaFreeHost(p->away);
    }
    free(p);
    s->prefill->impl = NULL;
}

/* ---- Phases ---- */

/* Projects tokens [first, first + n), n at most CU_CHUNK: queries into `room`, with `rows` keys and values into the pages. */
static int32_t project_chunk(kvf_model *model, kvf_cache *cache, kv_sequence *s, const cu_view *view, uint32_t first,
                             uint32_t n, const cu_query_room *room, bool rows, kv_err err) {
    const kvf_model_config *c = &model->config;
    const uint32_t layer = s->prefill->next_layer;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    float *x;
    CU_PASS(open_stream(model, p, first, n, &x, err));
    float *qkv = (float *)p->wide;
    CU_PASS(cu_norm_rows(model->dev, c->weight_dtype, p->h, l->qkv.ld, x, l->attn_norm, n, c->hidden, c->norm_eps, err));
    CU_PASS(cu_gemm(model->dev, c->weight_dtype, &l->qkv, p->h, l->qkv.ld, n, qkv, cu_qkv_width(c), false, err));
    return cu_rope_prefill(model, layer, view, cache->config.row_dtype, qkv, first, n, room, rows, err);
}

/* Queries [first, first + n) of the layer that is running, n at most CU_QUERY_CHUNK; until the next call. */
static int32_t queries_of(kvf_model *model, kvf_cache *cache, kv_sequence *s, const cu_view *view, uint32_t first, uint32_t n,
                          cu_queries *queries, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    memset(queries, 0, sizeof *queries);
    queries->q = p->again ? p->q : p->q + (size_t)first * c->head_dim, queries->head_stride = (size_t)p->n_q * c->head_dim;
    queries->n = n, queries->n_head = c->n_head, queries->position = first;
    queries->window = model->layer_window[s->prefill->next_layer], queries->whole = true;
    const cu_query_room room = {p->q, queries->head_stride, first};
    for (uint32_t done = 0; done < n && p->again; done += CU_CHUNK) {
        CU_PASS(project_chunk(model, cache, s, view, first + done, min_u32(CU_CHUNK, n - done), &room, false, err));
    }
    return KVF_OK;
}

/* The last n, which there are at most CU_LAST_QUERIES of, or as many as are recorded. */
static cu_queries last_queries(const kvf_model *model, const kv_sequence *s, uint32_t n) {
    const kvf_model_config *c = &model->config;
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    cu_queries last = {};
    const uint32_t there = p->again ? p->n_last : s->prefill->n_token;
    last.n = min_u32(n, s->prefill->n_token), last.n_head = c->n_head, last.head_stride = (size_t)there * c->head_dim;
    last.q = (p->again ? p->last_q : p->q) + (size_t)(there - last.n) * c->head_dim;
    last.position = s->prefill->n_token - last.n, last.window = model->layer_window[s->prefill->next_layer];
    return last;
}

/* Keeps those of the n queries in q, from `first` on, that are among the last ones. */
static int32_t keep_last(kvf_model *model, const kv_sequence *s, uint32_t first, uint32_t n, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    const uint32_t start = s->prefill->n_token - p->n_last, from = max_u32(first, start), end = first + n;
    const size_t row = c->head_dim * sizeof(float);
    if (from >= end) return KVF_OK;
    CU_TRY(cudaMemcpy2DAsync(p->last_q + (size_t)(from - start) * c->head_dim, p->n_last * row,
                             p->q + (size_t)(from - first) * c->head_dim, p->n_q * row, (end - from) * row, c->n_head,
                             cudaMemcpyDeviceToDevice, cu_of(model->dev)->stream),
           "keeping the last queries");
    return KVF_OK;
}

static int32_t project(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const uint32_t layer = s->prefill->next_layer, n_token = s->prefill->n_token;
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    cu_view view;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    for (uint32_t first = 0; first < n_token; first += CU_CHUNK) {
        const uint32_t n = min_u32(CU_CHUNK, n_token - first);
        const cu_query_room room = {p->q, (size_t)p->n_q * model->config.head_dim, p->again ? first : 0};
        CU_PASS(project_chunk(model, cache, s, &view, first, n, &room, true, err));
        if (p->again) CU_PASS(keep_last(model, s, first, n, err));
    }
    const cu_queries last = last_queries(model, s, s->observe->n_window);
    return cu_observe_window(cache, s, layer, &last, err);
}

/* x += MLP(norm(x)) for n tokens from `first`. */
static int32_t mlp(kvf_model *model, const cu_layer *l, cu_prefill *p, float *x, uint32_t n, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t dtype = c->weight_dtype;
    CU_PASS(cu_norm_rows(dev, dtype, p->h, l->gate_up.ld, x, l->mlp_norm, n, c->hidden, c->norm_eps, err));
    if (c->n_expert > 0) return cu_experts_prefill(model, l, p->h, l->gate_up.ld, n, x, err);
    CU_PASS(cu_gemm_wide(dev, dtype, &l->gate_up, p->h, l->gate_up.ld, n, p->wide, 2 * c->intermediate, err));
    CU_PASS(cu_swiglu(dev, dtype, p->act, l->down.ld, p->wide, n, c->intermediate, err));
    return cu_gemm(dev, dtype, &l->down, p->act, l->down.ld, n, x, c->hidden, true, err);
}

/* Attention of a chunk of queries and everything behind it. sparse: NULL: over all rows */
static int32_t attend_chunk(kvf_model *model, kvf_cache *cache, kv_sequence *s, const cu_view *view, cu_sparse *sparse,
                            uint32_t first, uint32_t n, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t layer = s->prefill->next_layer, dtype = c->weight_dtype;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    cu_queries queries;
    CU_PASS(queries_of(model, cache, s, view, first, n, &queries, err));
    if (sparse != NULL) {
        CU_PASS(cu_sparse_attend(sparse, &queries, p->attention, dtype, l->o.ld, NULL, NULL, err));
    } else {
        CU_PASS(cu_attention_prefill(dev, view, cache->config.row_dtype, &queries, p->attention, dtype, l->o.ld, p->lse, err));
        CU_PASS(cu_observe_lse(cache, s, layer, &queries, p->lse, err));
        CU_PASS(cu_observe_mass(cache, s, layer, &queries, p->lse, err));
    }
    for (uint32_t done = 0; done < n; done += CU_CHUNK) {
        const uint32_t m = min_u32(CU_CHUNK, n - done);
        float *x;
        CU_PASS(open_stream(model, p, first + done, m, &x, err));
        const char *attention = (const char *)p->attention + (size_t)done * l->o.ld * cu_dtype_bytes(dtype);
        CU_PASS(cu_gemm(dev, dtype, &l->o, attention, l->o.ld, m, x, c->hidden, true, err));
        if (l->o_bias != NULL) CU_PASS(cu_add_bias(dev, x, l->o_bias, m, c->hidden, err));
        CU_PASS(mlp(model, l, p, x, m, err));
        CU_PASS(close_stream(model, p, first + done, m, err));
    }
    return KVF_OK;
}

/* What the running layer's patterns attend to; NULL: all rows. */
static int32_t open_sparse(kvf_model *model, kvf_cache *cache, kv_sequence *s, const cu_view *view, const uint32_t *patterns,
                           cu_sparse **sparse, kv_err err) {
    const cu_queries last = last_queries(model, s, CU_LAST_QUERIES);
    return cu_sparse_open(cache, view, patterns, &last, s->prefill->n_token, CU_QUERY_CHUNK, sparse, err);
}

static int32_t attend(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const uint32_t n_token = s->prefill->n_token;
    cu_sparse *sparse = NULL;
    cu_view view;
    int32_t status = KVF_OK;
    CU_PASS(cu_layer_view(cache, s, s->prefill->next_layer, &view, err));
    if (s->prefill->sparse != NULL) CU_PASS(open_sparse(model, cache, s, &view, s->prefill->sparse, &sparse, err));
    for (uint32_t first = 0; first < n_token && status == KVF_OK; first += CU_QUERY_CHUNK) {
        status = attend_chunk(model, cache, s, &view, sparse, first, min_u32(CU_QUERY_CHUNK, n_token - first), err);
    }
    cu_sparse_close(sparse);
    return status;
}

extern "C" int32_t be_prefill_layer(kvf_model *model, kvf_cache *cache, kv_sequence *s, uint32_t phase, kv_err err) {
    CU_PASS(cu_enter(model->dev, err));
    return phase == KVF_PHASE_PROJECT ? project(model, cache, s, err) : attend(model, cache, s, err);
}

extern "C" int32_t be_prefill_sparse(kvf_cache *cache, kv_sequence *s, kv_err err) {
    (void)cache, (void)s, (void)err;
    return KVF_OK;
}

/* Buffers of kvf_prefill_recall. */
typedef struct recall_work {
    float *all;                /* [n_head, n_token] in chunks of CU_QUERY_CHUNK queries: log-sum-exp over all rows */
    float *part;               /* [n_head, CU_QUERY_CHUNK]: over the candidate's part */
    float *kept;               /* [n_head] */
    unsigned long long *pairs; /* [n_head] */
} recall_work;

/* Shares of one candidate: [n_head, 2]. */
static int32_t recall(kvf_model *model, kvf_cache *cache, kv_sequence *s, const cu_view *view, const uint32_t *patterns,
                      const recall_work *w, float *shares, kv_err err) {
    const uint32_t n_head = cache->config.n_head, n_token = s->prefill->n_token;
    const uint32_t window = model->layer_window[s->prefill->next_layer];
    float kept[KV_MAX_HEAD];
    unsigned long long pairs[KV_MAX_HEAD];
    double all = 0;
    for (uint32_t t = 0; t < n_token; t++) all += window > 0 && t >= window ? window : t + 1;
    cu_sparse *sparse;
    CU_PASS(open_sparse(model, cache, s, view, patterns, &sparse, err));
    if (sparse == NULL) { /* nothing is left out */
        for (uint32_t h = 0; h < 2 * n_head; h++) shares[h] = 1;
        return KVF_OK;
    }
    cudaStream_t stream = cu_of(cache->dev)->stream;
    int32_t status = cu_check(cudaMemsetAsync(w->kept, 0, n_head * sizeof *kept, stream), "shares of patterns", err);
    if (status == KVF_OK) {
        status = cu_check(cudaMemsetAsync(w->pairs, 0, n_head * sizeof *pairs, stream), "shares of patterns", err);
    }
    for (uint32_t first = 0; first < n_token && status == KVF_OK; first += CU_QUERY_CHUNK) {
        cu_queries queries;
        status = queries_of(model, cache, s, view, first, min_u32(CU_QUERY_CHUNK, n_token - first), &queries, err);
        if (status == KVF_OK) status = cu_sparse_attend(sparse, &queries, NULL, 0, 0, w->part, w->pairs, err);
        if (status == KVF_OK) {
            status = cu_sparse_kept(cache->dev, w->kept, w->part, w->all + (size_t)first * n_head, n_head, queries.n, err);
        }
    }
    cu_sparse_close(sparse);
    if (status == KVF_OK) status = be_download(cache->dev, kept, w->kept, n_head * sizeof *kept, err);
    if (status == KVF_OK) status = be_download(cache->dev, pairs, w->pairs, n_head * sizeof *pairs, err);
    for (uint32_t h = 0; h < n_head && status == KVF_OK; h++) {
        shares[2 * h] = kept[h] / (float)n_token;
        shares[2 * h + 1] = (float)((double)pairs[h] / all);
    }
    return status;
}

extern "C" int32_t be_prefill_recall(kvf_cache *cache, kv_sequence *s, const uint32_t *patterns, uint32_t n_candidate,
                                     float *shares, kv_err err) {
    kvf_model *model = s->prefill->model;
    const size_t n_head = cache->config.n_head, n = s->prefill->n_token;
    recall_work w = {};
    cu_view view;
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_layer_view(cache, s, s->prefill->next_layer, &view, err));
    const size_t chunk = min_u32(CU_QUERY_CHUNK, (uint32_t)n), bytes = n_head * ((n + chunk + 1) * sizeof(float) + sizeof *w.pairs);
    CU_PASS(cu_alloc(cache->dev, (void **)&w.pairs, bytes, "shares of patterns", err));
    w.all = (float *)(w.pairs + n_head), w.part = w.all + n_head * n, w.kept = w.part + n_head * chunk;
    int32_t status = KVF_OK;
    for (uint32_t first = 0; first < n && status == KVF_OK; first += CU_QUERY_CHUNK) {
        cu_queries queries;
        status = queries_of(model, cache, s, &view, first, min_u32(CU_QUERY_CHUNK, (uint32_t)n - first), &queries, err);
        if (status != KVF_OK) break;
        status = cu_attention_prefill(cache->dev, &view, cache->config.row_dtype, &queries, NULL, 0, 0,
                                      w.all + (size_t)first * n_head, err);
    }
    for (uint32_t i = 0; i < n_candidate && status == KVF_OK; i++) {
        status = recall(model, cache, s, &view, patterns + 3 * n_head * i, &w, shares + 2 * n_head * i, err);
    }
    be_free(cache->dev, w.pairs);
    return status;
}

extern "C" int32_t be_prefill_end(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_model *w = cu_weights(model);
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    cu_skinny_out out = {};
    (void)cache;
    CU_PASS(cu_enter(model->dev, err));
    float *x;
    CU_PASS(open_stream(model, p, s->prefill->n_token - 1, 1, &x, err));
    CU_PASS(cu_rms_norm(model->dev, c->weight_dtype, p->h, w->output.ld, x, w->final_norm, 1, c->hidden, c->norm_eps, err));
    out.epilogue = CU_STORE, out.out = s->logits, out.ld = c->vocab;
    CU_PASS(cu_skinny(model->dev, c->weight_dtype, &w->output, p->h, 1, out, err));
    /* Errors of everything queued so far belong to this call. */
    return cu_synchronize(model->dev, err);
}

extern "C" int32_t be_prefill_logits(kvf_model *model, kvf_cache *cache, kv_sequence *s, float *to_host, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_model *w = cu_weights(model);
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    const uint32_t n_token = s->prefill->n_token;
    float *logits;
    (void)cache;
    CU_PASS(cu_enter(model->dev, err));
    CU_PASS(cu_alloc(model->dev, (void **)&logits, (size_t)min_u32(LOGIT_CHUNK, n_token) * c->vocab * sizeof(float),
                     "logits", err));
    int32_t status = KVF_OK;
    for (uint32_t first = 0; first < n_token && status == KVF_OK; first += LOGIT_CHUNK) {
        const uint32_t n = min_u32(LOGIT_CHUNK, n_token - first);
        float *x;
        status = open_stream(model, p, first, n, &x, err);
        if (status == KVF_OK) {
            status = cu_rms_norm(model->dev, c->weight_dtype, p->h, w->output.ld, x, w->final_norm, n, c->hidden, c->norm_eps, err);
        }
        if (status == KVF_OK) {
            /* the product of decode and of kvf_prefill_end, so that the last token's logits have the same bits */
            cu_skinny_out out = {};
            out.epilogue = CU_STORE, out.out = logits, out.ld = c->vocab;
            status = cu_skinny(model->dev, c->weight_dtype, &w->output, p->h, n, out, err);
        }
        if (status == KVF_OK) {
            status = be_download(model->dev, to_host + (size_t)first * c->vocab, logits,
                                 (size_t)n * c->vocab * sizeof(float), err);
        }
    }
    be_free(model->dev, logits);
    return status;
}
