/* Scores and selections on the CPU. Threads divide heads; every sum has one order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"
#include "cpu.h"

static int32_t no_memory(kv_err err) { return kv_fail(err, KVF_ERR_MEMORY, "Cannot score rows as memory ran out"); }

/* ---- Window scores ---- */

/* Scores s * scale of one query on all rows of a table, later rows than `position` left at -inf. */
typedef struct window_job {
    kvf_cache *cache;
    kv_sequence *s;
    uint32_t layer, window, flags, reduce, n_row, n_token;
    float *prob; /* [n_head, n_row]: sums over the queries; with REDUCE_FIRST unused */
    float *out;  /* [n_stored_head, n_row] */
    float *work; /* [n_thread, group * n_padded] */
    size_t n_padded;
} window_job;

/* Softmax of queries [m] of one head over the rows of its page list: prob [m, n_padded]. */
static void head_probabilities(const window_job *j, const cpu_ops *ops, const kv_table *t, const float *q, uint32_t m,
                               uint32_t first_query, float *prob) {
    const kvf_cache *cache = j->cache;
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    for (uint32_t row = 0; row < j->n_token; row += KVF_PAGE_ROWS) {
        ops->page_scores[dtype](prob + row, j->n_padded, q, dim, kv_page_data(cache, t, row), m, dim);
    }
    const float scale = 1.0f / sqrtf((float)dim);
    for (uint32_t i = 0; i < m; i++) {
        float *p = prob + i * j->n_padded;
        const uint32_t seen = j->n_token - j->window + first_query + i + 1;
        const float max = ops->max(p, seen);
        const float sum = ops->exp_sum(p, seen, scale, max * scale);
        const float inverse = 1.0f / sum;
        for (uint32_t row = 0; row < seen; row++) p[row] *= inverse;
        memset(p + seen, 0, (j->n_padded - seen) * sizeof *p);
    }
}

static void reduce_into(float *out, const float *x, uint32_t n, uint32_t reduce, bool first) {
    for (uint32_t i = 0; i < n; i++) {
        if (first) {
            out[i] = x[i];
        } else if (reduce == KVF_MAX) {
            out[i] = x[i] > out[i] ? x[i] : out[i];
        } else {
            out[i] += x[i];
        }
    }
}

/* One stored head: its query heads' probabilities, summed over the queries and reduced over the group. */
static void window_chunk(void *arg, uint32_t head, uint32_t thread) {
    const window_job *j = arg;
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const uint32_t dim = j->cache->config.head_dim, readers = kv_readers(j->cache, j->s);
    const kv_table *t = kv_table_of(j->s, j->layer, head);
    const kv_observations *o = j->s->observe;
    const uint32_t tile = 8; /* queries computed together */
    float *prob = j->work + thread * (tile + 2) * j->n_padded;
    float *sum = prob + tile * j->n_padded, *reduced = sum + j->n_padded;
    float *out = j->out + (size_t)head * j->n_row;
    const bool first = j->flags & KVF_WINDOW_REDUCE_FIRST;
    if (first) memset(out, 0, j->n_row * sizeof *out);
    for (uint32_t r = 0; r < readers && !first; r++) {
        const float *q = o->window_q[j->layer] +
                         ((size_t)(head * readers + r) * o->n_window + (o->n_window - j->window)) * dim;
        memset(sum, 0, j->n_row * sizeof *sum);
        for (uint32_t i = 0; i < j->window; i += tile) {
            const uint32_t m = j->window - i < tile ? j->window - i : tile;
            head_probabilities(j, ops, t, q + (size_t)i * dim, m, i, prob);
            for (uint32_t k = 0; k < m; k++) ops->axpy(sum, 1.0f, prob + k * j->n_padded, j->n_row);
        }
        if (j->flags & KVF_WINDOW_MEAN) {
            for (uint32_t i = 0; i < j->n_row; i++) sum[i] /= (float)j->window;
        }
        reduce_into(out, sum, j->n_row, j->reduce, r == 0);
    }
    /* Reduce first: the group's probabilities of one query and row are one number before they are summed. */
    for (uint32_t i = 0; i < j->window && first; i++) {
        for (uint32_t r = 0; r < readers; r++) {
            const float *q = o->window_q[j->layer] +
                             ((size_t)(head * readers + r) * o->n_window + (o->n_window - j->window) + i) * dim;
            head_probabilities(j, ops, t, q, 1, i, prob);
            reduce_into(reduced, prob, j->n_row, j->reduce, r == 0);
        }
        const float scale = (j->reduce == KVF_MEAN ? 1.0f / (float)readers : 1.0f) /
                            (j->flags & KVF_WINDOW_MEAN ? (float)j->window : 1.0f);
        ops->axpy(out, scale, reduced, j->n_row);
    }
    if (!first && j->reduce == KVF_MEAN && readers > 1) {
        for (uint32_t i = 0; i < j->n_row; i++) out[i] /= (float)readers;
    }
}

