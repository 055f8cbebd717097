/* Models: shapes of the tensors, loading row by row, readiness. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

_Static_assert(sizeof(kvf_model_config) == 56, "layout of the ABI");

#define KV_MAX_HIDDEN (1u << 17)
#define KV_MAX_INTERMEDIATE (1u << 20)
#define KV_MAX_VOCAB (1u << 22)
#define KV_MAX_EXPERT 1024u
#define KV_MODEL_FLAGS (KVF_QKV_BIAS | KVF_O_BIAS | KVF_QK_NORM | KVF_TIED_EMBEDDING | KVF_NORM_EXPERT_PROB)

static const char *const g_tensor_name[KVF_T_COUNT] = {
    "embed",  "output", "final_norm", "attn_norm", "mlp_norm", "q",      "k",    "v",  "o",   "q_bias",
    "k_bias", "v_bias", "o_bias",     "q_norm",    "k_norm",   "gate", "up", "down", "router"};

/* ---- Shapes ---- */

bool kv_tensor_per_layer(uint32_t tensor) { return tensor >= KVF_T_ATTN_NORM && tensor < KVF_T_COUNT; }

bool kv_tensor_per_expert(const kvf_model *model, uint32_t tensor) {
    return model->config.n_expert > 0 && (tensor == KVF_T_GATE || tensor == KVF_T_UP || tensor == KVF_T_DOWN);
}

bool kv_tensor_shape(const kvf_model *model, uint32_t tensor, uint32_t *n_row, uint32_t *n_col) {
    const kvf_model_config *c = &model->config;
    const uint32_t q = c->n_head * c->head_dim;
    const uint32_t kv = c->n_kv_head * c->head_dim;
    uint32_t rows = 1;
    uint32_t cols = 0;
    switch (tensor) {
        case KVF_T_EMBED: rows = c->vocab; cols = c->hidden; break;
        case KVF_T_OUTPUT:
            if (c->flags & KVF_TIED_EMBEDDING) return false;
            rows = c->vocab;
            cols = c->hidden;
            break;
        case KVF_T_FINAL_NORM:
        case KVF_T_ATTN_NORM:
        case KVF_T_MLP_NORM: cols = c->hidden; break;
        case KVF_T_Q: rows = q; cols = c->hidden; break;
        case KVF_T_K:
        case KVF_T_V: rows = kv; cols = c->hidden; break;
        case KVF_T_O: rows = c->hidden; cols = q; break;
        case KVF_T_Q_BIAS:
            if (!(c->flags & KVF_QKV_BIAS)) return false;
            cols = q;
            break;
        case KVF_T_K_BIAS:
        case KVF_T_V_BIAS:
            if (!(c->flags & KVF_QKV_BIAS)) return false;
            cols = kv;
            break;
        case KVF_T_O_BIAS:
            if (!(c->flags & KVF_O_BIAS)) return false;
            cols = c->hidden;
            break;
        case KVF_T_Q_NORM:
        case KVF_T_K_NORM:
            if (!(c->flags & KVF_QK_NORM)) return false;
            cols = c->head_dim;
            break;
        case KVF_T_GATE:
        case KVF_T_UP: rows = c->intermediate; cols = c->hidden; break;
        case KVF_T_DOWN: rows = c->hidden; cols = c->intermediate; break;
        case KVF_T_ROUTER:
            if (c->n_expert == 0) return false;
            rows = c->n_expert;
            cols = c->hidden;
            break;
        default: return false;
    }
    *n_row = rows;
    *n_col = cols;
    return true;
}

static uint32_t copies_per_layer(const kvf_model *model, uint32_t tensor) {
    return kv_tensor_per_expert(model, tensor) ? model->config.n_expert : 1;
}

/* Rows of one layer's tensors (layer), or of those outside the layers. */
static size_t rows_of(const kvf_model *model, bool layer) {
    size_t sum = 0;
    uint32_t n_row, n_col;
    for (uint32_t t = 0; t < KVF_T_COUNT; t++) {
        if (kv_tensor_per_layer(t) != layer || !kv_tensor_shape(model, t, &n_row, &n_col)) continue;
        sum += (size_t)n_row * copies_per_layer(model, t);
    }
    return sum;
}

