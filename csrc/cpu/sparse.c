/*
 * Attention over a part of the rows. What a head attends to is found first, one head a chunk; then its tiles of queries
 * run like those of attention over all rows, over fewer blocks. Kept columns are copied into pages of their own, so that
 * a tile reads them like any other rows.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "prefill.h"

#define LAST_QUERIES 64u   /* that say which lines matter */
#define FIRST_COLUMNS 30u  /* always kept */
#define FIRST_DISTANCES 100u
#define ROW_BLOCK 64u      /* rows of a block, and the width of a diagonal */
#define MOST_BLOCKS 100u

_Static_assert(ROW_BLOCK <= CPU_QUERY_TILE, "the buffers must hold a tile of queries, which is a block here");

/* What one query head attends to. */
typedef struct part {
    uint32_t kind, a, b;
    uint32_t *column; /* lines: [n_column] ascending */
    uint32_t n_column;
    uint32_t *distance; /* lines: [n_distance] descending */
    uint32_t n_distance;
    uint8_t *page;   /* lines: the columns' rows, in pages */
    uint32_t *block; /* blocks: [n_tile, a], ascending; the first n_block[tile] count */
    uint32_t *n_block;
    bool failed; /* no memory */
} part;

typedef struct sparse_job {
    const layer_queries *j;
    part *parts;     /* [n_head] */
    double *pairs;   /* [n_tile, n_head], or NULL */
    uint32_t n_tile;
} sparse_job;

typedef struct weighed {
    float weight;
    uint32_t index;
} weighed;

