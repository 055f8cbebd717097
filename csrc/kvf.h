/*
 * kvf: a language model whose key/value cache can be compressed for real.
 *
 * One header and one ABI for two builds: libkvf.so (CPU, C11) and libkvf_cuda.so (CUDA). The library runs the forward
 * pass, keeps the cache as reference-counted pages, computes the scores that compression policies ask for and carries
 * their decisions out. It knows no policy by name. It opens no file, socket or process, reads no environment variable,
 * prints nothing and never ends the process.
 *
 * Conventions
 *   - int32_t results: negative is an error (KVF_ERR_*), 0 is success; functions that make an object of a cache return
 *     its id, which is positive. Constructors return a handle or NULL. The message of an error goes to the caller's
 *     buffer `err` of `err_cap` bytes (NUL-terminated, cut if too long; NULL with 0 is allowed).
 *   - No pointer is kept beyond the call it was given to, except by kvf_model_source.
 *   - A struct's first field is its own size in bytes; another size than the library's is refused.
 *   - Every call checks its arguments. One handle serves one call at a time; a second one gets KVF_ERR_BUSY.
 *   - Byte counts are double (exact to 2^53), all other sizes uint32_t.
 *   - Heads: n_head query heads, n_kv_head KV heads, group = n_head / n_kv_head; query head h reads KV head h / group.
 *     Stored heads: n_kv_head ("kv_head" granularity) or n_head ("query_head").
 *   - A row is one token's key and value in one stored head. Rows are dense, and every call that shows or addresses them
 *     does so in ascending order of position; between calls a head with a step program may keep another order, see
 *     there. How many rows a head holds is never the position of its next token.
 */
#ifndef KVF_H
#define KVF_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVF_API __attribute__((visibility("default")))
#define KVF_ABI_VERSION 14
/* Rows of one page. */
#define KVF_PAGE_ROWS 32

enum kvf_status {
    KVF_OK = 0,
    KVF_ERR_ARG = -1,       /* an argument is out of range or inconsistent */
    KVF_ERR_MEMORY = -2,    /* not enough memory, or the cache's limit is reached */
    KVF_ERR_DEVICE = -3,    /* the device failed or is missing */
    KVF_ERR_STATE = -4,     /* right call, wrong moment */
    KVF_ERR_CANCELLED = -5, /* control[0] was set by the caller */
    KVF_ERR_BUSY = -6       /* another call is using the handle */
};

enum kvf_dtype { KVF_F32 = 0, KVF_F16 = 1, KVF_BF16 = 2 };
enum kvf_granularity { KVF_KV_HEAD = 0, KVF_QUERY_HEAD = 1 };
/* Reduction over the query heads of one KV head. */
enum kvf_reduce { KVF_MEAN = 0, KVF_MAX = 1, KVF_SUM = 2 };

typedef struct kvf_device kvf_device;
typedef struct kvf_model kvf_model;
typedef struct kvf_cache kvf_cache;

/* ---- Library ---- */

/* KVF_ABI_VERSION of the build. */
KVF_API uint32_t kvf_abi_version(void);
/* Of the last call on this thread that failed: what a constructor that returned NULL would have returned. 0: none did. */
KVF_API int32_t kvf_last_status(void);
/* Devices, models and caches that were created and not freed. */
KVF_API uint32_t kvf_live_handles(void);

/* ---- Device ---- */

typedef struct kvf_device_options {
    uint32_t size;
    uint32_t ordinal;  /* GPU index; 0 on the CPU */
    uint32_t n_thread; /* CPU threads; 0: as many as the affinity mask allows. Never more than that. */
    uint32_t simd;     /* highest CPU level to use: 0 fastest, 1 generic, 2 AVX2, 3 AVX-512, 4 AVX-512-BF16 */
} kvf_device_options;

typedef struct kvf_device_info {
    uint32_t size;
    uint32_t kind;       /* 0 CPU, 1 CUDA */
    uint32_t n_thread;   /* CPU threads in use */
    uint32_t simd;       /* level in use, as in kvf_device_options, never 0 */
    uint32_t capability; /* 10 * major + minor of the GPU; 0 on the CPU */
    uint32_t blas;       /* 1: cuBLASLt was found */
    double total_bytes;  /* device memory; 0 when unknown */
    double free_bytes;   /* device memory that is free now; 0 when unknown */
    char name[128];      /* NUL-terminated UTF-8 */
} kvf_device_info;

KVF_API kvf_device *kvf_device_create(const kvf_device_options *options, char *err, uint32_t err_cap);
/* NULL is allowed. Models and caches of the device must be freed before. */
KVF_API void kvf_device_free(kvf_device *dev);
KVF_API int32_t kvf_device_describe(kvf_device *dev, kvf_device_info *info, char *err, uint32_t err_cap);
/* Bytes per second of a plain read of `bytes` bytes by all threads (CPU) or of the device's memory; 0 on failure. */
KVF_API double kvf_device_read_bandwidth(kvf_device *dev, double bytes);

