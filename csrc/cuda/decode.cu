/*
 * Decode. A step is a fixed list of kernels that read tables, lengths, tokens and sampling state from device memory only; it
 * is captured into a graph per batch size and replayed. The host reserves rows for some steps ahead, queues the steps,
 * and reads the tokens once; meanwhile it only looks at a pinned word that says how many sequences go on. What happened is
 * then replayed on the host's tables: it follows from the tokens alone.
 */
#include <algorithm>
#include <chrono>

#include "packed.cuh"
#include "program.h"

enum {
    AHEAD = 32, /* steps that are queued without looking back */
    FIRST = 4,  /* of them, those whose rows are reserved before any runs, where the others' can be meanwhile */
    GRAPHS = 32
};

typedef struct step_shape {
    uint32_t n;         /* slots, padding included */
    uint32_t n_chunk;   /* chunks of attention that the grid holds */
    uint32_t max_stored;
    uint32_t kernels;   /* of attention: bit k, some table is of cu_packed_kernel k */
    uint32_t row_dtype;
    uint32_t forced;
    uint32_t acts;      /* cu_acts of step programs */
    uint32_t n_row;     /* with acts: rows that lines hold */
    uint32_t n_query;   /* with acts: kept queries that decide what is evicted */
} step_shape;

typedef struct step_graph {
    step_shape shape;
    cudaGraphExec_t exec; /* NULL: the shape ran once, directly */
} step_graph;

struct cu_decode {
    uint32_t cap;         /* slots that the buffers hold */
    size_t partial_bytes;
    cu_slot *slot;        /* [cap] */
    cu_step_control *control;
    uint32_t *tokens;     /* [AHEAD, n] */
    uint32_t *forced;     /* [AHEAD] */
    float *x;             /* [cap, hidden] */
    void *h;              /* [cap, ld of qkv] */
    float *qkv;           /* [cap, qkv width] */
    float *q;             /* [cap, n_head, head_dim] */
    void *attention;      /* [cap, ld of o] */
    void *act;            /* [cap (* n_used), ld of down] */
    float *partial;
    uint32_t *arrived;    /* [cap, n_head] */
    cu_expert_work experts;
    void *programs;       /* of step programs: cu_program_work's buffers */
    size_t program_bytes;
    step_graph graph[GRAPHS];
    uint32_t n_graph;
    uint32_t next_graph;
};

static void drop_graphs(cu_decode *w) {
    for (uint32_t i = 0; i < w->n_graph; i++) {
        if (w->graph[i].exec != NULL) cudaGraphExecDestroy(w->graph[i].exec);
        w->graph[i].exec = NULL;
    }
    w->n_graph = 0;
}

static void drop_buffers(kvf_device *dev, cu_decode *w) {
    be_free(dev, w->slot);
    be_free(dev, w->control);
    be_free(dev, w->tokens);
    be_free(dev, w->forced);
    be_free(dev, w->x);
    be_free(dev, w->h);
    be_free(dev, w->qkv);
    be_free(dev, w->q);
    be_free(dev, w->attention);
    be_free(dev, w->act);
    be_free(dev, w->arrived);
    be_free(dev, w->experts.router);
    be_free(dev, w->experts.chosen);
    be_free(dev, w->experts.weight);
    be_free(dev, w->experts.y);
    w->slot = NULL, w->control = NULL, w->tokens = w->forced = w->arrived = NULL, w->x = w->qkv = w->q = NULL;
    w->h = w->attention = w->act = NULL;
    w->experts = (cu_expert_work){};
    w->cap = 0;
}

void cu_decode_free(kvf_model *model) {
    cu_decode *w = cu_weights(model)->decode;
    if (w == NULL) return;
    cudaStreamSynchronize(cu_of(model->dev)->stream);
    drop_graphs(w);
    drop_buffers(model->dev, w);
    be_free(model->dev, w->partial);
    be_free(model->dev, w->programs);
    free(w);
    cu_weights(model)->decode = NULL;
}

