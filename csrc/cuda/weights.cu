/*
 * Weights. Matrices are row-major in weight_dtype with columns padded by zeros; Q, K and V share one matrix, gate and up
 * another, experts are stacked. Vectors are f32.
 */
#include "numbers.cuh"

/* A block converts 256 columns of a row. */
template <typename F, typename T>
static __global__ void convert_kernel(T *to, uint32_t ld, const F *from, uint32_t n_col) {
    const uint32_t col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col < n_col) from_f32(&to[(size_t)blockIdx.y * ld + col], to_f32(from[(size_t)blockIdx.y * n_col + col]));
}

/* Four columns of a row per thread, from one draw of the generator; the same values as on the CPU. */
static __global__ void random_kernel(void *to, uint32_t dtype, uint32_t ld, uint32_t n_row, uint32_t n_col, float scale,
                                     uint32_t seed, uint32_t stream, uint32_t expert) {
    const uint32_t col = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (col >= n_col) return;
    for (uint32_t row = blockIdx.y; row < n_row; row += gridDim.y) {
        uint32_t words[4];
        philox(col, row, expert, 0, seed, stream, words);
        for (uint32_t k = 0; k < 4 && col + k < n_col; k++) {
            store_as(to, dtype, (size_t)row * ld + col + k, ((float)(words[k] >> 8) * 0x1p-24f - 0.5f) * scale);
        }
    }
}

static __global__ void constant_kernel(float *to, uint32_t n, float value) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = value;
}

static int32_t matrix_open(kvf_model *model, cu_matrix *m, uint32_t n_row, uint32_t n_col, uint32_t copies, kv_err err) {
    cu_model *w = cu_weights(model);
    m->n_row = n_row * copies;
    m->n_col = n_col;
    m->ld = cu_round_up(n_col, CU_PAD);
    const size_t bytes = (size_t)m->n_row * m->ld * cu_dtype_bytes(model->config.weight_dtype);
    w->bytes += (double)bytes;
    if (w->measuring) return KVF_OK;
    CU_PASS(cu_alloc(model->dev, &m->data, bytes, "weights", err));
    CU_TRY(cudaMemsetAsync(m->data, 0, bytes, cu_of(model->dev)->stream), "clearing weights");
    return KVF_OK;
}

static int32_t vector_open(kvf_model *model, float **v, uint32_t n, kv_err err) {
    cu_weights(model)->bytes += (double)n * sizeof(float);
    if (cu_weights(model)->measuring) return KVF_OK;
    CU_PASS(cu_alloc(model->dev, (void **)v, n * sizeof(float), "weights", err));
    CU_TRY(cudaMemsetAsync(*v, 0, n * sizeof(float), cu_of(model->dev)->stream), "clearing weights");
    return KVF_OK;
}

static int32_t layer_open(kvf_model *model, cu_layer *l, kv_err err) {
    const kvf_model_config *c = &model->config;
    const uint32_t experts = c->n_expert > 0 ? c->n_expert : 1;
    CU_PASS(matrix_open(model, &l->qkv, cu_qkv_width(c), c->hidden, 1, err));
    CU_PASS(matrix_open(model, &l->o, c->hidden, c->n_head * c->head_dim, 1, err));
    CU_PASS(matrix_open(model, &l->gate_up, 2 * c->intermediate, c->hidden, experts, err));
    CU_PASS(matrix_open(model, &l->down, c->hidden, c->intermediate, experts, err));
    if (c->n_expert > 0) CU_PASS(matrix_open(model, &l->router, c->n_expert, c->hidden, 1, err));
    CU_PASS(vector_open(model, &l->attn_norm, c->hidden, err));
    CU_PASS(vector_open(model, &l->mlp_norm, c->hidden, err));
    if (c->flags & KVF_QKV_BIAS) CU_PASS(vector_open(model, &l->qkv_bias, cu_qkv_width(c), err));
    if (c->flags & KVF_O_BIAS) CU_PASS(vector_open(model, &l->o_bias, c->hidden, err));
    if (c->flags & KVF_QK_NORM) {
        CU_PASS(vector_open(model, &l->q_norm, c->head_dim, err));
        CU_PASS(vector_open(model, &l->k_norm, c->head_dim, err));
    }
    return KVF_OK;
}

static int32_t open_all(kvf_model *model, kv_err err) {
    const kvf_model_config *c = &model->config;
    cu_model *w = cu_weights(model);
    w->bytes = 0;
    CU_PASS(matrix_open(model, &w->embed, c->vocab, c->hidden, 1, err));
    if (c->flags & KVF_TIED_EMBEDDING) w->output = w->embed;
    else CU_PASS(matrix_open(model, &w->output, c->vocab, c->hidden, 1, err));
    CU_PASS(vector_open(model, &w->final_norm, c->hidden, err));
    for (uint32_t i = 0; i < c->n_layer; i++) CU_PASS(layer_open(model, &w->layer[i], err));
    if (w->measuring) return KVF_OK;
    CU_PASS(cu_alloc(model->dev, (void **)&w->inv_freq, c->head_dim / 2 * sizeof(float), "weights", err));
    return be_upload(model->dev, w->inv_freq, model->inv_freq, c->head_dim / 2 * sizeof(float), err);
}

