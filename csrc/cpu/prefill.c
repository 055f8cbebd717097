/* Prefill: one layer over the whole prompt, in tiles; nothing of size tokens x tokens. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "prefill.h"

#define CHUNK 132             /* tokens whose projections and MLP are computed together: whole register tiles, activations in the second-level cache */

typedef struct activations {
    float *x;      /* [n_token, hidden] */
    float *qkv;    /* [CHUNK, padded] */
    float *q;      /* [n_token, n_head * head_dim] */
    float *attn;   /* [n_token, n_head * head_dim] */
    float *cosine; /* [n_token, head_dim / 2] */
    float *sine;
} activations;

static int32_t no_memory(kv_err err) { return kv_fail(err, KVF_ERR_MEMORY, "Cannot prefill as memory ran out"); }

/* Rows of one query's block [first, first + n) that it sees: [*low, *high), relative to first. */
static void visible(const layer_queries *j, uint32_t token, uint32_t first, uint32_t n, uint32_t *low, uint32_t *high) {
    *high = token < first ? 0 : token - first + 1 < n ? token - first + 1 : n;
    const uint32_t oldest = j->window > 0 && token >= j->window ? token - j->window + 1 : 0;
    *low = oldest > first ? oldest - first : 0;
    if (*low > *high) *low = *high;
}

/* Scores of m queries on a block, unscaled: [m, KEY_BLOCK]. */
static void block_scores(const layer_queries *j, const kv_table *t, const float *q, uint32_t m, uint32_t first,
                         uint32_t n, float *scores) {
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
        cpu_ops_of(j->cache->dev)->page_scores[dtype](scores + row, KEY_BLOCK, q, dim,
                                                      kv_page_data(j->cache, t, first + row), m, dim);
    }
}

/* The first row that a tile's block loop takes in. */
static uint32_t first_row(const layer_queries *j, uint32_t start) {
    const uint32_t oldest = j->window > 0 && start >= j->window ? start - j->window + 1 : 0;
    return oldest / KVF_PAGE_ROWS * KVF_PAGE_ROWS;
}

/* Floats of a block of probabilities, and of the highest scores that they are relative to. */
#define STRIP_BLOCK (CPU_QUERY_TILE * (size_t)(KEY_BLOCK + 1))

/*
 * Causal attention of one tile of queries of one head. With `strip` the probabilities of every block stay there, each
 * relative to the query's highest score so far; returns the number of blocks. max, sum: [CPU_QUERY_TILE], written.
 */
static uint32_t attend_tile(const layer_queries *j, uint32_t head, uint32_t start, uint32_t m, uint32_t thread, float *strip,
                            float *max, float *sum) {
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const kv_table *t = cpu_query_table(j, head);
    const float scale = 1.0f / sqrtf((float)dim);
    const buffers b = buffers_of(j, thread);
    float *scores = strip != NULL ? strip : b.scores, *out = b.out;
    gather_queries(j, head, start, m, b.q);
    memset(out, 0, (size_t)m * dim * sizeof *out);
    for (uint32_t i = 0; i < m; i++) max[i] = -INFINITY, sum[i] = 0;
    uint32_t n_block = 0;
    for (uint32_t first = first_row(j, start); first < start + m; first += KEY_BLOCK, n_block++) {
        /* no later row than the last query's own */
        const uint32_t n = start + m - first < KEY_BLOCK ? start + m - first : KEY_BLOCK;
        block_scores(j, t, b.q, m, first, n, scores);
        for (uint32_t i = 0; i < m; i++) {
            float *row = scores + i * KEY_BLOCK;
            uint32_t low, high;
            visible(j, start + i, first, n, &low, &high);
            cpu_softmax_block(ops, row, low, high, scale, dim, out + (size_t)i * dim, &max[i], &sum[i]);
        }
        for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
            const uint32_t rows = n - row < KVF_PAGE_ROWS ? n - row : KVF_PAGE_ROWS;
            ops->read_values[dtype](b.values + (size_t)row * dim, kv_page_data(j->cache, t, first + row), rows, dim);
        }
        ops->tile_values(out, dim, scores, KEY_BLOCK, b.values, dim, m, n, dim);
        if (strip == NULL) continue;
        memcpy(scores + CPU_QUERY_TILE * KEY_BLOCK, max, m * sizeof *max);
        scores += STRIP_BLOCK;
    }
    cpu_tile_end(j, head, start, m, out, max, sum);
    return n_block;
}

