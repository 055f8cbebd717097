/*
 * What a build must provide: memory, arithmetic, and the layout of weights and pages. core/ calls these after all checks;
 * backend memory is only ever touched through them. All return KVF_OK or a negative status unless said otherwise. On the
 * GPU they queue work on the device's stream; the ones that return values to the host wait for it.
 */
#ifndef KVF_BACKEND_H
#define KVF_BACKEND_H

#include "core.h"

/* ---- Device ---- */

/* Fills dev->info and dev->impl. */
int32_t be_device_open(kvf_device *dev, const kvf_device_options *options, kv_err err);
void be_device_close(kvf_device *dev);
/* Whether it can be used: a GPU that failed for good refuses every call, always with the same message. */
int32_t be_device_check(kvf_device *dev, kv_err err);
/* Refreshes info.free_bytes. */
void be_device_refresh(kvf_device *dev);
double be_read_bandwidth(kvf_device *dev, double bytes);

/* ---- Memory: NULL when there is none left; 64-byte aligned; be_free takes NULL ---- */

void *be_alloc(kvf_device *dev, size_t bytes);
void be_free(kvf_device *dev, void *data);
int32_t be_upload(kvf_device *dev, void *to, const void *from_host, size_t bytes, kv_err err);
int32_t be_download(kvf_device *dev, void *to_host, const void *from, size_t bytes, kv_err err);
int32_t be_copy(kvf_device *dev, void *to, const void *from, size_t bytes, kv_err err);

/* ---- Weights ---- */

int32_t be_model_open(kvf_model *model, kv_err err);
void be_model_close(kvf_model *model);
/* Whole rows of one tensor, converted from `dtype` (data is host memory). */
int32_t be_model_load(kvf_model *model, uint32_t tensor, uint32_t layer, uint32_t expert, uint32_t dtype,
                      uint32_t first_row, uint32_t n_row, const void *data, kv_err err);
/* Where most rows' data will lie from now on; be_model_close forgets it. data NULL, bytes 0: nowhere. */
int32_t be_model_source(kvf_model *model, void *data, size_t bytes, kv_err err);
/* All rows are there: derived data may be made. */
int32_t be_model_finish(kvf_model *model, kv_err err);
int32_t be_model_randomize(kvf_model *model, uint32_t seed, kv_err err);
double be_model_bytes(const kvf_model *model);
double be_model_step_bytes(const kvf_model *model);

/* ---- Pages and rows ---- */

/* Bytes of one page of plain rows, a multiple of 64. */
uint32_t be_page_bytes(const kvf_cache_config *config);
/*
 * dst's rows [0, n) become src's rows `rows` (backend memory, ascending); both tables hold pages for their rows, and none
 * of dst's pages is one of src's. dst's are plain; src's packed ones are unpacked. Sets no `rows`.
 */
int32_t be_gather_rows(kvf_cache *cache, kv_table *dst, const kv_table *src, const uint32_t *rows, uint32_t n,
                       kv_err err);
/* Rows of one head: backend memory, ascending. */
typedef struct kv_row_list {
    uint32_t *rows;
    uint32_t n;
} kv_row_list;
/*
 * The same within the tables' own pages, for the heads of a layer: head h's rows [0, n) become its rows `rows` of list[h]
 * (rows[i] >= i); n 0: the head stays as it is. No other table holds the first ceil(n / KVF_PAGE_ROWS) pages. Sets no `rows`.
 */
int32_t be_compact_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, const kv_row_list *list, kv_err err);
/* ---- Packed rows: layouts in packed.h ---- */

typedef struct kv_pack_job {
    kv_format *format;
    const void *frame; /* NULL where the format has none */
    const void *from;  /* a plain page */
    void *to;          /* a packed page */
    uint32_t n_row;    /* the first n_row slots are packed */
} kv_pack_job;

/*
 * Fills a frame page for rows that are about to be packed: n_row rows in plain pages `pages` (host list of backend
 * memory). channels: [key_channels] host, or NULL.
 */
int32_t be_pack_fit(kvf_cache *cache, kv_format *format, const void *const *pages, uint32_t n_row,
                    const uint16_t *channels, void *frame, kv_err err);
int32_t be_pack_pages(kvf_cache *cache, const kv_pack_job *jobs, uint32_t n_job, kv_err err);
/* Fills format->impl, which may stay NULL; a build that cannot pack refuses. */
int32_t be_format_open(kvf_cache *cache, kv_format *format, kv_err err);
/* Frees format->impl, if anything. */
void be_format_close(kvf_cache *cache, kv_format *format);

/* ---- Reading and writing ---- */