/* Where a tensor's row 0 is in model->loaded: first the tensors outside the layers, then layer after layer. */
static size_t loaded_at(const kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert) {
    const bool in_layer = kv_tensor_per_layer(tensor);
    size_t at = in_layer ? rows_of(model, false) + (size_t)layer * rows_of(model, true) : 0;
    uint32_t n_row, n_col;
    for (uint32_t t = 0; t < tensor; t++) {
        if (kv_tensor_per_layer(t) != in_layer || !kv_tensor_shape(model, t, &n_row, &n_col)) continue;
        at += (size_t)n_row * copies_per_layer(model, t);
    }
    kv_tensor_shape(model, tensor, &n_row, &n_col);
    return at + (size_t)n_row * expert;
}

/* ---- Creation ---- */

static int32_t check_between(const char *name, uint32_t value, uint32_t low, uint32_t high, kv_err err) {
    if (value >= low && value <= high) return KVF_OK;
    return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as %s must be between %u and %u: %u", name, low, high, value);
}

static int32_t check_config(const kvf_model_config *c, const float *inv_freq, const uint32_t *layer_window, kv_err err) {
    int32_t status;
    if ((status = check_between("n_layer", c->n_layer, 1, KV_MAX_LAYER, err)) != KVF_OK) return status;
    if ((status = check_between("hidden", c->hidden, 1, KV_MAX_HIDDEN, err)) != KVF_OK) return status;
    if ((status = check_between("n_head", c->n_head, 1, KV_MAX_HEAD, err)) != KVF_OK) return status;
    if ((status = check_between("n_kv_head", c->n_kv_head, 1, c->n_head, err)) != KVF_OK) return status;
    if ((status = check_between("head_dim", c->head_dim, 2, 256, err)) != KVF_OK) return status;
    if ((status = check_between("intermediate", c->intermediate, 1, KV_MAX_INTERMEDIATE, err)) != KVF_OK) return status;
    if ((status = check_between("vocab", c->vocab, 1, KV_MAX_VOCAB, err)) != KVF_OK) return status;
    if ((status = check_between("weight_dtype", c->weight_dtype, KVF_F32, KVF_BF16, err)) != KVF_OK) return status;
    if ((status = check_between("n_expert", c->n_expert, 0, KV_MAX_EXPERT, err)) != KVF_OK) return status;
    if (c->n_expert == 0) {
        status = check_between("n_expert_used of a dense model", c->n_expert_used, 0, 0, err);
    } else {
        status = check_between("n_expert_used", c->n_expert_used, 1, c->n_expert, err);
    }
    if (status != KVF_OK) return status;
    if (c->n_head % c->n_kv_head != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as n_kv_head must divide n_head: %u and %u", c->n_kv_head,
                       c->n_head);
    }
    if (c->head_dim % 2 != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as head_dim must be even: %u", c->head_dim);
    }
    if ((c->flags & ~(uint32_t)KV_MODEL_FLAGS) != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as its flags must be known: %u", c->flags);
    }
    if (!isfinite(c->norm_eps) || c->norm_eps < 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as norm_eps must be finite and at least 0: %g",
                       (double)c->norm_eps);
    }
    if (!isfinite(c->rope_scale) || c->rope_scale <= 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as rope_scale must be finite and above 0: %g",
                       (double)c->rope_scale);
    }
    if (inv_freq == NULL || layer_window == NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as inv_freq and layer_window must not be NULL");
    }
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        if (!isfinite(inv_freq[i])) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot create a model as inv_freq must be finite: %g at %u",
                           (double)inv_freq[i], i);
        }
    }
    return KVF_OK;
}

static void model_destroy(kvf_model *model) {
    if (model->impl != NULL) be_model_close(model);
    free(model->loaded);
    free(model->layer_window);
    free(model->inv_freq);
    free(model);
}

