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
#include "layout.h"

/* Columns of one packed weight panel. */
#define CPU_PANEL 16
/* Rows of a decode attention chunk: chunks are merged in order, so this is part of a result's definition. */
#define CPU_CHUNK_ROWS 512
/* Queries of one prefill attention tile, and keys of one block of its online softmax. */
#define CPU_QUERY_TILE 72
#define CPU_KEY_BLOCK 128

/* ---- Kernels of one instruction set ---- */

/* Rows [0, n_row) of a decode chunk, read by n_reader query heads. */
typedef struct cpu_attend_rows {
    float *out;                /* [n_reader, ld_out], written: sum of exp(score - max) * value, not divided */
    float *max;                /* [n_reader], written: highest score, -inf when nothing is visible */
    float *sum;                /* [n_reader], written */
    const float *q;            /* [n_reader, ld_q] */
    const void *const *page;   /* [ceil(n_row / KVF_PAGE_ROWS)] */
    float *scratch;            /* [n_reader, CPU_CHUNK_ROWS], 64-byte aligned */
    size_t ld_out;
    size_t ld_q;
    uint32_t n_reader;
    uint32_t n_row;            /* at most CPU_CHUNK_ROWS */
    uint32_t head_dim;
    uint32_t dtype;
    uint32_t min_position;     /* rows at lower positions are not visible */
    float scale;
} cpu_attend_rows;

/* One tile of prefill attention: queries [first, first + n_query) of the n_reader query heads of one table. */
typedef struct cpu_attend_tile {
    float *out;              /* element (token t, reader r, d) at (t - out_first) * ld_out + r * head_dim + d, written */
    float *lse;              /* element (r, t) at r * n_token + t: log of the sum of exp(score), or NULL */
    const float *q;          /* element (r, t, d) at (r * n_token + t) * head_dim + d */
    const void *const *page; /* [ceil(n_row / KVF_PAGE_ROWS)] */
    const uint32_t *position; /* [n_row], ascending; NULL: row j is at position j */
    float *scratch;          /* cpu_tile_scratch() floats, 64-byte aligned */
    size_t ld_out;
    uint32_t out_first;
    uint32_t n_token;
    uint32_t n_reader;
    uint32_t first;
    uint32_t n_query;        /* at most CPU_QUERY_TILE */
    uint32_t n_row;
    uint32_t head_dim;
    uint32_t dtype;
    uint32_t window;         /* 0: none */
    float scale;
} cpu_attend_tile;

/* Column masses of rows [block * CPU_KEY_BLOCK, ...) of one table, over the queries of up to KV_MAX_MASS sets. */
typedef struct cpu_mass_block {
    float *const *mass;      /* [n_mass]: element (r, position) at r * n_token + position, written for the block's rows */
    const float *lse;        /* as in cpu_attend_tile */
    const float *q;          /* as in cpu_attend_tile */
    const void *const *page; /* [ceil(n_row / KVF_PAGE_ROWS)] */
    const uint32_t *position; /* as in cpu_attend_tile */
    const uint8_t *member;   /* [n_token]: bit m is set when the query belongs to mass m */
    float *scratch;          /* cpu_tile_scratch() floats */
    uint32_t n_mass;
    uint32_t n_token;
    uint32_t n_reader;
    uint32_t block;
    uint32_t n_row;
    uint32_t head_dim;
    uint32_t dtype;
    uint32_t window;
    float scale;
} cpu_mass_block;