/* ---- Model ---- */

enum kvf_model_flag {
    KVF_QKV_BIAS = 1,
    KVF_O_BIAS = 2,
    KVF_QK_NORM = 4,         /* RMS norm of each query and key head before rotation */
    KVF_TIED_EMBEDDING = 8,  /* the output matrix is the embedding table */
    KVF_NORM_EXPERT_PROB = 16 /* the chosen experts' probabilities are scaled to sum 1 */
};

typedef struct kvf_model_config {
    uint32_t size;
    uint32_t n_layer;
    uint32_t hidden;       /* width of the residual stream */
    uint32_t n_head;
    uint32_t n_kv_head;
    uint32_t head_dim;     /* even, at most 256 */
    uint32_t intermediate; /* width of the MLP, of one expert where there are experts */
    uint32_t vocab;
    uint32_t weight_dtype; /* how matrices are kept in memory */
    uint32_t flags;        /* kvf_model_flag */
    uint32_t n_expert;     /* 0: dense MLP */
    uint32_t n_expert_used;
    float norm_eps;
    float rope_scale; /* factor on cosine and sine (YaRN's attention factor); 1 otherwise */
} kvf_model_config;

enum kvf_tensor {
    KVF_T_EMBED = 0,      /* [vocab, hidden] */
    KVF_T_OUTPUT = 1,     /* [vocab, hidden]; absent with KVF_TIED_EMBEDDING */
    KVF_T_FINAL_NORM = 2, /* [hidden] */
    KVF_T_ATTN_NORM = 3,  /* [hidden] */
    KVF_T_MLP_NORM = 4,   /* [hidden] */
    KVF_T_Q = 5,          /* [n_head * head_dim, hidden] */
    KVF_T_K = 6,          /* [n_kv_head * head_dim, hidden] */
    KVF_T_V = 7,          /* [n_kv_head * head_dim, hidden] */
    KVF_T_O = 8,          /* [hidden, n_head * head_dim] */
    KVF_T_Q_BIAS = 9,     /* [n_head * head_dim] */
    KVF_T_K_BIAS = 10,    /* [n_kv_head * head_dim] */
    KVF_T_V_BIAS = 11,    /* [n_kv_head * head_dim] */
    KVF_T_O_BIAS = 12,    /* [hidden] */
    KVF_T_Q_NORM = 13,    /* [head_dim] */
    KVF_T_K_NORM = 14,    /* [head_dim] */
    KVF_T_GATE = 15,      /* [intermediate, hidden], per expert where there are experts */
    KVF_T_UP = 16,        /* [intermediate, hidden] */
    KVF_T_DOWN = 17,      /* [hidden, intermediate] */
    KVF_T_ROUTER = 18,    /* [n_expert, hidden] */
    KVF_T_COUNT = 19
};

/*
 * Allocates the weights.
 * inv_freq:     [head_dim / 2] f32, angle per position of each rotated pair (pairs are i and i + head_dim / 2)
 * layer_window: [n_layer] u32, sliding window in tokens, the token itself included; 0: none
 */
KVF_API kvf_model *kvf_model_create(kvf_device *dev, const kvf_model_config *config, const float *inv_freq,
                                    const uint32_t *layer_window, char *err, uint32_t err_cap);
KVF_API void kvf_model_free(kvf_model *model);
/*
 * Copies whole rows of a tensor into the model, converting from `dtype`; vectors are tensors of one row. `data` holds
 * n_row rows. Rows may come in any order and any number of calls, each exactly once.
 */
KVF_API int32_t kvf_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                               uint32_t first_row, uint32_t n_row, const void *data, double data_bytes, char *err,
                               uint32_t err_cap);
/*
 * Says where the data of most calls of kvf_model_load will lie, so that a GPU copies from there without a detour: the memory
 * is pinned, where the system lets it. It must stay where it is until kvf_model_ready succeeds, the model is freed or
 * another source, NULL among them, takes its place.
 */
KVF_API int32_t kvf_model_source(kvf_model *model, void *data, double bytes, char *err, uint32_t err_cap);
/* Checks that every row of every tensor was loaded; the message names the first one that is missing. */
KVF_API int32_t kvf_model_ready(kvf_model *model, char *err, uint32_t err_cap);
/* Fills all weights from a counter-based generator (normal-like, norms near 1); for benchmarks without weights. */
KVF_API int32_t kvf_model_randomize(kvf_model *model, uint32_t seed, char *err, uint32_t err_cap);
/* Bytes of the weights in memory. */
KVF_API double kvf_model_bytes(kvf_model *model);
/* Bytes of weights that one decode step of a batch of one reads. */
KVF_API double kvf_model_step_bytes(kvf_model *model);

/* ---- Cache ---- */

typedef struct kvf_cache_config {
    uint32_t size;
    uint32_t n_layer;
    uint32_t n_head;
    uint32_t n_kv_head;
    uint32_t head_dim;
    uint32_t row_dtype;  /* of plain rows */
    double limit_bytes;  /* resident bytes at most; 0: no limit */
} kvf_cache_config;

