/* Embedding, norms, biases, rotation, and writing rows: everything between the products that touches activations. */
#include "norm.cuh"
#include "program.cuh"

enum { NORM_HELD = 4 };

/* A block per token. Rows of up to 4096 columns are read once and kept; the weights come while the kernel before still runs. */
template <typename T>
static __global__ void __launch_bounds__(NORM_THREADS) rms_norm_kernel(T *h, uint32_t ldh, const float *x, const float *weight,
                                                              uint32_t n_col, float eps) {
    const float *from = x + (size_t)blockIdx.x * n_col;
    T *to = h + (size_t)blockIdx.x * ldh;
    allow_next(); /* what comes next fetches weights first */
    if (sizeof(T) != 2 || n_col % 4 != 0 || n_col > 4 * NORM_HELD * NORM_THREADS) {
        wait_previous();
        const float scale = norm_scale(from, n_col, eps);
        for (uint32_t i = threadIdx.x; i < n_col; i += blockDim.x) from_f32(&to[i], from[i] * scale * weight[i]);
        return;
    }
    float4 f[NORM_HELD] = {}, v[NORM_HELD] = {};
#pragma unroll
    for (uint32_t k = 0; k < NORM_HELD; k++) {
        const uint32_t i = k * NORM_THREADS + threadIdx.x;
        if (i < n_col / 4) f[k] = ((const float4 *)weight)[i];
    }
    wait_previous();
#pragma unroll
    for (uint32_t k = 0; k < NORM_HELD; k++) {
        const uint32_t i = k * NORM_THREADS + threadIdx.x;
        if (i < n_col / 4) v[k] = ((const float4 *)from)[i];
    }
    float sum = 0;
#pragma unroll
    for (uint32_t k = 0; k < NORM_HELD; k++) sum = norm_add(sum, v[k]);
    const float scale = norm_factor(sum, n_col, eps);
#pragma unroll
    for (uint32_t k = 0; k < NORM_HELD; k++) {
        const uint32_t i = k * NORM_THREADS + threadIdx.x;
        if (i >= n_col / 4) continue;
        ((uint2 *)to)[i] = make_uint2(pack<T>(v[k].x * scale * f[k].x, v[k].y * scale * f[k].y),
                                      pack<T>(v[k].z * scale * f[k].z, v[k].w * scale * f[k].w));
    }
}

int32_t cu_rms_norm(kvf_device *dev, uint32_t dtype, void *h, uint32_t ldh, const float *x, const float *weight,
                    uint32_t n, uint32_t n_col, float eps, kv_err err) {
    cudaError_t e;
    CU_WITH_TYPE(dtype, T, e = cu_all_shared(rms_norm_kernel<T>));
    if (e != cudaSuccess) return cu_check(e, "a norm", err);
    CU_WITH_TYPE(dtype, T,
                 (e = cu_launch_next(cu_of(dev), rms_norm_kernel<T>, dim3(n), dim3(NORM_THREADS), 0, (T *)h, ldh, x, weight,
                                     n_col, eps)));
    return cu_check(e, "a norm", err);
}

enum { ROW_THREADS = 256, ROW_GROUPS = 4 };

/* The same for many tokens: each thread holds up to ROW_GROUPS groups of eight columns, so that x is read once. */
template <typename T>
static __global__ void __launch_bounds__(ROW_THREADS) norm_rows_kernel(T *h, uint32_t ldh, const float *x, const float *weight,
                                                                       uint32_t n_col, float eps) {
    const float *from = x + (size_t)blockIdx.x * n_col;
    T *to = h + (size_t)blockIdx.x * ldh;
    float value[ROW_GROUPS][8], sum = 0;
#pragma unroll
    for (uint32_t k = 0; k < ROW_GROUPS; k++) {
        const uint32_t i = (k * ROW_THREADS + threadIdx.x) * 8;
        if (i < n_col) load8(from + i, value[k]);
    }
#pragma unroll
    for (uint32_t k = 0; k < ROW_GROUPS; k++) {
        if ((k * ROW_THREADS + threadIdx.x) * 8 >= n_col) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(value[k][j], value[k][j], sum);
    }
    const float scale = rsqrtf(block_sum(sum) / (float)n_col + eps);
#pragma unroll
    for (uint32_t k = 0; k < ROW_GROUPS; k++) {
        const uint32_t i = (k * ROW_THREADS + threadIdx.x) * 8;
        float factor[8];
        if (i >= n_col) continue;
        load8(weight + i, factor);
#pragma unroll
        for (int j = 0; j < 8; j++) value[k][j] *= scale * factor[j];
        store8(to + i, value[k]);
    }
}

