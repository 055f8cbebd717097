/*
 * Step programs: masses, eviction in place, choice of pages.
 *
 * Evicting a row moves one row: the last one takes its place. Which rows go is decided by (statistic, position), never by
 * where a row lies, so the choice is the same as if the rows were in order.
 */
#include "packed.h"
#include "program.h"
#include "tiles.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "convert.h"

/* What a head is after attention. */
typedef struct head_job {
    const kvf_cache *cache;
    const kv_sequence *s;
    const kv_step *step;
    kv_live *live;
    kv_table *t;
    uint32_t layer, head, readers;
} head_job;

/* A row that may be evicted: the highest order goes first. */
typedef struct candidate {
    uint64_t order; /* ~statistic, then position */
    uint32_t row;
} candidate;

static size_t padded_rows(uint32_t rows) {
    return ((size_t)rows + KV_SEGMENT_ROWS) / KV_SEGMENT_ROWS * KV_SEGMENT_ROWS;
}

/* Keeps what follows aligned. */
static size_t factor_floats(uint32_t n_chunk, uint32_t readers) { return ((size_t)n_chunk * readers + 15) / 16 * 16; }

size_t cpu_program_floats(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t rows) {
    const kv_step *step = kv_step_of(s, layer);
    if (step == NULL) return 0;
    const size_t padded = padded_rows(rows);
    if (step->pages.size != 0) { /* scores per reader and reduced, twice, and the order of blocks; two copies of the queries */
        const size_t n = (size_t)kv_bounds_segments(step, rows) * KV_BOUND_BLOCKS;
        return n * (2 * (size_t)kv_readers(cache, s) + 1) + n * sizeof(candidate) / sizeof(float) +
               2 * (size_t)kv_readers(cache, s) * cache->config.head_dim + 64;
    }
    /* factors of chunks, what speaks for each row, candidates, and what kept queries need */
    return factor_floats(rows / CPU_CHUNK_ROWS + 2, kv_readers(cache, s)) + padded + padded * sizeof(candidate) / sizeof(float) +
           (step->queries.size != 0 ? cpu_kept_floats(rows) + padded : 0) + 64;
}

/* ---- Kept queries ---- */

void cpu_keep_queries(const kvf_cache *cache, kv_step *step, const float *q, uint32_t position) {
    const uint32_t dim = cache->config.head_dim, size = step->queries.last;
    for (uint32_t head = 0; head < cache->config.n_head; head++) {
        memcpy(step->ring + ((size_t)head * size + position % size) * dim, q + (size_t)head * dim, dim * sizeof *q);
    }
    if (step->n_ring < size) step->n_ring++;
}

/* ---- Masses ---- */

/* What one reader's probabilities of each chunk are worth: factor[chunk * readers + r]. The new row's mass becomes 0. */
static void chunk_factors(const head_job *j, const cpu_attended *a, float *factor) {
    const float scale = 1.0f / sqrtf((float)j->cache->config.head_dim);
    const uint32_t last = j->t->rows - 1;
    for (uint32_t r = 0; r < j->readers; r++) {
        /* the new row's place held anything */
        j->live->mass[last / KV_SEGMENT_ROWS][(size_t)r * KV_SEGMENT_ROWS + last % KV_SEGMENT_ROWS] = 0;
        float max = -INFINITY, sum = 0;
        for (uint32_t c = 0; c < a->n_chunk; c++) {
            const float m = a->tail[c * a->tail_floats + r];
            max = m > max ? m : max;
        }
        for (uint32_t c = 0; c < a->n_chunk; c++) {
            const float *tail = a->tail + c * a->tail_floats;
            const float weight = tail[r] == -INFINITY ? 0.0f : expf((tail[r] - max) * scale);
            factor[c * j->readers + r] = weight;
            if (weight > 0) sum += weight * tail[j->readers + r];
        }
        for (uint32_t c = 0; c < a->n_chunk; c++) factor[c * j->readers + r] /= sum;
    }
}