void cpu_attend_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    const layer_queries *j = arg;
    const uint32_t n_tile = (j->n_token + CPU_QUERY_TILE - 1) / CPU_QUERY_TILE, n_head = j->cache->config.n_head;
    const uint32_t start = (n_tile - 1 - chunk / n_head) * CPU_QUERY_TILE; /* the longest tiles first */
    const uint32_t m = j->n_token - start < CPU_QUERY_TILE ? j->n_token - start : CPU_QUERY_TILE;
    float max[CPU_QUERY_TILE], sum[CPU_QUERY_TILE];
    attend_tile(j, chunk % n_head, start, m, thread, NULL, max, sum);
}

/* ---- Column masses ---- */

/*
 * Attention with column masses. A query's probabilities are final only after its last block, so those of a whole tile are
 * kept until then, and the columns added up with what each query's blocks turn out to be worth: no product or exponential
 * is computed twice. Tiles run a few at a time, each into a part of its own; parts are added in the order of tiles.
 */
typedef struct mass_job {
    const layer_queries *j;
    float *strip;        /* [n_thread, strip_floats] */
    size_t strip_floats;
    float *part;         /* [tiles at a time, n_head, n_mass, n_token] */
    uint32_t tile, n;    /* the tiles that run now */
} mass_job;

static float *part_of(const mass_job *w, uint32_t tile, uint32_t head, uint32_t mass) {
    const size_t n_head = w->j->cache->config.n_head, n_mass = w->j->s->observe->n_mass;
    return w->part + ((((size_t)tile - w->tile) * n_head + head) * n_mass + mass) * w->j->n_token;
}

/* Masses that a query of the tile belongs to. */
static uint8_t members_of(const layer_queries *j, uint32_t start, uint32_t m) {
    uint8_t any = 0;
    for (uint32_t i = 0; i < m; i++) any |= j->member[start + i];
    return any;
}

static void mass_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    const mass_job *w = arg;
    const layer_queries *j = w->j;
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const uint32_t n_head = j->cache->config.n_head, n_mass = j->s->observe->n_mass;
    const uint32_t head = chunk % n_head, tile = w->tile + chunk / n_head, start = tile * CPU_QUERY_TILE;
    const uint32_t m = j->n_token - start < CPU_QUERY_TILE ? j->n_token - start : CPU_QUERY_TILE;
    const float scale = 1.0f / sqrtf((float)j->cache->config.head_dim);
    float max[CPU_QUERY_TILE], sum[CPU_QUERY_TILE];
    const bool counts = members_of(j, start, m) != 0;
    float *strip = w->strip + thread * w->strip_floats;
    const uint32_t n_block = attend_tile(j, head, start, m, thread, counts ? strip : NULL, max, sum);
    if (!counts) return;
    for (uint32_t b = 0; b < n_block; b++, strip += STRIP_BLOCK) {
        const uint32_t first = first_row(j, start) + b * KEY_BLOCK, n = start + m - first < KEY_BLOCK ? start + m - first : KEY_BLOCK;
        float worth[CPU_QUERY_TILE], weight[KV_MAX_MASS][CPU_QUERY_TILE], column[KV_MAX_MASS][KEY_BLOCK] = {{0}};
        for (uint32_t i = 0; i < m; i++) worth[i] = strip[CPU_QUERY_TILE * KEY_BLOCK + i] - max[i];
        ops->exp_sum(worth, m, scale, 0);
        for (uint32_t k = 0; k < n_mass; k++) {
            for (uint32_t i = 0; i < m; i++) weight[k][i] = j->member[start + i] >> k & 1 ? worth[i] / sum[i] : 0;
        }
        ops->tile_values(column[0], KEY_BLOCK, weight[0], CPU_QUERY_TILE, strip, KEY_BLOCK, n_mass, m, KEY_BLOCK);
        for (uint32_t k = 0; k < n_mass; k++) memcpy(part_of(w, tile, head, k) + first, column[k], n * sizeof(float));
    }
}