static kvf_model *model_create(kvf_device *dev, const kvf_model_config *config, const float *inv_freq,
                               const uint32_t *layer_window, kv_err err) {
    if (config == NULL) {
        kv_fail(err, KVF_ERR_ARG, "Cannot create a model as the config must not be NULL");
        return NULL;
    }
    if (config->size != sizeof *config) {
        kv_fail(err, KVF_ERR_ARG, "Cannot create a model as kvf_model_config must have %zu bytes: size is %u",
                sizeof *config, config->size);
        return NULL;
    }
    if (check_config(config, inv_freq, layer_window, err) != KVF_OK) return NULL;
    kvf_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        kv_fail(err, KVF_ERR_MEMORY, "Cannot create a model as %zu bytes must be available", sizeof *model);
        return NULL;
    }
    model->handle.kind = KV_MODEL;
    model->dev = dev;
    model->refs = 1;
    model->config = *config;
    model->group = config->n_head / config->n_kv_head;
    const size_t n_row = rows_of(model, false) + (size_t)config->n_layer * rows_of(model, true);
    model->inv_freq = malloc(config->head_dim / 2 * sizeof(float));
    model->layer_window = malloc(config->n_layer * sizeof(uint32_t));
    model->loaded = calloc(n_row, 1);
    if (model->inv_freq == NULL || model->layer_window == NULL || model->loaded == NULL) {
        kv_fail(err, KVF_ERR_MEMORY, "Cannot create a model as %zu bytes must be available", n_row);
        model_destroy(model);
        return NULL;
    }
    memcpy(model->inv_freq, inv_freq, config->head_dim / 2 * sizeof(float));
    memcpy(model->layer_window, layer_window, config->n_layer * sizeof(uint32_t));
    if (be_model_open(model, err) != KVF_OK) {
        model_destroy(model);
        return NULL;
    }
    return model;
}

kvf_model *kvf_model_create(kvf_device *dev, const kvf_model_config *config, const float *inv_freq,
                            const uint32_t *layer_window, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    if (kv_enter(dev, KV_DEVICE, "create a model", err) != KVF_OK) return NULL;
    kvf_model *model = model_create(dev, config, inv_freq, layer_window, err);
    if (model != NULL) {
        kv_device_retain(dev);
        kv_handle_add(&model->handle);
    }
    kv_leave(dev);
    return model;
}

void kv_model_release(kvf_model *model) {
    if (--model->refs > 0) return;
    kvf_device *dev = model->dev;
    model_destroy(model);
    kv_device_release(dev);
}

void kvf_model_free(kvf_model *model) {
    if (!kv_enter_to_free(model, KV_MODEL)) return;
    kvf_device *dev = model->dev;
    kv_device_retain(dev); /* until the device is given back */
    kv_model_release(model);
    kv_leave(dev);
    kv_device_release(dev);
}

/* ---- Loading ---- */

static int32_t model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                          uint32_t first_row, uint32_t n_row, const void *data, double data_bytes, kv_err err) {
    uint32_t rows, cols;
    if (model->ready) return kv_fail(err, KVF_ERR_STATE, "Cannot load a tensor as the model must not be ready yet");
    if (tensor >= KVF_T_COUNT) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load a tensor as its number must be below %u: %u", (uint32_t)KVF_T_COUNT,
                       tensor);
    }
    const char *name = g_tensor_name[tensor];
    if (!kv_tensor_shape(model, tensor, &rows, &cols)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as the model must have it: its flags are %u and it has %u experts",
                       name, model->config.flags, model->config.n_expert);
    }
    const uint32_t n_layer = kv_tensor_per_layer(tensor) ? model->config.n_layer : 1;
    if (layer >= n_layer) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as its layer must be below %u: %u", name, n_layer, layer);
    }
    if (expert >= copies_per_layer(model, tensor)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as its expert must be below %u: %u", name,
                       copies_per_layer(model, tensor), expert);
    }
    if (dtype > KVF_BF16) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as its dtype must be F32, F16 or BF16: %u", name, dtype);
    }
    if (n_row == 0 || first_row >= rows || n_row > rows - first_row) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as its %u rows must hold the given ones: %u from row %u", name,
                       rows, n_row, first_row);
    }
    const double bytes = (double)n_row * cols * (dtype == KVF_F32 ? 4 : 2);
    if (data == NULL || data_bytes != bytes) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s as %u rows of %u elements must have %.0f bytes: %.0f", name,
                       n_row, cols, bytes, data == NULL ? 0 : data_bytes);
    }
    uint8_t *loaded = model->loaded + loaded_at(model, tensor, layer, expert) + first_row;
    const uint8_t *twice = memchr(loaded, 1, n_row);
    if (twice != NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot load tensor %s of layer %u, expert %u as each row must come once: row %u", name,
                       layer, expert, first_row + (uint32_t)(twice - loaded));
    }
    const int32_t status = be_model_load(model, tensor, layer, expert, dtype, first_row, n_row, data, err);
    if (status == KVF_OK) memset(loaded, 1, n_row);
    return status;
}

