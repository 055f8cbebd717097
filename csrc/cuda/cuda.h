/*
 * What the files of the CUDA backend share: the device, memory, weights, mirrors of page tables, and the host functions
 * that queue kernels.
 *
 * All work of a device runs on one stream, in order, but for what a decode step does beside its layers, which is over when
 * the step is; memory that is freed may therefore be handed out again at once.
 * Every be_ function sets the device first (calls come from different threads).
 */
#ifndef KVF_CUDA_H
#define KVF_CUDA_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "../core/backend.h"
}

/* ---- Errors ---- */

/* KVF_OK, or the error's text and KVF_ERR_MEMORY or KVF_ERR_DEVICE. */
int32_t cu_check(cudaError_t e, const char *what, kv_err err);
/* KVF_ERR_MEMORY with the bytes that were asked for and those that are free. */
int32_t cu_no_memory(size_t bytes, const char *what, kv_err err);

#define CU_TRY(call, what)                                   \
    do {                                                     \
        const int32_t status_ = cu_check((call), what, err); \
        if (status_ != KVF_OK) return status_;               \
    } while (0)
/* After a launch. */
#define CU_LAUNCHED(what) CU_TRY(cudaGetLastError(), what)
#define CU_PASS(call)                          \
    do {                                       \
        const int32_t status_ = (call);        \
        if (status_ != KVF_OK) return status_; \
    } while (0)

/* ---- Device ---- */

#define CU_IN_FLIGHT 4                /* decode steps that the host queues ahead */
#define CU_STAGE_HALF (8u << 20)      /* bytes of one half of the staging ring */
#define CU_SLAB_BYTES ((size_t)2 << 20)
#define CU_CHUNK_SLABS 32             /* slabs that are taken from the driver at once */
#define CU_SLOT_ALIGN 128u
#define CU_SLOT_LIMIT (128u << 10)    /* larger requests are not cut from slabs */
#define CU_SLOT_CLASSES (CU_SLOT_LIMIT / CU_SLOT_ALIGN + 1)

struct cu_slab;
struct cu_chunk;
struct cu_blas;

/* Small requests come from slabs of equal slots, large ones from the driver's stream-ordered pool. */
struct cu_memory {
    cu_slab *open[CU_SLOT_CLASSES]; /* slabs with free slots, by slot size */
    cu_chunk **chunk;               /* [n_chunk], ascending by address */
    uint32_t n_chunk;
    uint32_t cap_chunk;
    bool pool; /* the driver has stream-ordered allocation */
};

struct cu_stage {
    char *host;   /* pinned, two halves */
    char *device; /* same size */
    uint32_t half;
    uint32_t used;        /* bytes of the current half */
    cudaEvent_t event[2]; /* the half's last copy */
};

struct cu_device {
    int ordinal;
    char lost[256]; /* what be_device_check says once the device has failed for good; empty before */
    uint32_t n_sm;
    uint32_t shared_bytes; /* dynamic shared memory that a block may have */
    bool dependent; /* kernels may start before the one before them has ended */
    bool warpgroups; /* products of whole warpgroups: compute capability 9.0, where the build has code for it */
    cudaStream_t stream;
    cudaStream_t side;         /* what a step does beside its layers; joined again before the step ends */
    cudaEvent_t fork, join[2];
    mutable bool alone;        /* the next kernel has more than the kernel before it to wait for: no dependent launch */
    cudaEvent_t step[CU_IN_FLIGHT];
    double host_ms[3]; /* of decode so far, while no step runs: reserving rows, sending state, following what ran */
    volatile uint32_t *word; /* pinned, written by the device: sequences that are not finished */
    uint32_t *word_device;
    cu_memory memory;
    cu_stage stage;
    cu_blas *blas; /* NULL: cuBLASLt was not found */
    void *scratch; /* for one call; grows */
    size_t scratch_bytes;
};

static inline cu_device *cu_of(const kvf_device *dev) { return (cu_device *)dev->impl; }
/* Makes the device current for this thread. */
int32_t cu_enter(kvf_device *dev, kv_err err);

int32_t cu_memory_open(kvf_device *dev, kv_err err);
void cu_memory_close(kvf_device *dev);
/*
 * Bytes that can be taken now: what the driver has, and what is kept back of what was returned. Where that is less than
 * `wanted`, the stream is waited for first, as what was returned counts as taken until the device has come so far.
 */