static int32_t make(kvf_device *dev, void *to, size_t bytes, kv_err err) {
    void *data;
    CU_PASS(cu_alloc(dev, &data, bytes, "decode", err));
    memcpy(to, &data, sizeof data);
    CU_TRY(cudaMemsetAsync(data, 0, bytes, cu_of(dev)->stream), "clearing memory");
    return KVF_OK;
}

static int32_t make_buffers(kvf_model *model, cu_decode *w, uint32_t n, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_layer *l = cu_weights(model)->layer;
    kvf_device *dev = model->dev;
    const size_t element = cu_dtype_bytes(c->weight_dtype), used = c->n_expert > 0 ? c->n_expert_used : 1;
    CU_PASS(make(dev, &w->slot, n * sizeof(cu_slot), err));
    CU_PASS(make(dev, &w->control, sizeof(cu_step_control), err));
    CU_PASS(make(dev, &w->tokens, (size_t)AHEAD * n * sizeof(uint32_t), err));
    CU_PASS(make(dev, &w->forced, AHEAD * sizeof(uint32_t), err));
    CU_PASS(make(dev, &w->x, (size_t)n * c->hidden * sizeof(float), err));
    CU_PASS(make(dev, &w->h, (size_t)n * l->qkv.ld * element, err));
    CU_PASS(make(dev, &w->qkv, (size_t)n * cu_qkv_width(c) * sizeof(float), err));
    CU_PASS(make(dev, &w->q, (size_t)n * c->n_head * c->head_dim * sizeof(float), err));
    CU_PASS(make(dev, &w->attention, (size_t)n * l->o.ld * element, err));
    CU_PASS(make(dev, &w->arrived, (size_t)n * c->n_head * sizeof(uint32_t), err));
    CU_PASS(make(dev, &w->act, n * used * l->down.ld * element, err));
    if (c->n_expert > 0) {
        CU_PASS(make(dev, &w->experts.router, (size_t)n * c->n_expert * sizeof(float), err));
        CU_PASS(make(dev, &w->experts.chosen, n * used * sizeof(uint32_t), err));
        CU_PASS(make(dev, &w->experts.weight, n * used * sizeof(float), err));
        CU_PASS(make(dev, &w->experts.y, n * used * c->hidden * sizeof(float), err));
        w->experts.act = w->act;
    }
    w->cap = n;
    return KVF_OK;
}

static cu_program_work work_of(const kvf_model *model, const cu_decode *w, const step_shape *shape, size_t *bytes) {
    cu_program_work work = {};
    work.acts = shape->acts, work.n = shape->n, work.max_stored = shape->max_stored, work.n_head = model->config.n_head;
    work.ld = shape->n_row, work.n_query = shape->n_query;
    *bytes = cu_program_layout(&work, model->config.n_layer, (char *)w->programs);
    return work;
}

/* Grows a buffer; new ones make the graphs worthless. */
static int32_t grow(kvf_model *model, cu_decode *w, void *buffer, size_t *have, size_t bytes, kv_err err) {
    void *old;
    if (*have >= bytes) return KVF_OK;
    drop_graphs(w);
    memcpy(&old, buffer, sizeof old);
    be_free(model->dev, old);
    memset(buffer, 0, sizeof old);
    *have = 0;
    CU_PASS(make(model->dev, buffer, bytes, err));
    *have = bytes;
    return KVF_OK;
}