static void add_masses(const head_job *j, const cpu_attended *a, const float *factor) {
    const cpu_ops *ops = cpu_ops_of(j->cache->dev);
    for (uint32_t c = 0; c < a->n_chunk; c++) {
        const cpu_span span = cpu_chunk(j->t, c);
        for (uint32_t r = 0; r < j->readers; r++) {
            const float *prob = a->prob + c * a->prob_floats + (size_t)r * CPU_CHUNK_ROWS;
            for (uint32_t row = span.first, end = span.first + span.n; row < end;) { /* packed rows shift chunks against segments */
                const uint32_t at = row % KV_SEGMENT_ROWS;
                const uint32_t n = KV_SEGMENT_ROWS - at < end - row ? KV_SEGMENT_ROWS - at : end - row;
                ops->blend(j->live->mass[row / KV_SEGMENT_ROWS] + (size_t)r * KV_SEGMENT_ROWS + at, j->step->mass.decay,
                           prob + (row - span.first), factor[c * j->readers + r], n);
                row += n;
            }
        }
    }
}

/* ---- Eviction ---- */

static const uint32_t *positions_of(const head_job *j, uint32_t row) {
    return cpu_page_positions(kv_page_data(j->cache, j->t, row), j->cache->config.head_dim, j->cache->config.row_dtype);
}

/* How rows are weighed; with kept queries `work` becomes what they make of the rows. */
static cpu_weighing weighing(const head_job *j, float *work) {
    const kvf_op *op = &j->live->evict;
    const uint32_t rows = j->t->rows, seen = j->s->position + 1;
    cpu_weighing how = {op->reduce, op->first, op->last < seen ? seen - op->last : 0, op->draw != 0, 0, {0, 0}};
    if (op->draw) {
        how.inverse = op->temperature > 0 ? 1.0f / op->temperature : 0.0f;
        kv_draw_keys(op->seed, j->layer, j->head, seen, how.keys);
    }
    if (op->statistic >= KVF_STAT_WINDOW) {
        cpu_kept_scores(j->cache, j->s, j->layer, j->head, seen, j->step->n_ring,
                        op->statistic == KVF_STAT_HITS ? KVF_WINDOW_HITS : 0, op->reduce, work, work + padded_rows(rows));
        how.reduce = KVF_SUM;
    }
    return how;
}

/* A row's statistic, as weighing left it; NULL: its position counts. */
static float *statistic_of(const head_job *j, uint32_t row, float *work) {
    const uint32_t kind = j->live->evict.statistic;
    if (kind == KVF_STAT_MASS) return j->live->mass[row / KV_SEGMENT_ROWS] + row % KV_SEGMENT_ROWS;
    return kind == KVF_STAT_POSITION ? NULL : work + row;
}

/* What speaks for evicting each row, x. */
static void weigh(const head_job *j, float *x, float *work) {
    const cpu_weighing how = weighing(j, work);
    const uint32_t rows = j->t->rows, m = j->live->evict.statistic == KVF_STAT_MASS ? j->readers : 1;
    for (uint32_t row = 0; row < rows; row += KVF_PAGE_ROWS) {
        const uint32_t n = rows - row < KVF_PAGE_ROWS ? rows - row : KVF_PAGE_ROWS;
        cpu_ops_of(j->cache->dev)->weigh_page(x + row, statistic_of(j, row, work), KV_SEGMENT_ROWS, m, positions_of(j, row), n, &how);
    }
}

#define SEGMENT_PAGES (KV_SEGMENT_ROWS / KVF_PAGE_ROWS)

_Static_assert(KV_SEGMENT_ROWS == CPU_CHUNK_ROWS, "masses are added chunk by chunk while segments are searched");

/*
 * The row that is evicted first, segment by segment. With `factor` the masses are added on the way: chunks of attention
 * are segments then.
 */