int32_t cu_norm_rows(kvf_device *dev, uint32_t dtype, void *h, uint32_t ldh, const float *x, const float *weight, uint32_t n,
                     uint32_t n_col, float eps, kv_err err) {
    if (n_col % 8 != 0 || n_col > 8 * ROW_THREADS * ROW_GROUPS) return cu_rms_norm(dev, dtype, h, ldh, x, weight, n, n_col, eps, err);
    CU_WITH_TYPE(dtype, T, (norm_rows_kernel<T><<<n, ROW_THREADS, 0, cu_of(dev)->stream>>>((T *)h, ldh, x, weight, n_col, eps)));
    CU_LAUNCHED("a norm");
    return KVF_OK;
}

template <typename T>
static __global__ void embed_kernel(float *x, const T *table, uint32_t ld, const uint32_t *tokens, uint32_t hidden) {
    const T *from = table + (size_t)tokens[blockIdx.x] * ld;
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) x[(size_t)blockIdx.x * hidden + i] = to_f32(from[i]);
}

/* Grid: parts of eight columns a thread, slots. */
template <typename T>
static __global__ void __launch_bounds__(128) embed_step_kernel(float *x, const T *table, uint32_t ld, cu_slot *slot,
                                                                const cu_step_control *control, const uint32_t *forced,
                                                                uint32_t hidden) {
    allow_next();
    cu_slot *s = &slot[blockIdx.y];
    const uint32_t token = forced != NULL ? forced[control->step] : s->pending;
    const bool run = s->live && !s->finished && token != KV_NO_TOKEN;
    if (blockIdx.x == 0 && threadIdx.x == 0) s->run = run, s->token = token;
    const uint32_t i = 8 * (blockIdx.x * 128 + threadIdx.x);
    if (i >= hidden) return;
    float value[8] = {};
    if (run) load8(table + (size_t)token * ld + i, value); /* a row ends with padding */
    float *to = x + (size_t)blockIdx.y * hidden + i;
    if (hidden % 8 == 0) {
        store8(to, value);
        return;
    }
#pragma unroll
    for (int k = 0; k < 8; k++) {
        if (i + k < hidden) to[k] = value[k];
    }
}

int32_t cu_embed(kvf_model *model, float *x, const uint32_t *tokens, uint32_t n, kv_err err) {
    const cu_matrix *m = &cu_weights(model)->embed;
    CU_WITH_TYPE(model->config.weight_dtype, T,
                 (embed_kernel<T><<<n, 256, 0, cu_of(model->dev)->stream>>>(x, (const T *)m->data, m->ld, tokens,
                                                                           m->n_col)));
    CU_LAUNCHED("embedding");
    return KVF_OK;
}

int32_t cu_embed_step(kvf_model *model, float *x, cu_slot *slot, uint32_t n, const cu_step_control *control,
                      const uint32_t *forced, kv_err err) {
    const cu_matrix *m = &cu_weights(model)->embed;
    const dim3 grid(cu_div_up(m->n_col, 8 * 128), n);
    CU_WITH_TYPE(model->config.weight_dtype, T,
                 (embed_step_kernel<T><<<grid, 128, 0, cu_of(model->dev)->stream>>>(x, (const T *)m->data, m->ld, slot, control,
                                                                                   forced, m->n_col)));
    CU_LAUNCHED("embedding");
    return KVF_OK;
}

static __device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

template <typename T, typename W>
static __global__ void swiglu_kernel(T *act, uint32_t lda, const W *gate_up, uint32_t width) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const W *row = gate_up + (size_t)blockIdx.y * 2 * width;
    from_f32(&act[(size_t)blockIdx.y * lda + i], swiglu(to_f32(row[i]), to_f32(row[width + i])));
}

/* Eight columns a thread. */
template <typename T, typename W>
static __global__ void __launch_bounds__(256) swiglu_rows_kernel(T *act, uint32_t lda, const W *gate_up, uint32_t width) {
    const uint32_t i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= width) return;
    const W *row = gate_up + (size_t)blockIdx.y * 2 * width + i;
    float gate[8], up[8];
    load8(row, gate);
    load8(row + width, up);
#pragma unroll
    for (int k = 0; k < 8; k++) gate[k] = swiglu(gate[k], up[k]);
    store8(act + (size_t)blockIdx.y * lda + i, gate);
}