/* Buffers for a step of that shape; new ones make the graphs worthless. */
static int32_t prepare(kvf_model *model, const step_shape *shape, kv_err err) {
    cu_model *weights = cu_weights(model);
    if (weights->decode == NULL) weights->decode = (cu_decode *)calloc(1, sizeof(cu_decode));
    cu_decode *w = weights->decode;
    if (w == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot decode as memory ran out");
    if (w->cap < shape->n) {
        drop_graphs(w);
        drop_buffers(model->dev, w);
        const int32_t status = make_buffers(model, w, shape->n, err);
        if (status != KVF_OK) {
            drop_buffers(model->dev, w);
            return status;
        }
    }
    size_t bytes;
    CU_PASS(grow(model, w, &w->partial, &w->partial_bytes, cu_partial_bytes(&model->config, shape->n, shape->n_chunk), err));
    work_of(model, w, shape, &bytes);
    return grow(model, w, &w->programs, &w->program_bytes, bytes, err);
}

/* ---- One step ---- */

static int32_t queue_layer(kvf_model *model, cu_decode *w, uint32_t layer, const step_shape *shape, kv_err err) {
    const kvf_model_config *c = &model->config;
    kvf_device *dev = model->dev;
    const cu_layer *l = &cu_weights(model)->layer[layer];
    const uint32_t dtype = c->weight_dtype, n = shape->n;
    cu_skinny_out out = {};
    size_t bytes;
    const cu_program_work programs = work_of(model, w, shape, &bytes), work = cu_program_layer(&programs, layer);
    out.epilogue = CU_STORE, out.out = w->qkv, out.ld = cu_qkv_width(c);
    CU_PASS(cu_skinny_norm(dev, dtype, &l->qkv, w->h, w->x, l->attn_norm, c->norm_eps, n, out, err));
    CU_PASS(cu_programs_begin(model, layer, &programs, err));
    CU_PASS(cu_rope_step(model, layer, shape->row_dtype, w->qkv, w->slot, n, w->q, &work, err));
    CU_PASS(cu_programs_before(model, layer, shape->row_dtype, w->slot, w->q, &work, w->arrived, err));
    CU_PASS(cu_attention_step(model, layer, shape->row_dtype, w->slot, n, shape->max_stored, shape->n_chunk,
                              shape->kernels, w->q, w->attention, l->o.ld, w->partial, w->arrived, &work, err));
    CU_PASS(cu_programs_after(model, layer, shape->row_dtype, w->slot, &programs, err));
    out.epilogue = CU_ADD, out.out = w->x, out.ld = c->hidden, out.bias = l->o_bias;
    CU_PASS(cu_skinny(dev, dtype, &l->o, w->attention, n, out, err));
    if (c->n_expert > 0) {
        CU_PASS(cu_rms_norm(dev, dtype, w->h, l->gate_up.ld, w->x, l->mlp_norm, n, c->hidden, c->norm_eps, err));
        return cu_experts_step(model, l, w->h, n, w->x, &w->experts, err);
    }
    out.epilogue = CU_SWIGLU, out.act = w->act, out.ld = l->down.ld, out.bias = NULL;
    CU_PASS(cu_skinny_norm(dev, dtype, &l->gate_up, w->h, w->x, l->mlp_norm, c->norm_eps, n, out, err));
    out.epilogue = CU_ADD, out.ld = c->hidden;
    return cu_skinny(dev, dtype, &l->down, w->act, n, out, err);
}

/* `run`: the model; otherwise only sampling, for sequences that have logits already. */
static int32_t queue_step(kvf_model *model, cu_decode *w, const step_shape *shape, bool run, kv_err err) {
    const kvf_model_config *c = &model->config;
    const cu_model *weights = cu_weights(model);
    kvf_device *dev = model->dev;
    uint32_t *tokens = shape->forced ? NULL : w->tokens;
    if (!run) return cu_end_step(dev, w->slot, shape->n, 0, c->vocab, w->control, tokens, err);
    cu_skinny_out out = {};
    size_t bytes;
    const cu_program_work programs = work_of(model, w, shape, &bytes);
    CU_PASS(cu_embed_step(model, w->x, w->slot, shape->n, w->control, shape->forced ? w->forced : NULL, err));
    for (uint32_t layer = 0; layer < c->n_layer; layer++) CU_PASS(queue_layer(model, w, layer, shape, err));
    out.epilogue = CU_LOGITS, out.slot = w->slot;
    CU_PASS(cu_skinny_norm(dev, c->weight_dtype, &weights->output, w->h, w->x, weights->final_norm, c->norm_eps, shape->n, out,
                           err));
    CU_PASS(cu_programs_join(dev, c->n_layer, &programs, err));
    return cu_end_step(dev, w->slot, shape->n, c->n_layer, c->vocab, w->control, tokens, err);
}

static int32_t capture(kvf_model *model, cu_decode *w, const step_shape *shape, cudaGraphExec_t *exec, kv_err err) {
    cudaStream_t stream = cu_of(model->dev)->stream;
    cudaGraph_t graph = NULL;
    CU_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a step");
    const int32_t status = queue_step(model, w, shape, true, err);
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    if (status != KVF_OK) {
        if (graph != NULL) cudaGraphDestroy(graph);
        cudaGetLastError();
        return status;
    }
    CU_TRY(ended, "capturing a step");
    const cudaError_t made = cudaGraphInstantiate(exec, graph, 0);
    cudaGraphDestroy(graph);
    CU_TRY(made, "instantiating a step");
    return KVF_OK;
}

/* The first step of a shape runs directly (kernels are loaded then), the second is captured, all others replay it. */
static int32_t launch_step(kvf_model *model, cu_decode *w, const step_shape *shape, kv_err err) {
    for (uint32_t i = 0; i < w->n_graph; i++) {
        step_graph *g = &w->graph[i];
        if (memcmp(&g->shape, shape, sizeof *shape) != 0) continue;
        if (g->exec == NULL) CU_PASS(capture(model, w, shape, &g->exec, err));
        CU_TRY(cudaGraphLaunch(g->exec, cu_of(model->dev)->stream), "launching a step");
        return KVF_OK;
    }
    step_graph *g = &w->graph[w->n_graph < GRAPHS ? w->n_graph++ : w->next_graph++ % GRAPHS];
    if (g->exec != NULL) cudaGraphExecDestroy(g->exec);
    g->exec = NULL;
    g->shape = *shape;
    return queue_step(model, w, shape, true, err);
}

/* ---- The host's side ---- */

/* Adds the time of its life to a sum. */
struct timer {
    double *sum;
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    explicit timer(double *sum) : sum(sum) {}
    ~timer() { *sum += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count(); }
};

static uint32_t table_count(const kvf_cache *cache, const kv_sequence *s) {
    return cache->config.n_layer * s->n_stored_head;
}

/* Tokens that `steps` steps run of one sequence at most. */
static uint32_t rows_needed(const kv_sequence *s, uint32_t steps, bool forced) {
    if (s->finished) return 0;
    return forced || s->pending != KV_NO_TOKEN ? steps : steps - 1;
}

/* Gives back what rows do not need. */
static void trim(kvf_cache *cache, kv_sequence **s, uint32_t n) {
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t i = 0; i < table_count(cache, s[b]); i++) kv_table_trim(cache, &s[b]->table[i]);
        for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) kv_step_trim(cache, s[b], layer);
    }
}