static uint32_t find_first(const head_job *j, const cpu_attended *a, const float *factor, float *work) {
    const cpu_weighing how = weighing(j, work);
    const bool mass = j->live->evict.statistic == KVF_STAT_MASS;
    const uint32_t rows = j->t->rows, m = mass ? j->readers : 1;
    cpu_first first = {.position = {0}};
    for (uint32_t k = 0; k < 16; k++) first.x[k] = -INFINITY;
    for (uint32_t row = 0, c = 0; row < rows; row += KV_SEGMENT_ROWS, c++) {
        const uint32_t n = rows - row < KV_SEGMENT_ROWS ? rows - row : KV_SEGMENT_ROWS;
        const uint32_t *position[SEGMENT_PAGES];
        for (uint32_t i = 0; i < n; i += KVF_PAGE_ROWS) {
            position[i / KVF_PAGE_ROWS] = positions_of(j, row + i);
            if (row + i + KV_SEGMENT_ROWS >= rows) continue;
            const uint32_t *ahead = positions_of(j, row + i + KV_SEGMENT_ROWS);
            __builtin_prefetch(ahead);
            __builtin_prefetch(ahead + KVF_PAGE_ROWS / 2);
        }
        cpu_added added;
        if (factor != NULL) {
            added = (cpu_added){a->prob + c * a->prob_floats, CPU_CHUNK_ROWS, factor + c * j->readers, j->step->mass.decay,
                                c + 1 < a->n_chunk ? j->live->mass[c + 1] : NULL};
        }
        cpu_ops_of(j->cache->dev)->weigh_first(&first, statistic_of(j, row, work), KV_SEGMENT_ROWS, m,
                                               factor != NULL ? &added : NULL, position, row, n, &how);
    }
    uint32_t best = 0;
    for (uint32_t k = 1; k < 16; k++) {
        if (first.x[k] > first.x[best] || (first.x[k] == first.x[best] && first.position[k] > first.position[best])) best = k;
    }
    return first.row[best];
}

static void move_row(const head_job *j, uint32_t to, uint32_t from) {
    cpu_move_row(j->cache, j->t, to, from);
    for (uint32_t r = 0; j->step->mass.size != 0 && r < j->readers; r++) {
        const size_t at = (size_t)r * KV_SEGMENT_ROWS;
        j->live->mass[to / KV_SEGMENT_ROWS][at + to % KV_SEGMENT_ROWS] =
            j->live->mass[from / KV_SEGMENT_ROWS][at + from % KV_SEGMENT_ROWS];
    }
    j->live->shuffled = true;
}

/* Partial order: the n candidates with the highest order come first. */
static void select_first(candidate *c, uint32_t n_all, uint32_t n) {
    uint32_t low = 0, high = n_all; /* the boundary lies within */
    while (high - low > 1) {
        const uint64_t a = c[low].order, b = c[low + (high - low) / 2].order, d = c[high - 1].order;
        const uint64_t pivot = a > b ? (b > d ? b : a > d ? d : a) : (a > d ? a : b > d ? d : b);
        uint32_t i = low, k = low, end = high; /* [low, i) above, [i, k) equal, [end, high) below */
        while (k < end) {
            const candidate x = c[k];
            if (x.order > pivot) {
                c[k++] = c[i];
                c[i++] = x;
            } else if (x.order < pivot) {
                c[k] = c[--end];
                c[end] = x;
            } else {
                k++;
            }
        }
        if (n < i) {
            high = i;
        } else if (n > k) {
            low = k;
        } else {
            return;
        }
    }
}

static int by_row(const void *a, const void *b) {
    const uint32_t x = ((const candidate *)a)->row, y = ((const candidate *)b)->row;
    return x < y ? -1 : x > y;
}

/* Evicts n rows: the tail's rows that stay move into the holes, in order. */
static void evict_many(const head_job *j, const float *x, uint32_t n, candidate *c) {
    const uint32_t rows = j->t->rows, keep = rows - n;
    for (uint32_t row = 0; row < rows; row++) {
        c[row] = (candidate){(uint64_t)cpu_order_key(x[row]) << 32 | positions_of(j, row)[row % KVF_PAGE_ROWS], row};
    }
    select_first(c, rows, n);
    qsort(c, n, sizeof *c, by_row);
    uint32_t from = rows, end = n; /* candidates before `end` are still holes */
    for (uint32_t i = 0; i < end && c[i].row < keep; i++) {
        from--;
        while (end > 0 && c[end - 1].row == from) from--, end--;
        move_row(j, c[i].row, from);
    }
    j->t->rows = keep;
}

bool cpu_acts_on_head(const kv_sequence *s, uint32_t layer, uint32_t head) {
    const kv_step *step = kv_step_of(s, layer);
    return step != NULL &&
           (step->mass.size != 0 || kv_evicts(&step->head[head], kv_table_of(s, layer, head)->rows, s->position + 1));
}