typedef struct kvf_ledger {
    uint32_t size;
    uint32_t n_sequence;   /* live sequences */
    uint32_t n_page;       /* pages held, shared ones once */
    uint32_t n_object;     /* live score and selection objects */
    double promised_bytes; /* arithmetic: what the tables' rows and formats need, shared pages once per owner */
    double owned_bytes;    /* pages found in the tables, shared pages once per owner; equals promised_bytes */
    double resident_bytes; /* memory held by the pool, shared pages once */
    double peak_bytes;     /* highest resident_bytes since the start or the last reset */
} kvf_ledger;

KVF_API kvf_cache *kvf_cache_create(kvf_device *dev, const kvf_cache_config *config, char *err, uint32_t err_cap);
KVF_API void kvf_cache_free(kvf_cache *cache);
KVF_API int32_t kvf_cache_ledger(kvf_cache *cache, kvf_ledger *ledger, char *err, uint32_t err_cap);
/* peak_bytes becomes resident_bytes. */
KVF_API int32_t kvf_cache_reset_peak(kvf_cache *cache, char *err, uint32_t err_cap);
/* Bytes of one page of plain rows: what to multiply by when bytes are predicted. 0 when the handle is dead or busy. */
KVF_API double kvf_cache_page_bytes(kvf_cache *cache);

/* ---- Sequences: ids within their cache ---- */

typedef struct kvf_sequence_info {
    uint32_t size;
    uint32_t granularity;
    uint32_t n_stored_head;
    uint32_t position;     /* of the next token: tokens seen so far */
    uint32_t n_generated;  /* tokens sampled so far */
    uint32_t finished;     /* 1: a stop token was sampled */
    double promised_bytes; /* as in kvf_ledger, of this sequence alone */
    double owned_bytes;
} kvf_sequence_info;

typedef struct kvf_sampling {
    uint32_t size;
    float temperature;      /* 0: greedy (lowest id among equals) */
    uint32_t top_k;         /* 0: all */
    float top_p;            /* 1: all; otherwise the smallest set of most likely tokens that reaches it */
    uint32_t seed_low;      /* draws depend on the seed and the number of tokens generated, on nothing else */
    uint32_t seed_high;
    uint32_t min_new_token; /* stop tokens cannot be chosen before so many tokens were generated */
} kvf_sampling;

/* Returns the id of a new, empty sequence. */
KVF_API int32_t kvf_sequence_create(kvf_cache *cache, uint32_t granularity, char *err, uint32_t err_cap);
/*
 * Returns the id of a copy that shares all pages with its parent (copy on write), observations, logits and sampling
 * state included. A kv_head parent may be forked into query_head granularity: the group's heads then share pages until
 * they are changed. The reverse is refused.
 */
KVF_API int32_t kvf_sequence_fork(kvf_cache *cache, uint32_t sequence, uint32_t granularity, char *err,
                                  uint32_t err_cap);
KVF_API int32_t kvf_sequence_free(kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap);
KVF_API int32_t kvf_sequence_describe(kvf_cache *cache, uint32_t sequence, kvf_sequence_info *info, char *err,
                                      uint32_t err_cap);
/* rows: [n_layer, n_stored_head] u32, written. */
KVF_API int32_t kvf_sequence_rows(kvf_cache *cache, uint32_t sequence, uint32_t *rows, uint32_t n_rows, char *err,
                                  uint32_t err_cap);
/*
 * bytes: [n_layer, n_stored_head], written: the pages in each head's table, shared ones too. Together they are owned_bytes,
 * less what belongs to no head.
 */
KVF_API int32_t kvf_sequence_bytes(kvf_cache *cache, uint32_t sequence, double *bytes, uint32_t n_bytes, char *err,
                                   uint32_t err_cap);
/* Sampling of the tokens to come; stop: [n_stop] token ids, at most 64. The default is greedy without stop tokens. */
KVF_API int32_t kvf_sequence_sampling(kvf_cache *cache, uint32_t sequence, const kvf_sampling *sampling,
                                      const uint32_t *stop, uint32_t n_stop, char *err, uint32_t err_cap);
/* Frees the observations of a sequence: policies have acted, nothing will ask for scores again. */
KVF_API int32_t kvf_sequence_forget(kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap);

/* ---- Prefill: one sequence, layer by layer ---- */

typedef struct kvf_observe {
    uint32_t size;
    uint32_t n_window; /* queries of the last n_window tokens to record per layer; 0: none */
    uint32_t n_mass;   /* column masses to record per layer; at most 4 */
    uint32_t n_range;  /* query ranges given for all masses together */
} kvf_observe;

enum kvf_phase {
    KVF_PHASE_PROJECT = 1, /* norm, projections, rotation; rows appended; window queries recorded */
    KVF_PHASE_ATTEND = 2,  /* attention, column masses, output projection, MLP */
    KVF_PHASE_ALL = 3
};