/* host f32 [rows, head_dim]; what: 0 keys, 1 values. */
int32_t be_read_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *to_host, kv_err err);
int32_t be_read_positions(kvf_cache *cache, const kv_table *t, uint32_t *to_host, kv_err err);
/* Writes rows [0, n) of a layer's kv head from host f32 k, v [n, head_dim]; positions 0 .. n - 1. Sets no `rows`. */
int32_t be_write_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err);

/*
 * What the table's rows `rows` (backend memory, n of them, ascending, n > 0) become when all other rows are merged into
 * them, as kvf_retain_merged says: k, v [n, head_dim] f32, backend memory. The table stays as it is.
 */
int32_t be_merge_rows(kvf_cache *cache, const kv_table *t, const uint32_t *rows, uint32_t n, uint32_t merge, float *k,
                      float *v, kv_err err);
/* Keys and values of rows [0, n) become k, v [n, head_dim] f32 (backend memory); positions stay. All pages are t's own. */
int32_t be_replace_rows(kvf_cache *cache, kv_table *t, const float *k, const float *v, uint32_t n, kv_err err);
/* As kvf_spread_values, for one head; shares: [rows], backend memory. All pages are t's own. */
int32_t be_spread_values(kvf_cache *cache, kv_table *t, const float *shares, uint32_t first, uint32_t span, kv_err err);

/* Angles between two layers' rows over pi, of plain tables of n rows: to_host [2, n], of keys and of values. */
int32_t be_share_distances(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n, float *to_host,
                           kv_err err);
/*
 * The directions of two layers' rows (kvf_share_directions): `before` and `now` are plain tables of n rows at the same
 * positions (otherwise KVF_ERR_ARG); their directions and positions go into pages of plain rows, and each table's own part
 * (share.h) into own[0] and own[1]. n_exact: [2], host, of keys and of values. All else is backend memory; the tables stay as they are.
 */
int32_t be_share_rows(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n, float interpolation,
                      const uint32_t *n_exact, void *const *pages, void *const own[2], kv_err err);

/* ---- Lives ---- */

/* Free what the backend keeps in impl, if anything. The sequences of a cache are closed before it. */
void be_sequence_close(kvf_cache *cache, kv_sequence *s);
void be_cache_close(kvf_cache *cache);

/* ---- Prefill and decode ---- */

/* Activations into s->prefill->impl. */
int32_t be_prefill_begin(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err);
/*
 * One phase of layer s->prefill->next_layer. PROJECT records observe->window_q of the layer, ATTEND observe->mass. Before
 * PROJECT core reserves the pages; afterwards it sets `rows` of all tables and moves next_layer and projected. After a
 * PROJECT that failed core may ask for it again; after an ATTEND that failed it only ends the prefill.
 */
int32_t be_prefill_layer(kvf_model *model, kvf_cache *cache, kv_sequence *s, uint32_t phase, kv_err err);
/* Whether the build can attend by s->prefill->sparse. */
int32_t be_prefill_sparse(kvf_cache *cache, kv_sequence *s, kv_err err);
/* As kvf_prefill_recall; patterns and shares are host memory. */
int32_t be_prefill_recall(kvf_cache *cache, kv_sequence *s, const uint32_t *patterns, uint32_t n_candidate, float *shares,
                          kv_err err);
/* Last token's logits into s->logits (allocated by core). core calls be_prefill_abort next. */
int32_t be_prefill_end(kvf_model *model, kvf_cache *cache, kv_sequence *s, kv_err err);
int32_t be_prefill_logits(kvf_model *model, kvf_cache *cache, kv_sequence *s, float *to_host, kv_err err);
/* Frees the activations and clears s->prefill->impl; called whenever that is not NULL at the end of a prefill. */
void be_prefill_abort(kvf_cache *cache, kv_sequence *s);
/*
 * Observations of one layer from recorded host tensors: window queries and column masses, as far as s->observe asks for
 * them. Rows are written already and `rows` is set. q: [n_head, n_token, head_dim] f32, host.
 */
int32_t be_record_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, const float *q, kv_err err);
/*
 * The loop of kvf_decode; core has checked everything. Reserves rows itself (kv_table_reserve) before each step and
 * keeps position, pending, n_generated and finished of every sequence up to date; a step that fails leaves them and all
 * rows as before it (core trims the tables). tokens are KV_NO_TOKEN when it is called, control[1]
 * counts on from what it was. With `forced` (n_sequence == 1,
 * [n_step] tokens, nothing pending) it runs those tokens instead of sampling and changes only position and logits:
 * kvf_extend. s->logits is there and s->vocab set even when the sequence had no logits before an extend.
 */