/* Adds the tiles' parts of one head up. */
static void sum_chunk(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const mass_job *w = arg;
    const layer_queries *j = w->j;
    for (uint32_t tile = w->tile; tile < w->tile + w->n; tile++) {
        const uint32_t start = tile * CPU_QUERY_TILE, first = first_row(j, start);
        const uint32_t end = j->n_token - start < CPU_QUERY_TILE ? j->n_token : start + CPU_QUERY_TILE;
        if (members_of(j, start, end - start) == 0) continue;
        for (uint32_t k = 0; k < j->s->observe->n_mass; k++) {
            cpu_ops_of(j->cache->dev)->axpy(j->mass[k] + (size_t)head * j->n_token + first, 1, part_of(w, tile, head, k) + first, end - first);
        }
    }
}

static int32_t attend_with_masses(layer_queries *j, kv_err err) {
    kvf_device *dev = j->cache->dev;
    const uint32_t n_head = j->cache->config.n_head, n_mass = j->s->observe->n_mass, n = j->n_token;
    const uint32_t n_tile = (n + CPU_QUERY_TILE - 1) / CPU_QUERY_TILE;
    uint32_t at_a_time = (8 * dev->info.n_thread + n_head - 1) / n_head; /* so that threads seldom wait for the last one */
    if (at_a_time > n_tile) at_a_time = n_tile;
    mass_job w = {.j = j, .strip_floats = (n / KEY_BLOCK + 2) * STRIP_BLOCK};
    w.strip = cpu_alloc_huge(dev->info.n_thread * w.strip_floats * sizeof(float));
    w.part = be_alloc(dev, (size_t)at_a_time * n_head * n_mass * n * sizeof(float));
    const bool room = w.strip != NULL && w.part != NULL;
    for (uint32_t k = 0; k < n_mass; k++) memset(j->mass[k], 0, (size_t)n_head * n * sizeof(float));
    for (; room && w.tile < n_tile; w.tile += at_a_time) {
        w.n = n_tile - w.tile < at_a_time ? n_tile - w.tile : at_a_time;
        cpu_parallel(dev, w.n * n_head, mass_chunk, &w);
        cpu_parallel(dev, n_head, sum_chunk, &w);
    }
    free(w.strip);
    be_free(dev, w.part);
    return room ? KVF_OK : no_memory(err);
}

/* Room for the buffers of all threads. */
static bool take_tiles(layer_queries *j) {
    kvf_device *dev = j->cache->dev;
    j->tile = cpu_scratch(dev, SLOT_TILE, dev->info.n_thread * buffer_floats(j->cache->config.head_dim) * sizeof(float));
    return j->tile != NULL;
}

/* Attention (unless out and masses are not wanted) and column masses of one layer. */
static int32_t attend(layer_queries *j, kv_err err) {
    kvf_device *dev = j->cache->dev;
    kv_observations *o = j->s->observe;
    const uint32_t n_head = j->cache->config.n_head, n = j->n_token;
    if (!take_tiles(j)) return no_memory(err);
    uint8_t *member = NULL;
    float **mass = o->mass + (size_t)j->layer * o->n_mass;
    int32_t status = KVF_OK;
    if (o->n_mass > 0) {
        member = calloc(n, 1);
        for (uint32_t k = 0; k < o->n_mass && mass[k] == NULL; k++) {
            mass[k] = be_alloc(dev, (size_t)n_head * n * sizeof **mass);
            if (mass[k] == NULL) status = no_memory(err);
        }
        if (member == NULL) status = no_memory(err);
        for (uint32_t i = 0; i < o->n_range && status == KVF_OK; i++) {
            for (uint32_t t = o->range[i][1]; t < o->range[i][2]; t++) member[t] |= (uint8_t)(1u << o->range[i][0]);
        }
    }
    if (status == KVF_OK && (j->out != NULL || o->n_mass > 0)) {
        j->member = member;
        j->mass = mass;
        const kv_prefill *p = j->s->prefill;
        if (p != NULL && p->sparse != NULL) {
            status = cpu_attend_sparse(j, p->sparse, NULL, err);
        } else if (o->n_mass > 0) {
            status = attend_with_masses(j, err);
        } else {
            cpu_parallel(dev, (n + CPU_QUERY_TILE - 1) / CPU_QUERY_TILE * n_head, cpu_attend_chunk, j);
        }
    }
    free(member);
    return status;
}

