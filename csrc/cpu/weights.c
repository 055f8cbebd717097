/* Allocation, packing and random filling of weights. */
#define _GNU_SOURCE
#include "weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

static bool matrix_open(kvf_model *model, cpu_matrix *m, uint32_t n, uint32_t k) {
    cpu_weights *w = model->impl;
    m->n = n;
    m->k = k;
    m->n_panel = cpu_padded(n) / CPU_PANEL;
    const size_t k_even = (k + 1) & ~(size_t)1;
    m->panel_bytes = k_even * CPU_PANEL * cpu_dtype_bytes(model->config.weight_dtype);
    const size_t bytes = m->panel_bytes * m->n_panel;
    m->data = cpu_alloc_huge(bytes);
    if (m->data == NULL) return false;
    memset(m->data, 0, bytes);
    w->bytes += (double)bytes;
    return true;
}

static bool vector_open(kvf_model *model, float **v, uint32_t n) {
    *v = be_alloc(model->dev, n * sizeof **v);
    if (*v == NULL) return false;
    memset(*v, 0, n * sizeof **v);
    ((cpu_weights *)model->impl)->bytes += (double)n * sizeof **v;
    return true;
}

static bool layer_open(kvf_model *model, cpu_layer *l) {
    const kvf_model_config *c = &model->config;
    const uint32_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    const uint32_t experts = c->n_expert > 0 ? c->n_expert : 1;
    bool ok = matrix_open(model, &l->qkv, q + 2 * kv, c->hidden) && matrix_open(model, &l->o, c->hidden, q) &&
              vector_open(model, &l->attn_norm, c->hidden) && vector_open(model, &l->mlp_norm, c->hidden);
    if (ok && c->flags & KVF_QKV_BIAS) ok = vector_open(model, &l->qkv_bias, q + 2 * kv);
    if (ok && c->flags & KVF_O_BIAS) ok = vector_open(model, &l->o_bias, c->hidden);
    if (ok && c->flags & KVF_QK_NORM) {
        ok = vector_open(model, &l->q_norm, c->head_dim) && vector_open(model, &l->k_norm, c->head_dim);
    }
    if (ok && c->n_expert > 0) ok = matrix_open(model, &l->router, c->n_expert, c->hidden);
    l->gate_up = calloc(experts, sizeof *l->gate_up);
    l->down = calloc(experts, sizeof *l->down);
    ok = ok && l->gate_up != NULL && l->down != NULL;
    for (uint32_t i = 0; i < experts && ok; i++) {
        ok = matrix_open(model, &l->gate_up[i], 2 * c->intermediate, c->hidden) &&
             matrix_open(model, &l->down[i], c->hidden, c->intermediate);
    }
    return ok;
}

int32_t be_model_open(kvf_model *model, kv_err err) {
    const kvf_model_config *c = &model->config;
    cpu_weights *w = calloc(1, sizeof *w);
    model->impl = w;
    bool ok = w != NULL;
    if (ok) w->layer = calloc(c->n_layer, sizeof *w->layer);
    ok = ok && w->layer != NULL && matrix_open(model, &w->embed, c->vocab, c->hidden) &&
         vector_open(model, &w->final_norm, c->hidden);
    if (ok && !(c->flags & KVF_TIED_EMBEDDING)) ok = matrix_open(model, &w->output, c->vocab, c->hidden);
    for (uint32_t i = 0; i < c->n_layer && ok; i++) ok = layer_open(model, &w->layer[i]);
    if (ok) return KVF_OK;
    const double bytes = w == NULL ? 0 : w->bytes;
    be_model_close(model);
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot create model as memory ran out after %.0f bytes of weights", bytes);
}

void be_model_close(kvf_model *model) {
    cpu_weights *w = model->impl;
    if (w == NULL) return;
    const uint32_t experts = model->config.n_expert > 0 ? model->config.n_expert : 1;
    for (uint32_t i = 0; w->layer != NULL && i < model->config.n_layer; i++) {
        cpu_layer *l = &w->layer[i];
        free(l->qkv.data);
        free(l->o.data);
        for (uint32_t k = 0; k < experts; k++) {
            if (l->gate_up != NULL) free(l->gate_up[k].data);
            if (l->down != NULL) free(l->down[k].data);
        }
        free(l->gate_up);
        free(l->down);
        free(l->router.data);
        free(l->attn_norm);
        free(l->mlp_norm);
        free(l->qkv_bias);
        free(l->o_bias);
        free(l->q_norm);
        free(l->k_norm);
    }
    free(w->layer);
    free(w->embed.data);
    free(w->output.data);
    free(w->final_norm);
    free(w);
    model->impl = NULL;
}