int32_t be_decode(kvf_model *model, kvf_cache *cache, kv_sequence **s, uint32_t n_sequence, uint32_t n_step,
                  const uint32_t *forced, uint32_t *tokens, float *logits, uint32_t *control, kv_err err);

/* ---- Step programs: be_decode carries them out; see kv_step ---- */

/* Whether the backend can carry the program out; a message says why not. */
int32_t be_program_check(const kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_err err);
/* One head's masses become the recorded ones of its rows' positions, or 0. Segments are there. */
int32_t be_live_start(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err);
/* Masses of row i become those of row rows[i] (backend memory, ascending). */
int32_t be_live_compact(kvf_cache *cache, kv_sequence *s, kv_live *live, const uint32_t *rows, uint32_t n, kv_err err);
/* One head's bounds, from its rows. Segments are there. */
int32_t be_live_bounds(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err);
/* Puts one head's rows, and what the program keeps of them, in order of position. No other table holds its pages. */
int32_t be_order_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err);
/* Rows that the layer's page choice takes for the head's queries q [readers, ld_q] (backend memory); returns the count. */
int32_t be_program_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const float *q, size_t ld_q,
                        uint32_t *to_host, kv_err err);

/* ---- Scores: backend memory [n_head, n_row] f32 ---- */

int32_t be_scores_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                         uint32_t reduce, float *out, uint32_t n_row, kv_err err);
/* All n_window recorded queries; to_host: [n_head, n_block, n_block]. */
int32_t be_attention_map(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t block, float *to_host, kv_err err);
/* out: [n_stored_head, head_dim] */
int32_t be_scores_channels(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t reduce, float *out,
                           kv_err err);
int32_t be_scores_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t mass, uint32_t reduce, float *out,
                       uint32_t n_row, kv_err err);
/*
 * The same from what a step program keeps, after decode: rows are in order; head h writes its rows (KVF_WINDOW_ALL_ROWS), or
 * all but the last `window`, at out + h * ld and leaves the rest. n_ring >= window.
 */
int32_t be_scores_kept(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags, uint32_t reduce,
                       float *out, uint32_t ld, kv_err err);
int32_t be_scores_live(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t reduce, float *out, uint32_t ld,
                       kv_err err);
/* One stored head: norms of its rows into out [rows]. */
int32_t be_scores_norm(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err);
int32_t be_scores_pool(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row, uint32_t kind,
                       uint32_t width, kv_err err);
int32_t be_scores_affine(kvf_device *dev, const float *in, float *out, size_t n, float a, float b, kv_err err);
int32_t be_scores_combine(kvf_device *dev, const float *x, const float *y, float *out, size_t n, uint32_t what,
                          kv_err err);
int32_t be_scores_fill(kvf_device *dev, float *inout, uint32_t n_head, uint32_t n_row, uint32_t first, uint32_t end,
                       float value, kv_err err);
int32_t be_scores_log(kvf_device *dev, const float *in, float *out, size_t n, kv_err err);
/* One head: the rows' (backend memory) scores become `value`. */
int32_t be_scores_fill_selected(kvf_device *dev, float *inout, const uint32_t *rows, uint32_t n, float value, kv_err err);
int32_t be_scores_relative(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row, uint32_t lead,
                           uint32_t span, kv_err err);
/*
 * Philox with key {seed, 0x73636f72} and counter {row, head, layer, 0}; with the first of its four words w the draw is
 * ((w >> 8) + 1) * 2^-24.
 */
int32_t be_scores_concentrate(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                              uint32_t count, kv_err err);
int32_t be_scores_random(kvf_device *dev, float *out, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer,
                         kv_err err);
/* counts: host; order and ties as kvf.h says, -0 equals 0. rows: backend memory, lists one after the other, ascending. */
int32_t be_select_top(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, const uint32_t *counts,
                      uint32_t *rows, kv_err err);
/* counts: host, written. Among equals the lower head, then the lower row counts first. */
int32_t be_scores_share(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, uint32_t total,
                        uint32_t *counts, kv_err err);
/* A union of selected rows, [0, first) and [rows - last, rows). */
typedef struct kv_union {
    const uint32_t *sel; /* backend memory: n_sel distinct rows, ascending, all below `end` */
    uint32_t n_sel;
    uint32_t end;
    uint32_t first; /* at most `rows`, as `last` */
    uint32_t last;
    uint32_t rows;
    kv_row_list out; /* out.rows has room for `rows`; out.n is set */
} kv_union;
/* Unions of n heads. A GPU waits for the counts only where a selection may overlap the others. */
int32_t be_rows_union(kvf_device *dev, kv_union *heads, uint32_t n, kv_err err);

#endif
