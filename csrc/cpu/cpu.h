/*
 * Inside of the CPU backend: the thread pool and the kernels of one instruction set.
 *
 * Bit rule: every element of a result is computed by one fixed sequence of operations that depends on its own row and
 * its own inputs only. Threads divide outputs and never a sum; a kernel gives a row the same bits whatever number of
 * rows it gets. Instruction sets may differ from each other.
 */
#ifndef KVF_CPU_CPU_H
#define KVF_CPU_CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../core/backend.h"
#include "../core/packed.h"
#include "layout.h"

/* Columns of one packed weight panel. */
#define CPU_PANEL 16
/* Rows of a decode attention chunk: chunks are merged in order, so this is part of a result's definition. */
#define CPU_CHUNK_ROWS 512
/* Queries of one prefill attention tile. */
#define CPU_QUERY_TILE 96

/* ---- Kernels of one instruction set ---- */

/* How rows of a page are weighed for eviction. */
typedef struct cpu_weighing {
    uint32_t reduce;
    uint32_t first, end;  /* rows of positions in [first, end) may go */
    bool draw;            /* x / temperature plus kv_draw_bits' draw decides */
    float inverse;        /* 1 / temperature, or 0: the draw alone */
    uint32_t keys[2];     /* kv_draw_keys */
} cpu_weighing;

/* Masses that are added while rows are weighed: mass = decay * mass + factor[r] * prob[r * ld]. */
typedef struct cpu_added {
    const float *prob;
    size_t ld;
    const float *factor; /* [m] */
    float decay;
    const float *ahead;  /* masses that come next, laid out alike, to be fetched; NULL: none */
} cpu_added;

/* The row that goes first, in each lane of a vector: of the highest x, among equals of the highest position. */
typedef struct cpu_first {
    float x[16]; /* -infinity to begin with */
    uint32_t position[16], row[16];
} cpu_first;

/* Arrays indexed by dtype take KVF_F32, KVF_F16, KVF_BF16. No pointer needs more alignment than its type's. */
typedef struct cpu_ops {
    uint32_t level; /* as in kvf_device_options.simd */

    /*
     * c[m, 16 * n_panel] = a[m, k] . w, or += with `accumulate`. w: panels one after the other, as weights.c packs them:
     * f32 and f16 [k][16], bf16 [k / 2][16][2] with k even. ld in elements. a is f32; for bf16 weights it is what
     * round_rows made, where there is one.
     */
    void (*panel_product[3])(float *c, size_t ld_c, const void *a, size_t ld_a, const void *w, size_t panel_bytes,
                             uint32_t m, uint32_t n_panel, uint32_t k);
    /* out[m, ceil(k / 2)] words of two bf16 each, from a[m, k]; ld_out in words. NULL where products take f32 rows. */
    void (*round_rows)(uint32_t *out, size_t ld_out, const float *a, size_t ld_a, uint32_t m, uint32_t k);
    /* s[m, KVF_PAGE_ROWS] = q[m, head_dim] . keys of a page: all slots, used or not. */
    void (*page_scores[3])(float *s, size_t ld_s, const float *q, size_t ld_q, const void *page, uint32_t m,
                           uint32_t head_dim);
    /* out[m, head_dim] += p[m, n_row] . values of a page's first n_row slots. */
    void (*page_values[3])(float *out, size_t ld_out, const float *p, size_t ld_p, const void *page, uint32_t m,
                           uint32_t n_row, uint32_t head_dim);
    /* out[n_row, head_dim] = values of a page's first n_row slots, as f32: a tile of values. */
    void (*read_values[3])(float *out, const void *page, uint32_t n_row, uint32_t head_dim);
    /* The same with tiles in f32: keys [n_line][KVF_PAGE_ROWS], values [n_row][ld]. */
    void (*tile_scores)(float *s, size_t ld_s, const float *q, size_t ld_q, const float *tile, uint32_t m,
                        uint32_t n_line);
    void (*tile_values)(float *out, size_t ld_out, const float *p, size_t ld_p, const float *tile, size_t ld, uint32_t m,
                        uint32_t n_row, uint32_t head_dim);
    /* tile [n_line][ld] of a packed part that has bits, but for its outliers. */
    void (*unpack_tile)(float *tile, const kv_part *part, const uint8_t *page, const uint8_t *frame);
    /* Rotates keys [2 * half][KVF_PAGE_ROWS] by their positions, or back; tables as cpu_turns has them. */
    void (*turn_tile)(float *tile, const uint32_t *position, uint32_t half, const float *low, const float *high, bool back);

    /* out = x / sqrt(mean(x^2) + eps) * weight */
    void (*rms_norm)(float *out, const float *x, const float *weight, uint32_t n, float eps);
    /* out = silu(gate) * up */
    void (*swiglu)(float *out, const float *gate, const float *up, uint32_t n);
    /* y += a * x */
    void (*axpy)(float *y, float a, const float *x, size_t n);
    /* Highest element; -inf for n = 0. NaN may be missed. */
    float (*max)(const float *x, size_t n);
    /* y = a * y + b * x */
    void (*blend)(float *y, float a, const float *x, float b, size_t n);
    /* out[m, ld_out] = x[m, ld_x] * by[n], row by row; out may be x. */
    void (*times)(float *out, size_t ld_out, const float *x, size_t ld_x, const float *by, uint32_t m, size_t n);
    /* out = -(x[m, ld] reduced over m), NaN becomes infinity. reduce: kvf_reduce, sums in ascending order */
    void (*negate_reduced)(float *out, const float *x, size_t ld, uint32_t m, uint32_t reduce, size_t n);
    /*
     * What speaks for evicting the rows of one page, x[KVF_PAGE_ROWS]: as negate_reduced of `stat`, or minus the position
     * where that is NULL; -infinity for rows that must stay and from n on.
     */
    void (*weigh_page)(float *x, const float *stat, size_t ld, uint32_t m, const uint32_t *position, uint32_t n,
                       const cpu_weighing *how);
    /*
     * Takes rows [row, row + n) into `first`, weighed alike; position: of pages of KVF_PAGE_ROWS rows, the first row in slot 0.
     * added: masses that `stat` still lacks, or NULL. Slots up to the end of the last page are overwritten.
     */
    void (*weigh_first)(cpu_first *first, float *stat, size_t ld, uint32_t m, const cpu_added *added,
                        const uint32_t *const *position, uint32_t row, uint32_t n, const cpu_weighing *how);
    /* x = exp(x * scale - shift), in place; returns the sum. exp(-inf) is 0, exactly. */
    float (*exp_sum)(float *x, size_t n, float scale, float shift);
} cpu_ops;