int32_t be_scores_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                         uint32_t reduce, float *out, uint32_t n_row, kv_err err) {
    window_job j = {.cache = cache, .s = s, .layer = layer, .window = window, .flags = flags, .reduce = reduce,
                    .n_row = n_row, .n_token = s->observe->n_token, .out = out};
    j.n_padded = ((size_t)j.n_token + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS * KVF_PAGE_ROWS;
    j.work = cpu_scratch(cache->dev, 16, cache->dev->info.n_thread * 10 * j.n_padded * sizeof(float));
    if (j.work == NULL) return no_memory(err);
    cpu_parallel(cache->dev, s->n_stored_head, window_chunk, &j);
    return KVF_OK;
}

/* ---- Simple scores ---- */

int32_t be_scores_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t mass, uint32_t reduce, float *out,
                       uint32_t n_row, kv_err err) {
    (void)err;
    const float *x = s->observe->mass[(size_t)layer * s->observe->n_mass + mass];
    const uint32_t readers = kv_readers(cache, s);
    for (uint32_t head = 0; head < s->n_stored_head; head++) {
        float *o = out + (size_t)head * n_row;
        for (uint32_t r = 0; r < readers; r++) {
            reduce_into(o, x + (size_t)(head * readers + r) * n_row, n_row, reduce, r == 0);
        }
        if (reduce == KVF_MEAN && readers > 1) {
            for (uint32_t i = 0; i < n_row; i++) o[i] /= (float)readers;
        }
    }
    return KVF_OK;
}

int32_t be_scores_norm(kvf_cache *cache, const kv_table *t, uint32_t what, float *out, kv_err err) {
    (void)err;
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    for (uint32_t row = 0; row < t->rows; row++) {
        void *page = kv_page_data(cache, t, row);
        const uint32_t slot = row % KVF_PAGE_ROWS;
        float sum = 0;
        for (uint32_t i = 0; i < dim; i++) {
            const float x = what == 0 ? cpu_get(cpu_page_keys(page), (size_t)i * KVF_PAGE_ROWS + slot, dtype)
                                      : cpu_get(cpu_page_values(page, dim, dtype), (size_t)slot * dim + i, dtype);
            sum += x * x;
        }
        out[row] = sqrtf(sum);
    }
    return KVF_OK;
}

int32_t be_scores_pool(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row, uint32_t kind,
                       uint32_t width, kv_err err) {
    (void)dev;
    (void)err;
    const uint32_t half = width / 2;
    for (uint32_t h = 0; h < n_head; h++) {
        const float *x = in + (size_t)h * n_row;
        float *o = out + (size_t)h * n_row;
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t low = i > half ? i - half : 0;
            const uint32_t high = half < n_row - 1 - i ? i + half : n_row - 1;
            float value = x[low];
            for (uint32_t k = low + 1; k <= high; k++) {
                if (kind == 1) {
                    value += x[k];
                } else if (x[k] > value || isnan(x[k])) {
                    value = x[k];
                }
            }
            o[i] = kind == 1 ? value / (float)width : value;
        }
    }
    return KVF_OK;
}

int32_t be_scores_affine(kvf_device *dev, const float *in, float *out, size_t n, float a, float b, kv_err err) {
    (void)dev;
    (void)err;
    for (size_t i = 0; i < n; i++) out[i] = a * in[i] + b;
    return KVF_OK;
}

int32_t be_scores_combine(kvf_device *dev, const float *x, const float *y, float *out, size_t n, uint32_t what,
                          kv_err err) {
    (void)dev;
    (void)err;
    for (size_t i = 0; i < n; i++) out[i] = what == 0 ? x[i] + y[i] : x[i] * y[i];
    return KVF_OK;
}

int32_t be_scores_fill(kvf_device *dev, float *inout, uint32_t n_head, uint32_t n_row, uint32_t first, uint32_t end,
                       float value, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        for (uint32_t i = first; i < end; i++) inout[(size_t)h * n_row + i] = value;
    }
    return KVF_OK;
}

