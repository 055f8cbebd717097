/*
 * What the parts of the library share: handles, pages, tables, sequences, objects. Not public.
 *
 * core/ owns all bookkeeping and every check of arguments; it is the same source in both builds. A backend (cpu/ or
 * cuda/) implements backend.h: it owns memory and arithmetic and trusts what core hands it.
 */
#ifndef KVF_CORE_H
#define KVF_CORE_H

#ifndef __cplusplus
#include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../kvf.h"

#ifdef __CUDACC__
#define KV_ANYWHERE __host__ __device__ /* for arithmetic that kernels share */
#else
#define KV_ANYWHERE
#endif

#define KV_NO_TOKEN 0xffffffffu
#define KV_MAX_STOP 64
#define KV_MAX_MASS 4
#define KV_MAX_RANGE 64
#define KV_MAX_TOKEN (1u << 24) /* tokens of a sequence */
#define KV_MAX_LAYER 1024
#define KV_MAX_HEAD 4096
#define KV_MAX_ID 65535          /* live sequences, and live objects, of a cache */
#define KV_MAX_ELEMENT (1u << 28) /* elements of one score or selection object */

/* ---- Errors ---- */

typedef struct kv_err {
    char *text; /* caller's buffer, may be NULL */
    uint32_t cap;
} kv_err;