int32_t kvf_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                       uint32_t first_row, uint32_t n_row, const void *data, double data_bytes, char *text,
                       uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(model, KV_MODEL, "load a tensor", err);
    if (status != KVF_OK) return status;
    status = model_load(model, tensor, layer, expert, dtype, first_row, n_row, data, data_bytes, err);
    kv_leave(model->dev);
    return status;
}

int32_t kvf_model_source(kvf_model *model, void *data, double bytes, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(model, KV_MODEL, "load from a source", err);
    if (status != KVF_OK) return status;
    if (model->ready) {
        status = kv_fail(err, KVF_ERR_STATE, "Cannot load from a source as the model must not be ready yet");
    } else if (!(bytes >= 0 && bytes < 0x1p53) || bytes != floor(bytes) || (data == NULL) != (bytes == 0)) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot load from a source as it must have whole bytes, and none where it is NULL: %g", bytes);
    } else {
        status = be_model_source(model, data, (size_t)bytes, err);
    }
    kv_leave(model->dev);
    return status;
}

static int32_t finish(kvf_model *model, kv_err err) {
    int32_t status = be_model_finish(model, err);
    if (status == KVF_OK) status = be_model_source(model, NULL, 0, err);
    if (status != KVF_OK) return status;
    model->ready = true;
    free(model->loaded);
    model->loaded = NULL;
    return KVF_OK;
}

static int32_t model_ready(kvf_model *model, kv_err err) {
    if (model->ready) return KVF_OK;
    for (uint32_t tensor = 0; tensor < KVF_T_COUNT; tensor++) {
        uint32_t rows, cols;
        if (!kv_tensor_shape(model, tensor, &rows, &cols)) continue;
        const uint32_t n_layer = kv_tensor_per_layer(tensor) ? model->config.n_layer : 1;
        const uint32_t n_copy = copies_per_layer(model, tensor);
        for (uint32_t layer = 0; layer < n_layer; layer++) {
            for (uint32_t expert = 0; expert < n_copy; expert++) {
                const uint8_t *loaded = model->loaded + loaded_at(model, tensor, layer, expert);
                const uint8_t *missing = memchr(loaded, 0, rows);
                if (missing == NULL) continue;
                return kv_fail(err, KVF_ERR_STATE,
                               "Cannot use the model as every row must be loaded: row %u of %u of tensor %s, layer %u, expert %u",
                               (uint32_t)(missing - loaded), rows, g_tensor_name[tensor], layer, expert);
            }
        }
    }
    return finish(model, err);
}

int32_t kvf_model_ready(kvf_model *model, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(model, KV_MODEL, "use the model", err);
    if (status != KVF_OK) return status;
    status = model_ready(model, err);
    kv_leave(model->dev);
    return status;
}

int32_t kvf_model_randomize(kvf_model *model, uint32_t seed, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(model, KV_MODEL, "randomize the model", err);
    if (status != KVF_OK) return status;
    if (model->ready) {
        status = kv_fail(err, KVF_ERR_STATE, "Cannot randomize the model as it must not be ready yet");
    } else {
        status = be_model_randomize(model, seed, err);
        if (status == KVF_OK) status = finish(model, err);
    }
    kv_leave(model->dev);
    return status;
}

double kvf_model_bytes(kvf_model *model) {
    const kv_err err = {NULL, 0};
    if (kv_enter(model, KV_MODEL, "measure", err) != KVF_OK) return 0;
    const double result = be_model_bytes(model);
    kv_leave(model->dev);
    return result;
}

double kvf_model_step_bytes(kvf_model *model) {
    const kv_err err = {NULL, 0};
    if (kv_enter(model, KV_MODEL, "measure", err) != KVF_OK) return 0;
    const double result = be_model_step_bytes(model);
    kv_leave(model->dev);
    return result;
}
