/*
 * Step programs on the device. Every table has a description of what its layer's program does with it; kernels of a step
 * read these, the row counts and the positions from device memory, so that no step asks the host. Row counts follow from
 * the operations alone: the host replays them.
 */
#ifndef KVF_CUDA_PROGRAM_H
#define KVF_CUDA_PROGRAM_H

#include "cuda.h"

/* What a layer's program does with one stored head. */
typedef struct cu_program {
    kvf_op evict;            /* size 0: nothing */
    kvf_op pages;            /* size 0: nothing */
    float *const *segment;   /* of masses or of bounds, whichever the program keeps */
    float *ring;             /* of the head's first query head; NULL: queries are not kept */
    uint32_t ring_size;
    uint32_t ring_first;     /* no query of an earlier position is in the ring */
    uint32_t relative;       /* KVF_OP_RELATIVE's first; 0: nothing moves along */
    uint32_t has_mass;
    float decay;
} cu_program;

/* Kinds of kernels that a step of a batch needs. */
enum cu_acts {
    CU_BEFORE = 1,  /* with the rotation: queries are kept, rows moved along */
    CU_CHOOSES = 2, /* before attention: pages are chosen */
    CU_WATCHES = 4, /* attention reads a choice, or says what it gave to each row */
    CU_WEIGHS = 8,  /* kept queries decide what is evicted */
    CU_AFTER = 16   /* after attention: masses, eviction */
};

/* Statistics of a kept query under the rows that it sees. */
typedef struct cu_query_stat {
    float most;    /* highest score, log2(e) folded in */
    float factor;  /* 1 / sum of exp2(score - most); 0: it sees none */
    float average; /* 1 / rows seen */
} cu_query_stat;

/*
 * Buffers of a step's programs, for one layer at a time. What follows attention runs beside later layers, on several layers
 * at once: there are lines and norms for `depth` layers. Zeros: no programs.
 */
typedef struct cu_program_work {
    uint32_t acts;        /* cu_acts */
    uint32_t n;           /* slots */
    uint32_t max_stored;  /* of any slot */
    uint32_t n_head;
    uint32_t ld;          /* rows of a line, a multiple of KVF_PAGE_ROWS */
    uint32_t n_query;     /* kept queries of any program */
    uint32_t depth;       /* all layers, or an even number */
    float *line;          /* [n, n_head + max_stored, ld]: scores per query head, then anything per stored head */
    float2 *norm;         /* [n, n_head]: highest score, sum of exp2(score - highest) */
    uint2 *pick;          /* [n, max_stored, ld / KVF_PAGE_ROWS]: pages of the choice and masks of their rows */
    uint32_t *n_pick;     /* [n, max_stored] */
    cu_query_stat *stat;  /* [n, n_head, n_query] */
} cu_program_work;

/* The cu_acts of a sequence's programs; *n_query becomes the most queries that one keeps for eviction, if more. */
uint32_t cu_acts_of(const kvf_cache *cache, const kv_sequence *s, uint32_t *n_query);
/* Lays the buffers for a model of n_layer layers out from `data` on, as those of layer 0; returns their bytes. */
size_t cu_program_layout(cu_program_work *work, uint32_t n_layer, char *data);
/* Those of another layer. */
cu_program_work cu_program_layer(const cu_program_work *work, uint32_t layer);
/*
 * Device descriptions of tables [first, first + n), up to date: the place of the sequence's first one, NULL without programs.
 * The tables' mirror is there.
 */
int32_t cu_program_sync(kvf_cache *cache, kv_sequence *s, uint32_t first, uint32_t n, const cu_program **program, kv_err err);
/* Of one layer's first head; the layer has a program. */
int32_t cu_layer_program(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_program **program, kv_err err);
/* NULL allowed. */
void cu_programs_close(kvf_device *dev, struct cu_programs *p);
/* What n steps did to a sequence's rows, on the host; before the position moves on. seen: device counts, which follow */
void cu_programs_follow(kvf_cache *cache, kv_sequence *s, uint32_t n, uint32_t *seen);

/*
 * Kernels of one layer of a step, as far as work->acts needs them. begin comes before the rotation, which is the first to
 * write to lines and has nothing to fetch ahead, as products do; before (with the layer's own work) follows it, after follows
 * attention. q: [n, n_head, head_dim]
 */
int32_t cu_programs_begin(kvf_model *model, uint32_t layer, const cu_program_work *work, kv_err err);
int32_t cu_programs_before(kvf_model *model, uint32_t layer, uint32_t row_dtype, const cu_slot *slot, const float *q,
                           const cu_program_work *work, uint32_t *arrived, kv_err err);
int32_t cu_programs_after(kvf_model *model, uint32_t layer, uint32_t row_dtype, cu_slot *slot, const cu_program_work *work,
                          kv_err err);
/* Before the kernel that ends the step. */
int32_t cu_programs_join(kvf_device *dev, uint32_t n_layer, const cu_program_work *work, kv_err err);
/* Masses of a head's rows in a new order: row i's become those of row order[i]. room: [readers, n] */
int32_t cu_masses_order(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const uint32_t *order, uint32_t n,
                        float *room, kv_err err);

/* ---- Scores by queries that were recorded or kept ---- */

/* Queries of positions first to first + n - 1, of one layer. */
typedef struct cu_kept {
    const float *q;  /* [n_head] heads of [size, head_dim], stride elements apart */
    size_t stride;
    uint32_t size;
    uint32_t origin; /* position p's query is at (p - origin) % size */
    uint32_t first;
    uint32_t n;
} cu_kept;

/*
 * What the queries make of each stored head's rows: out[head * ld + row], for all rows or all but the last `less`. flags:
 * kvf_window_flag. most_rows: at least the rows of any head.
 */
int32_t cu_kept_scores(kvf_cache *cache, const cu_view *view, const cu_kept *kept, uint32_t flags, uint32_t reduce,
                       uint32_t less, uint32_t most_rows, float *out, uint32_t ld, kv_err err);
/* The same in a step, for heads that evict by it: into the line of the stored head. */
int32_t cu_kept_step(kvf_device *dev, uint32_t layer, uint32_t row_dtype, uint32_t head_dim, const cu_slot *slot,
                     const cu_program_work *work, kv_err err);

#endif