template <typename T>
static void run_swiglu(T *act, uint32_t lda, const void *gate_up, uint32_t n, uint32_t width, cudaStream_t stream) {
    using W = typename wide_of<T>::type;
    const bool rows = width % 8 == 0;
    const dim3 grid(cu_div_up(width, rows ? 8 * 256 : 256), n);
    if (rows) swiglu_rows_kernel<T, W><<<grid, 256, 0, stream>>>(act, lda, (const W *)gate_up, width);
    else swiglu_kernel<T, W><<<grid, 256, 0, stream>>>(act, lda, (const W *)gate_up, width);
}

int32_t cu_swiglu(kvf_device *dev, uint32_t dtype, void *act, uint32_t lda, const void *gate_up, uint32_t n, uint32_t width,
                  kv_err err) {
    CU_WITH_TYPE(dtype, T, (run_swiglu<T>((T *)act, lda, gate_up, n, width, cu_of(dev)->stream)));
    CU_LAUNCHED("an activation");
    return KVF_OK;
}

static __global__ void add_bias_kernel(float *x, const float *bias, uint32_t n_col) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n_col) x[(size_t)blockIdx.y * n_col + i] += bias[i];
}

int32_t cu_add_bias(kvf_device *dev, float *x, const float *bias, uint32_t n, uint32_t n_col, kv_err err) {
    add_bias_kernel<<<dim3(cu_div_up(n_col, 256), n), 256, 0, cu_of(dev)->stream>>>(x, bias, n_col);
    CU_LAUNCHED("adding a bias");
    return KVF_OK;
}

/* ---- Rotation ---- */

typedef struct rope_args {
    const float *qkv;
    const float *bias;   /* NULL: none */
    const float *q_norm; /* NULL: none */
    const float *k_norm;
    const float *inv_freq;
    float *q;
    size_t q_head_stride;
    size_t q_token_stride;
    float eps;
    float rope_scale;
    float scale; /* of scores, with log2(e) folded in */
    uint32_t n_head;
    uint32_t n_kv_head;
    uint32_t head_dim;
    uint32_t row_dtype;
    uint32_t round; /* type that queries are rounded to, so that every kernel that reads them sees the same ones */
} rope_args;

static __device__ __forceinline__ float rounded(float x, uint32_t dtype) {
    return dtype == KVF_F16 ? __half2float(__float2half_rn(x))
                            : dtype == KVF_BF16 ? __bfloat162float(__float2bfloat16_rn(x)) : x;
}

/* Of the pairs l, l + 32, ... at one position. */
typedef struct rope_angles {
    float sine[4];
    float cosine[4];
} rope_angles;

static __device__ __forceinline__ void find_angles(const rope_args &a, uint32_t position, rope_angles *x) {
    const uint32_t half = a.head_dim / 2, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        x->sine[j] = x->cosine[j] = 0;
        if (i >= half) continue;
        sincosf((float)position * a.inv_freq[i], &x->sine[j], &x->cosine[j]);
        x->sine[j] *= a.rope_scale;
        x->cosine[j] *= a.rope_scale;
    }
}

/*
 * One warp, one head of one token: bias, norm of the head, rotation of the pairs (i, i + head_dim / 2). Lane l holds the
 * pairs l, l + 32, ...: low[j] and high[j].
 */
static __device__ __forceinline__ void load_head(const rope_args &a, const float *from, const float *bias,
                                                 const float *norm, bool rotate, const rope_angles &angles, float low[4],
                                                 float high[4]) {
    const uint32_t half = a.head_dim / 2, lane = threadIdx.x % 32;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        low[j] = high[j] = 0;
        if (i >= half) continue;
        low[j] = from[i] + (bias != NULL ? bias[i] : 0.0f);
        high[j] = from[i + half] + (bias != NULL ? bias[i + half] : 0.0f);
        sum += low[j] * low[j] + high[j] * high[j];
    }
    const float scale = norm != NULL ? rsqrtf(warp_sum(sum) / (float)a.head_dim + a.eps) : 1.0f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        if (i >= half) continue;
        if (norm != NULL) {
            low[j] *= scale * norm[i];
            high[j] *= scale * norm[i + half];
        }
        if (!rotate) continue;
        const float x = low[j], y = high[j];
        low[j] = x * angles.cosine[j] - y * angles.sine[j];
        high[j] = y * angles.cosine[j] + x * angles.sine[j];
    }
}