const cpu_ops *cpu_ops_generic(void);
#if defined(__x86_64__)
const cpu_ops *cpu_ops_avx2(void);
const cpu_ops *cpu_ops_avx512(void);
/* AVX-512's, with products of BF16 weights of its own. */
cpu_ops cpu_ops_avx512bf16(void);
#endif

/* ---- Threads ---- */

/* One chunk of a job; thread is below info.n_thread, 0 for the caller of cpu_parallel. */
typedef void (*cpu_fn)(void *arg, uint32_t chunk, uint32_t thread);

/* Runs fn for chunks 0 .. n_chunk - 1 on all threads, the caller included, in any order; returns when all are done. */
void cpu_parallel(kvf_device *dev, uint32_t n_chunk, cpu_fn fn, void *arg);

/*
 * Denormals become zero between the two; returns what leave needs. cpu_parallel does this for its chunks; arithmetic
 * that runs on the caller alone does it itself, so that results do not depend on who computed them.
 */
uint32_t cpu_fp_enter(void);
void cpu_fp_leave(uint32_t saved);

/* ---- Reductions over the query heads of a KV head (scores.c) ---- */

/* out = max(out, x) with KVF_MAX, else out + x. */
void cpu_reduce_into(float *out, const float *x, size_t n, uint32_t reduce);
void cpu_divide(float *x, size_t n, uint32_t by);
/* in: [n_head * group, n_row], out: [n_head, n_row] */
void cpu_reduce_group(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t group, uint32_t n_row,
                      uint32_t reduce);

/* ---- Device ---- */

#define CPU_N_SCRATCH 32

typedef struct cpu_pool cpu_pool;

typedef struct cpu_device {
    cpu_ops ops;
    cpu_pool *pool;
    struct {
        void *data;
        size_t bytes;
    } scratch[CPU_N_SCRATCH]; /* grow-only, freed with the device */
} cpu_device;

static inline cpu_device *cpu_dev(kvf_device *dev) { return dev->impl; }
static inline const cpu_ops *cpu_ops_of(kvf_device *dev) { return &cpu_dev(dev)->ops; }

/* Starts n_thread - 1 workers; NULL on failure. */
cpu_pool *cpu_pool_open(uint32_t n_thread);
void cpu_pool_close(cpu_pool *pool);

/*
 * Memory for large arrays that are read in long strides, 64-byte aligned: from 2 MiB on the system is asked for huge
 * pages. NULL without memory; freed with free().
 */
void *cpu_alloc_huge(size_t bytes);

/*
 * Scratch buffer `slot` of at least `bytes` bytes, 64-byte aligned, kept until the device closes; contents are lost when
 * it grows. NULL without memory. Slots 0 to 15 belong to the forward pass, 16 to 23 to rows and scores, 24 to 28
 * to step programs.
 */
void *cpu_scratch(kvf_device *dev, uint32_t slot, size_t bytes);

#endif
