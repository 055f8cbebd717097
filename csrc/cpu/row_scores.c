/* Scores that read the rows themselves, packed or plain: norms and channels. */
#include <math.h>
#include <string.h>

#include "packed.h"

/* ---- Norms ---- */

typedef struct norm_job {
    const kvf_cache *cache;
    const kv_table *t;
    uint32_t what;
    float *out; /* [rows] */
} norm_job;

/* One page: squares are added up in ascending order of the dimension. */
static void norm_chunk(void *arg, uint32_t page, uint32_t thread) {
    (void)thread;
    const norm_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim;
    const uint32_t n = kv_page_rows(j->t, page), first = kv_page_first(j->t, page);
    float tile[CPU_TILE_FLOATS], sum[KVF_PAGE_ROWS] = {0};
    cpu_page_tile(j->cache, j->t, page, j->what, tile);
    for (uint32_t d = 0; d < dim; d++) {
        for (uint32_t i = 0; i < n; i++) {
            const float x = tile[j->what == 0 ? (size_t)d * KVF_PAGE_ROWS + i : (size_t)i * dim + d];
            sum[i] += x * x;
        }
    }
    for (uint32_t i = 0; i < n; i++) j->out[first + i] = sqrtf(sum[i]);
}

int32_t be_scores_norm(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err) {
    (void)err;
    norm_job j = {cache, t, what, out};
    cpu_parallel(cache->dev, kv_table_pages(t), norm_chunk, &j);
    return KVF_OK;
}

/* ---- Channels ---- */

typedef struct channels_job {
    kvf_cache *cache;
    const kv_sequence *s;
    uint32_t layer, window, reduce;
    float *out; /* [n_stored_head, head_dim] */
} channels_job;

/* Mean squares of the last queries of a head, per channel, added to or raising `to`. */
static void square_queries(const channels_job *j, uint32_t head, bool first, float *to) {
    const kv_observations *o = j->s->observe;
    const uint32_t dim = j->cache->config.head_dim;
    const float *q = o->window_q[j->layer] + ((size_t)head * o->n_window + (o->n_window - j->window)) * dim;
    float sum[256] = {0};
    for (uint32_t i = 0; i < j->window; i++) {
        for (uint32_t d = 0; d < dim; d++) sum[d] += q[(size_t)i * dim + d] * q[(size_t)i * dim + d];
    }
    for (uint32_t d = 0; d < dim; d++) sum[d] /= (float)j->window;
    if (first) {
        memcpy(to, sum, dim * sizeof *to);
    } else {
        cpu_reduce_into(to, sum, dim, j->reduce);
    }
}

/* One stored head. */
static void channels_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const channels_job *j = arg;
    const uint32_t dim = j->cache->config.head_dim, group = kv_readers(j->cache, j->s);
    const kv_table *t = kv_table_of(j->s, j->layer, head);
    float tile[CPU_TILE_FLOATS], keys[256] = {0}, queries[256];
    for (uint32_t page = 0; page < kv_table_pages(t); page++) {
        cpu_page_tile(j->cache, t, page, 0, tile);
        for (uint32_t d = 0; d < dim; d++) {
            for (uint32_t i = 0; i < kv_page_rows(t, page); i++) {
                keys[d] += tile[(size_t)d * KVF_PAGE_ROWS + i] * tile[(size_t)d * KVF_PAGE_ROWS + i];
            }
        }
    }
    for (uint32_t g = 0; g < group; g++) square_queries(j, head * group + g, g == 0, queries);
    if (j->reduce == KVF_MEAN) cpu_divide(queries, dim, group);
    for (uint32_t d = 0; d < dim; d++) {
        j->out[(size_t)head * dim + d] = queries[d] * (keys[d] / (float)(t->rows > 0 ? t->rows : 1));
    }
}

int32_t be_scores_channels(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t reduce, float *out,
                           kv_err err) {
    (void)err;
    channels_job j = {cache, s, layer, window, reduce, out};
    cpu_parallel(cache->dev, s->n_stored_head, channels_head, &j);
    return KVF_OK;
}