double cu_room(kvf_device *dev, double wanted);
/* Bytes that the driver is asked for when pages of so many bytes are taken: whole chunks, less the slabs that are there. */
double cu_chunk_bytes(const kvf_device *dev, double bytes);
/* KVF_ERR_MEMORY with needed and free bytes unless so many can be taken. */
int32_t cu_check_room(kvf_device *dev, double bytes, const char *action, kv_err err);
/* be_alloc with an error text. */
int32_t cu_alloc(kvf_device *dev, void **to, size_t bytes, const char *what, kv_err err);
/* Scratch of at least `bytes`, valid until the next call of this function. */
int32_t cu_scratch(kvf_device *dev, void **to, size_t bytes, kv_err err);
/* Copies at most CU_STAGE_HALF bytes to device memory that stays valid for kernels queued before the ring comes round. */
int32_t cu_push(kvf_device *dev, void **to, const void *from_host, size_t bytes, kv_err err);
int32_t cu_synchronize(kvf_device *dev, kv_err err);

/* ---- Numbers ---- */

static inline uint32_t cu_div_up(size_t a, size_t b) { return (uint32_t)((a + b - 1) / b); }
static inline uint32_t cu_round_up(uint32_t a, uint32_t b) { return (a + b - 1) / b * b; }
static inline size_t cu_dtype_bytes(uint32_t dtype) { return dtype == KVF_F32 ? 4 : 2; }

/* ---- Weights ---- */

/* Columns of a matrix in memory are padded with zeros to a multiple of this. */
#define CU_PAD 32

typedef struct cu_matrix {
    void *data; /* [n_row, ld] in the model's weight_dtype */
    uint32_t n_row;
    uint32_t n_col;
    uint32_t ld;
} cu_matrix;

typedef struct cu_layer {
    cu_matrix qkv;     /* rows of Q, then K, then V */
    cu_matrix o;
    cu_matrix router;  /* no rows without experts */
    cu_matrix gate_up; /* per expert: rows of gate, then up */
    cu_matrix down;    /* per expert */
    float *attn_norm;
    float *mlp_norm;
    float *qkv_bias; /* NULL: none */
    float *o_bias;
    float *q_norm;
    float *k_norm;
} cu_layer;

struct cu_decode;

/* kvf_model.impl */
typedef struct cu_model {
    cu_matrix embed;
    cu_matrix output; /* the embedding where they are tied */
    float *final_norm;
    float *inv_freq;
    cu_layer *layer;
    double bytes;
    bool measuring; /* only `bytes` is counted */
    cu_decode *decode; /* workspace and graphs of decode; NULL before its first call */
    char *source;      /* of the caller: pinned memory that rows are loaded from; NULL: there is none */
    size_t source_bytes;
} cu_model;

static inline cu_model *cu_weights(const kvf_model *model) { return (cu_model *)model->impl; }
static inline uint32_t cu_qkv_width(const kvf_model_config *c) { return (c->n_head + 2 * c->n_kv_head) * c->head_dim; }
/* Matrix of one expert out of stacked ones. */
static inline cu_matrix cu_expert(const cu_matrix *m, uint32_t dtype, uint32_t n_row, uint32_t expert) {
    cu_matrix one = *m;
    one.n_row = n_row;
    one.data = (char *)m->data + (size_t)expert * n_row * m->ld * cu_dtype_bytes(dtype);
    return one;
}

void cu_decode_free(kvf_model *model);

/* ---- Pages and mirrors of tables ---- */

/* A page: keys [KVF_PAGE_ROWS, head_dim], values [KVF_PAGE_ROWS, head_dim], positions [KVF_PAGE_ROWS] u32. */

struct cu_programs;
struct cu_program;
struct cu_program_work;

struct cu_format;

/* What a table has of its own where its first rows' pages hold directions that another layer has too (core/share.h). */
typedef struct cu_own {
    const float *length[2]; /* of keys and values: [shared]; below 0: the row is the -length-th of the exact ones */
    const void *exact[2];   /* [exact, head_dim] of keys and values in row_dtype */
    uint64_t shared;        /* 0: all rows are whole, and there is nothing else here */
} cu_own;

/* How a table's rows are packed, for kernels. */
typedef struct cu_packing {
    const cu_format *format; /* packed.cuh */
    const void *frame;
    cu_own own;
    uint32_t packed; /* rows in packed pages; 0: all rows are plain */
    uint32_t kernel; /* cu_packed_kernel that attends to the table */
} cu_packing;