int32_t be_scores_random(kvf_device *dev, float *out, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer,
                         kv_err err) {
    (void)dev;
    (void)err;
    const uint32_t key[2] = {seed, 0x73636f72u};
    for (uint32_t h = 0; h < n_head; h++) {
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t counter[4] = {i, h, layer, 0};
            uint32_t words[4];
            kv_philox(counter, key, words);
            out[(size_t)h * n_row + i] = ((float)(words[0] >> 8) + 1.0f) * 0x1p-24f;
        }
    }
    return KVF_OK;
}

/* ---- Selection ---- */

/* A number that orders as the score does; NaN lowest, -0 equal to 0. */
static uint32_t order_key(float x) {
    if (isnan(x)) return 0;
    const uint32_t u = cpu_bits(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/*
 * Threshold of the k highest keys of n (1 <= k <= n): all above it are taken, and `*ties` of those equal to it. Radix
 * select by 11, 11 and 10 bits.
 */
static uint32_t threshold(const float *x, size_t n, size_t k, size_t *ties) {
    uint32_t prefix = 0, mask = 0;
    static const struct {
        uint32_t shift, bits;
    } pass[3] = {{21, 11}, {10, 11}, {0, 10}};
    for (uint32_t p = 0; p < 3; p++) {
        size_t count[2048] = {0};
        const uint32_t bins = 1u << pass[p].bits;
        for (size_t i = 0; i < n; i++) {
            const uint32_t key = order_key(x[i]);
            if ((key & mask) == prefix) count[(key >> pass[p].shift) & (bins - 1)]++;
        }
        uint32_t bin = bins - 1;
        while (count[bin] < k) k -= count[bin--];
        prefix |= bin << pass[p].shift;
        mask |= (bins - 1) << pass[p].shift;
    }
    *ties = k;
    return prefix;
}

int32_t be_select_top(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, const uint32_t *counts,
                      uint32_t *rows, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        if (counts[h] == 0) continue;
        const float *x = scores + (size_t)h * n_row;
        size_t ties;
        const uint32_t cut = threshold(x, n_row, counts[h], &ties);
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t key = order_key(x[i]);
            if (key > cut) {
                *rows++ = i;
            } else if (key == cut && ties > 0) {
                ties--;
                *rows++ = i;
            }
        }
    }
    return KVF_OK;
}

int32_t be_scores_share(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, uint32_t total,
                        uint32_t *counts, kv_err err) {
    (void)dev;
    (void)err;
    memset(counts, 0, n_head * sizeof *counts);
    if (total == 0) return KVF_OK;
    size_t ties;
    const uint32_t cut = threshold(scores, (size_t)n_head * n_row, total, &ties);
    for (uint32_t h = 0; h < n_head; h++) {
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t key = order_key(scores[(size_t)h * n_row + i]);
            if (key > cut) {
                counts[h]++;
            } else if (key == cut && ties > 0) {
                ties--;
                counts[h]++;
            }
        }
    }
    return KVF_OK;
}

int32_t be_rows_union(kvf_device *dev, const uint32_t *sel, uint32_t n_sel, uint32_t first, uint32_t last,
                      uint32_t rows, uint32_t *out, kv_err err) {
    (void)dev;
    (void)err;
    const uint32_t window = rows - last;
    uint32_t n = 0;
    if (first >= window) {
        for (uint32_t i = 0; i < rows; i++) out[n++] = i;
        return (int32_t)n;
    }
    for (uint32_t i = 0; i < first; i++) out[n++] = i;
    for (uint32_t i = 0; i < n_sel; i++) {
        if (sel[i] >= first && sel[i] < window) out[n++] = sel[i];
    }
    for (uint32_t i = window; i < rows; i++) out[n++] = i;
    return (int32_t)n;
}

int32_t be_scores_concentrate(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                              uint32_t count, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        const float *x = in + (size_t)h * n_row;
        size_t ties = 0;
        const uint32_t cut = count > 0 ? threshold(x, n_row, count, &ties) : 0;
        double top = 0, all = 0;
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t key = order_key(x[i]);
            all += x[i];
            if (count == 0 || key < cut) continue;
            if (key == cut) {
                if (ties == 0) continue;
                ties--;
            }
            top += x[i];
        }
        const float factor = all > 0 ? (float)(top / all) : 1.0f;
        for (uint32_t i = 0; i < n_row; i++) out[(size_t)h * n_row + i] = x[i] * factor;
    }
    return KVF_OK;
}
