/* Products over all threads, and the layer parts around attention. */
#include "forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

/* ---- Products ---- */

typedef struct product_job {
    const cpu_ops *ops;
    const cpu_matrix *matrix;
    float *c;
    const void *a;
    size_t ld_c, ld_a;
    uint32_t m, per_chunk, dtype;
} product_job;

static void product_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const product_job *j = arg;
    const uint32_t first = chunk * j->per_chunk, left = j->matrix->n_panel - first;
    const uint32_t n = left < j->per_chunk ? left : j->per_chunk;
    const uint32_t k = j->dtype == KVF_BF16 ? (j->matrix->k + 1) & ~1u : j->matrix->k;
    j->ops->panel_product[j->dtype](j->c + (size_t)first * CPU_PANEL, j->ld_c, j->a, j->ld_a,
                                    j->matrix->data + first * j->matrix->panel_bytes, j->matrix->panel_bytes, j->m, n, k);
}

typedef struct round_job {
    const cpu_ops *ops;
    const float *a;
    uint32_t *out;
    size_t ld_a, ld_out;
    uint32_t m, k;
} round_job;

#define ROWS_PER_CHUNK 16

static uint32_t chunk_end(uint32_t chunk, uint32_t m) {
    const uint32_t end = (chunk + 1) * ROWS_PER_CHUNK;
    return end < m ? end : m;
}

static uint32_t n_row_chunk(uint32_t m) { return (m + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK; }

static void round_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const round_job *j = arg;
    const uint32_t first = chunk * ROWS_PER_CHUNK;
    j->ops->round_rows(j->out + first * j->ld_out, j->ld_out, j->a + first * j->ld_a, j->ld_a,
                       chunk_end(chunk, j->m) - first, j->k);
}

/* Words from row to row of rounded rows: 16 more than one needs, as rows that lie 4 KiB apart would share one set of the
 * first-level cache. */
static size_t round_words(uint32_t k) { return ((size_t)k + 1) / 2 + 16; }
static size_t round_bytes(uint32_t m, uint32_t k) { return m * round_words(k) * sizeof(uint32_t); }

int32_t cpu_product(kvf_model *model, float *c, size_t ld_c, const float *a, size_t ld_a, const cpu_matrix *matrix,
                    uint32_t m, kv_err err) {
    /* Chunks of about 64 KiB of weights, so that a preempted thread delays little. */
    uint32_t per_chunk = (uint32_t)(65536 / matrix->panel_bytes);
    if (per_chunk < 2) per_chunk = 2;
    product_job j = {cpu_ops_of(model->dev), matrix, c, a, ld_c, ld_a, m, per_chunk, model->config.weight_dtype};
    if (j.dtype == KVF_BF16 && j.ops->round_rows != NULL) {
        const size_t ld = round_words(matrix->k);
        round_job r = {j.ops, a, cpu_scratch(model->dev, SLOT_ROUND, round_bytes(m, matrix->k)), ld_a, ld, m, matrix->k};
        if (r.out == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot run layer as memory ran out");
        cpu_parallel(model->dev, n_row_chunk(m), round_chunk, &r);
        j.a = r.out;
        j.ld_a = ld;
    }
    cpu_parallel(model->dev, (matrix->n_panel + per_chunk - 1) / per_chunk, product_chunk, &j);
    return KVF_OK;
}

/* ---- Rows ---- */

typedef struct rows_job {
    kvf_model *model;
    const cpu_layer *layer;
    const float *x, *weight, *cosine, *sine;
    float *out;
    size_t ld;
    uint32_t m;
} rows_job;

static void norm_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const rows_job *j = arg;
    const uint32_t hidden = j->model->config.hidden;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(chunk, j->m); i++) {
        cpu_ops_of(j->model->dev)->rms_norm(j->out + (size_t)i * hidden, j->x + (size_t)i * hidden, j->weight, hidden,
                                            j->model->config.norm_eps);
    }
}

static void norm_rows(kvf_model *model, float *out, const float *x, const float *weight, uint32_t m) {
    rows_job j = {.model = model, .x = x, .weight = weight, .out = out, .m = m};
    cpu_parallel(model->dev, n_row_chunk(m), norm_chunk, &j);
}

static void rotate_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const rows_job *j = arg;
    const kvf_model_config *c = &j->model->config;
    const cpu_ops *ops = cpu_ops_of(j->model->dev);
    const uint32_t dim = c->head_dim, half = dim / 2, n_out = (c->n_head + 2 * c->n_kv_head) * dim;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(chunk, j->m); i++) {
        float *row = j->out + i * j->ld;
        if (j->layer->qkv_bias != NULL) {
            for (uint32_t k = 0; k < n_out; k++) row[k] += j->layer->qkv_bias[k];
        }
        const float *cosine = j->cosine + (size_t)i * half, *sine = j->sine + (size_t)i * half;
        for (uint32_t head = 0; head < c->n_head + c->n_kv_head; head++) {
            float *x = row + head * dim;
            const float *norm = head < c->n_head ? j->layer->q_norm : j->layer->k_norm;
            if (norm != NULL) {
                float copy[256];
                memcpy(copy, x, dim * sizeof *x);
                ops->rms_norm(x, copy, norm, dim, c->norm_eps);
            }
            for (uint32_t k = 0; k < half; k++) {
                const float a = x[k], b = x[k + half];
                x[k] = a * cosine[k] - b * sine[k];
                x[k + half] = b * cosine[k] + a * sine[k];
            }
        }
    }
}