/* Keeps the queries of the last n_window tokens of one layer. */
static int32_t record_window(const layer_queries *j, kv_err err) {
    kv_observations *o = j->s->observe;
    const uint32_t dim = j->cache->config.head_dim, n_head = j->cache->config.n_head;
    if (o->n_window == 0 || o->window_q[j->layer] != NULL) return KVF_OK;
    float *to = be_alloc(j->cache->dev, (size_t)n_head * o->n_window * dim * sizeof *to);
    if (to == NULL) return no_memory(err);
    for (uint32_t head = 0; head < n_head; head++) {
        for (uint32_t i = 0; i < o->n_window; i++) {
            memcpy(to + ((size_t)head * o->n_window + i) * dim,
                   j->q + head * j->head_stride + (j->n_token - o->n_window + i) * j->token_stride, dim * sizeof *to);
        }
    }
    o->window_q[j->layer] = to;
    return KVF_OK;
}

int32_t be_record_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, const float *q, kv_err err) {
    const uint32_t n = s->observe->n_token, dim = cache->config.head_dim;
    layer_queries j = {.cache = cache, .s = s, .layer = layer, .n_token = n, .q = q, .head_stride = (size_t)n * dim,
                       .token_stride = dim};
    const int32_t status = record_window(&j, err);
    return status == KVF_OK ? attend(&j, err) : status;
}

/* ---- With a model ---- */

void be_prefill_abort(kvf_cache *cache, kv_sequence *s) {
    activations *a = s->prefill->impl;
    if (a == NULL) return;
    be_free(cache->dev, a->x);
    be_free(cache->dev, a->qkv);
    be_free(cache->dev, a->q);
    be_free(cache->dev, a->attn);
    be_free(cache->dev, a->cosine);
    be_free(cache->dev, a->sine);
    free(a);
    s->prefill->impl = NULL;
}

int32_t be_prefill_begin(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cpu_weights *w = model->impl;
    const size_t n = s->prefill->n_token, width = (size_t)c->n_head * c->head_dim, half = c->head_dim / 2;
    activations *a = calloc(1, sizeof *a);
    if (a == NULL) return no_memory(err);
    s->prefill->impl = a;
    a->x = cpu_alloc_huge((n * c->hidden + 2) * sizeof(float));
    a->qkv = cpu_alloc_huge(CHUNK * cpu_padded((c->n_head + 2 * c->n_kv_head) * c->head_dim) * sizeof(float));
    a->q = cpu_alloc_huge(n * width * sizeof(float));
    a->attn = cpu_alloc_huge((n * width + 2) * sizeof(float));
    a->cosine = cpu_alloc_huge(n * half * sizeof(float));
    a->sine = cpu_alloc_huge(n * half * sizeof(float));
    if (a->x == NULL || a->qkv == NULL || a->q == NULL || a->attn == NULL || a->cosine == NULL || a->sine == NULL) {
        be_prefill_abort(cache, s);
        return no_memory(err);
    }
    for (uint32_t i = 0; i < n; i++) {
        cpu_matrix_row(&w->embed, c->weight_dtype, s->prefill->tokens[i], a->x + (size_t)i * c->hidden);
        cpu_rotation(model, i, a->cosine + i * half, a->sine + i * half);
    }
    return KVF_OK;
}

