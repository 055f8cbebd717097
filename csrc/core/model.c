/* Models: shapes, loading row by row, completeness. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "entry.h"

static const char *const TENSOR_NAME[KVF_T_COUNT] = {
    "embedding", "output",  "final norm", "attention norm", "MLP norm", "query", "key",  "value",  "attention output",
    "query bias", "key bias", "value bias", "output bias", "query norm", "key norm", "gate", "up", "down", "router"};

bool kv_tensor_shape(const kvf_model *model, uint32_t tensor, uint32_t *n_row, uint32_t *n_col) {
    const kvf_model_config *c = &model->config;
    const uint32_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    const bool bias = c->flags & KVF_QKV_BIAS, norm = c->flags & KVF_QK_NORM;
    uint32_t rows = 1, cols = c->hidden;
    bool has = true;
    switch (tensor) {
    case KVF_T_EMBED: rows = c->vocab; break;
    case KVF_T_OUTPUT: rows = c->vocab; has = !(c->flags & KVF_TIED_EMBEDDING); break;
    case KVF_T_FINAL_NORM:
    case KVF_T_ATTN_NORM:
    case KVF_T_MLP_NORM: break;
    case KVF_T_Q: rows = q; break;
    case KVF_T_K:
    case KVF_T_V: rows = kv; break;
    case KVF_T_O: rows = c->hidden; cols = q; break;
    case KVF_T_Q_BIAS: cols = q; has = bias; break;
    case KVF_T_K_BIAS:
    case KVF_T_V_BIAS: cols = kv; has = bias; break;
    case KVF_T_O_BIAS: has = c->flags & KVF_O_BIAS; break;
    case KVF_T_Q_NORM:
    case KVF_T_K_NORM: cols = c->head_dim; has = norm; break;
    case KVF_T_GATE:
    case KVF_T_UP: rows = c->intermediate; break;
    case KVF_T_DOWN: rows = c->hidden; cols = c->intermediate; break;
    case KVF_T_ROUTER: rows = c->n_expert; has = c->n_expert > 0; break;
    default: has = false;
    }
    *n_row = rows;
    *n_col = cols;
    return has;
}

static bool is_global(uint32_t tensor) { return tensor <= KVF_T_FINAL_NORM; }

static uint32_t copies(const kvf_model *model, uint32_t tensor) {
    const bool per_expert = tensor >= KVF_T_GATE && tensor <= KVF_T_DOWN;
    return per_expert && model->config.n_expert > 0 ? model->config.n_expert : 1;
}

/* Index in `loaded` of a tensor's first row; with tensor = KVF_T_COUNT, layer = n_layer - 1: the number of all rows. */
static size_t loaded_index(const kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert) {
    size_t per_layer = 0, before = 0;
    uint32_t rows, cols;
    for (uint32_t t = 0; t < KVF_T_COUNT; t++) {
        if (!kv_tensor_shape(model, t, &rows, &cols)) continue;
        const size_t all = (size_t)rows * copies(model, t);
        if (is_global(t)) {
            if (t < tensor) before += all;
        } else {
            if (t < tensor) before += all;
            per_layer += all;
        }
    }
    if (is_global(tensor)) return before;
    size_t index = before + per_layer * layer; /* before holds all global rows as well */
    if (tensor < KVF_T_COUNT && kv_tensor_shape(model, tensor, &rows, &cols)) index += (size_t)rows * expert;
    return index;
}