/*
 * Starts the prefill of an empty sequence. Where it is known that its rows will find no room, under the cache's limit or in
 * a GPU's memory, nothing is started.
 * tokens: [n_token] u32
 * kept_bytes: what the rows of all layers will take when policies have acted on them; 0: not known
 * ranges: [n_range, 3] u32: index of the mass, first query, end (exclusive); the masses' query sets are unions of ranges
 */
KVF_API int32_t kvf_prefill_begin(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens,
                                  uint32_t n_token, double kept_bytes, const kvf_observe *observe, const uint32_t *ranges,
                                  char *err, uint32_t err_cap);
/*
 * Runs layers first_layer to first_layer + n_layer - 1, in order. Afterwards those layers' rows and observations are
 * complete and may be acted on, before the next layer runs (lean) or after all of them.
 * phases:  KVF_PHASE_ALL, or the two phases one after the other for a single layer
 * control: [2] u32 or NULL; the caller may set control[0] to cancel, the library counts layers done in control[1]
 */
KVF_API int32_t kvf_prefill_layers(kvf_model *model, kvf_cache *cache, uint32_t sequence, uint32_t first_layer,
                                   uint32_t n_layer, uint32_t phases, uint32_t *control, char *err, uint32_t err_cap);
enum kvf_sparsity {
    KVF_ATTEND_ALL = 0,
    KVF_ATTEND_LINES = 1, /* columns and diagonals: the `a` rows and the `b` distances that the last 64 queries weigh most */
    KVF_ATTEND_ENDS = 2,  /* the first `a` rows and the `b` most recent ones, the token's own included */
    KVF_ATTEND_BLOCKS = 3 /* per 64 queries the `a` blocks of 64 rows whose mean key fits their mean query best */
};
/*
 * Makes the attention of the layer that was projected go over a part of the rows, for each query head in its own way; one
 * softmax runs over the part. Rows, and the attention of later layers and of decode, are not affected. What is not given a
 * pattern in this call attends to all rows. With no column masses only. In a recording, which has no attention, nothing
 * happens.
 *   KVF_ATTEND_LINES:  a at least 30: rows 0 to 29 are always among them; b at least 50: distances from 0 on, up to 99,
 *                      are taken first. 64 queries at m, m + 1 ... share, for each distance d, the 64 rows from m - d on
 *                      (not before 0); where such a range ends at most 64 rows behind the one before it, that one grows by
 *                      64 instead. (MInference, section 3 and its authors' kernels)
 *   KVF_ATTEND_BLOCKS: blocks of 64, zeros where the prompt ends; where the layer has a sliding window, the queries' own
 *                      block is always among them.
 * patterns: [n_head, 3] u32: kvf_sparsity, a, b
 */
KVF_API int32_t kvf_prefill_sparse(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern,
                                   char *err, uint32_t err_cap);
/*
 * What candidates for patterns would keep of the projected layer's attention: for each query head the share of the
 * attention probability, mean over the queries, and the share of the query-row pairs. Changes nothing.
 * patterns: [n_candidate, n_head, 3] u32; n_pattern is n_candidate * n_head
 * shares:   [n_candidate, n_head, 2] f32, written
 */
KVF_API int32_t kvf_prefill_recall(kvf_cache *cache, uint32_t sequence, const uint32_t *patterns, uint32_t n_pattern,
                                   float *shares, char *err, uint32_t err_cap);
/* Ends the prefill: the last token's logits become the sequence's. Frees the activations. */
KVF_API int32_t kvf_prefill_end(kvf_model *model, kvf_cache *cache, uint32_t sequence, char *err, uint32_t err_cap);
/* Logits of all prompt tokens, between the last layer and kvf_prefill_end. logits: [n_token, vocab] f32, written. */
KVF_API int32_t kvf_prefill_logits(kvf_model *model, kvf_cache *cache, uint32_t sequence, float *logits,
                                   double logits_bytes, char *err, uint32_t err_cap);
/*
 * Fills one layer of a sequence from recorded tensors instead of a model (all f32, rotation applied), and computes the
 * observations that kvf_observe_begin asked for.
 * q: [n_head, n_token, head_dim]   k, v: [n_kv_head, n_token, head_dim]
 */
KVF_API int32_t kvf_record_begin(kvf_cache *cache, uint32_t sequence, uint32_t n_token, const kvf_observe *observe,
                                 const uint32_t *ranges, char *err, uint32_t err_cap);
/*
 * The rotation that the recorded keys have, for formats that undo it. inv_freq: [n_freq = head_dim / 2] f32, angle per
 * position of each rotated pair, as in kvf_model_create.
 */
KVF_API int32_t kvf_record_rotation(kvf_cache *cache, uint32_t sequence, const float *inv_freq, uint32_t n_freq,
                                    char *err, uint32_t err_cap);
KVF_API int32_t kvf_record_layer(kvf_cache *cache, uint32_t sequence, uint32_t layer, const float *q, const float *k,
                                 const float *v, char *err, uint32_t err_cap);