/* Room in one layer for the rows that n steps append, as far as a step program leaves them there. */
static int32_t reserve_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err) {
    const kv_step *step = kv_step_of(s, layer);
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        bool evicts;
        uint32_t rows = t->rows;
        const uint32_t most = kv_step_rows(step == NULL ? NULL : &step->head[h], &rows, s->position, n, &evicts);
        CU_PASS(kv_table_reserve(cache, t, most - t->rows, err));
    }
    return kv_step_reserve(cache, s, layer, n, err);
}

/* Room for the rows of that many steps from where the host's tables are. Steps that run keep theirs when it fails. */
static int32_t reserve_all(kvf_cache *cache, kv_sequence **s, uint32_t n, uint32_t steps, bool forced, kv_err err) {
    for (uint32_t b = 0; b < n; b++) {
        const uint32_t rows = rows_needed(s[b], steps, forced);
        for (uint32_t layer = 0; layer < cache->config.n_layer && rows > 0; layer++) {
            CU_PASS(reserve_layer(cache, s[b], layer, rows, err));
        }
    }
    return KVF_OK;
}

/* The same while no step runs; all or nothing. */
static int32_t reserve(kvf_cache *cache, kv_sequence **s, uint32_t n, uint32_t steps, bool forced, kv_err err) {
    const timer spent(&cu_of(cache->dev)->host_ms[0]);
    const int32_t status = reserve_all(cache, s, n, steps, forced, err);
    if (status != KVF_OK) trim(cache, s, n);
    return status;
}