/* Index of element (row, col) within the matrix's data, in elements. */
static inline size_t packed_index(const cpu_matrix *m, uint32_t dtype, uint32_t row, uint32_t col) {
    const size_t panel = (size_t)(row / CPU_PANEL) * (m->panel_bytes / cpu_dtype_bytes(dtype));
    const uint32_t lane = row % CPU_PANEL;
    if (dtype == KVF_BF16) return panel + (size_t)(col / 2) * 2 * CPU_PANEL + 2 * lane + col % 2;
    return panel + (size_t)col * CPU_PANEL + lane;
}

void cpu_matrix_row(const cpu_matrix *m, uint32_t dtype, uint32_t row, float *out) {
    for (uint32_t i = 0; i < m->k; i++) out[i] = cpu_get(m->data, packed_index(m, dtype, row, i), dtype);
}

/* Rows of the matrix's own type: bits are moved, not converted. */
typedef struct move_job {
    const cpu_matrix *m;
    uint32_t dtype, row, n_row;
    const char *data; /* [n_row, k] */
} move_job;

/* Row `lane` of a panel: units of `unit` bytes, [n][CPU_PANEL] in the panel; some of a row at a time, so that lines stay near. */
static inline void move_lanes(char *panel, const char *rows, size_t row_bytes, uint32_t lane, uint32_t n_lane, uint32_t n,
                              size_t unit) {
    enum { NEAR = 32 };
    for (uint32_t first = 0; first < n; first += NEAR) {
        const uint32_t end = first + NEAR < n ? first + NEAR : n;
        for (uint32_t l = 0; l < n_lane; l++) {
            const char *from = rows + l * row_bytes;
            char *to = panel + (lane + l) * unit;
            for (uint32_t i = first; i < end; i++) memcpy(to + (size_t)i * CPU_PANEL * unit, from + i * unit, unit);
        }
    }
}

/* The rows that are in one panel. */
static void move_panel(void *arg, uint32_t chunk, uint32_t thread) {
    const move_job *job = arg;
    const cpu_matrix *m = job->m;
    const uint32_t panel = job->row / CPU_PANEL + chunk, end = job->row + job->n_row, dtype = job->dtype, k = m->k;
    const uint32_t first = panel * CPU_PANEL > job->row ? panel * CPU_PANEL : job->row;
    const uint32_t last = (panel + 1) * CPU_PANEL < end ? (panel + 1) * CPU_PANEL : end;
    const size_t element = cpu_dtype_bytes(dtype), row_bytes = k * element;
    const char *from = job->data + (first - job->row) * row_bytes;
    char *to = (char *)m->data + panel * m->panel_bytes;
    const uint32_t lane = first % CPU_PANEL, n = last - first;
    (void)thread;
    if (dtype == KVF_F16) {
        move_lanes(to, from, row_bytes, lane, n, k, 2);
    } else if (dtype == KVF_F32) {
        move_lanes(to, from, row_bytes, lane, n, k, 4);
    } else { /* pairs of columns, and one that is left over */
        move_lanes(to, from, row_bytes, lane, n, k / 2, 4);
        for (uint32_t l = 0; l < n && k % 2 == 1; l++) {
            memcpy(to + ((size_t)(k / 2) * CPU_PANEL + lane + l) * 4, from + l * row_bytes + (k - 1) * element, element);
        }
    }
}

static void pack(kvf_model *model, cpu_matrix *m, uint32_t row, uint32_t from, const void *data, size_t at) {
    const uint32_t dtype = model->config.weight_dtype;
    for (uint32_t i = 0; i < m->k; i++) cpu_put(m->data, packed_index(m, dtype, row, i), dtype, cpu_get(data, at + i, from));
}

/* Where a tensor lives: a matrix with the row its first row goes to, or a vector with an offset. */
static cpu_matrix *matrix_of(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t *row,
                             float **vector) {
    const kvf_model_config *c = &model->config;
    cpu_weights *w = model->impl;
    cpu_layer *l = &w->layer[layer];
    const uint32_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    *row = 0;
    *vector = NULL;
    switch (tensor) {
    case KVF_T_EMBED: return &w->embed;
    case KVF_T_OUTPUT: return &w->output;
    case KVF_T_FINAL_NORM: *vector = w->final_norm; return NULL;
    case KVF_T_ATTN_NORM: *vector = l->attn_norm; return NULL;
    case KVF_T_MLP_NORM: *vector = l->mlp_norm; return NULL;
    case KVF_T_Q: return &l->qkv;
    case KVF_T_K: *row = q; return &l->qkv;
    case KVF_T_V: *row = q + kv; return &l->qkv;
    case KVF_T_O: return &l->o;
    case KVF_T_Q_BIAS: *vector = l->qkv_bias; return NULL;
    case KVF_T_K_BIAS: *vector = l->qkv_bias + q; return NULL;
    case KVF_T_V_BIAS: *vector = l->qkv_bias + q + kv; return NULL;
    case KVF_T_O_BIAS: *vector = l->o_bias; return NULL;
    case KVF_T_Q_NORM: *vector = l->q_norm; return NULL;
    case KVF_T_K_NORM: *vector = l->k_norm; return NULL;
    case KVF_T_GATE: return &l->gate_up[expert];
    case KVF_T_UP: *row = c->intermediate; return &l->gate_up[expert];
    case KVF_T_DOWN: return &l->down[expert];
    default: return &l->router;
    }
}