/* ---- Decode ---- */

/*
 * Runs up to n_step steps of a batch in one call. A step runs the last token of each sequence through the model (except
 * directly after prefill, whose logits are there already) and samples the next one. A sequence that samples a stop token
 * is finished and takes no part in further steps. Results of a sequence do not depend on the others.
 * sequences: [n_sequence] ids, distinct
 * tokens:    [n_step, n_sequence] u32, written; 0xffffffff where a sequence had finished before
 * logits:    [n_step, n_sequence, vocab] f32, written, or NULL; what each token was sampled from
 * control:   [2] u32 or NULL; control[0] set by the caller cancels between steps, control[1] counts steps done
 */
KVF_API int32_t kvf_decode(kvf_model *model, kvf_cache *cache, const uint32_t *sequences, uint32_t n_sequence,
                           uint32_t n_step, uint32_t *tokens, float *logits, double logits_bytes, uint32_t *control,
                           char *err, uint32_t err_cap);
/* Feeds given tokens through the decode path, one after the other; their logits replace the sequence's. */
KVF_API int32_t kvf_extend(kvf_model *model, kvf_cache *cache, uint32_t sequence, const uint32_t *tokens,
                           uint32_t n_token, char *err, uint32_t err_cap);
/* The logits that the next token will be sampled from. logits: [vocab] f32, written. */
KVF_API int32_t kvf_sequence_logits(kvf_cache *cache, uint32_t sequence, float *logits, uint32_t n_logit, char *err,
                                    uint32_t err_cap);

/* ---- Step programs: what happens to a layer in every decode step ---- */

enum kvf_op_kind {
    KVF_OP_MASS = 1,     /* each row carries the attention probability that the steps' queries gave it, per query head */
    KVF_OP_QUERIES = 2,  /* the queries of the last tokens are kept */
    KVF_OP_EVICT = 3,    /* a head that holds too many rows loses those with the lowest statistic */
    KVF_OP_PAGES = 4,    /* attention reads only the pages that the query may need; nothing is evicted */
    KVF_OP_RELATIVE = 5  /* rows at the first positions move along with the others: distances count kept rows only */
};

/* What KVF_OP_EVICT compares. The group's query heads are reduced by `reduce`. */
enum kvf_statistic {
    KVF_STAT_POSITION = 0, /* the position: the oldest row goes first */
    KVF_STAT_MASS = 1,     /* needs KVF_OP_MASS */
    KVF_STAT_WINDOW = 2,   /* sum of the probabilities that the kept queries give; needs KVF_OP_QUERIES */
    KVF_STAT_HITS = 3      /* how many kept queries give at least the average probability, 1 / rows seen; the same */
};

/*
 * One operation. Fields that its kind does not name must be 0.
 *   MASS      from, decay: at every step the statistic is multiplied by decay, then the probabilities are added
 *   QUERIES   last: how many tokens' queries
 *   EVICT     head, every, above, keep, first, last, statistic, reduce, draw, temperature, seed
 *   PAGES     keep, last, page_rows, reduce, cut
 *   RELATIVE  first
 */
typedef struct kvf_op {
    uint32_t size;
    uint32_t kind;
    uint32_t head;       /* a stored head, or 0xffffffff: each */
    uint32_t every;      /* acts when the number of tokens seen is a multiple of it; 1: in every step */
    uint32_t above;      /* acts when the head holds more rows than that */
    uint32_t keep;       /* rows left (EVICT), at most `above`; rows attended to (PAGES) */
    uint32_t first;      /* positions below it are never evicted */
    uint32_t last;       /* the last so many tokens are never evicted (EVICT), are always attended to (PAGES) */
    uint32_t statistic;  /* kvf_statistic */
    uint32_t reduce;     /* kvf_reduce */
    uint32_t draw;       /* 1: rows that stay are drawn without replacement, weights softmax(statistic / temperature) */
    uint32_t seed;       /* draws are keyed by (seed, layer, head, position of the row, tokens seen) */
    uint32_t from;       /* recorded column mass to start from, or 0xffffffff: from 0 */
    uint32_t page_rows;  /* consecutive rows of one choice, 1 to 65536 */
    uint32_t cut;        /* 0: the `last` newest rows and, before them, the best ceil((keep - last) / page_rows) pages; 1: of
                            those rows the first `keep - last` and the newest, from one page more where the last is cut */
    float temperature;   /* 0 or less: equal weights */
    float decay;         /* finite, at least 0 */
} kvf_op;

/*
 * Sets the step program of a layer; n_op = 0 takes it away. From then on every step of kvf_decode and kvf_extend carries
 * it out, after the layer's attention (PAGES: before). ops: [n_op], at most one of each kind, except EVICT: one for
 * all heads, or at most one for each. The layer's rows must be complete. What a program keeps beside the rows is forked
 * with the sequence, moves with the rows, and counts in the ledger.
 *
 * An evicted row's place is taken by the newest row, so that one eviction costs the same however many rows there are.
 * The head is then not in order of position; reading, scoring and retaining rows put it in order first.
 *
 * PAGES bounds each page's keys per channel. A page's score is an upper bound of its products with the query; the group's
 * query heads are reduced by `reduce`; among equals the earlier page. KVF_OP_PAGES goes with no other kind but QUERIES.
 */