/* Kernels of decode attention. Which one takes a table follows from the table alone, so company changes no result. */
enum cu_packed_kernel {
    CU_ATTEND_PLAIN = 0, /* no packed and no shared rows */
    CU_ATTEND_ANY = 1,   /* any format, and rows that are shared with another layer */
    CU_ATTEND_CODES_4 = 2, /* codes of 4 bits without corrections */
    CU_ATTEND_CODES_2 = 3  /* of 2 bits */
};

/* The device's kernel for tables with packed rows of a format. */
uint32_t cu_packed_kernel_of(const cu_device *d, const kvf_cache_config *cache, const kvf_format *format);

/*
 * Device copies of one sequence's tables: kv_sequence.impl. Rows are counted by slots there (packed.cuh), which only
 * differs where a packed page is partly filled.
 */
typedef struct cu_mirror {
    uint32_t n_table;
    uint32_t cap;        /* pages per table */
    void **pages;        /* device [n_table, cap] */
    uint32_t *rows;      /* device [n_table] */
    cu_packing *packing; /* device [n_table] */
    void **seen_page;    /* host copies of what the device has */
    uint32_t *seen_rows;
    cu_packing *seen_packing;
    cu_programs *programs; /* NULL before the first one */
} cu_mirror;

/* Tables of one layer as kernels see them. */
typedef struct cu_view {
    void *const *pages; /* [n_stored_head, cap] */
    uint32_t *rows;     /* [n_stored_head] */
    const cu_packing *packing; /* [n_stored_head]; NULL: all rows are plain */
    uint32_t cap;
    uint32_t readers; /* query heads per stored head */
    uint32_t head_dim;
} cu_view;

/* Brings the device copies of tables [first, first + n) up to date; only differences travel. */
int32_t cu_mirror_sync(kvf_cache *cache, kv_sequence *s, uint32_t first, uint32_t n, cu_mirror **mirror,
                       kv_err err);
/*
 * The same for all tables of a sequence that only decoded since the last time: full pages of plain rows that nothing is
 * evicted from are as they were, and not compared. `own`: nor are those that rows are evicted from, as no page had a second
 * owner when rows were reserved.
 */
int32_t cu_mirror_follow(kvf_cache *cache, kv_sequence *s, bool own, cu_mirror **mirror, kv_err err);
/* View of one layer whose tables are in step. */
int32_t cu_layer_view(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_view *view, kv_err err);
/* One table that belongs to no mirror: its page pointers in the staging ring. */
int32_t cu_table_push(kvf_cache *cache, const kv_table *t, void ***pages, kv_err err);
/* The table's positions into device memory [rows]. */
int32_t cu_positions(kvf_cache *cache, const kv_table *t, uint32_t *to, kv_err err);

/* ---- Tables with shared rows (share.cu) ---- */

cu_own cu_own_of(const kvf_cache *cache, const kv_table *t);
/* Directions of a table's first rows become these rows. what: 0 keys, 1 values   rows: [rows, head_dim] on the device */
int32_t cu_restore_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *rows, kv_err err);

/* ---- Tables with packed rows (unpack.cu) ---- */

/* As be_gather_rows, be_read_rows (into device memory), be_read_positions (the same) and be_scores_norm. */
int32_t cu_gather_packed(kvf_cache *cache, const kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                         kv_err err);
int32_t cu_read_packed(kvf_cache *cache, const kv_table *t, uint32_t what, float *to, kv_err err);
int32_t cu_packed_positions(kvf_cache *cache, const kv_table *t, uint32_t *to, kv_err err);
int32_t cu_packed_norms(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err);

/* A layer's rows, all of them plain and in order of position, as long as one call looks at them. */
typedef struct cu_plain {
    cu_view view;
    void *data;           /* copies of packed tables; NULL: the view is of the tables themselves */
    const uint32_t *rank; /* [n_stored_head, n_row] place of each row in order; NULL: that is its index */
    uint32_t n_row;       /* of the longest head */
} cu_plain;

int32_t cu_plain_open(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_plain *plain, kv_err err);
void cu_plain_close(kvf_cache *cache, cu_plain *plain);

/* ---- Products: out[token, row] = sum_k x[token, k] * w[row, k] ---- */