/* Writes the message (printf style) and returns `status`. */
int32_t kv_fail(kv_err err, int32_t status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* ---- Handles ---- */

enum kv_kind { KV_DEVICE = 1, KV_MODEL = 2, KV_CACHE = 3 };

/*
 * First member of every handle. Live handles are on one list of the process, and a pointer that is not on it is refused
 * without being read: a freed or invented handle is an error, not a crash.
 */
typedef struct kv_handle {
    struct kv_handle *next;
    uint32_t kind;
} kv_handle;

/* Puts a finished handle on the list. */
void kv_handle_add(kv_handle *handle);
/*
 * Finds the handle and takes its device for this call, or fails: KVF_ERR_ARG when it is not a live handle of that kind,
 * KVF_ERR_BUSY when another call has the device. `action` completes "Cannot ...".
 */
int32_t kv_enter(const void *handle, uint32_t kind, const char *action, kv_err err);
/* For the free functions: waits while the device is taken, then takes it and the handle off the list. False: not live. */
bool kv_enter_to_free(const void *handle, uint32_t kind);
/* Gives the device back. */
void kv_leave(kvf_device *dev);
/* Whether a second handle of a call is live; the call has the device of `dev` already, and it must be the same. */
bool kv_shares_device(const void *handle, uint32_t kind, const kvf_device *dev);
/* References that keep a device: the caller's handle and one per model and cache. The last one closes it. */
void kv_device_retain(kvf_device *dev);
void kv_device_release(kvf_device *dev);

/* ---- Device ---- */

struct kvf_device {
    kv_handle handle;
    bool busy;     /* taken by a call; guarded by the lock of the handle list, like refs */
    uint32_t refs;
    kvf_device_info info;
    void *impl;    /* backend's own */
};

/* ---- Model ---- */

struct kvf_model {
    kv_handle handle;
    kvf_device *dev;
    uint32_t refs;           /* the caller's handle and one per running prefill */
    kvf_model_config config;
    uint32_t group;          /* n_head / n_kv_head */
    float *inv_freq;         /* [head_dim / 2], host */
    uint32_t *layer_window;  /* [n_layer], host; 0: none */
    uint8_t *loaded;         /* one byte per row of every tensor, host; 1: loaded. NULL once the model is ready */
    bool ready;
    void *impl;              /* backend's weights */
};

/* Rows and columns of a tensor (vectors: 1 row); false if the model has no such tensor. */
bool kv_tensor_shape(const kvf_model *model, uint32_t tensor, uint32_t *n_row, uint32_t *n_col);
/* Whether there is one such tensor per layer, and per expert. */
bool kv_tensor_per_layer(uint32_t tensor);
bool kv_tensor_per_expert(const kvf_model *model, uint32_t tensor);
/* Drops one reference; the last one frees the weights. The caller has the device. */
void kv_model_release(kvf_model *model);

/* ---- Pages ---- */

/*
 * A plain page holds KVF_PAGE_ROWS rows of one stored head: keys, values and one u32 position per row. How they are
 * laid out inside is the backend's choice; its size is the cache's page_bytes. A packed page holds as many rows in a
 * format (packed.h); its size is the format's page_bytes.
 */
typedef struct kv_page {
    void *data;     /* backend memory */
    uint32_t refs;  /* tables that hold it; 0: free */
    uint32_t next;  /* next free index, while refs is 0 */
    uint32_t bytes; /* of data */
} kv_page;

/*
 * How the packed pages of tables hold their rows. One per distinct description in use, kept by the tables that have it;
 * compared by content.
 */
typedef struct kv_format {
    struct kv_format *next; /* in the cache's list */
    uint32_t refs;          /* tables that have it */
    kvf_format config;
    float *inv_freq;        /* [head_dim / 2] angles per position, when keys are packed as they were before rotation */
    uint32_t page_bytes;    /* of one packed page */
    uint32_t frame_bytes;   /* of what a table's packed pages have in common (its frame page); 0: nothing */
    void *impl;             /* backend's own, may stay NULL; be_format_close frees it */
} kv_format;

/*
 * A table's rows: the first `packed` rows lie in packed pages, KVF_PAGE_ROWS each, the last of which may be partly
 * filled; the rest follows in plain pages, beginning with a new one. Positions ascend within each of the two parts.
 */
typedef struct kv_table {
    uint32_t *page;  /* [n_page] indices into the cache's pages: packed ones, then plain ones */
    uint32_t n_page; /* always kv_table_pages, except while rows are being appended */
    uint32_t cap_page;
    uint32_t rows;
    uint32_t packed;   /* rows in packed pages; 0 without a format */
    uint32_t frame;    /* index of the frame page + 1; 0: none */
    kv_format *format; /* NULL: plain rows only */
    uint32_t shared;   /* rows whose pages hold directions that another layer has too (share.h); 0: none. Only plain rows */
    uint32_t exact[2]; /* of them, rows whose keys, and whose values, are kept as they were */
    uint32_t scale;    /* index of the page with lengths and exact rows + 1; 0: none */
    bool borrows;      /* the pages that both layers hold count for the layer before */
} kv_table;

/* ---- Ids ---- */

/*
 * Ids are positive: the slot's index + 1 in the low 16 bits and the slot's generation above. An id of a freed item stays
 * invalid until its slot was used 32768 times again.
 */
typedef struct kv_slot {
    void *item; /* NULL: free */
    uint32_t generation;
} kv_slot;

typedef struct kv_ids {
    kv_slot *slot; /* [n_slot] */
    uint32_t n_slot;
    uint32_t n_live;
    uint32_t n_full; /* slots before it are taken */
} kv_ids;

static inline uint32_t kv_id_slot(uint32_t id) { return (id & 0xffffu) - 1; }
/* Returns the id, or 0 without memory or when KV_MAX_ID items are live. */
uint32_t kv_ids_add(kv_ids *ids, void *item);
/* The item, or NULL when the id is not live. */
void *kv_ids_get(const kv_ids *ids, uint32_t id);
/* Takes the item out and returns it, or NULL. */
void *kv_ids_remove(kv_ids *ids, uint32_t id);

/* ---- Objects: scores and selections ---- */

enum kv_object_kind { KV_SCORES = 1, KV_SELECTION = 2 };

typedef struct kv_object {
    uint32_t kind;    /* KV_SCORES or KV_SELECTION */
    uint32_t n_head;
    uint32_t n_row;   /* scores: rows; selection: entries of all heads */
    float *values;    /* scores: [n_head, n_row], backend memory */
    uint32_t *lens;   /* scores: [n_head], host: rows of each head, those behind are anything; NULL: all have n_row */
    uint32_t *counts; /* selection: [n_head], host */
    uint32_t *ends;   /* selection: [n_head], host; all entries of the head's list are below */
    uint32_t *rows;   /* selection: lists one after the other, ascending, backend memory */
} kv_object;

/* ---- Sequences ---- */

typedef struct kv_sequence kv_sequence;

/*
 * What prefill recorded; shared by forks. The arrays are backend memory: the backend allocates a layer's arrays in the
 * call that fills them (window_q: PROJECT; window_lse, where the backend has use for it, and mass: ATTEND; window_q and mass:
 * be_record_layer); core frees them, also when it fails.
 */
typedef struct kv_observations {
    uint32_t refs;
    uint32_t n_layer;
    uint32_t n_token;
    uint32_t n_window; /* queries recorded per layer; at most n_token */
    uint32_t n_mass;
    uint32_t n_range;
    uint32_t range[KV_MAX_RANGE][3]; /* mass, first query, end */
    float **window_q;                /* [n_layer] of [n_head, n_window, head_dim], rotated; NULL before the layer ran */
    float **window_lse;              /* [n_layer] of [n_head, n_window]: log-sum-exp of these queries' scores over the rows
                                        that they see; NULL: not recorded */
    float **mass;                    /* [n_layer * n_mass] of [n_head, n_token]; NULL before the layer ran; for layer
                                        and mass at layer * n_mass + mass, indexed by position */
} kv_observations;

/* ---- Step programs ---- */

/* Rows of one segment of a statistic; segments are to statistics what pages are to rows. */
#define KV_SEGMENT_ROWS 512u
/* Bounds of so many choices of rows lie together. */
#define KV_BOUND_BLOCKS 32u

/* What the program of a layer keeps of one stored head. */
typedef struct kv_live {
    kvf_op evict;        /* size 0: rows are not evicted */
    float **mass;        /* [n_mass] segments of [readers, KV_SEGMENT_ROWS], backend memory; row i's is in segment i / KV_SEGMENT_ROWS */
    uint32_t n_mass;     /* always ceil(rows / KV_SEGMENT_ROWS), except while rows are being appended; 0 without KVF_OP_MASS */
    uint32_t cap_mass;
    float **bounds;      /* [n_bounds] of 2 * head_dim * KV_BOUND_BLOCKS: highest, then lowest, each [head_dim][KV_BOUND_BLOCKS] */
    uint32_t n_bounds;
    uint32_t cap_bounds;
    bool shuffled;       /* rows are not in order of position */
} kv_live;

/* The program of one layer. */
typedef struct kv_step {
    kvf_op mass, queries, pages, relative; /* size 0: the program has none */
    bool evicts;
    float *ring;         /* [n_head, queries.last, head_dim], rotated, backend memory; position p at p % queries.last */
    uint32_t n_ring;     /* queries in the ring: those of the last n_ring tokens */
    kv_live *head;       /* [n_stored_head] */
} kv_step;

/* Bytes of one segment of masses, and of one of bounds. */
size_t kv_mass_bytes(const kvf_cache *cache, const kv_sequence *s);
size_t kv_bounds_bytes(const kvf_cache *cache);
/* Segments that so many rows need. */
uint32_t kv_mass_segments(const kv_step *step, uint32_t rows);
uint32_t kv_bounds_segments(const kv_step *step, uint32_t rows);
/* Whether a head that held `rows` rows, the new token's included, evicts in the step that makes the sequence `seen` long. */
static inline bool kv_evicts(const kv_live *live, uint32_t rows, uint32_t seen) {
    return live->evict.size != 0 && rows > live->evict.above && seen % live->evict.every == 0;
}
/*
 * What n steps of a sequence of `seen` tokens do to the number of a head's rows: *rows becomes what is left, *evicts whether
 * any are evicted. Returns the most that the head holds in between. live: NULL without a program.
 */
uint32_t kv_step_rows(const kv_live *live, uint32_t *rows, uint32_t seen, uint32_t n, bool *evicts);
/*
 * Before n steps: room in whatever the layer's program keeps for the most rows that a head holds; pages of heads that will
 * evict become the sequence's own. After a failure kv_step_trim takes the room back; afterwards it drops what evicted rows
 * needed.
 */
int32_t kv_step_reserve(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err);
void kv_step_trim(kvf_cache *cache, kv_sequence *s, uint32_t layer);
/* After rows of a head were retained: what the program keeps follows. rows: backend memory, ascending, before the move. */
int32_t kv_step_retain(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const uint32_t *rows, uint32_t n,
                       kv_err err);
/* After keys of a layer's rows were changed. */
int32_t kv_step_rekey(kvf_cache *cache, kv_sequence *s, uint32_t layer, kv_err err);
/* Puts the rows of all heads of a layer in order of position. */
int32_t kv_layer_order(kvf_cache *cache, kv_sequence *s, uint32_t layer, kv_err err);
/* A fork's copy of the parent's programs. */
int32_t kv_step_fork(kvf_cache *cache, kv_sequence *copy, const kv_sequence *s, kv_err err);
/* Frees the program of a layer; of all layers. */
void kv_step_free(kvf_cache *cache, kv_sequence *s, uint32_t layer);
void kv_steps_free(kvf_cache *cache, kv_sequence *s);
/* Bytes beside the pages: by arithmetic over row counts, and as found. */
double kv_step_promised(const kvf_cache *cache, const kv_sequence *s);
double kv_step_owned(const kvf_cache *cache, const kv_sequence *s);

typedef struct kv_prefill {
    uint32_t n_token;
    double kept_bytes;   /* what all layers' rows will take when policies have acted; 0: not known */
    uint32_t *tokens;    /* host; NULL when recording from tensors */
    uint32_t next_layer; /* layers before it are done; when recording: how many are */
    uint8_t *recorded;   /* [n_layer] when recording from tensors; 1: done */
    bool projected;      /* KVF_PHASE_PROJECT of next_layer is done */
    bool failed;         /* the backend failed in the middle of a layer: the activations are worth nothing */
    kvf_model *model;    /* NULL when recording */
    uint32_t *sparse;    /* host, [n_head, 3]: patterns of the layer that is projected; NULL: attention over all rows */
    void *impl;          /* backend's activations */
} kv_prefill;

struct kv_sequence {
    uint32_t slot;           /* below KV_MAX_ID; no other live sequence of the cache has it */
    uint32_t granularity;
    uint32_t n_stored_head;
    uint32_t position;       /* tokens seen: prompt (once prefill has ended), then every token that was run */
    kv_table *table;         /* [n_layer * n_stored_head] */
    kv_prefill *prefill;     /* while prefilling */
    kv_observations *observe;
    float *inv_freq;         /* [head_dim / 2] of the model that prefilled it; NULL: recorded, or empty */
    float *logits;           /* [vocab], backend memory; NULL before the end of prefill */
    uint32_t vocab;          /* of logits */
    uint32_t pending;        /* sampled token that was not run yet, or KV_NO_TOKEN; a stop token is never run */
    uint32_t n_generated;
    bool finished;
    kvf_sampling sampling;
    uint32_t n_stop;
    uint32_t stop[KV_MAX_STOP];
    bool listed;             /* used by kvf_decode to find an id that is given twice */
    kv_step **step;          /* [n_layer] of programs or NULL; NULL while no layer has one */
    void *impl;              /* backend's own, may stay NULL; be_sequence_close frees it */
};

/* ---- Cache ---- */

struct kvf_cache {
    kv_handle handle;
    kvf_device *dev;
    kvf_cache_config config;
    uint32_t group;
    uint32_t page_bytes; /* of a plain page */
    kv_page *page;       /* [cap_page] */
    uint32_t n_page;     /* slots ever used */
    uint32_t cap_page;
    uint32_t free_page;  /* head of the free list, KV_NO_TOKEN: empty */
    uint32_t held_page;  /* pages with refs > 0 */
    uint32_t shared_page; /* of them, those with refs > 1 */
    size_t live_bytes;   /* memory of step programs, beside the pages */
    uint64_t held_bytes; /* of the pages held */
    double peak_bytes;   /* highest kv_held_bytes since the last reset */
    kv_format *formats;  /* those in use */
    kv_ids sequences;    /* of kv_sequence; their addresses do not change */
    kv_ids objects;      /* of kv_object */
    void *impl;          /* backend's own, may stay NULL; be_cache_close frees it */
};

/* Memory held now. */
static inline double kv_held_bytes(const kvf_cache *cache) {
    return (double)cache->held_bytes + (double)cache->live_bytes;
}

/* Pages of a table that count for the layer before: whole pages of shared rows. */
static inline uint32_t kv_borrowed_pages(const kv_table *t) { return t->borrows ? t->shared / KVF_PAGE_ROWS : 0; }

/* The program of a layer, or NULL. */
static inline kv_step *kv_step_of(const kv_sequence *s, uint32_t layer) { return s->step == NULL ? NULL : s->step[layer]; }

/* Rows of one head of a score object. */
static inline uint32_t kv_len_of(const kv_object *scores, uint32_t head) {
    return scores->lens == NULL ? scores->n_row : scores->lens[head];
}

/* Tokens were run after the recorded prompt, or nothing was recorded. */
static inline bool kv_decoded(const kv_sequence *s) {
    return s->prefill == NULL && (s->observe == NULL || s->position != s->observe->n_token);
}

/* Table of one stored head. */
static inline kv_table *kv_table_of(const kv_sequence *s, uint32_t layer, uint32_t head) {
    return &s->table[(size_t)layer * s->n_stored_head + head];
}

static inline uint32_t kv_packed_pages(const kv_table *t) {
    return t->packed / KVF_PAGE_ROWS + (t->packed % KVF_PAGE_ROWS != 0);
}

/* Pages that the table's rows need. */
static inline uint32_t kv_table_pages(const kv_table *t) {
    const uint32_t plain = t->rows - t->packed;
    return kv_packed_pages(t) + plain / KVF_PAGE_ROWS + (plain % KVF_PAGE_ROWS != 0);
}

/* Index within the table of row `row`'s page, and the row's slot in it. */
static inline uint32_t kv_page_of(const kv_table *t, uint32_t row) {
    return row < t->packed ? row / KVF_PAGE_ROWS : kv_packed_pages(t) + (row - t->packed) / KVF_PAGE_ROWS;
}
static inline uint32_t kv_slot_of(const kv_table *t, uint32_t row) {
    return (row < t->packed ? row : row - t->packed) % KVF_PAGE_ROWS;
}

/* First row of page `page` of the table, and the number of its rows. */
static inline uint32_t kv_page_first(const kv_table *t, uint32_t page) {
    const uint32_t n = kv_packed_pages(t);
    return page < n ? page * KVF_PAGE_ROWS : t->packed + (page - n) * KVF_PAGE_ROWS;
}
static inline uint32_t kv_page_rows(const kv_table *t, uint32_t page) {
    const uint32_t n = (page < kv_packed_pages(t) ? t->packed : t->rows) - kv_page_first(t, page);
    return n < KVF_PAGE_ROWS ? n : KVF_PAGE_ROWS;
}

/* Memory of row `row`'s page. */
static inline void *kv_page_data(const kvf_cache *cache, const kv_table *t, uint32_t row) {
    return cache->page[t->page[kv_page_of(t, row)]].data;
}

/* Memory of the table's frame page, NULL where there is none. */
static inline void *kv_frame_data(const kvf_cache *cache, const kv_table *t) {
    return t->frame == 0 ? NULL : cache->page[t->frame - 1].data;
}

/* Query heads that read one stored head: group with kv_head granularity, else 1. */
static inline uint32_t kv_readers(const kvf_cache *cache, const kv_sequence *s) {
    return cache->config.n_head / s->n_stored_head;
}

/* Finds a live sequence or object; NULL with a message otherwise. kind: a kv_object_kind. */
kv_sequence *kv_find_sequence(kvf_cache *cache, uint32_t id, const char *action, kv_err err);
kv_object *kv_find_object(kvf_cache *cache, uint32_t id, uint32_t kind, const char *action, kv_err err);
/* Whether the layer is below n_layer, with a message if not; the same for a stored head. */
bool kv_check_layer(const kvf_cache *cache, uint32_t layer, const char *action, kv_err err);
bool kv_check_head(const kv_sequence *s, uint32_t head, const char *action, kv_err err);
/* Whether the layer shares no directions with another one, with a message if it does. */
bool kv_check_whole(const kv_sequence *s, uint32_t layer, const char *action, kv_err err);

/*
 * Page memory comes from be_alloc page by page and goes back to be_free with the last reference: nothing is held back,
 * so resident_bytes is all there is.
 *
 * Takes n fresh pages of `bytes` bytes (one reference each) into page[0, n). All or nothing; fails with KVF_ERR_MEMORY
 * at the limit.
 */
int32_t kv_pages_take(kvf_cache *cache, uint32_t *page, uint32_t n, uint32_t bytes, kv_err err);
void kv_page_retain(kvf_cache *cache, uint32_t page);
void kv_page_release(kvf_cache *cache, uint32_t page);
/* Room for n_page page indices in the table. */
int32_t kv_table_grow(kv_table *t, uint32_t n_page, kv_err err);
/* Releases all pages, the format and the index array. */
void kv_table_free(kvf_cache *cache, kv_table *t);
/* Makes the empty table `to` hold the pages, rows and format of `from`. */
int32_t kv_table_share(kvf_cache *cache, kv_table *to, const kv_table *from, kv_err err);

/*
 * Makes room for n more rows in one table, all writable: copies a shared tail page first. Does not change `rows`; the
 * backend writes the rows and then adds n. Fails with KVF_ERR_MEMORY at the limit, leaving the table as it was.
 */
int32_t kv_table_reserve(kvf_cache *cache, kv_table *t, uint32_t n, kv_err err);
/* Makes all pages of the table its own: shared ones are copied. On failure the table is as it was. */
int32_t kv_table_own(kvf_cache *cache, kv_table *t, kv_err err);
/*
 * Room for the n rows of a prefill in all (empty) tables of a layer. With query_head granularity the tables of one group
 * share their pages: the backend writes through the group's first table. core sets the tables' rows once they are written.
 */
int32_t kv_layer_reserve_prefill(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err);
/* Whether `bytes` more fit under the cache's limit, with a message if not. */
int32_t kv_check_limit(const kvf_cache *cache, double bytes, kv_err err);
/* Notes the memory held now in the peak. */
static inline void kv_note_peak(kvf_cache *cache) {
    if (kv_held_bytes(cache) > cache->peak_bytes) cache->peak_bytes = kv_held_bytes(cache);
}

/* Releases the pages beyond kv_table_pages (after a failed or cancelled append). */
void kv_table_trim(kvf_cache *cache, kv_table *t);

/* ---- Packed rows (format.c) ---- */

/* The format of a description, one reference taken; a new one where none is in use. Checks it. inv_freq: NULL allowed. */
int32_t kv_format_find(kvf_cache *cache, const kvf_format *config, const float *inv_freq, kv_format **out, kv_err err);
void kv_format_retain(kv_format *format);
/*
 * Whether a layer with a format may have the program: one that moves rows, or turns them, may not, nor may masses and page
 * choices meet packed rows that do not fill their pages. Either may be NULL.
 */
int32_t kv_check_format_step(const kv_format *format, const kv_step *step, const char *action, kv_err err);
/* NULL allowed. */
void kv_format_release(kvf_cache *cache, kv_format *format);
/*
 * Packs every whole page of rows that the format of a table of a layer no longer wants plain: what decode calls before
 * a step, and retain after moving rows. Tables without a format, or whose format packs once, stay as they are.
 */
int32_t kv_pack_due(kvf_cache *cache, kv_sequence *s, kv_err err);
/*
 * Keeps rows `rows` (host, n of them, ascending) of a table with packed rows: pages at the front that stay whole
 * stay as they are, other packed rows are unpacked and packed again as far as the format wants it.
 */
int32_t kv_table_repack(kvf_cache *cache, kv_table *t, const uint32_t *rows, uint32_t n, kv_err err);

/* How a table was packed before kv_table_unpack; owns the references. */
typedef struct kv_packing {
    kv_format *format; /* NULL: it had none */
    uint32_t frame;
    uint32_t packed;
} kv_packing;

/* Makes all rows plain for an action that writes to them, and takes the format off the table, into *was. */
int32_t kv_table_unpack(kvf_cache *cache, kv_table *t, kv_packing *was, kv_err err);
/* Gives the format back and packs: n rows where it packs once, else what it wants. *was is empty then. */
int32_t kv_table_pack_again(kvf_cache *cache, kv_table *t, kv_packing *was, uint32_t n, kv_err err);

/* The model is live, ready, on the cache's device (which the caller has) and of the cache's shape. */
int32_t kv_check_model(const kvf_model *model, const kvf_cache *cache, const char *action, kv_err err);
/* Token ids are there and below the model's vocabulary. */
int32_t kv_check_tokens(const kvf_model *model, const uint32_t *tokens, uint32_t n_token, const char *action, kv_err err);
/* Ends a prefill: activations, tokens and the reference to the model. NULL allowed. */
void kv_prefill_free(kvf_cache *cache, kv_sequence *s);
/* Bytes of a layer's rows while it runs. */
double kv_prefill_layer_bytes(const kvf_cache *cache, const kv_sequence *s);
/* Bytes of all rows while the last layer runs, beside what the layers before it keep on average. */
double kv_prefill_row_bytes(const kvf_cache *cache, const kv_sequence *s);
/* Drops one reference. NULL allowed. */
void kv_observations_release(kvf_cache *cache, kv_observations *observe);
/* Bytes of a sequence's pages: by arithmetic over its row counts, and by walking its tables. */
double kv_promised_bytes(const kvf_cache *cache, const kv_sequence *s);
double kv_owned_bytes(const kvf_cache *cache, const kv_sequence *s);
/* A copy of [head_dim / 2] angles, to be freed; NULL without memory. */
float *kv_copy_angles(const kvf_cache *cache, const float *inv_freq);
/* NULL allowed. */
void kv_sequence_destroy(kvf_cache *cache, kv_sequence *s);
void kv_object_destroy(kvf_cache *cache, kv_object *object);

/*
 * Samples from host logits [vocab] by s->sampling, lowest id among equals, draws keyed by (seed, n_generated). Stop
 * tokens are excluded while n_generated < min_new_token. Pure function of its arguments. scratch: [vocab] u32 + f32.
 */
uint32_t kv_sample(const kv_sequence *s, const float *logits, uint32_t vocab, void *scratch);
/* Notes a sampled token: pending, n_generated, finished. */
void kv_note_token(kv_sequence *s, uint32_t token);
/*
 * Draws of rows in a step: keys of one head in the step that makes the sequence `seen` long, from Philox; and the 24 bits of
 * the row at `position`, by two rounds of a 32-bit mixer (MurmurHash3's), so that many rows can be drawn at a time. With bits
 * b the draw is -log(-log((b + 0.5) * 2^-24)).
 */
void kv_draw_keys(uint32_t seed, uint32_t layer, uint32_t head, uint32_t seen, uint32_t keys[2]);
KV_ANYWHERE static inline uint32_t kv_draw_bits(uint32_t position, const uint32_t keys[2]) {
    uint32_t h = position * 0x9e3779b9u + keys[0];
    for (uint32_t i = 0; i < 2; i++) {
        h = (h ^ (h >> 16)) * 0x85ebca6bu;
        h = (h ^ (h >> 13)) * 0xc2b2ae35u;
        h = (h ^ (h >> 16)) ^ keys[1];
    }
    return h >> 8;
}
/* Philox-4x32-10: four words from a 128-bit counter and a 64-bit key. */
void kv_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

#endif