KVF_API int32_t kvf_sequence_program(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_op *ops,
                                     uint32_t n_op, char *err, uint32_t err_cap);
/*
 * The rows that the layer's KVF_OP_PAGES chooses for the last query that was recorded or kept, ascending.
 * rows: [n_row] u32, written, n_row at least the head's rows. Returns how many.
 */
KVF_API int32_t kvf_program_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *rows,
                                 uint32_t n_row, char *err, uint32_t err_cap);

/* ---- Scores: objects [n_head, n_row] f32, where row j belongs to row j of the layer ---- */

/*
 * Where a layer's heads hold different numbers of rows, n_row is that of the longest, and everything below concerns each
 * head's own rows: what lies behind them is never chosen and reads as -infinity.
 *
 * In the middle of a generation kvf_scores_window and kvf_scores_mass speak of what the layer's step program keeps: the
 * last queries (KVF_OP_QUERIES), and the mass that goes on from a recorded one (KVF_OP_MASS, by its `from`).
 */

enum kvf_window_flag {
    KVF_WINDOW_MEAN = 1,         /* mean over the window's queries instead of the sum */
    KVF_WINDOW_ALL_ROWS = 2,     /* all rows instead of only those before the window */
    KVF_WINDOW_REDUCE_FIRST = 4, /* reduce over the group before summing over the queries */
    KVF_WINDOW_HITS = 8          /* counts the queries that give at least the average, 1 / rows seen, in place of summing */
};

/* From the caller's values, or zeros when values is NULL. values: [n_head, n_row] f32. Returns the id. */
KVF_API int32_t kvf_scores_create(kvf_cache *cache, uint32_t n_head, uint32_t n_row, const float *values, char *err,
                                  uint32_t err_cap);
/*
 * Attention probability that the last `window` queries give to each row, summed over the queries. The softmax runs over
 * all rows of the layer under the causal mask, in f32, scale 1 / sqrt(head_dim). Needs window <= kvf_observe.n_window.
 * Result: [n_stored_head, rows - window], or all rows with the flag. With kv_head granularity the group's query heads
 * are reduced by `reduce`. Returns the id.
 */
KVF_API int32_t kvf_scores_window(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t flags,
                                  uint32_t reduce, char *err, uint32_t err_cap);
/*
 * Attention of a layer as a picture, reduced over blocks of `block` tokens, without ever holding it whole: the mean over a
 * block's recorded queries of the probability that they give to all rows of a block together. Queries are the last
 * kvf_observe.n_window of the prompt, probabilities as in kvf_scores_window; blocks without a recorded query are 0.
 * map: [n_head, n_block, n_block] f32, written, query block before row block; n_block = ceil(n_token / block)
 */
KVF_API int32_t kvf_attention_map(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t block, float *map,
                                  double map_bytes, char *err, uint32_t err_cap);
/* A recorded column mass: [n_stored_head, rows]. Returns the id. */
KVF_API int32_t kvf_scores_mass(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t mass, uint32_t reduce,
                                char *err, uint32_t err_cap);
/* Euclidean norm of each row's key (what = 0) or value (1): [n_stored_head, rows]. Returns the id. */
KVF_API int32_t kvf_scores_norm(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t what, char *err,
                                uint32_t err_cap);
/*
 * What each key channel carries: the mean square of the last `window` queries in it, times the mean square of all keys.
 * The group's query heads are reduced by `reduce` before the product. Result: [n_stored_head, head_dim]. Returns the id.
 */
KVF_API int32_t kvf_scores_channels(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window,
                                    uint32_t reduce, char *err, uint32_t err_cap);
/* Pooling along the rows, stride 1, same length. kind: 0 maximum, 1 average (borders count as 0); width odd. */
KVF_API int32_t kvf_scores_pool(kvf_cache *cache, uint32_t scores, uint32_t kind, uint32_t width, char *err,
                                uint32_t err_cap);
/* a * x + b, elementwise, as a new object. */
KVF_API int32_t kvf_scores_affine(kvf_cache *cache, uint32_t scores, float a, float b, char *err, uint32_t err_cap);
/* Elementwise sum (what = 0), product (1) or a < b as 1 and 0 (2) of two objects of equal shape. */
KVF_API int32_t kvf_scores_combine(kvf_cache *cache, uint32_t a, uint32_t b, uint32_t what, char *err,
                                   uint32_t err_cap);
/* A copy in which rows first to end - 1 have the value `value`. */
KVF_API int32_t kvf_scores_fill(kvf_cache *cache, uint32_t scores, uint32_t first, uint32_t end, float value, char *err,
                                uint32_t err_cap);