static void fill_slot(cu_slot *slot, const kv_sequence *s, const cu_mirror *m, const cu_program *program) {
    slot->program = program;
    slot->pages = m->pages, slot->rows = m->rows, slot->packing = m->packing, slot->logits = s->logits, slot->cap = m->cap;
    slot->n_stored = s->n_stored_head, slot->live = 1, slot->position = s->position, slot->pending = s->pending;
    slot->n_generated = s->n_generated, slot->finished = s->finished, slot->top_k = s->sampling.top_k;
    slot->temperature = s->sampling.temperature, slot->top_p = s->sampling.top_p;
    slot->seed_low = s->sampling.seed_low, slot->seed_high = s->sampling.seed_high;
    slot->min_new_token = s->sampling.min_new_token, slot->n_stop = s->n_stop;
    memcpy(slot->stop, s->stop, s->n_stop * sizeof *s->stop);
}

/*
 * What the device knows of tables from earlier steps of the call: nothing; their whole pages, unless rows are evicted from
 * them, or even then; or all that the next steps need.
 */
enum { KNOWS_NOTHING, KNOWS_PAGES, KNOWS_OWN_PAGES, KNOWS_ALL };

/* Tables, slots and forced tokens onto the device. host: [shape->n] slots, zeros */
static int32_t send_state(kvf_model *model, kvf_cache *cache, kv_sequence **s, uint32_t n, const step_shape *shape,
                          const uint32_t *forced, uint32_t steps, uint32_t knows, cu_slot *host, kv_err err) {
    cu_decode *w = cu_weights(model)->decode;
    const timer spent(&cu_of(model->dev)->host_ms[1]);
    const cu_step_control control = {0, 0};
    memset(host, 0, shape->n * sizeof *host);
    for (uint32_t b = 0; b < n; b++) {
        cu_mirror *m = (cu_mirror *)s[b]->impl;
        if (knows == KNOWS_PAGES || knows == KNOWS_OWN_PAGES) {
            CU_PASS(cu_mirror_follow(cache, s[b], knows == KNOWS_OWN_PAGES, &m, err));
        }
        if (knows == KNOWS_NOTHING) CU_PASS(cu_mirror_sync(cache, s[b], 0, table_count(cache, s[b]), &m, err));
        const cu_program *program;
        CU_PASS(cu_program_sync(cache, s[b], 0, table_count(cache, s[b]), &program, err));
        fill_slot(&host[b], s[b], m, program);
    }
    CU_PASS(be_upload(model->dev, w->slot, host, shape->n * sizeof *host, err));
    CU_PASS(be_upload(model->dev, w->control, &control, sizeof control, err));
    if (forced != NULL) CU_PASS(be_upload(model->dev, w->forced, forced, steps * sizeof *forced, err));
    return KVF_OK;
}

/* The kernel of attention that takes a table, as it decides itself. */
static uint32_t kernel_of(const kv_sequence *s, uint32_t table) {
    const kv_table *t = &s->table[table];
    if (t->packed == 0) return t->shared > 0 ? CU_ATTEND_ANY : CU_ATTEND_PLAIN;
    const kv_step *step = kv_step_of(s, table / s->n_stored_head);
    if (step != NULL && step->pages.size != 0) return CU_ATTEND_ANY;
    return ((const cu_format_impl *)t->format->impl)->kernel;
}

/* Whether all rows are plain and no step program acts: how rows grow then follows from the number of steps alone. */
static bool all_plain(const kvf_cache *cache, kv_sequence **s, uint32_t n) {
    for (uint32_t b = 0; b < n; b++) {
        if (s[b]->step != NULL) return false;
        for (uint32_t i = 0; i < table_count(cache, s[b]); i++) {
            if (s[b]->table[i].format != NULL || s[b]->table[i].shared > 0) return false;
        }
    }
    return true;
}

