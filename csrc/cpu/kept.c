/*
 * Scores in the middle of a generation: from the queries and the masses that a step program keeps. A query sees the rows
 * up to its own position, wherever they lie.
 */
#include <math.h>
#include <string.h>

#include "packed.h"
#include "program.h"
#include "tiles.h"

/* Queries whose products are computed together. */
#define TILE 8

static size_t padded(uint32_t rows) { return CPU_SPAN_FLOATS((size_t)rows); }

size_t cpu_kept_floats(uint32_t rows) { return (TILE + 1) * padded(rows); }

/* Products of a query at `position` become probabilities, or hits; rows that it does not see get 0. */
static void soften(const kvf_cache *cache, const kv_table *t, uint32_t position, uint32_t seen, uint32_t flags, float *x) {
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const float scale = 1.0f / sqrtf((float)cache->config.head_dim);
    uint32_t visible = t->rows;
    for (uint32_t page = 0; position + 1 < seen && page < kv_table_pages(t); page++) {
        const uint32_t *own = cpu_positions_of(cache, t, page);
        for (uint32_t i = 0; i < kv_page_rows(t, page); i++) {
            if (own[i] <= position) continue;
            x[kv_page_first(t, page) + i] = -INFINITY;
            visible--;
        }
    }
    const float max = ops->max(x, t->rows);
    if (max == -INFINITY) {
        memset(x, 0, t->rows * sizeof *x);
        return;
    }
    const float factor = 1.0f / ops->exp_sum(x, t->rows, scale, max * scale), average = 1.0f / (float)visible;
    for (uint32_t i = 0; i < t->rows; i++) x[i] = flags & KVF_WINDOW_HITS ? (x[i] * factor >= average ? 1.0f : 0.0f) : x[i] * factor;
}

/* Probabilities of up to TILE queries from the window's query `first` on, of one query head: [.., padded]. Returns how many. */
static uint32_t probabilities(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t head, uint32_t seen,
                              uint32_t window, uint32_t first, uint32_t most, uint32_t flags, float *x) {
    const kv_step *step = kv_step_of(s, layer);
    const kv_table *t = kv_table_of(s, layer, head / kv_readers(cache, s));
    const uint32_t dim = cache->config.head_dim, size = step->queries.last, position = seen - window + first;
    const uint32_t at = position % size;
    uint32_t m = window - first < most ? window - first : most;
    m = size - at < m ? size - at : m; /* the ring's end */
    const float *q = step->ring + ((size_t)head * size + at) * dim;
    cpu_table_scores(cache, t, (cpu_span){0, 0, t->rows}, q, dim, m, 0, x, padded(t->rows));
    for (uint32_t i = 0; i < m; i++) soften(cache, t, position + i, seen, flags, x + i * padded(t->rows));
    return m;
}

void cpu_kept_scores(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t head, uint32_t seen,
                     uint32_t window, uint32_t flags, uint32_t reduce, float *out, float *work) {
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const uint32_t rows = kv_table_of(s, layer, head)->rows, readers = kv_readers(cache, s);
    const size_t ld = padded(rows);
    float *sum = work + TILE * ld;
    memset(out, 0, rows * sizeof *out);
    if (flags & KVF_WINDOW_REDUCE_FIRST) {
        for (uint32_t i = 0; i < window; i++) {
            for (uint32_t r = 0; r < readers; r++) {
                probabilities(cache, s, layer, head * readers + r, seen, window, i, 1, flags, work);
                if (r == 0) memcpy(sum, work, rows * sizeof *sum);
                else cpu_reduce_into(sum, work, rows, reduce);
            }
            if (reduce == KVF_MEAN) cpu_divide(sum, rows, readers);
            ops->axpy(out, 1.0f, sum, rows);
        }
        if (flags & KVF_WINDOW_MEAN) cpu_divide(out, rows, window);
        return;
    }
    for (uint32_t r = 0; r < readers; r++) {
        memset(sum, 0, rows * sizeof *sum);
        for (uint32_t i = 0; i < window;) {
            const uint32_t m = probabilities(cache, s, layer, head * readers + r, seen, window, i, TILE, flags, work);
            for (uint32_t k = 0; k < m; k++) ops->axpy(sum, 1.0f, work + k * ld, rows);
            i += m;
        }
        if (flags & KVF_WINDOW_MEAN) cpu_divide(sum, rows, window);
        if (r == 0) memcpy(out, sum, rows * sizeof *out);
        else cpu_reduce_into(out, sum, rows, reduce);
    }
    if (reduce == KVF_MEAN) cpu_divide(out, rows, readers);
}

/* ---- What core asks for ---- */

typedef struct kept_job {
    const kvf_cache *cache;
    const kv_sequence *s;
    uint32_t layer, window, flags, reduce, ld;
    float *out;
    float *work; /* [n_thread, work_floats] */
    size_t work_floats;
} kept_job;

static void kept_head(void *arg, uint32_t head, uint32_t thread) {
    const kept_job *j = arg;
    const uint32_t rows = kv_table_of(j->s, j->layer, head)->rows;
    const uint32_t n = j->flags & KVF_WINDOW_ALL_ROWS ? rows : rows > j->window ? rows - j->window : 0;
    float *work = j->work + thread * j->work_floats;
    if (n == 0) return;
    cpu_kept_scores(j->cache, j->s, j->layer, head, j->s->position, j->window, j->flags, j->reduce, work, work + padded(rows));
    memcpy(j->out + (size_t)head * j->ld, work, n * sizeof *work);
}

int32_t be_scores_kept(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags, uint32_t reduce,
                       float *out, uint32_t ld, kv_err err) {
    uint32_t most = 0;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        most = rows > most ? rows : most;
    }
    kept_job j = {.cache = cache, .s = s, .layer = layer, .window = window, .flags = flags, .reduce = reduce, .ld = ld, .out = out};
    j.work_floats = padded(most) + cpu_kept_floats(most);
    const size_t bytes = cache->dev->info.n_thread * j.work_floats * sizeof(float);
    j.work = cpu_scratch(cache->dev, SLOT_KEPT, bytes);
    if (j.work == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot compute scores as %zu bytes must be available", bytes);
    cpu_parallel(cache->dev, s->n_stored_head, kept_head, &j);
    return KVF_OK;
}

static void live_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const kept_job *j = arg;
    const kv_live *live = &kv_step_of(j->s, j->layer)->head[head];
    const uint32_t rows = kv_table_of(j->s, j->layer, head)->rows, readers = kv_readers(j->cache, j->s);
    for (uint32_t first = 0; first < rows; first += KV_SEGMENT_ROWS) {
        const uint32_t n = rows - first < KV_SEGMENT_ROWS ? rows - first : KV_SEGMENT_ROWS;
        const float *mass = live->mass[first / KV_SEGMENT_ROWS];
        float *out = j->out + (size_t)head * j->ld + first;
        memcpy(out, mass, n * sizeof *out);
        for (uint32_t r = 1; r < readers; r++) cpu_reduce_into(out, mass + (size_t)r * KV_SEGMENT_ROWS, n, j->reduce);
        if (j->reduce == KVF_MEAN) cpu_divide(out, n, readers);
    }
}

int32_t be_scores_live(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t reduce, float *out, uint32_t ld,
                       kv_err err) {
    (void)err;
    kept_job j = {.cache = cache, .s = s, .layer = layer, .reduce = reduce, .ld = ld, .out = out};
    cpu_parallel(cache->dev, s->n_stored_head, live_head, &j);
    return KVF_OK;
}