void cpu_act_on_head(const kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const cpu_attended *a,
                     float *work) {
    kv_step *step = kv_step_of(s, layer);
    head_job j = {cache, s, step, &step->head[head], kv_table_of(s, layer, head), layer, head, kv_readers(cache, s)};
    const bool evicts = kv_evicts(j.live, j.t->rows, s->position + 1);
    const uint32_t rows = j.t->rows, n = evicts ? rows - j.live->evict.keep : 0;
    const size_t padded = padded_rows(rows);
    float *factor = NULL;
    if (step->mass.size != 0) {
        factor = work;
        work += factor_floats(a->n_chunk, j.readers);
        chunk_factors(&j, a, factor);
        const bool on_the_way = n == 1 && j.live->evict.statistic == KVF_STAT_MASS && j.t->packed == 0;
        if (!on_the_way) add_masses(&j, a, factor);
        if (!on_the_way) factor = NULL;
    }
    if (n > 1) {
        float *x = work + padded * sizeof(candidate) / sizeof(float);
        weigh(&j, x, x + padded);
        evict_many(&j, x, n, (candidate *)(void *)work);
    } else if (n == 1) {
        const uint32_t hole = find_first(&j, a, factor, work);
        if (hole < rows - 1) move_row(&j, hole, rows - 1);
        j.t->rows = rows - 1;
    }
}

/* ---- Relative positions ---- */

void cpu_shift_scores(const kvf_cache *cache, const kv_table *t, uint32_t row, uint32_t n, uint32_t first, uint32_t shift,
                      const float *inv_freq, const float *q, size_t ld_q, uint32_t m, uint32_t oldest, float *scores,
                      size_t ld_s, float *work) {
    /* rows only ever move towards the front, so the first positions lie among the first rows */
    if (row >= first) return;
    n = first - row < n ? first - row : n;
    const uint32_t dim = cache->config.head_dim, half = dim / 2, dtype = cache->config.row_dtype;
    float *turned = work, *score = work + (size_t)m * dim;
    bool ready = false;
    for (uint32_t at = 0; at < n; at += KVF_PAGE_ROWS) {
        void *page = kv_page_data(cache, t, row + at);
        const uint32_t *position = cpu_page_positions(page, dim, dtype);
        const uint32_t used = n - at < KVF_PAGE_ROWS ? n - at : KVF_PAGE_ROWS;
        bool any = false;
        for (uint32_t i = 0; i < used; i++) any |= position[i] < first;
        if (!any) continue;
        /* keys `shift` tokens later give the products of a query `shift` tokens earlier */
        for (uint32_t d = 0; d < half && !ready; d++) {
            const float angle = (float)shift * inv_freq[d], cosine = cosf(angle), sine = sinf(angle);
            for (uint32_t r = 0; r < m; r++) {
                const float a = q[r * ld_q + d], b = q[r * ld_q + half + d];
                turned[r * dim + d] = a * cosine + b * sine;
                turned[r * dim + half + d] = b * cosine - a * sine;
            }
        }
        ready = true;
        cpu_ops_of(cache->dev)->page_scores[dtype](score, KVF_PAGE_ROWS, turned, dim, page, m, dim);
        for (uint32_t i = 0; i < used; i++) {
            if (position[i] >= first) continue;
            for (uint32_t r = 0; r < m; r++) {
                scores[r * ld_s + at + i] = position[i] + shift < oldest ? -INFINITY : score[r * KVF_PAGE_ROWS + i];
            }
        }
    }
}

/* ---- Bounds and choice of pages ---- */