/* The shape of `steps` steps. Their rows are reserved; where all are plain they need not be. */
static step_shape shape_of(kvf_cache *cache, kv_sequence **s, uint32_t n, uint32_t steps, bool plain, bool forced) {
    step_shape shape;
    uint32_t longest = 1;
    memset(&shape, 0, sizeof shape);
    shape.n = n <= 8 ? n : cu_round_up(n, 8);
    shape.row_dtype = cache->config.row_dtype;
    shape.forced = forced;
    for (uint32_t b = 0; b < n; b++) {
        if (s[b]->n_stored_head > shape.max_stored) shape.max_stored = s[b]->n_stored_head;
        for (uint32_t i = 0; i < table_count(cache, s[b]); i++) {
            const kv_table *t = &s[b]->table[i];
            longest = std::max(longest, t->n_page);
            if (plain) longest = std::max(longest, cu_div_up(t->rows + steps, KVF_PAGE_ROWS));
            shape.kernels |= 1u << kernel_of(s[b], i);
        }
        shape.acts |= cu_acts_of(cache, s[b], &shape.n_query);
    }
    if (shape.acts != 0) {
        for (shape.n_row = KVF_PAGE_ROWS; shape.n_row < longest * KVF_PAGE_ROWS;) shape.n_row *= 2;
    }
    const uint32_t n_chunk = cu_attention_chunks(longest * KVF_PAGE_ROWS) + (shape.kernels >> CU_ATTEND_CODES_4 != 0);
    for (shape.n_chunk = 1; shape.n_chunk < n_chunk;) shape.n_chunk *= 2;
    return shape;
}

/*
 * Packs what is due before the next step, and returns how many steps may follow until more is due, at most `steps`. A
 * sequence without a token to run samples first, and only then knows whether it goes on.
 */
static int32_t pack_due(kvf_cache *cache, kv_sequence **s, uint32_t n, bool forced, uint32_t *steps, kv_err err) {
    for (uint32_t b = 0; b < n; b++) {
        if (s[b]->finished && !forced) continue;
        const bool runs = forced || s[b]->pending != KV_NO_TOKEN;
        if (runs) CU_PASS(kv_pack_due(cache, s[b], err));
        for (uint32_t i = 0; i < table_count(cache, s[b]); i++) {
            const kv_table *t = &s[b]->table[i];
            if (t->format == NULL || (t->format->config.flags & KVF_PACK_ONCE) != 0) continue;
            const uint32_t plain = t->rows - t->packed, full = t->format->config.residual + KVF_PAGE_ROWS;
            const uint32_t more = (plain < full ? full - plain : 0) + !runs;
            if (more < *steps) *steps = more;
        }
    }
    return KVF_OK;
}

/* Queues steps [*queued, steps); fewer when the caller cancels or all sequences have finished. */
static int32_t queue_steps(kvf_model *model, kv_sequence **s, uint32_t n, const step_shape *shape, uint32_t steps,
                           volatile uint32_t *control, uint32_t *queued, kv_err err) {
    cu_device *d = cu_of(model->dev);
    cu_decode *w = cu_weights(model)->decode;
    bool waiting = shape->forced; /* some sequence has a token to run */
    for (uint32_t b = 0; b < n; b++) waiting |= !s[b]->finished && s[b]->pending != KV_NO_TOKEN;
    if (*queued == 0) *d->word = n;
    for (; *queued < steps; ++*queued) {
        const uint32_t i = *queued;
        if (control != NULL && control[0] != 0) break;
        if (i >= CU_IN_FLIGHT) {
            CU_TRY(cudaEventSynchronize(d->step[i % CU_IN_FLIGHT]), "a step");
            if (!shape->forced && *d->word == 0) break;
        }
        if (i == 0 && !waiting) CU_PASS(queue_step(model, w, shape, false, err));
        else CU_PASS(launch_step(model, w, shape, err));
        CU_TRY(cudaEventRecord(d->step[i % CU_IN_FLIGHT], d->stream), "a step");
    }
    return KVF_OK;
}

/*
 * While the first steps run: reserves the rows of all `steps` and sends their pages, which no step before those needs. False
 * where that cannot be had now.
 */