/* Arrays indexed by dtype take KVF_F32, KVF_F16, KVF_BF16. No pointer needs more alignment than its type's. */
typedef struct cpu_ops {
    uint32_t level;        /* as in kvf_device_options.simd */
    bool bf16_activations; /* products with bf16 weights take bf16 activations */

    /*
     * c[m, 16 * n_panel] = a[m, k] . w, or += with `accumulate`. Panels are `panel_bytes` apart; w points at the panel
     * part that belongs to the first of the k columns of a; k is even for bf16 weights. ld in elements. a: f32, or bf16
     * (see above). c: f32.
     */
    void (*panel_product[3])(float *c, size_t ld_c, const void *a, size_t ld_a, const void *w, size_t panel_bytes,
                             uint32_t m, uint32_t n_panel, uint32_t k, bool accumulate);

    /* s[m, KVF_PAGE_ROWS] = q[m, head_dim] . keys of a page: all slots, used or not. */
    void (*page_scores[3])(float *s, size_t ld_s, const float *q, size_t ld_q, const void *page, uint32_t m,
                           uint32_t head_dim);
    void (*attend_rows)(const cpu_attend_rows *job);
    void (*attend_tile)(const cpu_attend_tile *job);
    void (*mass_block)(const cpu_mass_block *job);

    /* out = x / sqrt(mean(x^2) + eps) * weight */
    void (*rms_norm)(float *out, const float *x, const float *weight, uint32_t n, float eps);
    /* Pairs (i, i + n / 2) of x[n] turned by cosine and sine [n / 2]. */
    void (*rotate)(float *x, const float *cosine, const float *sine, uint32_t n);
    /* out = silu(gate) * up */
    void (*swiglu)(float *out, const float *gate, const float *up, uint32_t n);
    /* y += a * x */
    void (*axpy)(float *y, float a, const float *x, size_t n);
    float (*dot)(const float *x, const float *y, size_t n);
    /* Highest element; -inf for n = 0. NaN may be missed. */
    float (*max)(const float *x, size_t n);
    /* x = exp(x * scale - shift), in place; returns the sum. exp(-inf) is 0, exactly. */
    float (*exp_sum)(float *x, size_t n, float scale, float shift);
    /* Conversions; F32 is a copy. */
    void (*to_f32[3])(float *out, const void *in, size_t n);
    void (*from_f32[3])(void *out, const float *in, size_t n);
} cpu_ops;

/* Floats of scratch that attend_tile and mass_block need. */
static inline size_t cpu_tile_scratch(uint32_t head_dim, uint32_t n_reader) {
    const size_t ld = ((size_t)head_dim + 15) & ~(size_t)15;
    return 2 * CPU_KEY_BLOCK * ld                                 /* a block of keys and values */
           + (size_t)CPU_QUERY_TILE * CPU_KEY_BLOCK               /* scores */
           + (size_t)n_reader * CPU_QUERY_TILE * (ld + 2)         /* outputs, maxima, sums */
           + (size_t)n_reader * KV_MAX_MASS * CPU_KEY_BLOCK * 2 /* column sums, f64 */
           + 64;
}

const cpu_ops *cpu_ops_generic(void);
#if defined(__x86_64__)
const cpu_ops *cpu_ops_avx2(void);
const cpu_ops *cpu_ops_avx512(void);
const cpu_ops *cpu_ops_avx512bf16(void);
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

/* ---- Device ---- */

#define CPU_N_SCRATCH 24

typedef struct cpu_pool cpu_pool;

typedef struct cpu_device {
    const cpu_ops *ops;
    cpu_pool *pool;
    struct {
        void *data;
        size_t bytes;
    } scratch[CPU_N_SCRATCH]; /* grow-only, freed with the device */
} cpu_device;

static inline cpu_device *cpu_dev(kvf_device *dev) { return dev->impl; }
static inline const cpu_ops *cpu_ops_of(kvf_device *dev) { return cpu_dev(dev)->ops; }

/* Starts n_thread - 1 workers; NULL on failure. */
cpu_pool *cpu_pool_open(uint32_t n_thread);
void cpu_pool_close(cpu_pool *pool);

/*
 * Scratch buffer `slot` of at least `bytes` bytes, 64-byte aligned, kept until the device closes; contents are lost when
 * it grows. NULL without memory. Slots 0 to 15 belong to the forward pass, 16 to 23 to rows and scores.
 */
void *cpu_scratch(kvf_device *dev, uint32_t slot, size_t bytes);

#endif