/* Prefill. x: [n, ldx] in dtype. out: [n, ldo] f32; with `add` it is added to. cuBLASLt where it is there. */
int32_t cu_gemm(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, float *out,
                uint32_t ldo, bool add, kv_err err);
/*
 * What the widest results of a model, gate and up, go to memory in: BF16 where that is the weights' type, which takes half
 * the bytes, f32 otherwise. Not F16: a gate below its range is harmless as a number and NaN after SwiGLU as an infinity.
 */
uint32_t cu_wide_dtype(uint32_t dtype);
/* The same with results in cu_wide_dtype(dtype). Sums are f32 until they are rounded. */
int32_t cu_gemm_wide(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, void *out,
                     uint32_t ldo, kv_err err);
/* True when it ran. out_dtype: KVF_F32, or dtype */
bool cu_blas_gemm(cu_device *d, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, void *out,
                  uint32_t out_dtype, uint32_t ldo, bool add);
cu_blas *cu_blas_open(void);
void cu_blas_close(cu_blas *blas);

/* One token of a decode batch. */
typedef struct cu_slot {
    void *const *pages; /* [n_layer * n_stored, cap] */
    uint32_t *rows;     /* [n_layer * n_stored] */
    const cu_packing *packing; /* [n_layer * n_stored] */
    float *logits;      /* [vocab] */
    const cu_program *program; /* [n_layer * n_stored]; NULL: no layer has one */
    uint32_t cap;
    uint32_t n_stored;
    uint32_t live; /* 0: padding of the batch */
    uint32_t position;
    uint32_t pending;
    uint32_t n_generated;
    uint32_t finished;
    uint32_t run; /* this step runs `token` through the model */
    uint32_t token;
    uint32_t top_k;
    float temperature;
    float top_p;
    uint32_t seed_low;
    uint32_t seed_high;
    uint32_t min_new_token;
    unsigned long long best; /* highest key of a logit so far, above the complement of its token; 0 between steps */
    uint32_t arrived;        /* blocks that have looked for it; 0 between steps */
    uint32_t n_stop;
    uint32_t stop[KV_MAX_STOP];
} cu_slot;

enum cu_epilogue {
    CU_STORE = 0,  /* out[token, row] = y */
    CU_ADD = 1,    /* out[token, row] += y + bias[row] */
    CU_SWIGLU = 2, /* act[token, row] = silu(gate) * up; w has 2 * n_row rows */
    CU_LOGITS = 3  /* slot[token].logits[row] = y where the slot runs */
};

typedef struct cu_skinny_out {
    uint32_t epilogue;
    float *out; /* CU_STORE, CU_ADD: [n_token, ld] */
    void *act;  /* CU_SWIGLU: [n_token, ld] in dtype */
    uint32_t ld;
    const float *bias; /* CU_ADD, may be NULL */
    const cu_slot *slot;
} cu_skinny_out;

/*
 * Decode. x: [n rounded up to 8, w->ld] in dtype. A token's result depends on neither n nor its place: one code path, one
 * order of summation for every n.
 */
int32_t cu_skinny(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t n, cu_skinny_out out,
                  kv_err err);
/* The same of the norms of x [n, w->n_col] f32, for which there may be no h: [n rounded up to 8, w->ld] in dtype. */
int32_t cu_skinny_norm(kvf_device *dev, uint32_t dtype, const cu_matrix *w, void *h, const float *x, const float *weight,
                       float eps, uint32_t n, cu_skinny_out out, kv_err err);

/*
 * The same with one token per entry and the matrix of its chosen expert, [n_row, ld] out of the stacked ones.
 * x: [n_entry / x_div, ld]   chosen: [n_entry]
 */
int32_t cu_skinny_experts(kvf_device *dev, uint32_t dtype, const cu_matrix *w, uint32_t n_row, const uint32_t *chosen,
                          uint32_t x_div, const void *x, uint32_t n_entry, cu_skinny_out out, kv_err err);

/* ---- Mixture of experts ---- */

/* Buffers of a decode step: router [n, n_expert], chosen and weight [n, n_used], act [n * n_used, ld], y [n * n_used, hidden] */
typedef struct cu_expert_work {
    float *router;
    uint32_t *chosen;
    float *weight;
    void *act;
    float *y;
} cu_expert_work;

/* Decode: x [n, hidden] f32 += experts(h). */
int32_t cu_experts_step(kvf_model *model, const cu_layer *layer, const void *h, uint32_t n, float *x,
                        const cu_expert_work *work, kv_err err);