/* A copy in which the last `count` rows of each head have the value `value`. */
KVF_API int32_t kvf_scores_fill_last(kvf_cache *cache, uint32_t scores, uint32_t count, float value, char *err,
                                     uint32_t err_cap);
/*
 * A copy in which each head is multiplied by the share of its sum that its `count` highest scores make up, so that heads
 * that gather their attention weigh more. A head whose sum is 0 stays as it is. Rows of -infinity are left out and stay
 * so. count at most n_row.
 */
KVF_API int32_t kvf_scores_concentrate(kvf_cache *cache, uint32_t scores, uint32_t count, char *err, uint32_t err_cap);
/* Natural logarithm, elementwise, as a new object. */
KVF_API int32_t kvf_scores_log(kvf_cache *cache, uint32_t scores, char *err, uint32_t err_cap);
/* A copy in which the selected rows of each head have the value `value`. A selection of one head counts for every head. */
KVF_API int32_t kvf_scores_fill_selected(kvf_cache *cache, uint32_t scores, uint32_t selection, float value, char *err,
                                         uint32_t err_cap);
/*
 * Each row over the highest of the first `lead` rows and of the `span` rows from itself on, cut to [0, 1]; 0 / 0 is 0.
 * span at least 1.
 */
KVF_API int32_t kvf_scores_relative(kvf_cache *cache, uint32_t scores, uint32_t lead, uint32_t span, char *err,
                                    uint32_t err_cap);
/* Uniform draws in (0, 1], keyed by (seed, layer, head, row). */
KVF_API int32_t kvf_scores_random(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer,
                                  char *err, uint32_t err_cap);

/* ---- Selections: per head, ascending distinct rows ---- */

/* From the caller's lists. counts: [n_head]; rows: the lists one after the other, each ascending. Returns the id. */
KVF_API int32_t kvf_selection_create(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, const uint32_t *rows,
                                     char *err, uint32_t err_cap);
/*
 * The counts[h] rows of each head with the highest scores; equal scores: the lower row. NaN counts as the lowest.
 * counts: [n_head], each at most n_row. Returns the id.
 */
KVF_API int32_t kvf_select_top(kvf_cache *cache, uint32_t scores, const uint32_t *counts, uint32_t n_head, char *err,
                               uint32_t err_cap);
/* How many of the `total` highest scores of all heads together fall to each head. counts: [n_head], written. */
KVF_API int32_t kvf_scores_share(kvf_cache *cache, uint32_t scores, uint32_t total, uint32_t *counts, uint32_t n_head,
                                 char *err, uint32_t err_cap);

/* ---- Objects: scores and selections ---- */

KVF_API int32_t kvf_object_free(kvf_cache *cache, uint32_t object, char *err, uint32_t err_cap);
/* shape: [3] u32, written: kind (0 scores, 1 selection), heads, and rows (scores) or entries in all (selection). */
KVF_API int32_t kvf_object_shape(kvf_cache *cache, uint32_t object, uint32_t *shape, char *err, uint32_t err_cap);
/* values: [n_head, n_row] f32, written. */
KVF_API int32_t kvf_scores_read(kvf_cache *cache, uint32_t scores, float *values, uint32_t n_value, char *err,
                                uint32_t err_cap);
/* counts: [n_head]; rows: [entries]; written. */
KVF_API int32_t kvf_selection_read(kvf_cache *cache, uint32_t selection, uint32_t *counts, uint32_t n_head,
                                   uint32_t *rows, uint32_t n_row, char *err, uint32_t err_cap);

/* ---- Actions on one layer of a sequence ---- */

/*
 * Keeps the selected rows, the first `first` and the last `last` rows of each stored head (a union) and returns the
 * pages of the others. A selection of one head counts for every head; selection 0 selects nothing.
 */
KVF_API int32_t kvf_retain(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                           uint32_t last, char *err, uint32_t err_cap);
enum kvf_merge { KVF_MERGE_MIDPOINT = 0, KVF_MERGE_SIMILARITY = 1 };
/*
 * kvf_retain, but each row that goes is merged into the kept row of its head whose key has the highest cosine with its
 * own (the lower row among equals; norms are at least 1e-6). Keys and values go to the same row; a kept row x becomes
 *   KVF_MERGE_MIDPOINT:   (x + sum of (x + y) / 2) / (1 + n) over its n merged rows y
 *   KVF_MERGE_SIMILARITY: (x + sum of g y) / (1 + sum of g), g = max((cosine + 1) / 2, 1e-6)
 * Positions of kept rows stay. In a head that keeps nothing nothing is merged.
 */
KVF_API int32_t kvf_retain_merged(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection,
                                  uint32_t first, uint32_t last, uint32_t merge, char *err, uint32_t err_cap);
/*
 * Spreads values over later rows: for each row v from `first` to rows - span - 1, in order, share[v] / span of its value is
 * added to the value of each of the next `span` rows; so a row gives on what it was given. Values round to row_dtype at
 * each step. Keys stay. shares: scores [n_stored_head, rows].
 */
