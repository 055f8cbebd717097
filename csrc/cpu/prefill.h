/* What the attention of prefill over all rows and over a part of them share. */
#ifndef KVF_CPU_PREFILL_H
#define KVF_CPU_PREFILL_H

#include <math.h>
#include <string.h>

#include "cpu.h"

#define KEY_BLOCK 128 /* rows of one block of the online softmax */

/* Queries, and what attention made of them, of one layer: also used to record layers without a model. */
typedef struct layer_queries {
    kvf_cache *cache;
    kv_sequence *s;
    uint32_t layer, n_token, window;
    const float *q; /* query head h of token t at h * head_stride + t * token_stride */
    size_t head_stride, token_stride;
    float *out; /* [n_token, n_head * head_dim], or NULL */
    float *lse; /* [n_head, n_token], or NULL */
    float *tile; /* [n_thread, buffer_floats] */
    const uint8_t *member; /* [n_token]: bit m: query belongs to mass m */
    float *const *mass;    /* [n_mass] of [n_head, n_token] */
} layer_queries;

/* Buffers of one thread. */
typedef struct buffers {
    float *scores; /* [CPU_QUERY_TILE, KEY_BLOCK] */
    float *out;    /* [CPU_QUERY_TILE, head_dim] */
    float *q;      /* [CPU_QUERY_TILE, head_dim] */
    float *values; /* [KEY_BLOCK, head_dim] */
} buffers;

static inline size_t buffer_floats(uint32_t dim) {
    return CPU_QUERY_TILE * (size_t)KEY_BLOCK + (2 * CPU_QUERY_TILE + KEY_BLOCK) * (size_t)dim + 64;
}

static inline buffers buffers_of(const layer_queries *j, uint32_t thread) {
    const size_t dim = j->cache->config.head_dim;
    buffers b = {.scores = j->tile + thread * buffer_floats(j->cache->config.head_dim)};
    b.out = b.scores + CPU_QUERY_TILE * KEY_BLOCK;
    b.q = b.out + CPU_QUERY_TILE * dim;
    b.values = b.q + CPU_QUERY_TILE * dim;
    return b;
}

/* The queries of a tile of one head, one after the other. */
static inline void gather_queries(const layer_queries *j, uint32_t head, uint32_t start, uint32_t m, float *q) {
    const uint32_t dim = j->cache->config.head_dim;
    const float *from = j->q + head * j->head_stride + start * j->token_stride;
    for (uint32_t i = 0; i < m; i++) memcpy(q + (size_t)i * dim, from + i * j->token_stride, dim * sizeof *q);
}

/* The rows that a query head reads. */
static inline const kv_table *cpu_query_table(const layer_queries *j, uint32_t head) {
    return kv_table_of(j->s, j->layer, head / kv_readers(j->cache, j->s));
}

/*
 * One query's step of the online softmax: the unscaled scores row[low, high) of a block become probabilities relative to
 * the highest score so far, and zero outside. out [dim], max and sum are what earlier blocks made. A score of -inf is 0.
 */
static inline void cpu_softmax_block(const cpu_ops *ops, float *row, uint32_t low, uint32_t high, float scale, uint32_t dim,
                                     float *out, float *max, float *sum) {
    const float block_max = ops->max(row + low, high - low);
    if (block_max == -INFINITY) {
        memset(row, 0, KEY_BLOCK * sizeof *row);
        return;
    }
    if (block_max > *max) {
        const float factor = *max == -INFINITY ? 0.0f : expf((*max - block_max) * scale);
        for (uint32_t d = 0; d < dim; d++) out[d] *= factor;
        *sum *= factor;
        *max = block_max;
    }
    memset(row, 0, low * sizeof *row);
    *sum += ops->exp_sum(row + low, high - low, scale, *max * scale);
    memset(row + high, 0, (KEY_BLOCK - high) * sizeof *row);
}

/* Writes what a tile of m queries from `start` on made: out and logarithms of the softmax's sums, as far as wanted. */
static inline void cpu_tile_end(const layer_queries *j, uint32_t head, uint32_t start, uint32_t m, const float *out,
                                const float *max, const float *sum) {
    const uint32_t dim = j->cache->config.head_dim, n_head = j->cache->config.n_head;
    const float scale = 1.0f / sqrtf((float)dim);
    for (uint32_t i = 0; i < m; i++) {
        if (j->out != NULL) {
            float *to = j->out + ((size_t)(start + i) * n_head + head) * dim;
            for (uint32_t d = 0; d < dim; d++) to[d] = out[i * dim + d] / sum[i];
        }
        if (j->lse != NULL) j->lse[(size_t)head * j->n_token + start + i] = max[i] * scale + logf(sum[i]);
    }
}

/* Attention of one tile of one query head over all rows. chunk: tile and head, the longest tiles first. */
void cpu_attend_chunk(void *arg, uint32_t chunk, uint32_t thread);
/*
 * Attention over the part of the rows that patterns [n_head, 3] say: j->out and j->lse as far as they are wanted. pairs:
 * [n_head] query-row pairs that took part, or NULL. j->tile is there.
 */
int32_t cpu_attend_sparse(layer_queries *j, const uint32_t *patterns, double *pairs, kv_err err);

#endif