extern "C" int32_t be_model_open(kvf_model *model, kv_err err) {
    cu_model *w = (cu_model *)calloc(1, sizeof *w);
    if (w != NULL) w->layer = (cu_layer *)calloc(model->config.n_layer, sizeof *w->layer);
    if (w == NULL || w->layer == NULL) {
        free(w);
        return kv_fail(err, KVF_ERR_MEMORY, "Cannot create model as memory ran out");
    }
    model->impl = w;
    w->measuring = true;
    int32_t status = cu_enter(model->dev, err);
    if (status == KVF_OK) status = open_all(model, err);
    if (status == KVF_OK) status = cu_check_room(model->dev, w->bytes, "create a model", err);
    w->measuring = false;
    if (status == KVF_OK) status = open_all(model, err);
    if (status != KVF_OK) be_model_close(model);
    return status;
}

/* Bytes of a page of host memory; whole ones are pinned. */
#define HOST_PAGE ((uintptr_t)4096)

extern "C" int32_t be_model_source(kvf_model *model, void *data, size_t bytes, kv_err err) {
    cu_model *w = cu_weights(model);
    CU_PASS(cu_enter(model->dev, err));
    if (w->source != NULL) {
        cudaStreamSynchronize(cu_of(model->dev)->stream);
        cudaHostUnregister(w->source);
        w->source = NULL;
        cudaGetLastError();
    }
    if (data == NULL) return KVF_OK;
    const uintptr_t from = (uintptr_t)data / HOST_PAGE * HOST_PAGE, end = ((uintptr_t)data + bytes + HOST_PAGE - 1) / HOST_PAGE * HOST_PAGE;
    if (cudaHostRegister((void *)from, end - from, cudaHostRegisterDefault) != cudaSuccess) {
        cudaGetLastError();
        return KVF_OK; /* what cannot be pinned is copied through the staging ring */
    }
    w->source = (char *)from;
    w->source_bytes = end - from;
    return KVF_OK;
}

extern "C" void be_model_close(kvf_model *model) {
    cu_model *w = cu_weights(model);
    if (w == NULL) return;
    kvf_device *dev = model->dev;
    if (w->source != NULL) cudaHostUnregister(w->source);
    w->source = NULL;
    cu_decode_free(model);
    for (uint32_t i = 0; i < model->config.n_layer; i++) {
        cu_layer *l = &w->layer[i];
        be_free(dev, l->qkv.data);
        be_free(dev, l->o.data);
        be_free(dev, l->gate_up.data);
        be_free(dev, l->down.data);
        be_free(dev, l->router.data);
        be_free(dev, l->attn_norm);
        be_free(dev, l->mlp_norm);
        be_free(dev, l->qkv_bias);
        be_free(dev, l->o_bias);
        be_free(dev, l->q_norm);
        be_free(dev, l->k_norm);
    }
    if (w->output.data != w->embed.data) be_free(dev, w->output.data);
    be_free(dev, w->embed.data);
    be_free(dev, w->final_norm);
    be_free(dev, w->inv_freq);
    free(w->layer);
    free(w);
    model->impl = NULL;
}

/* Where a tensor lives: a matrix and the row that its first row goes to, or a vector (NULL returned). */
static cu_matrix *place_of(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t *row,
                           float **vector) {
    const kvf_model_config *c = &model->config;
    const uint32_t q = c->n_head * c->head_dim, kv = c->n_kv_head * c->head_dim;
    cu_model *w = cu_weights(model);
    cu_layer *l = &w->layer[layer];
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
    case KVF_T_GATE: *row = 2 * expert * c->intermediate; return &l->gate_up;
    case KVF_T_UP: *row = (2 * expert + 1) * c->intermediate; return &l->gate_up;
    case KVF_T_DOWN: *row = expert * c->hidden; return &l->down;
    default: return &l->router;
    }
}

template <typename F>
static void convert(void *to, uint32_t dtype, uint32_t ld, const void *from, uint32_t n_row, uint32_t n_col,
                    cudaStream_t stream) {
    const dim3 grid(cu_div_up(n_col, 256), n_row);
    CU_WITH_TYPE(dtype, T, (convert_kernel<F, T><<<grid, 256, 0, stream>>>((T *)to, ld, (const F *)from, n_col)));
}

