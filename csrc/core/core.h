/*
 * What the parts of the library share: handles, pages, tables, sequences, objects. Not public.
 *
 * core/ owns all bookkeeping and every check of arguments; it is the same source in both builds. A backend (cpu/ or
 * cuda/) implements backend.h: it owns memory and arithmetic and trusts what core hands it.
 */
#ifndef KVF_CORE_H
#define KVF_CORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../kvf.h"

#define KV_NO_TOKEN 0xffffffffu
#define KV_MAX_STOP 64
#define KV_MAX_MASS 4
#define KV_MAX_RANGE 64
#define KV_MAX_SEQUENCE 65536
#define KV_MAX_OBJECT 65536

/* ---- Errors ---- */

typedef struct kv_err {
    char *text; /* caller's buffer, may be NULL */
    uint32_t cap;
} kv_err;

/* Writes the message (printf style) and returns `status`. */
int32_t kv_fail(kv_err err, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- Device ---- */

struct kvf_device {
    uint32_t magic;
    atomic_flag busy;        /* one call at a time for the device and all its models and caches */
    atomic_uint n_holder;    /* its handle, and its live models and caches; the last one closes it */
    kvf_device_info info;
    void *impl;              /* backend's own */
};

/* ---- Model ---- */

struct kvf_model {
    uint32_t magic;
    kvf_device *dev;
    kvf_model_config config;
    uint32_t group;          /* n_head / n_kv_head */
    float *inv_freq;         /* [head_dim / 2], host */
    uint32_t *layer_window;  /* [n_layer], host; 0: none */
    uint8_t *loaded;         /* one byte per row of every tensor, host; 1: loaded. Freed once the model is ready */
    bool ready;
    void *impl;              /* backend's weights */
};

/* Rows and columns of a tensor (vectors: 1 row); false if the model has no such tensor. */
bool kv_tensor_shape(const kvf_model *model, uint32_t tensor, uint32_t *n_row, uint32_t *n_col);

/* ---- Pages ---- */

/*
 * A plain page holds KVF_PAGE_ROWS rows of one stored head: keys, values and one u32 position per row. How they are
 * laid out inside is the backend's choice; its size is page_bytes.
 */
typedef struct kv_page {
    void *data;    /* backend memory, page_bytes long */
    uint32_t refs; /* tables that hold it; 0: free */
    uint32_t next; /* next free index */
} kv_page;

typedef struct kv_table {
    uint32_t *page;  /* [n_page] indices into the cache's pages */
    uint32_t n_page; /* always ceil(rows / KVF_PAGE_ROWS), except while rows are being appended */
    uint32_t cap_page;
    uint32_t rows;
} kv_table;

/* ---- Objects: scores and selections ---- */

enum kv_object_kind { KV_FREE = 0, KV_SCORES = 1, KV_SELECTION = 2 };

typedef struct kv_object {
    uint32_t kind;
    uint32_t n_head;
    uint32_t n_row;   /* scores: rows; selection: entries of all heads */
    uint32_t bound;   /* selection: above every chosen row */
    float *values;    /* scores: [n_head, n_row], backend memory */
    uint32_t *counts; /* selection: [n_head], host */
    uint32_t *rows;   /* selection: lists one after the other, ascending, backend memory */
} kv_object;

/* ---- Sequences ---- */

/* What prefill recorded; shared by forks. All arrays are backend memory. */
typedef struct kv_observations {
    uint32_t refs;
    uint32_t n_layer;
    uint32_t n_token;
    uint32_t n_window; /* queries recorded per layer; at most n_token */
    uint32_t n_mass;
    uint32_t n_range;
    uint32_t range[KV_MAX_RANGE][3]; /* mass, first query, end */
    float **window_q;                /* [n_layer] of [n_head, n_window, head_dim], rotated; NULL before the layer ran */
    float **mass;                    /* [n_layer * n_mass] of [n_head, n_token]; NULL before the layer ran */
} kv_observations;

typedef struct kv_prefill {
    uint32_t n_token;
    uint32_t *tokens;    /* host; NULL when recording from tensors */
    uint32_t next_layer; /* layers before it are done */
    bool projected;      /* KVF_PHASE_PROJECT of next_layer is done */
    kvf_model *model;    /* NULL when recording */
    void *impl;          /* backend's activations */
} kv_prefill;

typedef struct kv_sequence {
    bool live;
    uint32_t granularity;
    uint32_t n_stored_head;
    uint32_t position;       /* tokens seen: prompt, then every token that was run through the model */
    kv_table *table;         /* [n_layer * n_stored_head] */
    kv_prefill *prefill;     /* while prefilling */
    kv_observations *observe;
    float *logits;           /* [vocab], backend memory; NULL before the end of prefill */
    uint32_t vocab;          /* of logits */
    uint32_t pending;        /* sampled token that was not run yet, or KV_NO_TOKEN */
    uint32_t n_generated;
    bool finished;
    kvf_sampling sampling;
    uint32_t n_stop;
    uint32_t stop[KV_MAX_STOP];
    void *impl;              /* backend's own, may stay NULL */
} kv_sequence;

/* ---- Cache ---- */

struct kvf_cache {
    uint32_t magic;
    kvf_device *dev;
    kvf_cache_config config;
    uint32_t group;
    uint32_t page_bytes;
    kv_page *page;       /* [cap_page] */
    uint32_t n_page;     /* slots ever used */
    uint32_t cap_page;
    uint32_t free_page;  /* head of the free list, KV_NO_TOKEN: empty */
    uint32_t held_page;  /* pages with refs > 0 */
    double resident_bytes;
    double peak_bytes;
    kv_sequence *sequence; /* [cap_sequence]; id = index + 1 */
    uint32_t cap_sequence;
    kv_object *object;     /* [cap_object]; id = index + 1 */
    uint32_t cap_object;
    void *impl;            /* backend's own, may stay NULL */
};

/* Table of one stored head. */
static inline kv_table *kv_table_of(const kv_sequence *s, uint32_t layer, uint32_t head) {
    return &s->table[(size_t)layer * s->n_stored_head + head];
}

/* Address of row `row`'s page. */
static inline void *kv_page_data(const kvf_cache *cache, const kv_table *t, uint32_t row) {
    return cache->page[t->page[row / KVF_PAGE_ROWS]].data;
}

/* Query heads that read one stored head: group with kv_head granularity, else 1. */
static inline uint32_t kv_readers(const kvf_cache *cache, const kv_sequence *s) {
    return cache->config.n_head / s->n_stored_head;
}

/*
 * Makes room for n more rows in one table, all writable: copies a shared tail page first. Does not change `rows`; the
 * backend writes the rows and core or the backend then adds n. Fails with KVF_ERR_MEMORY at the limit, changing nothing.
 */
int32_t kv_table_reserve(kvf_cache *cache, kv_table *t, uint32_t n, kv_err err);
/*
 * Room for the n rows of a prefill in all tables of a layer. With query_head granularity the tables of one group share
 * their pages; the backend writes through the group's first table, and all tables' rows are set by the caller.
 */
int32_t kv_layer_reserve_prefill(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err);
/* Drops the last page reference of every table beyond its rows (after a failed or cancelled append). */
void kv_table_trim(kvf_cache *cache, kv_table *t);

/*
 * Samples from host logits [vocab] by s->sampling, lowest id among equals, draws keyed by (seed, n_generated). Stop
 * tokens are excluded while n_generated < min_new_token. Pure function of its arguments. scratch: [vocab] u32 + f32.
 */
uint32_t kv_sample(const kv_sequence *s, const float *logits, uint32_t vocab, void *scratch);
/* Notes a sampled token: pending, n_generated, finished. */
void kv_note_token(kv_sequence *s, uint32_t token);
/* Philox-4x32-10: four words from a 128-bit counter and a 64-bit key. */
void kv_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