static int32_t check_config(const kvf_model_config *c, const float *inv_freq, const uint32_t *layer_window, kv_err e) {
    if (c == NULL || c->size != sizeof *c) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot create model as config.size must be %zu: it is %u", sizeof *c,
                       c == NULL ? 0 : c->size);
    }
    const struct {
        const char *name;
        uint32_t value, low, high;
    } field[] = {{"n_layer", c->n_layer, 1, 1024},
                 {"hidden", c->hidden, 1, 1u << 17},
                 {"n_head", c->n_head, 1, 1024},
                 {"n_kv_head", c->n_kv_head, 1, 1024},
                 {"head_dim", c->head_dim, 2, 256},
                 {"intermediate", c->intermediate, 1, 1u << 20},
                 {"vocab", c->vocab, 1, 1u << 22},
                 {"weight_dtype", c->weight_dtype, 0, KVF_BF16},
                 {"flags", c->flags, 0, 31},
                 {"n_expert", c->n_expert, 0, 1024},
                 {"n_expert_used", c->n_expert_used, c->n_expert > 0, c->n_expert}};
    for (size_t i = 0; i < sizeof field / sizeof *field; i++) {
        if (field[i].value < field[i].low || field[i].value > field[i].high) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot create model as %s must be from %u to %u: it is %u", field[i].name,
                           field[i].low, field[i].high, field[i].value);
        }
    }
    if (c->n_head % c->n_kv_head != 0 || c->head_dim % 2 != 0) {
        return kv_fail(e, KVF_ERR_ARG,
                       "Cannot create model as n_kv_head must divide n_head and head_dim must be even: they are %u, %u, %u",
                       c->n_kv_head, c->n_head, c->head_dim);
    }
    if (!(c->norm_eps >= 0) || !isfinite(c->norm_eps) || !isfinite(c->rope_scale)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot create model as norm_eps and rope_scale must be finite: they are %g and %g",
                       (double)c->norm_eps, (double)c->rope_scale);
    }
    if (inv_freq == NULL || layer_window == NULL) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot create model as inv_freq and layer_window must be given");
    }
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        if (!isfinite(inv_freq[i])) {
            return kv_fail(e, KVF_ERR_ARG, "Cannot create model as inv_freq[%u] must be finite: it is %g", i,
                           (double)inv_freq[i]);
        }
    }
    return KVF_OK;
}

static void model_destroy(kvf_model *model) {
    free(model->inv_freq);
    free(model->layer_window);
    free(model->loaded);
    model->magic = 0;
    free(model);
}

static kvf_model *model_make(kvf_device *dev, const kvf_model_config *config, const float *inv_freq,
                             const uint32_t *layer_window, kv_err e) {
    if (check_config(config, inv_freq, layer_window, e) != KVF_OK) return NULL;
    kvf_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        kv_fail(e, KVF_ERR_MEMORY, "Cannot create model as memory ran out");
        return NULL;
    }
    model->dev = dev;
    model->config = *config;
    model->group = config->n_head / config->n_kv_head;
    model->inv_freq = malloc(config->head_dim / 2 * sizeof(float));
    model->layer_window = malloc(config->n_layer * sizeof(uint32_t));
    model->loaded = calloc(loaded_index(model, KVF_T_COUNT, config->n_layer - 1, 0), 1);
    if (model->inv_freq == NULL || model->layer_window == NULL || model->loaded == NULL) {
        kv_fail(e, KVF_ERR_MEMORY, "Cannot create model as memory ran out");
        model_destroy(model);
        return NULL;
    }
    memcpy(model->inv_freq, inv_freq, config->head_dim / 2 * sizeof(float));
    memcpy(model->layer_window, layer_window, config->n_layer * sizeof(uint32_t));
    if (be_model_open(model, e) != KVF_OK) {
        model_destroy(model);
        return NULL;
    }
    model->magic = KV_MODEL_MAGIC;
    kv_device_hold(dev);
    kv_handle_made();
    return model;
}

kvf_model *kvf_model_create(kvf_device *dev, const kvf_model_config *config, const float *inv_freq,
                            const uint32_t *layer_window, char *err, uint32_t err_cap) {
    const kv_err e = {err, err_cap};
    if (kv_enter(dev, e) != KVF_OK) return NULL;
    kvf_model *model = model_make(dev, config, inv_freq, layer_window, e);
    kv_leave(dev);
    return model;
}

void kvf_model_free(kvf_model *model) {
    if (model == NULL || model->magic != KV_MODEL_MAGIC) return;
    kvf_device *dev = model->dev;
    be_model_close(model);
    model_destroy(model);
    kv_handle_gone();
    kv_device_release(dev);
}