/* Highest and lowest key of rows [first, end), packed or plain, per channel: [2, head_dim], steps of `ld`. */
static void bound(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t end, float *out, size_t ld) {
    const uint32_t dim = cache->config.head_dim;
    float tile[CPU_TILE_FLOATS] __attribute__((aligned(64)));
    for (uint32_t d = 0; d < dim; d++) out[d * ld] = -INFINITY, out[(dim + d) * ld] = INFINITY;
    for (uint32_t row = first; row < end;) {
        const uint32_t page = kv_page_of(t, row), slot = kv_slot_of(t, row), left = kv_page_rows(t, page) - slot;
        const uint32_t n = left < end - row ? left : end - row;
        cpu_page_tile(cache, t, page, 0, tile);
        for (uint32_t d = 0; d < dim; d++) {
            const float *key = tile + (size_t)d * KVF_PAGE_ROWS + slot;
            float high = out[d * ld], low = out[(dim + d) * ld];
            for (uint32_t i = 0; i < n; i++) {
                high = key[i] > high ? key[i] : high;
                low = key[i] < low ? key[i] : low;
            }
            out[d * ld] = high, out[(dim + d) * ld] = low;
        }
        row += n;
    }
}

void cpu_bound_row(const kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, uint32_t row) {
    const kv_step *step = kv_step_of(s, layer);
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const uint32_t block = row / step->pages.page_rows, column = block % KV_BOUND_BLOCKS;
    float *segment = step->head[head].bounds[block / KV_BOUND_BLOCKS];
    if (row % step->pages.page_rows == 0) {
        bound(cache, t, row, row + 1, segment + column, KV_BOUND_BLOCKS);
        return;
    }
    const void *keys = cpu_page_keys(kv_page_data(cache, t, row));
    for (uint32_t d = 0; d < dim; d++) {
        const float x = cpu_get(keys, (size_t)d * KVF_PAGE_ROWS + row % KVF_PAGE_ROWS, dtype);
        float *high = &segment[(size_t)d * KV_BOUND_BLOCKS + column], *low = &segment[(size_t)(dim + d) * KV_BOUND_BLOCKS + column];
        *high = x > *high ? x : *high;
        *low = x < *low ? x : *low;
    }
}

int32_t be_live_bounds(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    (void)err;
    const kv_step *step = kv_step_of(s, layer);
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t size = step->pages.page_rows;
    for (uint32_t first = 0; first < t->rows; first += size) {
        const uint32_t block = first / size, end = t->rows - first < size ? t->rows : first + size;
        bound(cache, t, first, end, step->head[head].bounds[block / KV_BOUND_BLOCKS] + block % KV_BOUND_BLOCKS, KV_BOUND_BLOCKS);
    }
    return KVF_OK;
}

/* Scores of one segment's blocks into score[readers, ld]: q's positive part meets the highest keys, the rest the lowest. */
static void bound_scores(const kvf_cache *cache, const float *q, uint32_t readers, const float *segment, float *score,
                         size_t ld, float *spare) {
    const uint32_t dim = cache->config.head_dim;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const size_t n = (size_t)readers * dim;
    ops->page_scores[KVF_F32](score, ld, q, dim, segment, readers, dim);
    ops->page_scores[KVF_F32](spare, ld, q + n, dim, segment + (size_t)dim * KV_BOUND_BLOCKS, readers, dim);
    for (uint32_t r = 0; r < readers; r++) {
        for (uint32_t i = 0; i < KV_BOUND_BLOCKS; i++) score[r * ld + i] += spare[r * ld + i];
    }
}

_Static_assert(KV_BOUND_BLOCKS == KVF_PAGE_ROWS, "a segment of bounds is scored as two pages of keys");

/* Adds rows [first, end) to the picks, which ascend. */
static uint32_t pick_rows(cpu_pick *out, uint32_t n, uint32_t first, uint32_t end) {
    /* packed rows fill their pages, so that rows and slots go together */
    while (first < end) {
        const uint32_t page = first / KVF_PAGE_ROWS, slot = first % KVF_PAGE_ROWS;
        const uint32_t count = KVF_PAGE_ROWS - slot < end - first ? KVF_PAGE_ROWS - slot : end - first;
        const uint32_t mask = (count == 32 ? UINT32_MAX : (1u << count) - 1) << slot;
        if (n > 0 && out[n - 1].page == page) {
            out[n - 1].mask |= mask;
        } else {
            out[n++] = (cpu_pick){page, mask};
        }
        first += count;
    }
    return n;
}