static __device__ __forceinline__ void store_query(const rope_args &a, uint32_t head, uint32_t token, const float low[4],
                                                   const float high[4]) {
    if (a.q == NULL) return;
    const uint32_t half = a.head_dim / 2, lane = threadIdx.x % 32;
    float *to = a.q + head * a.q_head_stride + token * a.q_token_stride;
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        if (i >= half) continue;
        to[i] = rounded(low[j], a.round);
        to[i + half] = rounded(high[j], a.round);
    }
}

template <typename R>
static __device__ __forceinline__ void store_row(R *to, uint32_t head_dim, const float low[4], const float high[4]) {
    const uint32_t half = head_dim / 2, lane = threadIdx.x % 32;
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        if (i >= half) continue;
        from_f32(&to[i], low[j]);
        from_f32(&to[i + half], high[j]);
    }
}

/* Head `head` of the stacked q, k, v heads of one token, as it goes into q or a page. */
static __device__ __forceinline__ void head_of(const rope_args &a, uint32_t token, uint32_t head, const rope_angles &angles,
                                               float low[4], float high[4]) {
    const uint32_t width = (a.n_head + 2 * a.n_kv_head) * a.head_dim, at = head * a.head_dim;
    const bool is_q = head < a.n_head, is_v = head >= a.n_head + a.n_kv_head;
    load_head(a, a.qkv + (size_t)token * width + at, a.bias != NULL ? a.bias + at : NULL,
              is_q ? a.q_norm : is_v ? NULL : a.k_norm, !is_v, angles, low, high);
}

/* Block: a token; its warps take the heads in turn. */
template <typename R>
static __global__ void __launch_bounds__(256) rope_prefill_kernel(rope_args a, cu_view view, uint32_t first,
                                                                  uint32_t copies, uint32_t query0, bool rows) {
    const uint32_t token = blockIdx.x, position = first + token, slot = position % KVF_PAGE_ROWS;
    const uint32_t n_head = rows ? a.n_head + 2 * a.n_kv_head : a.n_head;
    rope_angles angles;
    find_angles(a, position, &angles);
    for (uint32_t head = threadIdx.x / 32; head < n_head; head += blockDim.x / 32) {
        float low[4], high[4];
        head_of(a, token, head, angles, low, high);
        if (head < a.n_head) {
            store_query(a, head, position - query0, low, high);
            continue;
        }
        const bool is_v = head >= a.n_head + a.n_kv_head;
        const uint32_t kv = head - a.n_head - (is_v ? a.n_kv_head : 0);
        void *page = view.pages[(size_t)kv * copies * view.cap + position / KVF_PAGE_ROWS];
        R *to = (is_v ? page_values<R>(page, a.head_dim) : page_keys<R>(page)) + slot * a.head_dim;
        store_row(to, a.head_dim, low, high);
        if (is_v && threadIdx.x % 32 == 0) page_positions<R>(page, a.head_dim)[slot] = position;
    }
}

enum { MOVED = 4 /* rows that move along and are read ahead */ };

/* What a layer's program does with a new query of one head and slot: all that is known before the query. */
typedef struct query_plan {
    float *ring;     /* where it goes; NULL: nowhere */
    float *line;     /* scores of rows that move along */
    head_rows rows;
    uint32_t n;      /* rows among which are those that move along: they only ever move towards the front, a new one does not */
    uint32_t moves;  /* those at positions below it do, as if they were `shift` tokens later */
    uint32_t shift, oldest;
    uint32_t ahead;  /* rows that were read */
    uint32_t position[MOVED];
    float low[MOVED][4], high[MOVED][4]; /* of their keys, as in load_head */
    rope_angles angles;
} query_plan;