/* Chooses the experts of n tokens from router logits; ascending ids, lowest id on ties. */
int32_t cu_route(kvf_model *model, const float *router, uint32_t n, uint32_t *chosen, float *weight, kv_err err);
/* Memory that cu_experts_prefill takes while it runs. */
size_t cu_experts_bytes(const kvf_model *model, uint32_t n);
/* Mixture of experts, prefill: x [n, hidden] f32 += experts(h) where h [n, ldh] in dtype; waits for the device once. */
int32_t cu_experts_prefill(kvf_model *model, const cu_layer *layer, const void *h, uint32_t ldh, uint32_t n, float *x,
                           kv_err err);

/* ---- Norms and rotation ---- */

/* h[token] = x[token] / rms(x[token]) * weight in dtype, columns beyond n_col untouched. */
int32_t cu_rms_norm(kvf_device *dev, uint32_t dtype, void *h, uint32_t ldh, const float *x, const float *weight,
                    uint32_t n, uint32_t n_col, float eps, kv_err err);
/* The same for many tokens: a prefill's chunk. Sums have another order. */
int32_t cu_norm_rows(kvf_device *dev, uint32_t dtype, void *h, uint32_t ldh, const float *x, const float *weight, uint32_t n,
                     uint32_t n_col, float eps, kv_err err);
/* x[i] = embedding of tokens[i] as f32. */
int32_t cu_embed(kvf_model *model, float *x, const uint32_t *tokens, uint32_t n, kv_err err);
struct cu_step_control;
/* Begins a step: which slots run, and with which token; their embeddings, zeros for the others. forced: NULL: none are */
int32_t cu_embed_step(kvf_model *model, float *x, cu_slot *slot, uint32_t n, const cu_step_control *control,
                      const uint32_t *forced, kv_err err);
/* act[token, i] = silu(gate_up[token, i]) * gate_up[token, width + i]; act in dtype, gate_up in cu_wide_dtype(dtype). */
int32_t cu_swiglu(kvf_device *dev, uint32_t dtype, void *act, uint32_t lda, const void *gate_up, uint32_t n, uint32_t width,
                  kv_err err);
/* x[token] += bias. */
int32_t cu_add_bias(kvf_device *dev, float *x, const float *bias, uint32_t n, uint32_t n_col, kv_err err);
/* Where rotated queries go: head h of token t to q[h * head_stride + (t - first) * head_dim]; q NULL: nowhere. */
typedef struct cu_query_room {
    float *q;
    size_t head_stride; /* elements */
    uint32_t first;
} cu_query_room;

/*
 * Bias, per-head norm and rotation of n tokens at positions first, first + 1, ...; with `rows` keys and values go into the
 * pages of the group's first table.
 * qkv: [n, qkv width] f32
 */
int32_t cu_rope_prefill(kvf_model *model, uint32_t layer, const cu_view *view, uint32_t row_dtype, const float *qkv,
                        uint32_t first, uint32_t n, const cu_query_room *room, bool rows, kv_err err);
/*
 * The same for one token per slot; q: [n, n_head, head_dim]; rows go to index rows[] of every stored head. With CU_BEFORE in
 * work->acts queries are kept, and rows at the first positions move along (program.h).
 */
int32_t cu_rope_step(kvf_model *model, uint32_t layer, uint32_t row_dtype, const float *qkv, const cu_slot *slot,
                     uint32_t n, float *q, const cu_program_work *work, kv_err err);

/* ---- Attention ---- */

typedef struct cu_queries {
    const float *q;     /* [n_head] heads of [n, head_dim], head_stride apart, rotated */
    size_t head_stride; /* elements */
    uint32_t n;
    uint32_t n_head;
    uint32_t position; /* of the first */
    uint32_t window;   /* sliding window, 0: none */
    bool whole;        /* rows 0 to position + n - 1 are there, each at the position of its index */
} cu_queries;

/*
 * Causal attention of queries over a layer's rows.
 * out: [n, ldo] in out_dtype, head h at column h * head_dim; NULL: only lse   lse: [n_head, n] f32, may be NULL
 */