static int heavier(const void *a, const void *b) {
    const weighed *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

static int lower(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int higher(const void *a, const void *b) { return lower(b, a); }

/* The k heaviest of n, the lower index among equals; ascending. NULL without memory. */
static uint32_t *heaviest(const float *weight, uint32_t n, uint32_t k) {
    weighed *order = malloc((size_t)n * sizeof *order);
    uint32_t *out = malloc((size_t)k * sizeof *out);
    if (order != NULL && out != NULL) {
        for (uint32_t i = 0; i < n; i++) order[i] = (weighed){weight[i], i};
        qsort(order, n, sizeof *order, heavier);
        for (uint32_t i = 0; i < k; i++) out[i] = order[i].index;
        qsort(out, k, sizeof *out, lower);
    } else {
        free(out);
        out = NULL;
    }
    free(order);
    return out;
}

static uint32_t oldest_of(const layer_queries *j, uint32_t token) {
    return j->window > 0 && token >= j->window ? token - j->window + 1 : 0;
}

/* ---- Lines ---- */

/* Sums of the last queries' probabilities by row and by distance. */
static void weigh_lines(const layer_queries *j, uint32_t head, float *scores, size_t ld, float *by_row, float *by_distance) {
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype, n = j->n_token;
    const uint32_t m = n < LAST_QUERIES ? n : LAST_QUERIES, start = n - m;
    const kv_table *t = cpu_query_table(j, head);
    const float *q = j->q + head * j->head_stride + start * j->token_stride;
    const float scale = 1.0f / sqrtf((float)dim);
    for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
        ops->page_scores[dtype](scores + row, ld, q, j->token_stride, kv_page_data(j->cache, t, row), m, dim);
    }
    memset(by_row, 0, n * sizeof *by_row);
    memset(by_distance, 0, n * sizeof *by_distance);
    for (uint32_t i = 0; i < m; i++) {
        const uint32_t token = start + i, low = oldest_of(j, token);
        float *row = scores + i * ld;
        const float max = ops->max(row + low, token + 1 - low);
        const float sum = ops->exp_sum(row + low, token + 1 - low, scale, max * scale);
        for (uint32_t r = low; r <= token; r++) {
            by_row[r] += row[r] / sum;
            by_distance[token - r] += row[r] / sum;
        }
    }
    for (uint32_t r = 0; r < n && r < FIRST_COLUMNS; r++) by_row[r] = INFINITY;
    for (uint32_t d = 0; d < n && d < FIRST_DISTANCES; d++) by_distance[d] = INFINITY;
}

/* Copies rows of a table into pages that lie one after the other. */
static void copy_rows(const layer_queries *j, uint32_t head, const uint32_t *rows, uint32_t n, uint8_t *page) {
    const uint32_t dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const size_t width = cpu_dtype_bytes(dtype), size = cpu_page_size(dim, dtype);
    const kv_table *t = cpu_query_table(j, head);
    for (uint32_t i = 0; i < n; i++) {
        void *from = kv_page_data(j->cache, t, rows[i]), *to = page + i / KVF_PAGE_ROWS * size;
        const size_t slot = rows[i] % KVF_PAGE_ROWS, at = i % KVF_PAGE_ROWS;
        const uint8_t *key = cpu_page_keys(from);
        uint8_t *out = cpu_page_keys(to);
        for (size_t d = 0; d < dim; d++) {
            memcpy(out + (d * KVF_PAGE_ROWS + at) * width, key + (d * KVF_PAGE_ROWS + slot) * width, width);
        }
        memcpy((uint8_t *)cpu_page_values(to, dim, dtype) + at * dim * width,
               (uint8_t *)cpu_page_values(from, dim, dtype) + slot * dim * width, dim * width);
    }
}

static bool find_lines(const layer_queries *j, uint32_t head, part *p) {
    const uint32_t n = j->n_token, dim = j->cache->config.head_dim, dtype = j->cache->config.row_dtype;
    const size_t ld = (n + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS * KVF_PAGE_ROWS;
    p->n_column = p->a < n ? p->a : n;
    p->n_distance = p->b < n ? p->b : n;
    float *scores = malloc((LAST_QUERIES + 2) * ld * sizeof *scores);
    if (scores == NULL) return false;
    float *by_row = scores + LAST_QUERIES * ld, *by_distance = by_row + ld;
    weigh_lines(j, head, scores, ld, by_row, by_distance);
    p->column = heaviest(by_row, n, p->n_column);
    p->distance = heaviest(by_distance, n, p->n_distance);
    p->page = calloc((p->n_column + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS, cpu_page_size(dim, dtype));
    free(scores);
    if (p->column == NULL || p->distance == NULL || p->page == NULL) return false;
    qsort(p->distance, p->n_distance, sizeof *p->distance, higher);
    copy_rows(j, head, p->column, p->n_column, p->page);
    return true;
}

/* ---- Blocks ---- */

/* Mean of a block of up to ROW_BLOCK vectors; missing ones count as zero. */
static void add_to_mean(float *mean, const float *x, uint32_t dim) {
    for (uint32_t d = 0; d < dim; d++) mean[d] += x[d] / (float)ROW_BLOCK;
}

static bool find_blocks(const layer_queries *j, uint32_t head, part *p, uint32_t n_tile) {
    const uint32_t dim = j->cache->config.head_dim, n = j->n_token;
    const uint32_t most = n / ROW_BLOCK + 1 < MOST_BLOCKS ? n / ROW_BLOCK + 1 : MOST_BLOCKS;
    if (p->a > most) p->a = most;
    float *mean_q = calloc(2 * (size_t)n_tile * dim + n_tile, sizeof *mean_q), *mean_k = mean_q + (size_t)n_tile * dim;
    float *keys = malloc((size_t)n * dim * sizeof *keys);
    p->block = malloc((size_t)n_tile * p->a * sizeof *p->block);
    p->n_block = malloc(n_tile * sizeof *p->n_block);
    bool done = mean_q != NULL && keys != NULL && p->block != NULL && p->n_block != NULL &&
                be_read_rows(j->cache, cpu_query_table(j, head), 0, keys, (kv_err){0}) == KVF_OK;
    for (uint32_t t = 0; t < n && done; t++) {
        add_to_mean(mean_q + (size_t)(t / ROW_BLOCK) * dim, j->q + head * j->head_stride + t * j->token_stride, dim);
        add_to_mean(mean_k + (size_t)(t / ROW_BLOCK) * dim, keys + (size_t)t * dim, dim);
    }
    for (uint32_t tile = 0; tile < n_tile && done; tile++) {
        float *fit = mean_k + (size_t)n_tile * dim;
        const uint32_t first = oldest_of(j, tile * ROW_BLOCK) / ROW_BLOCK, n_seen = tile + 1 - first;
        for (uint32_t b = 0; b < n_seen; b++) {
            double dot = 0;
            for (uint32_t d = 0; d < dim; d++) dot += (double)mean_q[tile * dim + d] * mean_k[(first + b) * dim + d];
            fit[b] = (float)dot;
        }
        if (j->window > 0) fit[n_seen - 1] = INFINITY;
        p->n_block[tile] = p->a < n_seen ? p->a : n_seen;
        uint32_t *chosen = heaviest(fit, n_seen, p->n_block[tile]);
        done = chosen != NULL;
        for (uint32_t i = 0; i < p->n_block[tile] && done; i++) p->block[tile * p->a + i] = first + chosen[i];
        free(chosen);
    }
    free(mean_q);
    free(keys);
    return done;
}

static void find_chunk(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const sparse_job *s = arg;
    part *p = &s->parts[head];
    if (p->kind == KVF_ATTEND_LINES) p->failed = !find_lines(s->j, head, p);
    if (p->kind == KVF_ATTEND_BLOCKS) p->failed = !find_blocks(s->j, head, p, s->n_tile);
}

static void part_free(part *p) {
    free(p->column);
    free(p->distance);
    free(p->page);
    free(p->block);
    free(p->n_block);
}

/* ---- Tiles ---- */

/* A tile of queries while it runs. */
typedef struct tile {
    const layer_queries *j;
    const kv_table *t;
    const float *q; /* [m, head_dim] */
    uint32_t start, m;
    float *scores, *out, *values;
    float max[ROW_BLOCK], sum[ROW_BLOCK];
    double pairs;
} tile;

/*
 * Takes n <= KEY_BLOCK rows in; `pages`: theirs, the first row in slot 0. Query i sees rows [low[i], high[i]) of them;
 * rows with a bit in `hidden` (NULL: none) nobody sees.
 */
static void take_rows(tile *x, void *const *pages, uint32_t n, const uint32_t *low, const uint32_t *high,
                      const bool *hidden) {
    const cpu_ops *ops = cpu_ops_of(x->j->cache->dev);
    const uint32_t dim = x->j->cache->config.head_dim, dtype = x->j->cache->config.row_dtype;
    const float scale = 1.0f / sqrtf((float)dim);
    bool any = false;
    for (uint32_t i = 0; i < x->m; i++) any |= low[i] < high[i];
    if (!any) return;
    for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
        ops->page_scores[dtype](x->scores + row, KEY_BLOCK, x->q, dim, pages[row / KVF_PAGE_ROWS], x->m, dim);
    }
    for (uint32_t i = 0; i < x->m; i++) {
        float *row = x->scores + i * KEY_BLOCK;
        const uint32_t end = high[i] > low[i] ? high[i] : low[i];
        x->pairs += end - low[i];
        for (uint32_t r = low[i]; hidden != NULL && r < end; r++) {
            if (!hidden[r]) continue;
            row[r] = -INFINITY;
            x->pairs--;
        }
        cpu_softmax_block(ops, row, low[i], end, scale, dim, x->out + (size_t)i * dim, &x->max[i], &x->sum[i]);
    }
    for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
        const uint32_t rows = n - row < KVF_PAGE_ROWS ? n - row : KVF_PAGE_ROWS;
        ops->read_values[dtype](x->values + (size_t)row * dim, pages[row / KVF_PAGE_ROWS], rows, dim);
    }
    ops->tile_values(x->out, dim, x->scores, KEY_BLOCK, x->values, dim, x->m, n, dim);
}

/* Which rows of [from, to) a query sees: from its own bounds. */
typedef void (*bounds)(const tile *x, const part *p, uint32_t token, uint32_t *from, uint32_t *to);

/* Takes in the table's rows [from, to), as far as each query sees them. */
static void take_range(tile *x, const part *p, uint32_t from, uint32_t to, bounds see) {
    if (to > x->start + x->m) to = x->start + x->m;
    for (uint32_t first = from / KVF_PAGE_ROWS * KVF_PAGE_ROWS; first < to; first += KEY_BLOCK) {
        const uint32_t n = to - first < KEY_BLOCK ? to - first : KEY_BLOCK;
        uint32_t low[ROW_BLOCK], high[ROW_BLOCK];
        void *pages[KEY_BLOCK / KVF_PAGE_ROWS];
        for (uint32_t row = 0; row < n; row += KVF_PAGE_ROWS) {
            pages[row / KVF_PAGE_ROWS] = kv_page_data(x->j->cache, x->t, first + row);
        }
        for (uint32_t i = 0; i < x->m; i++) {
            uint32_t a = from, b = to;
            see(x, p, x->start + i, &a, &b);
            const uint32_t oldest = oldest_of(x->j, x->start + i);
            if (a < oldest) a = oldest;
            if (b > x->start + i + 1) b = x->start + i + 1;
            low[i] = a <= first ? 0 : a - first < n ? a - first : n;
            high[i] = b <= first ? 0 : b - first < n ? b - first : n;
        }
        take_rows(x, pages, n, low, high, NULL);
    }
}

static void see_all(const tile *x, const part *p, uint32_t token, uint32_t *from, uint32_t *to) {
    (void)x, (void)p, (void)token, (void)from, (void)to;
}

static void see_recent(const tile *x, const part *p, uint32_t token, uint32_t *from, uint32_t *to) {
    (void)x, (void)to;
    if (token >= p->b && *from < token - p->b + 1) *from = token - p->b + 1;
}

/* First rows that are not among the recent ones. */
static void see_first(const tile *x, const part *p, uint32_t token, uint32_t *from, uint32_t *to) {
    (void)x, (void)from;
    const uint32_t end = token >= p->b ? token - p->b + 1 : 0;
    if (*to > end) *to = end;
}

/* Takes in the kept columns that no range holds; ranges: [n_range, 2] ascending. */
static void take_columns(tile *x, const part *p, const uint32_t *ranges, uint32_t n_range) {
    const size_t size = cpu_page_size(x->j->cache->config.head_dim, x->j->cache->config.row_dtype);
    uint32_t range = 0;
    for (uint32_t first = 0; first < p->n_column && p->column[first] < x->start + x->m; first += KEY_BLOCK) {
        const uint32_t n = p->n_column - first < KEY_BLOCK ? p->n_column - first : KEY_BLOCK;
        const uint32_t *column = p->column + first;
        bool hidden[KEY_BLOCK], open = false;
        uint32_t low[ROW_BLOCK], high[ROW_BLOCK];
        void *pages[KEY_BLOCK / KVF_PAGE_ROWS];
        for (uint32_t r = 0; r < n; r++) {
            while (range < n_range && ranges[2 * range + 1] <= column[r]) range++;
            hidden[r] = range < n_range && column[r] >= ranges[2 * range];
            open |= !hidden[r];
        }
        if (!open) continue;
        for (uint32_t r = 0; r < n; r += KVF_PAGE_ROWS) pages[r / KVF_PAGE_ROWS] = p->page + (first + r) / KVF_PAGE_ROWS * size;
        for (uint32_t i = 0, a = 0, b = 0; i < x->m; i++) { /* both bounds only grow with the query */
            while (a < n && column[a] < oldest_of(x->j, x->start + i)) a++;
            while (b < n && column[b] <= x->start + i) b++;
            low[i] = a;
            high[i] = b;
        }
        take_rows(x, pages, n, low, high, hidden);
    }
}

/* Diagonals as ranges of rows, then columns beside them. ranges: room for [n_distance, 2]. */
static void take_lines(tile *x, const part *p, uint32_t *ranges) {
    const uint32_t end = x->start + ROW_BLOCK;
    uint32_t n_range = 0;
    for (uint32_t i = 0; i < p->n_distance; i++) {
        if (p->distance[i] >= end) continue;
        const uint32_t to = end - p->distance[i] > ROW_BLOCK ? end - p->distance[i] : ROW_BLOCK;
        uint32_t *last = ranges + 2 * n_range - 2;
        if (n_range == 0 || to > last[1] + ROW_BLOCK) {
            ranges[2 * n_range] = to - ROW_BLOCK;
            ranges[2 * n_range++ + 1] = to;
        } else if (to > last[1]) {
            last[1] += ROW_BLOCK;
        }
    }
    for (uint32_t i = 0; i < n_range; i++) take_range(x, p, ranges[2 * i], ranges[2 * i + 1], see_all);
    take_columns(x, p, ranges, n_range);
}

static void tile_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    const sparse_job *s = arg;
    const layer_queries *j = s->j;
    const uint32_t n_head = j->cache->config.n_head, head = chunk % n_head, index = s->n_tile - 1 - chunk / n_head;
    part *p = &s->parts[head];
    const buffers room = buffers_of(j, thread);
    tile x = {.j = j, .t = cpu_query_table(j, head), .q = room.q, .start = index * ROW_BLOCK, .scores = room.scores,
              .out = room.out, .values = room.values};
    x.m = j->n_token - x.start < ROW_BLOCK ? j->n_token - x.start : ROW_BLOCK;
    gather_queries(j, head, x.start, x.m, room.q);
    memset(x.out, 0, (size_t)x.m * j->cache->config.head_dim * sizeof *x.out);
    for (uint32_t i = 0; i < x.m; i++) x.max[i] = -INFINITY;
    const uint32_t end = x.start + x.m;
    if (p->kind == KVF_ATTEND_LINES) {
        uint32_t *ranges = malloc(2 * (size_t)p->n_distance * sizeof *ranges);
        if (ranges == NULL) {
            __atomic_store_n(&p->failed, true, __ATOMIC_RELAXED);
            return;
        }
        take_lines(&x, p, ranges);
        free(ranges);
    } else if (p->kind == KVF_ATTEND_ENDS) {
        take_range(&x, p, 0, p->a, see_first);
        take_range(&x, p, x.start >= p->b ? x.start - p->b + 1 : 0, end, see_recent);
    } else if (p->kind == KVF_ATTEND_BLOCKS) {
        for (uint32_t i = 0; i < p->n_block[index]; i++) {
            const uint32_t first = p->block[index * p->a + i] * ROW_BLOCK;
            take_range(&x, p, first, first + ROW_BLOCK, see_all);
        }
    } else {
        take_range(&x, p, 0, end, see_all);
    }
    cpu_tile_end(j, head, x.start, x.m, x.out, x.max, x.sum);
    if (s->pairs != NULL) s->pairs[(size_t)index * n_head + head] = x.pairs;
}