template <typename R>
static __device__ __forceinline__ void plan_query(const rope_args &a, const cu_program_work &w, const cu_slot *s, uint32_t layer,
                                                  uint32_t head, uint32_t window, query_plan *plan) {
    const uint32_t readers = a.n_head / s->n_stored, half = a.head_dim / 2, lane = threadIdx.x % 32;
    const uint32_t position = __ldcg(&s->position);
    const size_t table = (size_t)layer * s->n_stored + head / readers;
    const cu_program *p = program_of(s, table);
    plan->ring = NULL, plan->n = plan->ahead = 0;
    if (!s->live || p == NULL) return;
    if (p->ring != NULL) plan->ring = p->ring + ((size_t)(head % readers) * p->ring_size + position % p->ring_size) * a.head_dim;
    const uint32_t n_row = __ldcg(&s->rows[table]) + 1;
    plan->rows = {s->pages + table * s->cap, n_row, a.head_dim, a.row_dtype, s->packing + table};
    plan->moves = moves_below(p, n_row, position + 1), plan->shift = position + 1 - n_row;
    plan->n = min(plan->moves, n_row - 1);
    if (plan->n == 0) return;
    plan->oldest = window > 0 && position >= window ? position - window + 1 : 0;
    plan->line = score_line(w, blockIdx.y, head);
    if (!is_packed(plan->rows, 0)) plan->ahead = min((uint32_t)MOVED, plan->n); /* within the first page */
    const R *key = page_keys<R>(plan->rows.pages[0]) + lane;
#pragma unroll
    for (uint32_t k = 0; k < MOVED; k++) {
        if (k >= plan->ahead) break;
        plan->position[k] = position_of(plan->rows, k);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const bool there = lane + 32 * j < half;
            plan->low[k][j] = there ? to_f32(key[k * a.head_dim + 32 * j]) : 0.0f;
            plan->high[k][j] = there ? to_f32(key[k * a.head_dim + half + 32 * j]) : 0.0f;
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t i = lane + 32 * j;
        plan->angles.sine[j] = plan->angles.cosine[j] = 0;
        if (i < half) sincosf((float)plan->shift * a.inv_freq[i], &plan->angles.sine[j], &plan->angles.cosine[j]);
    }
}

/* It goes into the ring, and gives rows that move along their scores by a product with the query as much earlier. */
template <typename R>
static __device__ __forceinline__ void keep_query(const rope_args &a, const query_plan &plan, const float low[4],
                                                  const float high[4]) {
    const uint32_t half = a.head_dim / 2, lane = threadIdx.x % 32;
    if (plan.ring != NULL) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t i = lane + 32 * j;
            if (i < half) plan.ring[i] = rounded(low[j], a.round), plan.ring[i + half] = rounded(high[j], a.round);
        }
    }
    if (plan.n == 0) return;
    float x[4], y[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float from = rounded(low[j], a.round), to = rounded(high[j], a.round);
        x[j] = from * plan.angles.cosine[j] + to * plan.angles.sine[j];
        y[j] = to * plan.angles.cosine[j] - from * plan.angles.sine[j];
    }
    const auto note = [&](uint32_t row, uint32_t position, float dot) {
        dot = warp_sum(dot);
        if (lane == 0 && position < plan.moves) plan.line[row] = position + plan.shift < plan.oldest ? -INFINITY : dot * a.scale;
    };
#pragma unroll
    for (uint32_t k = 0; k < MOVED; k++) {
        if (k >= plan.ahead) break;
        float dot = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) dot = fmaf(y[j], plan.high[k][j], fmaf(x[j], plan.low[k][j], dot));
        note(k, plan.position[k], dot);
    }
    for (uint32_t row = plan.ahead; row < plan.n; row++) {
        float dot = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t i = lane + 32 * j;
            if (i < half) dot = fmaf(y[j], key_of(plan.rows, row, i + half), fmaf(x[j], key_of(plan.rows, row, i), dot));
        }
        note(row, position_of(plan.rows, row), dot);
    }
}

/*
 * A warp per head of a slot; keys and values go to every stored head's own page. A step changes neither tables nor
 * positions before its end, so they are read before the products are there; past the L1 cache, which may hold those of
 * the step before.
 */