uint32_t cpu_pick_pages(const kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t head, const float *q,
                        size_t ld_q, uint32_t oldest, cpu_pick *out, float *work) {
    const kv_step *step = kv_step_of(s, layer);
    const kvf_op *op = &step->pages;
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t rows = t->rows, readers = kv_readers(cache, s), dim = cache->config.head_dim, size = op->page_rows;
    if (op->keep >= rows) return pick_rows(out, 0, 0, rows);
    const uint32_t recent = op->last < op->keep ? op->last : op->keep, end = rows - recent, take = op->keep - recent;
    if (take == 0) return pick_rows(out, 0, end, rows);
    const uint32_t n_block = end / size + (end % size != 0);
    uint32_t hidden = 0; /* blocks that have left the sliding window */
    while (hidden < n_block) {
        const uint32_t last = (hidden + 1) * size < end ? (hidden + 1) * size - 1 : end - 1;
        if (cpu_positions_of(cache, t, kv_page_of(t, last))[kv_slot_of(t, last)] >= oldest) break;
        hidden++;
    }
    uint32_t wanted = take / size + (take % size != 0);
    if (op->cut && end % size != 0 && wanted < n_block - hidden) wanted++;
    if (wanted > n_block - hidden) wanted = n_block - hidden;

    const uint32_t n_segment = (n_block + KV_BOUND_BLOCKS - 1) / KV_BOUND_BLOCKS;
    const size_t ld = (size_t)n_segment * KV_BOUND_BLOCKS;
    candidate *c = (candidate *)(void *)work;
    float *score = work + ld * sizeof *c / sizeof *work, *spare = score + ld * readers, *x = spare + ld * readers;
    float *parts = x + ld; /* [2, readers, dim] */
    for (uint32_t r = 0; r < readers; r++) {
        for (uint32_t d = 0; d < dim; d++) {
            const float value = q[r * ld_q + d];
            parts[r * dim + d] = value >= 0 ? value : 0;
            parts[(readers + r) * dim + d] = value >= 0 ? 0 : value;
        }
    }
    for (uint32_t i = 0; i < n_segment; i++) {
        const float *segment = step->head[head].bounds[i];
        bound_scores(cache, parts, readers, segment, score + (size_t)i * KV_BOUND_BLOCKS, ld, spare + (size_t)i * KV_BOUND_BLOCKS);
    }
    if (end % size != 0 && end < rows) { /* the stored bounds of the block at the end of the choice know rows beyond it */
        float own[2 * 256];
        bound(cache, t, end - end % size, end, own, 1);
        for (uint32_t r = 0; r < readers; r++) {
            float sum = 0;
            for (uint32_t d = 0; d < dim; d++) {
                sum += parts[r * dim + d] * own[d] + parts[(readers + r) * dim + d] * own[dim + d];
            }
            score[r * ld + n_block - 1] = sum;
        }
    }
    cpu_ops_of(cache->dev)->negate_reduced(x, score, ld, readers, op->reduce, n_block);
    for (uint32_t i = hidden; i < n_block; i++) {
        c[i - hidden] = (candidate){(uint64_t)~cpu_order_key(x[i]) << 32 | (UINT32_MAX - i), i};
    }
    select_first(c, n_block - hidden, wanted);
    qsort(c, wanted, sizeof *c, by_row);
    uint32_t n = 0, left = op->cut ? take : end;
    for (uint32_t i = 0; i < wanted && left > 0; i++) {
        const uint32_t first = c[i].row * size, stop = end - first < size ? end : first + size;
        const uint32_t count = stop - first < left ? stop - first : left;
        n = pick_rows(out, n, first, first + count);
        left -= count;
    }
    return pick_rows(out, n, end, rows);
}

/* All rows of a picked page. */
static cpu_span page_span(const kv_table *t, const cpu_pick *pick) {
    return (cpu_span){pick->page, kv_page_first(t, pick->page), kv_page_rows(t, pick->page)};
}

