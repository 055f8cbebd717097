/*
 * Attention of recorded queries: window scores and maps. Threads divide heads and blocks; every sum of floats has one order, whatever the
 * number of threads.
 */
#include <math.h>
#include <string.h>

#include "packed.h"
#include "tiles.h"

/* Slots of cpu_scratch. */
enum { SLOT_SOFTMAX = 16, SLOT_SUMS = 17 };

/* Queries whose softmax is computed together. */
#define QUERY_TILE 8

static int32_t no_memory(kv_err err, size_t bytes) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot compute window scores as %zu bytes must be available", bytes);
}

typedef struct window_job {
    kvf_cache *cache;
    const kv_sequence *s;
    uint32_t layer, window, flags, reduce;
    uint32_t n_row;   /* of the result */
    uint32_t n_token; /* rows of the layer */
    size_t n_padded;  /* room for n_token scores */
    float *out;       /* [n_head, n_row] summed over the queries; with REDUCE_FIRST [n_stored_head, n_row] */
    float *work;      /* [n_thread, tile + 2, n_padded] */
    uint32_t tile;
} window_job;

static const float *window_query(const window_job *j, uint32_t head, uint32_t i) {
    const kv_observations *o = j->s->observe;
    return o->window_q[j->layer] + ((size_t)head * o->n_window + (o->n_window - j->window) + i) * j->cache->config.head_dim;
}

/* Unscaled products of m queries, `ld_q` apart, with the first n rows of a table: [m, n_padded]. */
static void products(const window_job *j, const kv_table *t, const float *q, size_t ld_q, uint32_t m, uint32_t n,
                     float *to) {
    cpu_table_scores(j->cache, t, (cpu_span){0, 0, n}, q, ld_q, m, 0, to, j->n_padded);
}

/* Whether chosen rows were packed before rows of lower positions, so that rows are not in order of position. */
static bool scattered(const window_job *j, const kv_table *t) {
    if (t->packed == 0 || t->packed == t->rows) return false;
    const uint32_t last = t->packed - 1;
    return cpu_positions_of(j->cache, t, kv_page_of(t, last))[kv_slot_of(t, last)] >
           cpu_positions_of(j->cache, t, kv_page_of(t, t->packed))[0];
}

/* Puts the numbers of a scattered table's rows in order of position, or back. room: [n_padded] */
static void reorder(const window_job *j, const kv_table *t, float *x, float *room, bool back) {
    for (uint32_t page = 0; page < t->n_page; page++) {
        const uint32_t *positions = cpu_positions_of(j->cache, t, page), first = kv_page_first(t, page);
        for (uint32_t i = 0; i < kv_page_rows(t, page); i++) {
            if (back) {
                room[first + i] = x[positions[i]];
            } else {
                room[positions[i]] = x[first + i];
            }
        }
    }
    memcpy(x, room, t->rows * sizeof *x);
}

/* Products of window query i become exp(score - highest), with zeros behind what the query sees; returns their sum. */
static float soften(const window_job *j, float *x, uint32_t i) {
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const float scale = 1.0f / sqrtf((float)j->cache->config.head_dim);
    const uint32_t seen = j->n_token - j->window + i + 1;
    const float sum = ops->exp_sum(x, seen, scale, ops->max(x, seen) * scale);
    memset(x + seen, 0, (j->n_token - seen) * sizeof *x);
    return sum;
}

/* The same for rows that may be scattered, which stay where they are. */
static float soften_rows(const window_job *j, const kv_table *t, float *x, float *room, uint32_t i) {
    const bool moves = scattered(j, t);
    if (moves) reorder(j, t, x, room, false);
    const float sum = soften(j, x, i);
    if (moves) reorder(j, t, x, room, true);
    return sum;
}

