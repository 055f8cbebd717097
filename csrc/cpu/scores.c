/*
 * Scores and selections on the CPU. Threads divide heads, rows or histograms; every sum of floats has one order, whatever
 * the number of threads.
 */
#include <math.h>
#include <string.h>

#include "convert.h"
#include "cpu.h"

/* Slots of cpu_scratch. */
enum { SLOT_POOL = 18, SLOT_COUNTS = 19 };

/* Rows of one chunk of an elementwise job. */
#define ROW_CHUNK 4096u

static int32_t no_memory(kv_err err, size_t bytes) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot compute scores as %zu bytes must be available", bytes);
}

/* ---- Reduction over a group ---- */

void cpu_reduce_into(float *out, const float *x, size_t n, uint32_t reduce) {
    if (reduce == KVF_MAX) {
        for (size_t i = 0; i < n; i++) out[i] = x[i] > out[i] ? x[i] : out[i];
    } else {
        for (size_t i = 0; i < n; i++) out[i] += x[i];
    }
}

void cpu_divide(float *x, size_t n, uint32_t by) {
    if (by == 1) return;
    for (size_t i = 0; i < n; i++) x[i] /= (float)by;
}

typedef struct reduce_job {
    const float *in; /* [n_head * group, n_row] */
    float *out;      /* [n_head, n_row] */
    uint32_t group, n_row, reduce, n_part;
} reduce_job;

/* Some rows of one stored head. */
static void reduce_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const reduce_job *j = arg;
    const uint32_t head = chunk / j->n_part, first = chunk % j->n_part * ROW_CHUNK;
    const uint32_t n = j->n_row - first < ROW_CHUNK ? j->n_row - first : ROW_CHUNK;
    const float *in = j->in + (size_t)head * j->group * j->n_row + first;
    float *out = j->out + (size_t)head * j->n_row + first;
    memcpy(out, in, n * sizeof *out);
    for (uint32_t r = 1; r < j->group; r++) cpu_reduce_into(out, in + (size_t)r * j->n_row, n, j->reduce);
    if (j->reduce == KVF_MEAN) cpu_divide(out, n, j->group);
}

void cpu_reduce_group(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t group, uint32_t n_row,
                      uint32_t reduce) {
    reduce_job j = {in, out, group, n_row, reduce, (n_row + ROW_CHUNK - 1) / ROW_CHUNK};
    cpu_parallel(dev, n_head * j.n_part, reduce_chunk, &j);
}

/* ---- Column masses ---- */

int32_t be_scores_mass(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t mass, uint32_t reduce, float *out,
                       uint32_t n_row, kv_err err) {
    (void)err;
    const float *in = s->observe->mass[(size_t)layer * s->observe->n_mass + mass];
    cpu_reduce_group(cache->dev, in, out, s->n_stored_head, kv_readers(cache, s), n_row, reduce);
    return KVF_OK;
}

/* ---- Pooling ---- */

typedef struct pool_job {
    const float *in;
    float *out;
    float *work; /* [n_thread, n_row + 2 * reach] */
    uint32_t n_row, kind, width;
    uint32_t reach; /* rows to either side that can be there: width / 2, at most n_row */
} pool_job;

static void pool_step(float *to, const float *a, const float *b, size_t n, uint32_t kind) {
    if (kind == 1) {
        for (size_t i = 0; i < n; i++) to[i] = a[i] + b[i];
    } else { /* NaN is the lowest */
        for (size_t i = 0; i < n; i++) to[i] = b[i] > a[i] || a[i] != a[i] ? b[i] : a[i];
    }
}

/*
 * One head. Windows of 1, 2, 4 ... rows are built in `x` by doubling, and a row's window is put together from those that
 * make up its width: a few passes whatever the width, and sums of about equal parts.
 */