static bool reserve_behind(kvf_cache *cache, kv_sequence **s, uint32_t n, uint32_t steps, bool forced) {
    char text[256];
    const kv_err err = {text, sizeof text};
    if (reserve_all(cache, s, n, steps, forced, err) != KVF_OK) return false;
    for (uint32_t b = 0; b < n; b++) {
        cu_mirror *m = (cu_mirror *)s[b]->impl;
        for (uint32_t i = 0; i < table_count(cache, s[b]); i++) {
            if (s[b]->table[i].n_page > m->cap) return false; /* the mirror would move */
        }
        if (cu_mirror_follow(cache, s[b], true, &m, err) != KVF_OK) return false;
    }
    return true;
}

/* What the device did to one sequence in `queued` steps. made: the tokens, n_slot apart; to: the caller's, n apart */
static void follow(kvf_cache *cache, kv_sequence *s, uint32_t queued, bool forced, const uint32_t *made, uint32_t n_slot,
                   uint32_t *to, uint32_t n) {
    uint32_t ran = 0;
    for (uint32_t i = 0; i < queued && !s->finished; i++) {
        if (forced || s->pending != KV_NO_TOKEN) ran++, s->pending = KV_NO_TOKEN;
        if (forced) continue;
        to[(size_t)i * n] = made[(size_t)i * n_slot];
        kv_note_token(s, to[(size_t)i * n]);
    }
    cu_programs_follow(cache, s, ran, ((cu_mirror *)s->impl)->seen_rows);
    s->position += ran;
}

/* Steps of a call that are run without looking back, and what is known of those that follow them. */
typedef struct stretch {
    step_shape shape;
    uint32_t steps;
    uint32_t first; /* of them, those whose rows are reserved before any runs */
    uint32_t more;  /* steps of the call after these */
    uint32_t knows;
} stretch;

/*
 * While the first steps run: what the others need, and the first ones of the next stretch. False where the others cannot have
 * their rows now; then the first ones are all.
 */
static bool look_ahead(kvf_cache *cache, kv_sequence **s, uint32_t n, const stretch *now, bool forced, stretch *next) {
    if (now->more > 0 && reserve_behind(cache, s, n, now->steps + FIRST, forced)) {
        *next = *now;
        next->steps = std::min(now->more, (uint32_t)AHEAD), next->more = now->more - next->steps;
        next->first = std::min(next->steps, (uint32_t)FIRST);
        next->shape = shape_of(cache, s, n, now->steps + next->steps, true, forced);
        next->knows = KNOWS_ALL;
        return true;
    }
    return reserve_behind(cache, s, n, now->steps, forced);
}

/* A stretch: state out, steps, tokens back, host tables brought up to date. next: steps 0 where it has to be prepared anew */
static int32_t run_stretch(kvf_model *model, kvf_cache *cache, kv_sequence **s, uint32_t n, const stretch *now, stretch *next,
                           const uint32_t *forced, uint32_t *tokens, volatile uint32_t *control, uint32_t *done, kv_err err) {
    uint32_t queued = 0;
    const step_shape *shape = &now->shape;
    next->steps = 0;
    CU_PASS(prepare(model, shape, err));
    cu_slot *slots = (cu_slot *)malloc(shape->n * sizeof *slots);
    uint32_t *made = (uint32_t *)malloc((size_t)AHEAD * shape->n * sizeof *made);
    int32_t status = slots == NULL || made == NULL ? kv_fail(err, KVF_ERR_MEMORY, "Cannot decode as memory ran out") : KVF_OK;
    if (status == KVF_OK) status = send_state(model, cache, s, n, shape, forced, now->steps, now->knows, slots, err);
    if (status == KVF_OK) status = queue_steps(model, s, n, shape, now->first, control, &queued, err);
    if (status == KVF_OK && queued == now->first && now->first < now->steps &&
        look_ahead(cache, s, n, now, forced != NULL, next)) {
        status = queue_steps(model, s, n, shape, now->steps, control, &queued, err);
    }
    if (queued < now->steps) next->steps = 0;
    if (status == KVF_OK) status = cu_synchronize(model->dev, err);
    if (status == KVF_OK && forced == NULL) {
        status = be_download(model->dev, made, cu_weights(model)->decode->tokens, (size_t)queued * shape->n * sizeof *made,
                             err);
    }
    const timer spent(&cu_of(model->dev)->host_ms[2]);
    *done = 0;
    for (uint32_t b = 0; b < n && status == KVF_OK; b++) {
        const uint32_t generated = s[b]->n_generated;
        follow(cache, s[b], queued, forced != NULL, made + b, shape->n, tokens + b, n);
        const uint32_t steps_of = forced != NULL ? queued : s[b]->n_generated - generated;
        if (steps_of > *done) *done = steps_of;
    }
    if (status != KVF_OK) { /* the device's counts are unknown: send them again */
        for (uint32_t b = 0; b < n; b++) {
            cu_mirror *m = (cu_mirror *)s[b]->impl;
            if (m != NULL) memset(m->seen_rows, 0xff, m->n_table * sizeof *m->seen_rows);
        }
    }
    free(slots);
    free(made);
    return status;
}