typedef struct write_job {
    kvf_cache *cache;
    kv_sequence *s;
    const float *qkv;
    size_t ld;
    uint32_t layer, first, m;
} write_job;

/* Rows of one kv head, through the first of the tables that share its pages. */
static void write_chunk(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const write_job *j = arg;
    const kvf_cache_config *c = &j->cache->config;
    const kv_table *t = kv_table_of(j->s, j->layer, head * (j->s->n_stored_head / c->n_kv_head));
    for (uint32_t i = 0; i < j->m; i++) {
        const float *k = j->qkv + i * j->ld + (size_t)(c->n_head + head) * c->head_dim;
        cpu_write_row(j->cache, t, j->first + i, j->first + i, k, k + (size_t)c->n_kv_head * c->head_dim);
    }
}

static int32_t project(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    const kvf_model_config *c = &model->config;
    const activations *a = s->prefill->impl;
    const uint32_t n = s->prefill->n_token, layer = s->prefill->next_layer, half = c->head_dim / 2;
    const size_t ld = cpu_padded((c->n_head + 2 * c->n_kv_head) * c->head_dim), width = (size_t)c->n_head * c->head_dim;
    float *norm = cpu_scratch(model->dev, SLOT_NORM, (CHUNK * (size_t)c->hidden + 2) * sizeof *norm);
    if (norm == NULL) return no_memory(err);
    for (uint32_t first = 0; first < n; first += CHUNK) {
        const uint32_t m = n - first < CHUNK ? n - first : CHUNK;
        const int32_t status =
            cpu_project(model, &((cpu_weights *)model->impl)->layer[layer], a->x + (size_t)first * c->hidden, a->qkv, ld,
                        norm, a->cosine + (size_t)first * half, a->sine + (size_t)first * half, m, err);
        if (status != KVF_OK) return status;
        for (uint32_t i = 0; i < m; i++) memcpy(a->q + (first + i) * width, a->qkv + i * ld, width * sizeof(float));
        write_job j = {cache, s, a->qkv, ld, layer, first, m};
        cpu_parallel(model->dev, c->n_kv_head, write_chunk, &j);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) kv_table_of(s, layer, h)->rows = n;
    return KVF_OK;
}

int32_t be_prefill_layer(kvf_model *model, kvf_cache *cache, kv_sequence *s, uint32_t phase, kv_err err) {
    const kvf_model_config *c = &model->config;
    const activations *a = s->prefill->impl;
    const uint32_t n = s->prefill->n_token, layer = s->prefill->next_layer;
    const size_t width = (size_t)c->n_head * c->head_dim;
    layer_queries j = {.cache = cache, .s = s, .layer = layer, .n_token = n, .window = model->layer_window[layer],
                       .q = a->q, .head_stride = c->head_dim, .token_stride = width, .out = a->attn};
    if (phase == KVF_PHASE_PROJECT) {
        const int32_t status = project(model, cache, s, err);
        return status == KVF_OK ? record_window(&j, err) : status;
    }
    int32_t status = attend(&j, err);
    for (uint32_t first = 0; first < n && status == KVF_OK; first += CHUNK) {
        const uint32_t m = n - first < CHUNK ? n - first : CHUNK;
        status = cpu_finish_layer(model, &((cpu_weights *)model->impl)->layer[layer], a->x + (size_t)first * c->hidden,
                                  a->attn + first * width, m, err);
    }
    return status;
}

int32_t be_prefill_sparse(kvf_cache *cache, kv_sequence *s, kv_err err) {
    (void)cache;
    (void)s;
    (void)err;
    return KVF_OK;
}