extern "C" int32_t be_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                                 uint32_t first_row, uint32_t n_row, const void *data, kv_err err) {
    kvf_device *dev = model->dev;
    uint32_t rows, cols, row;
    float *vector;
    kv_tensor_shape(model, tensor, &rows, &cols);
    cu_matrix *m = place_of(model, tensor, layer, expert, &row, &vector);
    CU_PASS(cu_enter(dev, err));
    const uint32_t to_dtype = m != NULL ? model->config.weight_dtype : (uint32_t)KVF_F32;
    const uint32_t ld = m != NULL ? m->ld : cols;
    char *to = m != NULL ? (char *)m->data + (size_t)(row + first_row) * ld * cu_dtype_bytes(to_dtype) : (char *)vector;
    const size_t row_bytes = (size_t)cols * cu_dtype_bytes(dtype);
    if (dtype == to_dtype && ld == cols) {
        const cu_model *w = cu_weights(model);
        const size_t bytes = n_row * row_bytes, at = (uintptr_t)data - (uintptr_t)w->source;
        if (w->source == NULL || at > w->source_bytes || bytes > w->source_bytes - at) return be_upload(dev, to, data, bytes, err);
        CU_TRY(cudaMemcpyAsync(to, data, bytes, cudaMemcpyHostToDevice, cu_of(dev)->stream), "copying weights to the device");
        return cu_synchronize(dev, err); /* the caller may reuse the memory */
    }
    /* A piece is at most a quarter of the ring; one row always fits (cols <= 2^20). */
    uint32_t step = (uint32_t)((CU_STAGE_HALF / 4) / row_bytes);
    if (step == 0) step = 1;
    if (step > 32768) step = 32768;
    for (uint32_t done = 0; done < n_row; done += step) {
        const uint32_t n = n_row - done < step ? n_row - done : step;
        void *staged;
        if (row_bytes > CU_STAGE_HALF) return kv_fail(err, KVF_ERR_ARG, "Cannot load rows of %u columns", cols);
        CU_PASS(cu_push(dev, &staged, (const char *)data + (size_t)done * row_bytes, n * row_bytes, err));
        char *at = to + (size_t)done * ld * cu_dtype_bytes(to_dtype);
        CU_WITH_TYPE(dtype, F, (convert<F>(at, to_dtype, ld, staged, n, cols, cu_of(dev)->stream)));
        CU_LAUNCHED("converting weights");
    }
    return KVF_OK;
}

extern "C" int32_t be_model_finish(kvf_model *model, kv_err err) {
    CU_PASS(cu_enter(model->dev, err));
    return cu_synchronize(model->dev, err);
}

extern "C" int32_t be_model_randomize(kvf_model *model, uint32_t seed, kv_err err) {
    const kvf_model_config *c = &model->config;
    const uint32_t experts = c->n_expert > 0 ? c->n_expert : 1;
    cudaStream_t stream = cu_of(model->dev)->stream;
    CU_PASS(cu_enter(model->dev, err));
    for (uint32_t t = 0; t < KVF_T_COUNT; t++) {
        uint32_t rows, cols, row;
        if (!kv_tensor_shape(model, t, &rows, &cols)) continue;
        const bool norm = t == KVF_T_FINAL_NORM || t == KVF_T_ATTN_NORM || t == KVF_T_MLP_NORM || t == KVF_T_Q_NORM ||
                          t == KVF_T_K_NORM;
        /* A uniform draw of variance 1 / cols keeps activations near 1; norms and biases are 1 and 0. */
        const float scale = sqrtf(12.0f / (float)cols);
        for (uint32_t layer = 0; layer < (t <= KVF_T_FINAL_NORM ? 1 : c->n_layer); layer++) {
            for (uint32_t x = 0; x < (t >= KVF_T_GATE && t <= KVF_T_DOWN ? experts : 1); x++) {
                float *vector;
                const cu_matrix *m = place_of(model, t, layer, x, &row, &vector);
                if (m == NULL) {
                    constant_kernel<<<cu_div_up(cols, 256), 256, 0, stream>>>(vector, cols, norm ? 1.0f : 0.0f);
                } else {
                    void *to = (char *)m->data + (size_t)row * m->ld * cu_dtype_bytes(c->weight_dtype);
                    const dim3 grid(cu_div_up(cols, 1024), rows < 65535 ? rows : 65535);
                    random_kernel<<<grid, 256, 0, stream>>>(to, c->weight_dtype, m->ld, rows, cols, scale, seed,
                                                            t << 16 | layer, x);
                }
                CU_LAUNCHED("filling weights");
            }
        }
    }
    return KVF_OK;
}

static double matrix_bytes(const kvf_model *model, const cu_matrix *m) {
    return (double)m->n_row * m->ld * (double)cu_dtype_bytes(model->config.weight_dtype);
}

extern "C" double be_model_bytes(const kvf_model *model) { return cu_weights(model)->bytes; }

extern "C" double be_model_step_bytes(const kvf_model *model) {
    const kvf_model_config *c = &model->config;
    const cu_model *w = cu_weights(model);
    double bytes = w->bytes;
    if (w->output.data != w->embed.data) bytes -= matrix_bytes(model, &w->embed);
    if (c->n_expert > 0) {
        const double experts = matrix_bytes(model, &w->layer->gate_up) + matrix_bytes(model, &w->layer->down);
        bytes -= experts / c->n_expert * (c->n_expert - c->n_expert_used) * c->n_layer;
    }
    return bytes;
}