int32_t cu_attention_prefill(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                             void *out, uint32_t out_dtype, uint32_t ldo, float *lse, kv_err err);
/*
 * Probability that the queries of up to four sets give to each row. With `add` it is added to what is there: queries that
 * come in chunks of whole tiles of 32 give the bits of all at once.
 * lse: [n_head, n]   sets: [n] u8, bit m: query is in set m   mass: one [n_head, n_row] array per set
 */
int32_t cu_column_mass(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                       const float *lse, const uint8_t *sets, uint32_t n_set, float *const *mass, uint32_t n_row, bool add,
                       kv_err err);

/* ---- Attention over a part of the rows ---- */

#define CU_LAST_QUERIES 64u /* that say which columns and diagonals matter */

/* What the query heads of a layer attend to. */
struct cu_sparse;

/*
 * Finds it for a layer whose n_token rows are there. NULL where the patterns leave nothing out: attention over all rows does.
 * patterns: [n_head, 3] host   last: queries of the last min(n_token, CU_LAST_QUERIES) tokens
 * chunk: queries that cu_sparse_attend is given at most
 */
int32_t cu_sparse_open(kvf_cache *cache, const cu_view *view, const uint32_t *patterns, const cu_queries *last, uint32_t n_token,
                       uint32_t chunk, cu_sparse **out, kv_err err);
/*
 * cu_attention_prefill over the part; queries.position is a multiple of 64, and queries.n too unless they are the last.
 * pairs: [n_head], added to: query-row pairs that took part; may be NULL
 */
int32_t cu_sparse_attend(cu_sparse *x, const cu_queries *queries, void *out, uint32_t out_dtype, uint32_t ldo, float *lse,
                         unsigned long long *pairs, kv_err err);
/* kept[h] += sum over n queries of exp(part - all): of the probability, what the part keeps. part, all: [n_head, n] */
int32_t cu_sparse_kept(kvf_device *dev, float *kept, const float *part, const float *all, uint32_t n_head, uint32_t n, kv_err err);
/* NULL allowed. */
void cu_sparse_close(cu_sparse *x);

#define CU_ATTENTION_CHUNK 256 /* rows of a chunk of decode attention, as long as there are at most */
#define CU_ATTENTION_CHUNKS 64 /* so many chunks; beyond that chunks grow */

/*
 * One step of attention for a batch, over rows[] + 1 rows. kernels: bit k, some table is of cu_packed_kernel k
 * q: [n, n_head, head_dim] f32   out: [n, ldo] in weight_dtype   partial: cu_partial_bytes   arrived: [n, n_head], zeros
 * work: of the batch's step programs (program.h)
 */
int32_t cu_attention_step(kvf_model *model, uint32_t layer, uint32_t row_dtype, const cu_slot *slot, uint32_t n,
                          uint32_t max_stored, uint32_t n_chunk, uint32_t kernels, const float *q, void *out, uint32_t ldo,
                          float *partial, uint32_t *arrived, const cu_program_work *work, kv_err err);
/* Chunks that heads of up to n_row rows may have; one more where plain rows begin a chunk of their own. */
uint32_t cu_attention_chunks(uint32_t n_row);
size_t cu_partial_bytes(const kvf_model_config *c, uint32_t n, uint32_t n_chunk);

/* ---- Observations ---- */

/* Records window queries of one layer. last: queries of the last tokens, at least so many */
int32_t cu_observe_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *last, kv_err err);
/*
 * Records the log-sum-exp of those queries of a chunk that are the window's, where they saw all rows before them.
 * lse: [n_head, n]
 */
int32_t cu_observe_lse(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *queries, const float *lse, kv_err err);
/* Adds the column masses of a chunk of queries; chunks come in order, in whole tiles of 32. lse: [n_head, n] */
int32_t cu_observe_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_queries *queries, const float *lse, kv_err err);

/* ---- The end of a step ---- */

typedef struct cu_step_control {
    uint32_t step;    /* steps that are over */
    uint32_t arrived; /* slots that are done with this one */
} cu_step_control;

/*
 * Counts the row of every slot that ran as complete in every table of n_layer layers (0: no slot ran). With `tokens` a token
 * is sampled for every live slot that is not finished, as kv_sample does; tokens[step, b] and the slot's state are
 * written. The device's word becomes the number of sequences that go on.
 */
int32_t cu_end_step(kvf_device *dev, cu_slot *slot, uint32_t n, uint32_t n_layer, uint32_t vocab, cu_step_control *control,
                    uint32_t *tokens, kv_err err);

#endif