static void pool_head(void *arg, uint32_t head, uint32_t thread) {
    const pool_job *j = arg;
    const size_t n = j->n_row, padded = n + 2 * (size_t)j->reach;
    const float neutral = j->kind == 1 ? 0.0f : -INFINITY;
    const uint32_t width = 2 * j->reach + 1;
    float *x = j->work + thread * padded, *out = j->out + head * n;
    for (size_t i = 0; i < j->reach; i++) x[i] = x[padded - 1 - i] = neutral;
    memcpy(x + j->reach, j->in + head * n, n * sizeof *x);
    for (size_t i = 0; i < n; i++) out[i] = neutral;
    size_t at = 0, length = padded; /* windows that are complete */
    for (uint32_t size = 1; size <= width; size *= 2) {
        if (width & size) {
            if (at == 0) {
                memcpy(out, x, n * sizeof *out);
            } else {
                pool_step(out, out, x + at, n, j->kind);
            }
            at += size;
        }
        if (2 * size > width) break;
        length -= size;
        pool_step(x, x, x + size, length, j->kind);
    }
    if (j->kind == 1) cpu_divide(out, n, j->width);
}

int32_t be_scores_pool(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row, uint32_t kind,
                       uint32_t width, kv_err err) {
    pool_job j = {.in = in, .out = out, .n_row = n_row, .kind = kind, .width = width};
    j.reach = width / 2 < n_row ? width / 2 : n_row;
    const size_t bytes = dev->info.n_thread * (n_row + 2 * (size_t)j.reach) * sizeof(float);
    j.work = cpu_scratch(dev, SLOT_POOL, bytes);
    if (j.work == NULL) return no_memory(err, bytes);
    cpu_parallel(dev, n_head, pool_head, &j);
    return KVF_OK;
}

/* ---- Draws ---- */

typedef struct random_job {
    float *out;
    uint32_t n_row, seed, layer;
} random_job;

static void random_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const random_job *j = arg;
    const uint32_t key[2] = {j->seed, 0x73636f72u}; /* "scor": apart from the draws of tokens */
    for (uint32_t i = 0; i < j->n_row; i++) {
        const uint32_t counter[4] = {i, head, j->layer, 0};
        uint32_t words[4];
        kv_philox(counter, key, words);
        j->out[(size_t)head * j->n_row + i] = ((float)(words[0] >> 8) + 1.0f) * 0x1p-24f;
    }
}

int32_t be_scores_random(kvf_device *dev, float *out, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer,
                         kv_err err) {
    (void)err;
    random_job j = {out, n_row, seed, layer};
    cpu_parallel(dev, n_head, random_head, &j);
    return KVF_OK;
}

/* ---- Selection ---- */

#define N_BIN 2048u

/* The three digits of a key, highest first. */
static const struct {
    uint32_t shift, bins;
} g_digit[3] = {{21, 2048}, {10, 2048}, {0, 1024}};

/* A radix search for the k-th highest key: after three digits `prefix` is that key, and `k` how many equal ones to take. */
typedef struct search {
    uint32_t prefix, mask;
    size_t k;
} search;

/* Counts the next digit of the keys that agree with the search so far. */
static void count_digit(const search *at, uint32_t digit, const float *x, size_t n, uint32_t *count) {
    const uint32_t shift = g_digit[digit].shift, bins = g_digit[digit].bins;
    for (size_t i = 0; i < n; i++) {
        const uint32_t key = cpu_order_key(x[i]);
        if ((key & at->mask) == at->prefix) count[(key >> shift) & (bins - 1)]++;
    }
}

static void next_digit(search *at, uint32_t digit, const uint32_t *count) {
    uint32_t bin = g_digit[digit].bins - 1;
    while (count[bin] < at->k) at->k -= count[bin--];
    at->prefix |= bin << g_digit[digit].shift;
    at->mask |= (g_digit[digit].bins - 1) << g_digit[digit].shift;
}

typedef struct select_job {
    const float *scores;
    const uint32_t *counts;
    uint32_t *rows;
    uint32_t n_row;
} select_job;

static void select_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const select_job *j = arg;
    if (j->counts[head] == 0) return;
    const float *x = j->scores + (size_t)head * j->n_row;
    uint32_t *out = j->rows;
    for (uint32_t h = 0; h < head; h++) out += j->counts[h];
    search at = {.k = j->counts[head]};
    for (uint32_t digit = 0; digit < 3; digit++) {
        uint32_t count[N_BIN] = {0};
        count_digit(&at, digit, x, j->n_row, count);
        next_digit(&at, digit, count);
    }
    for (uint32_t i = 0; i < j->n_row; i++) {
        const uint32_t key = cpu_order_key(x[i]);
        if (key < at.prefix) continue;
        if (key == at.prefix) {
            if (at.k == 0) continue;
            at.k--;
        }
        *out++ = i;
    }
}