/* Turns exp(score - highest) into 1 where the probability is at least the average over the rows that query i sees, else 0. */
static void hit(const window_job *j, float *x, uint32_t i, float factor) {
    const float average = 1.0f / (float)(j->n_token - j->window + i + 1);
    for (uint32_t k = 0; k < j->n_row; k++) x[k] = x[k] * factor >= average ? 1.0f : 0.0f;
}

/* One query head: its queries' probabilities, summed in ascending order. */
static void window_head(void *arg, uint32_t head, uint32_t thread) {
    const window_job *j = arg;
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const kv_table *t = kv_table_of(j->s, j->layer, head / kv_readers(j->cache, j->s));
    float *x = j->work + thread * (j->tile + 2) * j->n_padded;
    float *out = j->out + (size_t)head * j->n_row;
    memset(out, 0, j->n_row * sizeof *out);
    for (uint32_t first = 0; first < j->window; first += j->tile) {
        const uint32_t m = j->window - first < j->tile ? j->window - first : j->tile;
        products(j, t, window_query(j, head, first), j->cache->config.head_dim, m, j->n_token, x);
        for (uint32_t i = 0; i < m; i++) {
            float *row = x + i * j->n_padded;
            float factor = 1.0f / soften_rows(j, t, row, x + (j->tile + 1) * j->n_padded, first + i);
            if (j->flags & KVF_WINDOW_HITS) {
                hit(j, row, first + i, factor);
                factor = 1.0f;
            }
            ops->axpy(out, factor, row, j->n_row);
        }
    }
    if (j->flags & KVF_WINDOW_MEAN) cpu_divide(out, j->n_row, j->window);
}

/* One stored head: each query's probabilities are reduced over the group, then summed over the queries. */
static void window_group(void *arg, uint32_t stored, uint32_t thread) {
    const window_job *j = arg;
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const uint32_t group = kv_readers(j->cache, j->s);
    const kv_table *t = kv_table_of(j->s, j->layer, stored);
    const size_t ld_q = (size_t)j->s->observe->n_window * j->cache->config.head_dim;
    float *x = j->work + thread * (j->tile + 2) * j->n_padded, *reduced = x + j->tile * j->n_padded;
    float *out = j->out + (size_t)stored * j->n_row;
    memset(out, 0, j->n_row * sizeof *out);
    for (uint32_t i = 0; i < j->window; i++) {
        for (uint32_t first = 0; first < group; first += j->tile) {
            const uint32_t m = group - first < j->tile ? group - first : j->tile;
            products(j, t, window_query(j, stored * group + first, i), ld_q, m, j->n_token, x);
            for (uint32_t r = 0; r < m; r++) {
                float *row = x + r * j->n_padded;
                const float factor = 1.0f / soften_rows(j, t, row, reduced + j->n_padded, i);
                if (j->flags & KVF_WINDOW_HITS) {
                    hit(j, row, i, factor);
                } else {
                    for (uint32_t k = 0; k < j->n_row; k++) row[k] *= factor;
                }
                if (first + r == 0) {
                    memcpy(reduced, row, j->n_row * sizeof *row);
                } else {
                    cpu_reduce_into(reduced, row, j->n_row, j->reduce);
                }
            }
        }
        if (j->reduce == KVF_MEAN) cpu_divide(reduced, j->n_row, group);
        ops->axpy(out, 1.0f, reduced, j->n_row);
    }
    if (j->flags & KVF_WINDOW_MEAN) cpu_divide(out, j->n_row, j->window);
}