int32_t cpu_attend_sparse(layer_queries *j, const uint32_t *patterns, double *pairs, kv_err err) {
    const uint32_t n_head = j->cache->config.n_head, n_tile = (j->n_token + ROW_BLOCK - 1) / ROW_BLOCK;
    sparse_job s = {.j = j, .parts = calloc(n_head, sizeof *s.parts), .n_tile = n_tile};
    if (pairs != NULL) s.pairs = calloc((size_t)n_tile * n_head, sizeof *s.pairs);
    bool failed = s.parts == NULL || (pairs != NULL && s.pairs == NULL);
    if (!failed) {
        for (uint32_t h = 0; h < n_head; h++) {
            s.parts[h] = (part){.kind = patterns[3 * h], .a = patterns[3 * h + 1], .b = patterns[3 * h + 2]};
        }
        cpu_parallel(j->cache->dev, n_head, find_chunk, &s);
        for (uint32_t h = 0; h < n_head; h++) failed |= s.parts[h].failed;
    }
    if (!failed) {
        cpu_parallel(j->cache->dev, n_tile * n_head, tile_chunk, &s);
        for (uint32_t h = 0; h < n_head; h++) failed |= s.parts[h].failed;
    }
    for (uint32_t i = 0; i < n_tile * n_head && pairs != NULL && !failed; i++) pairs[i % n_head] += s.pairs[i];
    for (uint32_t h = 0; h < n_head && s.parts != NULL; h++) part_free(&s.parts[h]);
    free(s.parts);
    free(s.pairs);
    return failed ? kv_fail(err, KVF_ERR_MEMORY, "Cannot attend sparsely as memory ran out") : KVF_OK;
}