int32_t be_select_top(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, const uint32_t *counts,
                      uint32_t *rows, kv_err err) {
    (void)err;
    select_job j = {scores, counts, rows, n_row};
    cpu_parallel(dev, n_head, select_head, &j);
    return KVF_OK;
}

typedef struct share_job {
    const float *scores;
    uint32_t n_row, digit;
    search at;
    uint32_t *count;  /* [n_thread, N_BIN] */
    uint32_t *above;  /* [n_head]: scores above the threshold */
    uint32_t *equal;  /* [n_head]: equal to it */
} share_job;

static void share_digit(void *arg, uint32_t head, uint32_t thread) {
    const share_job *j = arg;
    count_digit(&j->at, j->digit, j->scores + (size_t)head * j->n_row, j->n_row, j->count + (size_t)thread * N_BIN);
}

static void share_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const share_job *j = arg;
    const float *x = j->scores + (size_t)head * j->n_row;
    uint32_t above = 0, equal = 0;
    for (uint32_t i = 0; i < j->n_row; i++) {
        const uint32_t key = cpu_order_key(x[i]);
        above += key > j->at.prefix;
        equal += key == j->at.prefix;
    }
    j->above[head] = above;
    j->equal[head] = equal;
}

int32_t be_scores_share(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, uint32_t total,
                        uint32_t *counts, kv_err err) {
    const uint32_t n_thread = dev->info.n_thread;
    const size_t bytes = ((size_t)n_thread * N_BIN + n_head) * sizeof(uint32_t);
    uint32_t *work = cpu_scratch(dev, SLOT_COUNTS, bytes);
    if (work == NULL) return no_memory(err, bytes);
    share_job j = {.scores = scores, .n_row = n_row, .at = {.k = total}, .count = work,
                   .above = counts, .equal = work + (size_t)n_thread * N_BIN};
    for (j.digit = 0; j.digit < 3; j.digit++) {
        memset(j.count, 0, (size_t)n_thread * N_BIN * sizeof *j.count);
        cpu_parallel(dev, n_head, share_digit, &j);
        for (uint32_t t = 1; t < n_thread; t++) {
            for (uint32_t bin = 0; bin < N_BIN; bin++) j.count[bin] += j.count[t * N_BIN + bin];
        }
        next_digit(&j.at, j.digit, j.count);
    }
    cpu_parallel(dev, n_head, share_head, &j);
    for (uint32_t h = 0; h < n_head; h++) { /* among equals the lower head first */
        const uint32_t take = j.equal[h] < j.at.k ? j.equal[h] : (uint32_t)j.at.k;
        counts[h] += take;
        j.at.k -= take;
    }
    return KVF_OK;
}

int32_t be_rows_union(kvf_device *dev, kv_union *heads, uint32_t n_head, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        kv_union *u = &heads[h];
        const uint32_t window = u->rows - u->last > u->first ? u->rows - u->last : u->first;
        uint32_t n = 0, *out = u->out.rows;
        for (uint32_t i = 0; i < u->first; i++) out[n++] = i;
        for (uint32_t i = 0; i < u->n_sel; i++) {
            if (u->sel[i] >= u->first && u->sel[i] < window) out[n++] = u->sel[i];
        }
        for (uint32_t i = window; i < u->rows; i++) out[n++] = i;
        u->out.n = n;
    }
    return KVF_OK;
}

int32_t be_scores_concentrate(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row,
                              uint32_t count, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        const float *x = in + (size_t)h * n_row;
        search at = {.k = count};
        for (uint32_t digit = 0; count > 0 && digit < 3; digit++) {
            uint32_t bins[N_BIN] = {0};
            count_digit(&at, digit, x, n_row, bins);
            next_digit(&at, digit, bins);
        }
        double top = 0, all = 0;
        for (uint32_t i = 0; i < n_row; i++) {
            const uint32_t key = cpu_order_key(x[i]);
            if (x[i] == -INFINITY) continue;
            all += x[i];
            if (count == 0 || key < at.prefix) continue;
            if (key == at.prefix) {
                if (at.k == 0) continue;
                at.k--;
            }
            top += x[i];
        }
        const float factor = all > 0 ? (float)(top / all) : 1.0f;
        for (uint32_t i = 0; i < n_row; i++) out[(size_t)h * n_row + i] = x[i] == -INFINITY ? x[i] : x[i] * factor;
    }
    return KVF_OK;
}