void cpu_pick_scores(const kvf_cache *cache, const kv_table *t, const cpu_pick *picks, uint32_t n, const float *q,
                     size_t ld_q, uint32_t m, uint32_t oldest, float *scores, size_t ld_s) {
    for (uint32_t i = 0; i < n; i++) {
        float *out = scores + (size_t)i * KVF_PAGE_ROWS;
        cpu_table_scores(cache, t, page_span(t, &picks[i]), q, ld_q, m, oldest, out, ld_s);
        for (uint32_t rest = ~picks[i].mask; rest != 0; rest &= rest - 1) {
            for (uint32_t r = 0; r < m; r++) out[r * ld_s + (uint32_t)__builtin_ctz(rest)] = -INFINITY;
        }
    }
}

void cpu_pick_values(const kvf_cache *cache, const kv_table *t, const cpu_pick *picks, uint32_t n, const float *p,
                     size_t ld_p, uint32_t m, float *out, size_t ld_out) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const size_t row_bytes = dim * cpu_dtype_bytes(dtype);
    for (uint32_t i = 0; i < n; i++, p += KVF_PAGE_ROWS) {
        if (picks[i].page < kv_packed_pages(t)) {
            cpu_table_values(cache, t, page_span(t, &picks[i]), p, ld_p, m, out, ld_out);
            continue;
        }
        /* only from the first to the last picked slot: the kernel begins with slot 0 of the page it is given */
        const uint32_t first = (uint32_t)__builtin_ctz(picks[i].mask), end = 32 - (uint32_t)__builtin_clz(picks[i].mask);
        const uint8_t *page = kv_page_data(cache, t, kv_page_first(t, picks[i].page));
        cpu_ops_of(cache->dev)->page_values[dtype](out, ld_out, p + first, ld_p, page + first * row_bytes, m, end - first, dim);
    }
}

int32_t be_program_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const float *q, size_t ld_q,
                        uint32_t *to_host, kv_err err) {
    const kv_table *t = kv_table_of(s, layer, head);
    const size_t bytes = cpu_program_floats(cache, s, layer, t->rows) * sizeof(float), picks = t->n_page * sizeof(cpu_pick);
    float *work = be_alloc(cache->dev, bytes + picks);
    if (work == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot choose pages as %zu bytes must be available", bytes + picks);
    cpu_pick *pick = (cpu_pick *)(void *)((uint8_t *)work + bytes);
    const uint32_t saved = cpu_fp_enter();
    const uint32_t n = cpu_pick_pages(cache, s, layer, head, q, ld_q, 0, pick, work);
    cpu_fp_leave(saved);
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) {
            if (pick[i].mask >> slot & 1) to_host[count++] = pick[i].page * KVF_PAGE_ROWS + slot;
        }
    }
    be_free(cache->dev, work);
    return (int32_t)count;
}

/* ---- What core asks for ---- */

int32_t be_program_check(const kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_err err) {
    (void)cache, (void)s, (void)step, (void)err;
    return KVF_OK;
}

int32_t be_live_start(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    (void)err;
    const kv_step *step = kv_step_of(s, layer);
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t readers = kv_readers(cache, s);
    const kv_observations *o = step->mass.from == KV_NO_TOKEN ? NULL : s->observe;
    for (uint32_t row = 0; row < t->rows; row++) {
        const uint32_t position = cpu_positions_of(cache, t, kv_page_of(t, row))[kv_slot_of(t, row)];
        for (uint32_t r = 0; r < readers; r++) {
            float x = 0;
            if (o != NULL && position < o->n_token) {
                x = o->mass[(size_t)layer * o->n_mass + step->mass.from][(size_t)(head * readers + r) * o->n_token + position];
            }
            step->head[head].mass[row / KV_SEGMENT_ROWS][(size_t)r * KV_SEGMENT_ROWS + row % KV_SEGMENT_ROWS] = x;
        }
    }
    return KVF_OK;
}

int32_t be_live_compact(kvf_cache *cache, kv_sequence *s, kv_live *live, const uint32_t *rows, uint32_t n, kv_err err) {
    (void)err;
    const uint32_t readers = kv_readers(cache, s);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t r = 0; r < readers; r++) {
            const size_t at = (size_t)r * KV_SEGMENT_ROWS;
            live->mass[i / KV_SEGMENT_ROWS][at + i % KV_SEGMENT_ROWS] =
                live->mass[rows[i] / KV_SEGMENT_ROWS][at + rows[i] % KV_SEGMENT_ROWS];
        }
    }
    return KVF_OK;
}