/* The next stretch of at most `most` steps, from where the host's tables are, with the rows of its first steps. */
static int32_t begin_stretch(kvf_cache *cache, kv_sequence **s, uint32_t n, uint32_t most, uint32_t left, bool forced,
                             stretch *to, kv_err err) {
    to->steps = std::min(left, most);
    CU_PASS(pack_due(cache, s, n, forced, &to->steps, err));
    const bool plain = all_plain(cache, s, n);
    to->first = plain && to->steps > FIRST ? (uint32_t)FIRST : to->steps;
    int32_t status = reserve(cache, s, n, to->first, forced, err);
    if (status == KVF_ERR_MEMORY && to->steps > 1) {
        to->first = to->steps = 1;
        status = reserve(cache, s, n, 1, forced, err);
    }
    if (status != KVF_OK) return status;
    to->more = left - to->steps;
    to->shape = shape_of(cache, s, n, to->steps, plain, forced);
    return KVF_OK;
}

extern "C" int32_t be_decode(kvf_model *model, kvf_cache *cache, kv_sequence **s, uint32_t n_sequence, uint32_t n_step,
                             const uint32_t *forced, uint32_t *tokens, float *logits, uint32_t *control, kv_err err) {
    const uint32_t vocab = model->config.vocab;
    volatile uint32_t *poll = control;
    stretch now = {}, next = {};
    int32_t status = cu_enter(model->dev, err);
    for (uint32_t done = 0; done < n_step && status == KVF_OK;) {
        uint32_t alive = forced != NULL, ran = 0;
        for (uint32_t b = 0; b < n_sequence; b++) alive += !s[b]->finished;
        if (alive == 0) break;
        if (poll != NULL && poll[0] != 0) {
            status = kv_fail(err, KVF_ERR_CANCELLED, "Cannot go on as the caller cancelled");
            break;
        }
        if (next.steps > 0) {
            now = next;
        } else {
            now.knows = done == 0 ? KNOWS_NOTHING : cache->shared_page == 0 ? KNOWS_OWN_PAGES : KNOWS_PAGES;
            status = begin_stretch(cache, s, n_sequence, logits != NULL ? 1u : (uint32_t)AHEAD, n_step - done, forced != NULL,
                                   &now, err);
            if (status != KVF_OK) break;
        }
        status = run_stretch(model, cache, s, n_sequence, &now, &next, forced != NULL ? forced + done : NULL,
                             tokens + (size_t)done * n_sequence, poll, &ran, err);
        for (uint32_t b = 0; b < n_sequence && status == KVF_OK && logits != NULL && ran > 0; b++) {
            const size_t at = (size_t)done * n_sequence + b;
            if (tokens[at] != KV_NO_TOKEN) {
                status = be_download(model->dev, logits + at * vocab, s[b]->logits, vocab * sizeof *logits, err);
            }
        }
        done += ran;
        if (poll != NULL) poll[1] = poll[1] + ran;
    }
    trim(cache, s, n_sequence);
    return status;
}