KVF_API int32_t kvf_spread_values(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t shares, uint32_t first,
                                  uint32_t span, char *err, uint32_t err_cap);
/* ---- Packed rows ---- */

enum kvf_axis { KVF_PER_CHANNEL = 0, KVF_PER_TOKEN = 1 };
enum kvf_levels {
    KVF_LEVELS_EVEN = 0,  /* evenly spaced between the lowest and the highest value of a group */
    KVF_LEVELS_FITTED = 1 /* 2^bits levels per stored head, fitted to the rows that are packed first */
};
enum kvf_format_flag {
    KVF_PACK_ONCE = 1,     /* pack what kvf_pack finds; rows that are appended later stay plain */
    KVF_KEYS_UNROTATED = 2 /* keys are packed as they were before rotation and rotated when they are read */
};

/*
 * How rows are packed, KVF_PAGE_ROWS to a page. Per channel, the rows of a page share a scale; per token, a group of
 * channels of a row does. Scales and offsets are f16, so values beyond 65504 saturate.
 */
typedef struct kvf_format {
    uint32_t size;
    uint32_t flags;          /* kvf_format_flag */
    uint32_t residual;       /* newest rows that stay plain at least */
    uint32_t key_channels;   /* channels of the keys that are stored; 0: all. Needs KVF_PACK_ONCE. */
    uint32_t key_bits;       /* 2, 3, 4 or 8; 0: elements of row_dtype, and the rest of the key_ fields is 0 */
    uint32_t key_axis;       /* kvf_axis */
    uint32_t key_group;      /* channels of a group with KVF_PER_TOKEN, a multiple of 16; 0: all. Per channel: 0 */
    uint32_t key_levels;     /* kvf_levels; fitted ones need at most 4 bits */
    uint32_t key_outliers;   /* elements of a page that are stored as they are: those farthest from their group's middle */
    uint32_t key_rank;       /* rank of a correction of what the codes lose, fitted to the rows that are packed first */
    uint32_t value_bits;     /* the same for values */
    uint32_t value_axis;
    uint32_t value_group;
    uint32_t value_levels;
    uint32_t value_outliers;
    uint32_t value_rank;
} kvf_format;

/*
 * Packs rows of one layer, per stored head: all but the newest `residual`, whole pages of them; with KVF_PACK_ONCE all of
 * those, the last page partly filled. Unless KVF_PACK_ONCE, the format stays with the layer, and whenever `residual` plain
 * rows and a page more are there a decode step packs the oldest ones first. Attention and scores read the packed rows;
 * rows that kvf_retain leaves packed and whole stay as they are, others are unpacked and packed anew.
 * rows:     0, or a selection of what to pack; the others stay plain. Needs KVF_PACK_ONCE.
 * channels: 0, or a selection of key channels, key_channels of them for every head
 */
KVF_API int32_t kvf_pack(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_format *format, uint32_t rows,
                         uint32_t channels, char *err, uint32_t err_cap);
/* bytes: [2] f64, written: of one packed page, and of what the packed pages of a stored head share. */
KVF_API int32_t kvf_format_bytes(kvf_cache *cache, const kvf_format *format, double *bytes, char *err,
                                 uint32_t err_cap);
/* Rows in packed pages. rows: [n_layer, n_stored_head] u32, written. */
KVF_API int32_t kvf_sequence_packed(kvf_cache *cache, uint32_t sequence, uint32_t *rows, uint32_t n_rows, char *err,
                                    uint32_t err_cap);

/* ---- Reading ---- */

/*
 * Makes a layer and the one before it share the directions of their rows: of the two keys of a row the direction between
 * them is kept once, on the great circle at `interpolation` of the way from the layer before (0) to this one (1), and each
 * layer keeps the length of its own; the same for values. The `n_exact` rows of each head whose two keys (values) differ
 * most in direction stay as they are in both layers. With `within` from 0 to 1 (and n_exact 0) these are instead the rows
 * whose angle is less than `within` of the range of the head's angles below the greatest one. Attention puts rows together again as it reads them; rows that come
 * later are kept whole by each layer. Both layers must hold the same rows, plain ones, without a step program; afterwards
 * neither can be scored, evicted, merged, packed or shared again. Bytes of what is shared count for the layer before.
 */
KVF_API int32_t kvf_share_directions(kvf_cache *cache, uint32_t sequence, uint32_t layer, float interpolation,
                                     uint32_t n_exact, float within, char *err, uint32_t err_cap);
/* What a head holds, as f32. what: 0 keys, 1 values. rows: [rows, head_dim], written. */
KVF_API int32_t kvf_read_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t what,
                              float *rows, double rows_bytes, char *err, uint32_t err_cap);
/* positions: [rows] u32, written: the logical position of each row. */
KVF_API int32_t kvf_read_positions(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head,
                                   uint32_t *positions, uint32_t n_position, char *err, uint32_t err_cap);

#ifdef __cplusplus
}
#endif

#endif