/* Shares of one candidate; lse: of attention over all rows, and room for the candidate's. */
static int32_t recall(layer_queries *j, const uint32_t *patterns, float *lse, double *pairs, float *shares, kv_err err) {
    const uint32_t n_head = j->cache->config.n_head, n = j->n_token;
    const size_t size = (size_t)n_head * n;
    j->lse = lse + size;
    memset(pairs, 0, n_head * sizeof *pairs);
    const int32_t status = cpu_attend_sparse(j, patterns, pairs, err);
    for (uint32_t h = 0; h < n_head && status == KVF_OK; h++) {
        double kept = 0, all = 0;
        for (uint32_t t = 0; t < n; t++) {
            kept += exp((double)lse[size + (size_t)h * n + t] - lse[(size_t)h * n + t]);
            all += j->window > 0 && t >= j->window ? j->window : t + 1;
        }
        shares[2 * h] = (float)(kept / n);
        shares[2 * h + 1] = (float)(pairs[h] / all);
    }
    return status;
}

int32_t be_prefill_recall(kvf_cache *cache, kv_sequence *s, const uint32_t *patterns, uint32_t n_candidate, float *shares,
                          kv_err err) {
    const kvf_cache_config *c = &cache->config;
    const activations *a = s->prefill->impl;
    const uint32_t n = s->prefill->n_token, layer = s->prefill->next_layer;
    layer_queries j = {.cache = cache, .s = s, .layer = layer, .n_token = n, .window = s->prefill->model->layer_window[layer],
                       .q = a->q, .head_stride = c->head_dim, .token_stride = (size_t)c->n_head * c->head_dim};
    float *lse = be_alloc(cache->dev, 2 * (size_t)c->n_head * n * sizeof *lse);
    double *pairs = calloc(c->n_head, sizeof *pairs);
    int32_t status = lse == NULL || pairs == NULL || !take_tiles(&j) ? no_memory(err) : KVF_OK;
    if (status == KVF_OK) {
        j.lse = lse;
        cpu_parallel(cache->dev, (n + CPU_QUERY_TILE - 1) / CPU_QUERY_TILE * c->n_head, cpu_attend_chunk, &j);
    }
    for (uint32_t i = 0; i < n_candidate && status == KVF_OK; i++) {
        const size_t at = (size_t)i * c->n_head;
        status = recall(&j, patterns + 3 * at, lse, pairs, shares + 2 * at, err);
    }
    be_free(cache->dev, lse);
    free(pairs);
    return status;
}

int32_t be_prefill_logits(kvf_model *model, kvf_cache *cache, kv_sequence *s, float *to_host, kv_err err) {
    (void)cache;
    const kvf_model_config *c = &model->config;
    const activations *a = s->prefill->impl;
    const size_t ld = cpu_padded(c->vocab);
    float *norm = cpu_scratch(model->dev, SLOT_NORM, (CHUNK * (size_t)c->hidden + 2) * sizeof *norm);
    float *logits = cpu_scratch(model->dev, SLOT_LOGITS, CHUNK * ld * sizeof *logits);
    if (norm == NULL || logits == NULL) return no_memory(err);
    for (uint32_t first = 0; first < s->prefill->n_token; first += CHUNK) {
        const uint32_t m = s->prefill->n_token - first < CHUNK ? s->prefill->n_token - first : CHUNK;
        const int32_t status = cpu_logits(model, a->x + (size_t)first * c->hidden, norm, logits, m, err);
        if (status != KVF_OK) return status;
        for (uint32_t i = 0; i < m; i++) memcpy(to_host + (size_t)(first + i) * c->vocab, logits + i * ld, c->vocab * sizeof *logits);
    }
    return KVF_OK;
}

int32_t be_prefill_end(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err) {
    (void)cache;
    const kvf_model_config *c = &model->config;
    const activations *a = s->prefill->impl;
    float *norm = cpu_scratch(model->dev, SLOT_NORM, ((size_t)c->hidden + 2) * sizeof *norm);
    float *logits = cpu_scratch(model->dev, SLOT_LOGITS, cpu_padded(c->vocab) * sizeof *logits);
    if (norm == NULL || logits == NULL) return no_memory(err);
    const int32_t status = cpu_logits(model, a->x + (size_t)(s->prefill->n_token - 1) * c->hidden, norm, logits, 1, err);
    if (status != KVF_OK) return status;
    memcpy(s->logits, logits, c->vocab * sizeof *logits);
    return KVF_OK;
}
