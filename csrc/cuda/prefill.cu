/*
 * Prefill: one sequence, layer by layer. What lies on the device for the whole prompt is the residual stream and, of the layer
 * that runs, the queries; everything else goes through in chunks of tokens of a fixed size, so results depend on the prompt
 * only.
 */
#include "numbers.cuh"

/* Tokens of a product, and queries of an attention: a multiple of the other and of every kernel's tile. */
#ifndef CU_CHUNK
#define CU_CHUNK 2048u
#define CU_QUERY_CHUNK 8192u
#endif
#define LOGIT_CHUNK (CU_CHUNK < 256u ? CU_CHUNK : 256u)

typedef struct cu_prefill {
    float *x;        /* [n_token, hidden] */
    float *q;        /* [n_head, n_token, head_dim], rotated, of the layer that is running */
    void *attention; /* [CU_QUERY_CHUNK, ld of o] in weight_dtype */
    void *h;         /* [CU_CHUNK, ld of qkv] in weight_dtype: normalised input of a product */
    float *wide;     /* [CU_CHUNK, widest of qkv and gate_up] */
    void *act;       /* [CU_CHUNK, ld of down] in weight_dtype */
    float *lse;      /* [n_head, CU_QUERY_CHUNK]; NULL without column masses */
} cu_prefill;

static int32_t make(kvf_model *model, void **to, size_t bytes, kv_err err) {
    CU_PASS(cu_alloc(model->dev, to, bytes, "the activations of a prefill", err));
    /* Pads of products must be zeros. */
    CU_TRY(cudaMemsetAsync(*to, 0, bytes, cu_of(model->dev)->stream), "clearing activations");
    return KVF_OK;
}

static uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

static int32_t begin(kvf_model *model, kv_sequence *s, cu_prefill *p, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_model *w = cu_weights(model);
    const cu_layer *l = w->layer;
    const size_t n = s->prefill->n_token, element = cu_dtype_bytes(c->weight_dtype);
    /* products of decode, which make logits, read whole groups of 8 tokens */
    const size_t chunk = min_u32(CU_CHUNK, cu_round_up(s->prefill->n_token, 8)), queries = min_u32(CU_QUERY_CHUNK, s->prefill->n_token);
    const size_t gate_up = c->n_expert > 0 ? 0 : 2 * (size_t)c->intermediate;
    const size_t wide = cu_qkv_width(c) > gate_up ? cu_qkv_width(c) : gate_up;
    void *tokens;
    CU_PASS(make(model, (void **)&p->x, n * c->hidden * sizeof(float), err));
    CU_PASS(make(model, (void **)&p->q, n * c->n_head * c->head_dim * sizeof(float), err));
    CU_PASS(make(model, &p->attention, queries * l->o.ld * element, err));
    CU_PASS(make(model, &p->h, chunk * l->qkv.ld * element, err));
    CU_PASS(make(model, (void **)&p->wide, chunk * wide * sizeof(float), err));
    if (c->n_expert == 0) CU_PASS(make(model, &p->act, chunk * l->down.ld * element, err));
    if (s->observe->n_mass > 0) CU_PASS(make(model, (void **)&p->lse, queries * c->n_head * sizeof(float), err));
    CU_PASS(cu_scratch(model->dev, &tokens, n * sizeof(uint32_t), err));
    CU_PASS(be_upload(model->dev, tokens, s->prefill->tokens, n * sizeof(uint32_t), err));
    return cu_embed(model, p->x, (const uint32_t *)tokens, (uint32_t)n, err);
}