template <typename R, bool KEEPS>
static __global__ void __launch_bounds__(256, 2) rope_step_kernel(const rope_args a, const cu_slot *slot, uint32_t layer,
                                                               const cu_program_work work, uint32_t window) {
    const uint32_t head = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    /*
     * Attention looks its pages up meanwhile, which the step before left as they are. In the first layer nothing else makes
     * sure that the embedding has said which slots run.
     */
    const bool early = layer > 0;
    if (early) allow_next();
    if (head >= a.n_head + 2 * a.n_kv_head) return;
    const cu_slot *s = &slot[blockIdx.y];
    const volatile cu_slot *now = s;
    const bool is_v = head >= a.n_head + a.n_kv_head;
    const uint32_t position = now->position, n_stored = now->n_stored;
    const uint32_t kv = head - a.n_head - (is_v ? a.n_kv_head : 0), copies = n_stored / a.n_kv_head;
    const size_t first = (size_t)layer * n_stored + kv * copies;
    uint32_t row = 0;
    void *page = NULL;
    if (head >= a.n_head && now->live) {
        const uint32_t cap = now->cap;
        void *const volatile *pages = now->pages;
        row = *(const volatile uint32_t *)&now->rows[first];
        if (row / KVF_PAGE_ROWS < cap) page = pages[first * cap + row / KVF_PAGE_ROWS]; /* one that runs has it */
    }
    rope_angles angles;
    find_angles(a, position, &angles);
    query_plan plan;
    if (KEEPS && head < a.n_head) plan_query<R>(a, work, s, layer, head, window, &plan);
    wait_previous();
    if (!early) allow_next();
    if (!__ldcg(&s->run)) return; /* written in this step: the L1 cache may have what lay beside it from before */
    float low[4], high[4];
    head_of(a, blockIdx.y, head, angles, low, high);
    if (head < a.n_head) {
        store_query(a, head, blockIdx.y, low, high);
        if (KEEPS) keep_query<R>(a, plan, low, high);
        return;
    }
    for (uint32_t i = 0; i < copies; i++) {
        if (i > 0) {
            row = s->rows[first + i];
            page = s->pages[(first + i) * s->cap + row / KVF_PAGE_ROWS];
        }
        const uint32_t at = row % KVF_PAGE_ROWS;
        R *to = (is_v ? page_values<R>(page, a.head_dim) : page_keys<R>(page)) + at * a.head_dim;
        store_row(to, a.head_dim, low, high);
        if (is_v && threadIdx.x % 32 == 0) page_positions<R>(page, a.head_dim)[at] = position;
    }
}

static rope_args args_of(const kvf_model *model, uint32_t layer, uint32_t row_dtype, const float *qkv, float *q) {
    const kvf_model_config *c = &model->config;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    rope_args a = {};
    a.qkv = qkv, a.bias = l->qkv_bias, a.q_norm = l->q_norm, a.k_norm = l->k_norm;
    a.inv_freq = cu_weights(model)->inv_freq, a.q = q;
    a.eps = c->norm_eps, a.rope_scale = c->rope_scale, a.scale = LOG2E / sqrtf((float)c->head_dim);
    a.n_head = c->n_head, a.n_kv_head = c->n_kv_head, a.head_dim = c->head_dim;
    a.row_dtype = row_dtype;
    a.round = row_dtype == c->weight_dtype ? row_dtype : (uint32_t)KVF_F32;
    return a;
}

int32_t cu_rope_prefill(kvf_model *model, uint32_t layer, const cu_view *view, uint32_t row_dtype, const float *qkv,
                        uint32_t first, uint32_t n, const cu_query_room *room, bool rows, kv_err err) {
    rope_args a = args_of(model, layer, row_dtype, qkv, room->q);
    a.q_head_stride = room->head_stride;
    a.q_token_stride = a.head_dim;
    const uint32_t copies = a.n_head / view->readers / a.n_kv_head;
    CU_WITH_TYPE(row_dtype, R,
                 (rope_prefill_kernel<R><<<n, 256, 0, cu_of(model->dev)->stream>>>(a, *view, first, copies,
                                                                                               room->first, rows)));
    CU_LAUNCHED("rotation");
    return KVF_OK;
}

int32_t cu_rope_step(kvf_model *model, uint32_t layer, uint32_t row_dtype, const float *qkv, const cu_slot *slot,
                     uint32_t n, float *q, const cu_program_work *work, kv_err err) {
    rope_args a = args_of(model, layer, row_dtype, qkv, q);
    a.q_head_stride = a.head_dim;
    a.q_token_stride = (size_t)a.n_head * a.head_dim;
    const dim3 grid(cu_div_up(a.n_head + 2 * a.n_kv_head, 8), n);
    const cu_device *d = cu_of(model->dev);
    const uint32_t window = model->layer_window[layer];
    cudaError_t e;
    const auto launch = [&](auto kernel) {
        const cudaError_t set = cu_all_shared(kernel);
        return set != cudaSuccess ? set : cu_launch_next(d, kernel, grid, dim3(256), 0, a, slot, layer, *work, window);
    };
    if (work->acts & CU_BEFORE) {
        CU_WITH_TYPE(row_dtype, R, (e = launch(rope_step_kernel<R, true>)));
    } else {
        CU_WITH_TYPE(row_dtype, R, (e = launch(rope_step_kernel<R, false>)));
    }
    return cu_check(e, "rotation", err);
}
