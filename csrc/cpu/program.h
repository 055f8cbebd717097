/*
 * Step programs on the CPU: what decode calls before and after a layer's attention. Everything here works on one stored
 * head and touches no other one's memory, so that heads may be spread over threads in any way.
 */
#ifndef KVF_CPU_PROGRAM_H
#define KVF_CPU_PROGRAM_H

#include "cpu.h"

/* Scratch slots of step programs. */
enum { SLOT_PICK = 24, SLOT_PROB, SLOT_WORK, SLOT_SHIFT, SLOT_KEPT };

/* Slots of a page that attention reads. */
typedef struct cpu_pick {
    uint32_t page; /* of the table */
    uint32_t mask; /* bit i: slot i */
} cpu_pick;

/* Floats of scratch that one head of `rows` rows needs, whatever its program. */
size_t cpu_program_floats(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t rows);

/* Keeps the queries [n_head, head_dim] of the token at `position`. */
void cpu_keep_queries(const kvf_cache *cache, kv_step *step, const float *q, uint32_t position);
/* Bounds of the choice of rows that holds row `row`, after it was appended. */
void cpu_bound_row(const kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, uint32_t row);
/*
 * Chooses pages for the head's queries q [readers, ld_q], among those with a row of position `oldest` or later; out: room
 * for all pages. Returns how many.
 */
uint32_t cpu_pick_pages(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t head, const float *q,
                        size_t ld_q, uint32_t oldest, cpu_pick *out, float *work);
/* As cpu_table_scores and cpu_table_values, for n picks: row i of the result is slot i % KVF_PAGE_ROWS of pick i / KVF_PAGE_ROWS. */
void cpu_pick_scores(const kvf_cache *cache, const kv_table *t, const cpu_pick *picks, uint32_t n, const float *q,
                     size_t ld_q, uint32_t m, uint32_t oldest, float *scores, size_t ld_s);
void cpu_pick_values(const kvf_cache *cache, const kv_table *t, const cpu_pick *picks, uint32_t n, const float *p,
                     size_t ld_p, uint32_t m, float *out, size_t ld_out);
/*
 * KVF_OP_RELATIVE: scores of rows with positions below `first`, in scores[m, ld_s] of rows [row, row + n), as if they were
 * `shift` tokens later. work: m * (head_dim + KVF_PAGE_ROWS).
 */
void cpu_shift_scores(const kvf_cache *cache, const kv_table *t, uint32_t row, uint32_t n, uint32_t first, uint32_t shift,
                      const float *inv_freq, const float *q, size_t ld_q, uint32_t m, uint32_t oldest, float *scores,
                      size_t ld_s, float *work);

/* What attention made of one head, as decode holds it. */
typedef struct cpu_attended {
    const float *prob;  /* [n_chunk] of [group, CPU_CHUNK_ROWS], exp(score - chunk's maximum); NULL without KVF_OP_MASS */
    size_t prob_floats; /* from chunk to chunk */
    const float *tail;  /* [n_chunk] of maxima and sums, [readers] each */
    size_t tail_floats;
    uint32_t n_chunk;
} cpu_attended;

/* Whether the program has anything to do with a head of `rows` rows after attention. */
bool cpu_acts_on_head(const kv_sequence *s, uint32_t layer, uint32_t head);
/* Adds the masses and evicts. Sets `rows`; pages and segments that are not needed any more are the caller's to release. */
void cpu_act_on_head(const kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const cpu_attended *a,
                     float *work);

/* kept.c: */
/* Floats of scratch for cpu_kept_scores. */
size_t cpu_kept_floats(uint32_t rows);
/*
 * What the last `window` kept queries make of one stored head's rows, in whatever order they lie: out [rows]. flags:
 * kvf_window_flag.
 */
void cpu_kept_scores(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t head, uint32_t seen,
                     uint32_t window, uint32_t flags, uint32_t reduce, float *out, float *work);

/* rows.c: */
/* Row `to` becomes row `from` of the same table. */
void cpu_move_row(const kvf_cache *cache, const kv_table *t, uint32_t to, uint32_t from);

#endif
