/*
 * Prefill: one sequence, layer by layer. The residual stream, the queries and the attention's output are held for the whole
 * prompt; everything wider goes through in chunks of tokens of a fixed size, so results depend on the prompt only.
 */
#include "numbers.cuh"

enum { CHUNK = 2048, LOGIT_CHUNK = 256 };

typedef struct cu_prefill {
    float *x;        /* [n_token, hidden] */
    float *q;        /* [n_head, n_token, head_dim], rotated, of the layer that is running */
    void *attention; /* [n_token, ld of o] in weight_dtype */
    void *h;         /* [CHUNK, ld of qkv] in weight_dtype: normalised input of a product */
    float *wide;     /* [CHUNK, widest of qkv and gate_up] */
    void *act;       /* [CHUNK, ld of down] in weight_dtype */
    float *lse;      /* [n_head, n_token]; NULL without column masses */
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
    const size_t chunk = min_u32(CHUNK, s->prefill->n_token);
    const size_t gate_up = c->n_expert > 0 ? 0 : 2 * (size_t)c->intermediate;
    const size_t wide = cu_qkv_width(c) > gate_up ? cu_qkv_width(c) : gate_up;
    void *tokens;
    CU_PASS(make(model, (void **)&p->x, n * c->hidden * sizeof(float), err));
    CU_PASS(make(model, (void **)&p->q, n * c->n_head * c->head_dim * sizeof(float), err));
    CU_PASS(make(model, &p->attention, n * l->o.ld * element, err));
    CU_PASS(make(model, &p->h, chunk * l->qkv.ld * element, err));
    CU_PASS(make(model, (void **)&p->wide, chunk * wide * sizeof(float), err));
    if (c->n_expert == 0) CU_PASS(make(model, &p->act, chunk * l->down.ld * element, err));
    if (s->observe->n_mass > 0) CU_PASS(make(model, (void **)&p->lse, n * c->n_head * sizeof(float), err));
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

static int32_t project(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t layer = s->prefill->next_layer, n_token = s->prefill->n_token;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    cu_view view;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    for (uint32_t first = 0; first < n_token; first += CHUNK) {
        const uint32_t n = min_u32(CHUNK, n_token - first);
        CU_PASS(cu_rms_norm(dev, c->weight_dtype, p->h, l->qkv.ld, p->x + (size_t)first * c->hidden, l->attn_norm, n,
                            c->hidden, c->norm_eps, err));
        CU_PASS(cu_gemm(dev, c->weight_dtype, &l->qkv, p->h, l->qkv.ld, n, p->wide, cu_qkv_width(c), false, err));
        CU_PASS(cu_rope_prefill(model, layer, &view, cache->config.row_dtype, p->wide, first, n, p->q, n_token, err));
    }
    return cu_observe_window(cache, s, layer, p->q, err);
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

static int32_t attend(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const uint32_t layer = s->prefill->next_layer, n_token = s->prefill->n_token, dtype = c->weight_dtype;
    const uint32_t window = model->layer_window[layer];
    const cu_layer *l = &cu_weights(model)->layer[layer];
    cu_prefill *p = (cu_prefill *)s->prefill->impl;
    cu_view view;
    cu_queries queries = {};
    queries.q = p->q, queries.head_stride = (size_t)n_token * c->head_dim, queries.n = n_token;
    queries.n_head = c->n_head, queries.window = window, queries.whole = true;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    CU_PASS(cu_attention_prefill(dev, &view, cache->config.row_dtype, &queries, p->attention, dtype, l->o.ld, p->lse, err));
    CU_PASS(cu_observe_mass(cache, s, layer, p->q, p->lse, window, err));
    for (uint32_t first = 0; first < n_token; first += CHUNK) {
        const uint32_t n = min_u32(CHUNK, n_token - first);
        float *x = p->x + (size_t)first * c->hidden;
        const char *attention = (const char *)p->attention + (size_t)first * l->o.ld * cu_dtype_bytes(dtype);
        CU_PASS(cu_gemm(dev, dtype, &l->o, attention, l->o.ld, n, x, c->hidden, true, err));
        if (l->o_bias != NULL) CU_PASS(cu_add_bias(dev, x, l->o_bias, n, c->hidden, err));
        CU_PASS(mlp(model, l, p, x, n, err));
    }
    return KVF_OK;
}

extern "C" int32_t be_prefill_layer(kvf_model *model, kvf_cache *cache, kv_sequence *s, uint32_t phase, kv_err err) {
    CU_PASS(cu_enter(model->dev, err));
    return phase == KVF_PHASE_PROJECT ? project(model, cache, s, err) : attend(model, cache, s, err);
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