void cpu_rotation(const kvf_model *model, uint32_t position, float *cosine, float *sine) {
    for (uint32_t i = 0; i < model->config.head_dim / 2; i++) {
        const float angle = (float)position * model->inv_freq[i];
        cosine[i] = cosf(angle) * model->config.rope_scale;
        sine[i] = sinf(angle) * model->config.rope_scale;
    }
}

int32_t cpu_project(kvf_model *model, const cpu_layer *layer, const float *x, float *qkv, size_t ld_qkv, float *norm,
                    const float *cosine, const float *sine, uint32_t m, kv_err err) {
    norm_rows(model, norm, x, layer->attn_norm, m);
    const int32_t status = cpu_product(model, qkv, ld_qkv, norm, model->config.hidden, &layer->qkv, m, err);
    if (status != KVF_OK) return status;
    rows_job j = {.model = model, .layer = layer, .cosine = cosine, .sine = sine, .out = qkv, .ld = ld_qkv, .m = m};
    cpu_parallel(model->dev, n_row_chunk(m), rotate_chunk, &j);
    return KVF_OK;
}

void cpu_write_row(const kvf_cache *cache, const kv_table *t, uint32_t row, uint32_t position, const float *k,
                   const float *v) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype, slot = kv_slot_of(t, row);
    void *page = kv_page_data(cache, t, row);
    void *values = cpu_page_values(page, dim, dtype);
    for (uint32_t i = 0; i < dim; i++) {
        cpu_put(cpu_page_keys(page), (size_t)i * KVF_PAGE_ROWS + slot, dtype, k[i]);
        cpu_put(values, (size_t)slot * dim + i, dtype, v[i]);
    }
    cpu_page_positions(page, dim, dtype)[slot] = position;
}

/* ---- After attention ---- */

typedef struct add_job {
    float *x; /* [m, n] */
    const float *y, *bias;
    size_t ld_y;
    uint32_t m, n;
} add_job;

static void add_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const add_job *j = arg;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(chunk, j->m); i++) {
        float *x = j->x + (size_t)i * j->n;
        const float *y = j->y + i * j->ld_y;
        if (j->bias == NULL) {
            for (uint32_t k = 0; k < j->n; k++) x[k] += y[k];
        } else {
            for (uint32_t k = 0; k < j->n; k++) x[k] += y[k] + j->bias[k];
        }
    }
}

/* x [m, n] += y + bias; bias may be NULL. */
static void add_rows(kvf_model *model, float *x, const float *y, size_t ld_y, const float *bias, uint32_t m, uint32_t n) {
    add_job j = {x, y, bias, ld_y, m, n};
    cpu_parallel(model->dev, n_row_chunk(m), add_chunk, &j);
}

typedef struct swiglu_job {
    const cpu_ops *ops;
    float *both; /* [m, ld]: gate, then up; the result replaces the gate */
    size_t ld;
    uint32_t m, n;
} swiglu_job;

static void swiglu_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const swiglu_job *j = arg;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(chunk, j->m); i++) {
        float *row = j->both + i * j->ld;
        j->ops->swiglu(row, row, row + j->n, j->n);
    }
}