int32_t be_scores_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                         uint32_t reduce, float *out, uint32_t n_row, kv_err err) {
    kvf_device *dev = cache->dev;
    const uint32_t group = kv_readers(cache, s), n_head = cache->config.n_head;
    window_job j = {.cache = cache, .s = s, .layer = layer, .window = window, .flags = flags, .reduce = reduce,
                    .n_row = n_row, .n_token = s->observe->n_token, .out = out};
    const bool first = group > 1 && (flags & KVF_WINDOW_REDUCE_FIRST);
    const uint32_t most = first ? group : window;
    j.tile = most < QUERY_TILE ? most : QUERY_TILE;
    j.n_padded = CPU_SPAN_FLOATS((size_t)j.n_token);
    const size_t work = (size_t)dev->info.n_thread * (j.tile + 2) * j.n_padded * sizeof(float);
    j.work = cpu_scratch(dev, SLOT_SOFTMAX, work);
    if (j.work == NULL) return no_memory(err, work);
    if (first) {
        cpu_parallel(dev, s->n_stored_head, window_group, &j);
        return KVF_OK;
    }
    if (group > 1) {
        const size_t sums = (size_t)n_head * n_row * sizeof(float);
        j.out = cpu_scratch(dev, SLOT_SUMS, sums);
        if (j.out == NULL) return no_memory(err, sums);
    }
    cpu_parallel(dev, n_head, window_head, &j);
    if (group > 1) cpu_reduce_group(dev, j.out, out, s->n_stored_head, group, n_row, reduce);
    return KVF_OK;
}

/* ---- Maps ---- */

typedef struct map_job {
    window_job window; /* all recorded queries */
    uint32_t block, n_block;
    float *map; /* [n_head, n_block, n_block] */
} map_job;

/* One query block of one head. */
static void map_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    const map_job *j = arg;
    const window_job *w = &j->window;
    const uint32_t head = chunk / j->n_block, at = chunk % j->n_block, before = w->n_token - w->window;
    float *to = j->map + (size_t)chunk * j->n_block;
    memset(to, 0, j->n_block * sizeof *to);
    const size_t past = ((size_t)at + 1) * j->block;
    const uint32_t end = past < w->n_token ? (uint32_t)past : w->n_token; /* positions [first, end) */
    const uint32_t first = at * j->block > before ? at * j->block : before;
    const kv_table *t = kv_table_of(w->s, w->layer, head / kv_readers(w->cache, w->s));
    float *x = w->work + thread * (w->tile + 2) * w->n_padded;
    const bool moves = scattered(w, t);
    for (uint32_t i = first; i < end; i += w->tile) {
        const uint32_t m = end - i < w->tile ? end - i : w->tile;
        products(w, t, window_query(w, head, i - before), w->cache->config.head_dim, m,
                 moves ? w->n_token : i + m, x);
        for (uint32_t k = 0; k < m; k++) {
            float *row = x + k * w->n_padded;
            if (moves) reorder(w, t, row, x + (w->tile + 1) * w->n_padded, false);
            const float factor = 1.0f / soften(w, row, i - before + k);
            for (uint32_t b = 0; b <= at; b++) {
                const size_t stop = ((size_t)b + 1) * j->block;
                const uint32_t last = stop < i + k + 1 ? (uint32_t)stop : i + k + 1;
                float sum = 0;
                for (uint32_t r = b * j->block; r < last; r++) sum += row[r];
                to[b] += sum * factor;
            }
        }
    }
    if (first < end) cpu_divide(to, j->n_block, end - first);
}

int32_t be_attention_map(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t block, float *to_host, kv_err err) {
    kvf_device *dev = cache->dev;
    const kv_observations *o = s->observe;
    map_job j = {.window = {.cache = cache, .s = s, .layer = layer, .window = o->n_window, .n_token = o->n_token,
                            .tile = QUERY_TILE},
                 .block = block, .n_block = (o->n_token - 1) / block + 1, .map = to_host};
    j.window.n_padded = CPU_SPAN_FLOATS((size_t)o->n_token);
    const size_t work = (size_t)dev->info.n_thread * (QUERY_TILE + 2) * j.window.n_padded * sizeof(float);
    j.window.work = cpu_scratch(dev, SLOT_SOFTMAX, work);
    if (j.window.work == NULL) return no_memory(err, work);
    cpu_parallel(dev, cache->config.n_head * j.n_block, map_chunk, &j);
    return KVF_OK;
}