extern "C" int32_t be_prefill_begin(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    CU_PASS(cu_enter(model->dev, err));
    cu_prefill *p = (cu_prefill *)calloc(1, sizeof *p);
    if (p == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot begin a prefill as memory ran out");
    s->prefill->impl = p;
    const int32_t status = begin(model, s, p, err);
    if (status != KVF_OK) be_prefill_abort(cache, s);
    return status;
}

extern "C" void be_prefill_abort(kvf_cache *cache, kv_sequence *s) {
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    if (p == NULL) return;
    be_free(cache->dev, p->x);
    be_free(cache->dev, p->q);
    be_free(cache->dev, p->attention);
    be_free(cache->dev, p->h);
    be_free(cache->dev, p->wide);
    be_free(cache->dev, p->act);
    be_free(cache->dev, p->lse);
    free(p);
    s->prefill->impl = NULL;
}

/* Queries [first, first + n) of the layer that is running. */
static cu_queries queries_of(const kvf_model *model, const kv_sequence *s, uint32_t first, uint32_t n) {
    const kvf_model_config *c = &model->config;
    const cu_prefill *p = (const cu_prefill *)s->prefill->impl;
    cu_queries queries = {};
    queries.q = p->q + (size_t)first * c->head_dim, queries.head_stride = (size_t)s->prefill->n_token * c->head_dim;
    queries.n = n, queries.n_head = c->n_head, queries.position = first;
    queries.window = model->layer_window[s->prefill->next_layer], queries.whole = true;
    return queries;
}

static cu_queries last_queries(const kvf_model *model, const kv_sequence *s, uint32_t n) {
    n = min_u32(n, s->prefill->n_token);
    return queries_of(model, s, s->prefill->n_token - n, n);
}

static int32_t project(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t layer = s->prefill->next_layer, n_token = s->prefill->n_token;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    const cu_query_room room = {p->q, (size_t)n_token * c->head_dim, 0};
    cu_view view;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    for (uint32_t first = 0; first < n_token; first += CU_CHUNK) {
        const uint32_t n = min_u32(CU_CHUNK, n_token - first);
        CU_PASS(cu_rms_norm(dev, c->weight_dtype, p->h, l->qkv.ld, p->x + (size_t)first * c->hidden, l->attn_norm, n,
                            c->hidden, c->norm_eps, err));
        CU_PASS(cu_gemm(dev, c->weight_dtype, &l->qkv, p->h, l->qkv.ld, n, p->wide, cu_qkv_width(c), false, err));
        CU_PASS(cu_rope_prefill(model, layer, &view, cache->config.row_dtype, p->wide, first, n, &room, true, err));
    }
    const cu_queries last = last_queries(model, s, s->observe->n_window);
    return cu_observe_window(cache, s, layer, &last, err);
}

/* x += MLP(norm(x)) for n tokens from `first`. */
static int32_t mlp(kvf_model *model, const cu_layer *l, cu_prefill *p, float *x, uint32_t n, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t dtype = c->weight_dtype;
    CU_PASS(cu_rms_norm(dev, dtype, p->h, l->gate_up.ld, x, l->mlp_norm, n, c->hidden, c->norm_eps, err));
    if (c->n_expert > 0) return cu_experts_prefill(model, l, p->h, l->gate_up.ld, n, x, err);
    CU_PASS(cu_gemm(dev, dtype, &l->gate_up, p->h, l->gate_up.ld, n, p->wide, 2 * c->intermediate, false, err));
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
    const cu_queries queries = queries_of(model, s, first, n);
    if (sparse != NULL) {
        CU_PASS(cu_sparse_attend(sparse, &queries, p->attention, dtype, l->o.ld, NULL, NULL, err));
    } else {
        CU_PASS(cu_attention_prefill(dev, view, cache->config.row_dtype, &queries, p->attention, dtype, l->o.ld, p->lse, err));
        CU_PASS(cu_observe_mass(cache, s, layer, &queries, p->lse, err));
    }
    for (uint32_t done = 0; done < n; done += CU_CHUNK) {
        const uint32_t m = min_u32(CU_CHUNK, n - done);
        float *x = p->x + (size_t)(first + done) * c->hidden;
        const char *attention = (const char *)p->attention + (size_t)done * l->o.ld * cu_dtype_bytes(dtype);
        CU_PASS(cu_gemm(dev, dtype, &l->o, attention, l->o.ld, m, x, c->hidden, true, err));
        if (l->o_bias != NULL) CU_PASS(cu_add_bias(dev, x, l->o_bias, m, c->hidden, err));
        CU_PASS(mlp(model, l, p, x, m, err));
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
        const cu_queries queries = queries_of(model, s, first, min_u32(CU_QUERY_CHUNK, n_token - first));
        status = cu_sparse_attend(sparse, &queries, NULL, 0, 0, w->part, w->pairs, err);
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
        const cu_queries queries = queries_of(model, s, first, min_u32(CU_QUERY_CHUNK, (uint32_t)n - first));
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
    CU_PASS(cu_rms_norm(model->dev, c->weight_dtype, p->h, w->output.ld, p->x + (size_t)(s->prefill->n_token - 1) * c->hidden,
                        w->final_norm, 1, c->hidden, c->norm_eps, err));
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
        status = cu_rms_norm(model->dev, c->weight_dtype, p->h, w->output.ld, p->x + (size_t)first * c->hidden, w->final_norm,
                             n, c->hidden, c->norm_eps, err);
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