int32_t be_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                      uint32_t first_row, uint32_t n_row, const void *data, kv_err err) {
    (void)err;
    uint32_t rows, cols, row;
    float *vector;
    kv_tensor_shape(model, tensor, &rows, &cols);
    cpu_matrix *m = matrix_of(model, tensor, layer, expert, &row, &vector);
    if (m != NULL && dtype == model->config.weight_dtype) {
        move_job job = {m, dtype, row + first_row, n_row, data};
        const uint32_t n_panel = (job.row + n_row - 1) / CPU_PANEL - job.row / CPU_PANEL + 1;
        if (n_panel == 1) move_panel(&job, 0, 0);
        else cpu_parallel(model->dev, n_panel, move_panel, &job);
        return KVF_OK;
    }
    for (uint32_t i = 0; i < n_row; i++) {
        if (m != NULL) {
            pack(model, m, row + first_row + i, dtype, data, (size_t)i * cols);
        } else {
            for (uint32_t k = 0; k < cols; k++) vector[k] = cpu_get(data, k, dtype);
        }
    }
    return KVF_OK;
}

int32_t be_model_source(kvf_model *model, void *data, size_t bytes, kv_err err) {
    (void)model, (void)data, (void)bytes, (void)err;
    return KVF_OK; /* it is read where it lies */
}

int32_t be_model_finish(kvf_model *model, kv_err err) {
    (void)model;
    (void)err;
    return KVF_OK;
}

int32_t be_model_randomize(kvf_model *model, uint32_t seed, kv_err err) {
    const kvf_model_config *c = &model->config;
    const uint32_t experts = c->n_expert > 0 ? c->n_expert : 1;
    for (uint32_t t = 0; t < KVF_T_COUNT; t++) {
        uint32_t rows, cols;
        if (!kv_tensor_shape(model, t, &rows, &cols)) continue;
        float *values = malloc(cols * sizeof *values);
        if (values == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot randomize model as memory ran out");
        const bool norm = t == KVF_T_FINAL_NORM || t == KVF_T_ATTN_NORM || t == KVF_T_MLP_NORM || t == KVF_T_Q_NORM ||
                          t == KVF_T_K_NORM;
        /* A uniform draw of variance 1 / cols keeps activations near 1; norms and biases are 1 and 0. */
        const float scale = rows == 1 ? 0.0f : sqrtf(12.0f / (float)cols);
        for (uint32_t layer = 0; layer < (t <= KVF_T_FINAL_NORM ? 1 : c->n_layer); layer++) {
            for (uint32_t x = 0; x < (t >= KVF_T_GATE && t <= KVF_T_DOWN ? experts : 1); x++) {
                for (uint32_t row = 0; row < rows; row++) {
                    const uint32_t key[2] = {seed, t << 16 | layer};
                    for (uint32_t i = 0; i < cols; i += 4) {
                        const uint32_t counter[4] = {i, row, x, 0};
                        uint32_t words[4];
                        kv_philox(counter, key, words);
                        for (uint32_t k = 0; k < 4 && i + k < cols; k++) {
                            values[i + k] = norm ? 1.0f : ((float)(words[k] >> 8) * 0x1p-24f - 0.5f) * scale;
                        }
                    }
                    be_model_load(model, t, layer, x, KVF_F32, row, 1, values, err);
                }
            }
        }
        free(values);
    }
    return KVF_OK;
}

double be_model_bytes(const kvf_model *model) { return ((const cpu_weights *)model->impl)->bytes; }

double be_model_step_bytes(const kvf_model *model) {
    const kvf_model_config *c = &model->config;
    const cpu_weights *w = model->impl;
    double bytes = w->bytes;
    if (w->output.data != NULL) bytes -= (double)w->embed.panel_bytes * w->embed.n_panel;
    if (c->n_expert > 0) {
        const double expert = (double)w->layer->gate_up->panel_bytes * w->layer->gate_up->n_panel +
                              (double)w->layer->down->panel_bytes * w->layer->down->n_panel;
        bytes -= expert * (c->n_expert - c->n_expert_used) * c->n_layer;
    }
    return bytes;
}