static int32_t load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                    uint32_t first_row, uint32_t n_row, const void *data, double data_bytes, kv_err e) {
    uint32_t rows, cols;
    if (tensor >= KVF_T_COUNT || !kv_tensor_shape(model, tensor, &rows, &cols)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot load tensor as the model must have it: kind is %u", tensor);
    }
    const char *name = TENSOR_NAME[tensor];
    if (model->ready) return kv_fail(e, KVF_ERR_STATE, "Cannot load %s as the model must not be ready", name);
    if (layer >= (is_global(tensor) ? 1 : model->config.n_layer) || expert >= copies(model, tensor)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot load %s as layer and expert must exist: they are %u and %u", name, layer,
                       expert);
    }
    if (dtype > KVF_BF16) return kv_fail(e, KVF_ERR_ARG, "Cannot load %s as dtype must be known: it is %u", name, dtype);
    if (n_row == 0 || first_row >= rows || n_row > rows - first_row) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot load %s as its rows must be within %u: they are %u from %u", name, rows,
                       n_row, first_row);
    }
    const double needed = (double)n_row * cols * (dtype == KVF_F32 ? 4 : 2);
    if (data == NULL || !(data_bytes >= needed)) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot load %s as data must hold %.0f bytes: it holds %.0f", name, needed,
                       data == NULL ? 0 : data_bytes);
    }
    uint8_t *loaded = model->loaded + loaded_index(model, tensor, layer, expert) + first_row;
    for (uint32_t i = 0; i < n_row; i++) {
        if (loaded[i]) {
            return kv_fail(e, KVF_ERR_STATE, "Cannot load %s of layer %u as each row must come once: row %u came before",
                           name, layer, first_row + i);
        }
    }
    const int32_t status = be_model_load(model, tensor, layer, expert, dtype, first_row, n_row, data, e);
    if (status == KVF_OK) memset(loaded, 1, n_row);
    return status;
}

int32_t kvf_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                       uint32_t first_row, uint32_t n_row, const void *data, double data_bytes, char *err,
                       uint32_t err_cap) {
    KV_MODEL_CALL(model, load(model, tensor, layer, expert, dtype, first_row, n_row, data, data_bytes, e));
}

static int32_t finish(kvf_model *model, kv_err e) {
    const int32_t status = be_model_finish(model, e);
    if (status != KVF_OK) return status;
    free(model->loaded);
    model->loaded = NULL;
    model->ready = true;
    return KVF_OK;
}

static int32_t ready(kvf_model *model, kv_err e) {
    if (model->ready) return KVF_OK;
    for (uint32_t layer = 0; layer < model->config.n_layer; layer++) {
        for (uint32_t t = 0; t < KVF_T_COUNT; t++) {
            uint32_t rows, cols;
            if (!kv_tensor_shape(model, t, &rows, &cols) || (is_global(t) && layer > 0)) continue;
            for (uint32_t expert = 0; expert < copies(model, t); expert++) {
                const uint8_t *missing = memchr(model->loaded + loaded_index(model, t, layer, expert), 0, rows);
                if (missing == NULL) continue;
                return kv_fail(e, KVF_ERR_STATE,
                               "Cannot use model as every row must be loaded: %s of layer %u, expert %u lacks row %zu",
                               TENSOR_NAME[t], layer, expert,
                               (size_t)(missing - (model->loaded + loaded_index(model, t, layer, expert))));
            }
        }
    }
    return finish(model, e);
}

int32_t kvf_model_ready(kvf_model *model, char *err, uint32_t err_cap) { KV_MODEL_CALL(model, ready(model, e)); }

static int32_t randomize(kvf_model *model, uint32_t seed, kv_err e) {
    if (model->ready) return kv_fail(e, KVF_ERR_STATE, "Cannot randomize model as it must not be ready");
    const int32_t status = be_model_randomize(model, seed, e);
    return status == KVF_OK ? finish(model, e) : status;
}

int32_t kvf_model_randomize(kvf_model *model, uint32_t seed, char *err, uint32_t err_cap) {
    KV_MODEL_CALL(model, randomize(model, seed, e));
}

double kvf_model_bytes(kvf_model *model) {
    return model != NULL && model->magic == KV_MODEL_MAGIC ? be_model_bytes(model) : 0;
}

double kvf_model_step_bytes(kvf_model *model) {
    return model != NULL && model->magic == KV_MODEL_MAGIC ? be_model_step_bytes(model) : 0;
}