/* y [m, padded hidden] = down(swiglu(gate, up)) of x [m, hidden]. */
static int32_t mlp(kvf_model *model, const cpu_matrix *gate_up, const cpu_matrix *down, const float *x, float *y,
                   size_t ld_y, uint32_t m, kv_err err) {
    const uint32_t n = model->config.intermediate;
    const size_t ld = cpu_padded(2 * n);
    /* one column more than the product writes: k is read in pairs */
    float *both = cpu_scratch(model->dev, SLOT_MLP, (m * ld + 2) * sizeof *both);
    if (both == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot run layer as memory ran out");
    const int32_t status = cpu_product(model, both, ld, x, model->config.hidden, gate_up, m, err);
    if (status != KVF_OK) return status;
    swiglu_job j = {cpu_ops_of(model->dev), both, ld, m, n};
    cpu_parallel(model->dev, n_row_chunk(m), swiglu_chunk, &j);
    return cpu_product(model, y, ld_y, both, ld, down, m, err);
}

/* Experts: probabilities over all, the best n_expert_used of each row, rows gathered by expert, experts in order. */
static int32_t experts(kvf_model *model, const cpu_layer *layer, float *x, const float *norm, float *y, size_t ld_y,
                       uint32_t m, kv_err err) {
    const kvf_model_config *c = &model->config;
    const size_t ld = cpu_padded(c->n_expert);
    float *weight = cpu_scratch(model->dev, SLOT_EXPERT, (m * (ld + c->hidden) + m) * sizeof *weight);
    if (weight == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot run layer as memory ran out");
    float *rows = weight + m * ld;
    uint32_t *member = (uint32_t *)(void *)(rows + (size_t)m * c->hidden);
    const int32_t routed = cpu_product(model, weight, ld, norm, c->hidden, &layer->router, m, err);
    if (routed != KVF_OK) return routed;
    for (uint32_t i = 0; i < m; i++) {
        float *w = weight + i * ld, max = -INFINITY, sum = 0, chosen = 0;
        for (uint32_t e = 0; e < c->n_expert; e++) max = w[e] > max ? w[e] : max;
        for (uint32_t e = 0; e < c->n_expert; e++) sum += w[e] = expf(w[e] - max);
        for (uint32_t e = 0; e < c->n_expert; e++) w[e] /= sum;
        bool taken[1024] = {false};
        for (uint32_t k = 0; k < c->n_expert_used; k++) {
            uint32_t best = KV_NO_TOKEN;
            for (uint32_t e = 0; e < c->n_expert; e++) {
                if (!taken[e] && (best == KV_NO_TOKEN || w[e] > w[best])) best = e;
            }
            taken[best] = true;
            chosen += w[best];
        }
        for (uint32_t e = 0; e < c->n_expert; e++) {
            w[e] = !taken[e] ? 0.0f : c->flags & KVF_NORM_EXPERT_PROB ? w[e] / chosen : w[e];
        }
    }
    for (uint32_t e = 0; e < c->n_expert; e++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < m; i++) {
            if (weight[i * ld + e] == 0.0f) continue;
            memcpy(rows + (size_t)n * c->hidden, norm + (size_t)i * c->hidden, c->hidden * sizeof *rows);
            member[n++] = i;
        }
        if (n == 0) continue;
        const int32_t status = mlp(model, &layer->gate_up[e], &layer->down[e], rows, y, ld_y, n, err);
        if (status != KVF_OK) return status;
        for (uint32_t i = 0; i < n; i++) {
            const float w = weight[member[i] * ld + e];
            float *out = x + (size_t)member[i] * c->hidden;
            for (uint32_t k = 0; k < c->hidden; k++) out[k] += w * y[i * ld_y + k];
        }
    }
    return KVF_OK;
}

int32_t cpu_finish_layer(kvf_model *model, const cpu_layer *layer, float *x, const float *attn, uint32_t m, kv_err err) {
    const kvf_model_config *c = &model->config;
    const size_t ld = cpu_padded(c->hidden), width = (size_t)c->n_head * c->head_dim;
    float *y = cpu_scratch(model->dev, SLOT_HIDDEN, m * ld * sizeof *y);
    float *norm = cpu_scratch(model->dev, SLOT_NORM, ((size_t)m * c->hidden + 2) * sizeof *norm);
    if (y == NULL || norm == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot run layer as memory ran out");
    int32_t status = cpu_product(model, y, ld, attn, width, &layer->o, m, err);
    if (status != KVF_OK) return status;
    add_rows(model, x, y, ld, layer->o_bias, m, c->hidden);
    norm_rows(model, norm, x, layer->mlp_norm, m);
    if (c->n_expert > 0) return experts(model, layer, x, norm, y, ld, m, err);
    status = mlp(model, layer->gate_up, layer->down, norm, y, ld, m, err);
    if (status == KVF_OK) add_rows(model, x, y, ld, NULL, m, c->hidden);
    return status;
}

int32_t cpu_reserve_layer(kvf_model *model, uint32_t m, kv_err err) {
    const kvf_model_config *c = &model->config;
    const uint32_t width = c->n_head * c->head_dim;
    uint32_t widest = c->hidden > c->intermediate ? c->hidden : c->intermediate;
    widest = widest > width ? widest : width;
    const size_t expert = c->n_expert == 0 ? 0 : m * (cpu_padded(c->n_expert) + c->hidden + 1);
    if (cpu_scratch(model->dev, SLOT_HIDDEN, m * cpu_padded(c->hidden) * sizeof(float)) != NULL &&
        cpu_scratch(model->dev, SLOT_NORM, ((size_t)m * c->hidden + 2) * sizeof(float)) != NULL &&
        cpu_scratch(model->dev, SLOT_MLP, (m * cpu_padded(2 * c->intermediate) + 2) * sizeof(float)) != NULL &&
        cpu_scratch(model->dev, SLOT_ROUND, round_bytes(m, widest)) != NULL &&
        (expert == 0 || cpu_scratch(model->dev, SLOT_EXPERT, expert * sizeof(float)) != NULL)) {
        return KVF_OK;
    }
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot run layer as memory ran out");
}

int32_t cpu_logits(kvf_model *model, const float *x, float *norm, float *logits, uint32_t m, kv_err err) {
    const cpu_weights *w = model->impl;
    norm_rows(model, norm, x, w->final_norm, m);
    return cpu_product(model, logits, cpu_padded(model->config.vocab), norm, model->config.hidden, cpu_output_matrix(w), m,
                       err);
}
