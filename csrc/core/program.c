/*
 * Step programs: their checks, what they keep beside the rows, and how that follows the rows.
 *
 * A program is a list of operations per layer, reduced to one kv_step. Nothing in it refers to the host: a step needs the
 * operations, the row counts and the position alone, so that a device can carry it out without asking.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"

_Static_assert(sizeof(kvf_op) == 68, "layout of the ABI");

static const char *const ACTION = "set the program";

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot %s as %zu bytes must be available", ACTION, bytes);
}

/* ---- Memory ---- */

/* Backend memory that the ledger counts. */
static void *live_alloc(kvf_cache *cache, size_t bytes, kv_err err) {
    if (kv_check_limit(cache, (double)bytes, err) != KVF_OK) return NULL;
    void *data = be_alloc(cache->dev, bytes);
    if (data == NULL) {
        no_memory(bytes, err);
        return NULL;
    }
    cache->live_bytes += bytes;
    kv_note_peak(cache);
    return data;
}

static void live_free(kvf_cache *cache, void *data, size_t bytes) {
    if (data == NULL) return;
    be_free(cache->dev, data);
    cache->live_bytes -= bytes;
}

size_t kv_mass_bytes(const kvf_cache *cache, const kv_sequence *s) {
    return (size_t)kv_readers(cache, s) * KV_SEGMENT_ROWS * sizeof(float);
}

size_t kv_bounds_bytes(const kvf_cache *cache) {
    return 2 * (size_t)cache->config.head_dim * KV_BOUND_BLOCKS * sizeof(float);
}

static size_t ring_bytes(const kvf_cache *cache, const kv_step *step) {
    return (size_t)cache->config.n_head * step->queries.last * cache->config.head_dim * sizeof(float);
}

uint32_t kv_mass_segments(const kv_step *step, uint32_t rows) {
    return step->mass.size == 0 ? 0 : rows / KV_SEGMENT_ROWS + (rows % KV_SEGMENT_ROWS != 0);
}

uint32_t kv_bounds_segments(const kv_step *step, uint32_t rows) {
    if (step->pages.size == 0) return 0;
    const uint32_t n = rows / step->pages.page_rows + (rows % step->pages.page_rows != 0);
    return n / KV_BOUND_BLOCKS + (n % KV_BOUND_BLOCKS != 0);
}

/* Lets segments go until n are left. */
static void shrink(kvf_cache *cache, float **list, uint32_t *n_held, uint32_t n, size_t bytes) {
    while (*n_held > n) live_free(cache, list[--*n_held], bytes);
}

/* Takes segments until there are n. */
static int32_t grow(kvf_cache *cache, float ***list, uint32_t *n_held, uint32_t *cap, uint32_t n, size_t bytes, kv_err err) {
    if (n > *cap) {
        const uint32_t more = *cap + *cap / 2 > n ? *cap + *cap / 2 : n;
        float **room = realloc(*list, more * sizeof *room);
        if (room == NULL) return no_memory(more * sizeof *room, err);
        *list = room;
        *cap = more;
    }
    while (*n_held < n) {
        float *data = live_alloc(cache, bytes, err);
        if (data == NULL) return KVF_ERR_MEMORY;
        (*list)[(*n_held)++] = data;
    }
    return KVF_OK;
}

static int32_t live_grow(kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_live *live, uint32_t rows,
                         kv_err err) {
    const int32_t status = grow(cache, &live->mass, &live->n_mass, &live->cap_mass, kv_mass_segments(step, rows),
                                kv_mass_bytes(cache, s), err);
    if (status != KVF_OK) return status;
    return grow(cache, &live->bounds, &live->n_bounds, &live->cap_bounds, kv_bounds_segments(step, rows),
                kv_bounds_bytes(cache), err);
}

static void live_trim(kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_live *live, uint32_t rows) {
    shrink(cache, live->mass, &live->n_mass, kv_mass_segments(step, rows), kv_mass_bytes(cache, s));
    shrink(cache, live->bounds, &live->n_bounds, kv_bounds_segments(step, rows), kv_bounds_bytes(cache));
}

static kv_step *step_new(const kv_sequence *s, kv_err err) {
    kv_step *step = calloc(1, sizeof *step);
    if (step != NULL) step->head = calloc(s->n_stored_head, sizeof *step->head);
    if (step == NULL || step->head == NULL) {
        free(step);
        no_memory(s->n_stored_head * sizeof *step->head, err);
        return NULL;
    }
    return step;
}

static void step_destroy(kvf_cache *cache, const kv_sequence *s, kv_step *step) {
    if (step == NULL) return;
    live_free(cache, step->ring, ring_bytes(cache, step));
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_live *live = &step->head[h];
        shrink(cache, live->mass, &live->n_mass, 0, kv_mass_bytes(cache, s));
        shrink(cache, live->bounds, &live->n_bounds, 0, kv_bounds_bytes(cache));
        free(live->mass);
        free(live->bounds);
    }
    free(step->head);
    free(step);
}

void kv_step_free(kvf_cache *cache, kv_sequence *s, uint32_t layer) {
    if (s->step == NULL) return;
    step_destroy(cache, s, s->step[layer]);
    s->step[layer] = NULL;
}

void kv_steps_free(kvf_cache *cache, kv_sequence *s) {
    if (s->step == NULL) return;
    for (uint32_t i = 0; i < cache->config.n_layer; i++) step_destroy(cache, s, s->step[i]);
    free(s->step);
    s->step = NULL;
}

/* ---- Ledger ---- */

double kv_step_promised(const kvf_cache *cache, const kv_sequence *s) {
    double bytes = 0;
    for (uint32_t layer = 0; s->step != NULL && layer < cache->config.n_layer; layer++) {
        const kv_step *step = s->step[layer];
        if (step == NULL) continue;
        if (step->queries.size != 0) bytes += (double)ring_bytes(cache, step);
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            const uint32_t rows = kv_table_of(s, layer, h)->rows;
            bytes += (double)kv_mass_segments(step, rows) * (double)kv_mass_bytes(cache, s);
            bytes += (double)kv_bounds_segments(step, rows) * (double)kv_bounds_bytes(cache);
        }
    }
    return bytes;
}

double kv_step_owned(const kvf_cache *cache, const kv_sequence *s) {
    double bytes = 0;
    for (uint32_t layer = 0; s->step != NULL && layer < cache->config.n_layer; layer++) {
        const kv_step *step = s->step[layer];
        if (step == NULL) continue;
        if (step->ring != NULL) bytes += (double)ring_bytes(cache, step);
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            bytes += (double)step->head[h].n_mass * (double)kv_mass_bytes(cache, s);
            bytes += (double)step->head[h].n_bounds * (double)kv_bounds_bytes(cache);
        }
    }
    return bytes;
}

/* ---- Following the rows ---- */

uint32_t kv_step_rows(const kv_live *live, uint32_t *rows, uint32_t seen, uint32_t n, bool *evicts) {
    uint32_t most = *rows + (n > 0);
    *evicts = false;
    if (live == NULL || live->evict.size == 0) {
        *rows += n;
        return *rows;
    }
    const kvf_op *op = &live->evict;
    uint32_t left = n, next = op->every - seen % op->every; /* steps up to the next one that may evict */
    while (left >= next) {
        *rows += next;
        left -= next;
        next = op->every;
        most = *rows > most ? *rows : most;
        if (*rows <= op->above) continue;
        *rows = op->keep;
        *evicts = true;
        if (op->every <= op->above - op->keep) continue;
        /* From here on each of them evicts. */
        if (left >= next && op->keep + next > most) most = op->keep + next;
        left %= next;
    }
    *rows += left;
    return *rows > most ? *rows : most;
}

int32_t kv_step_reserve(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err) {
    kv_step *step = kv_step_of(s, layer);
    if (step == NULL) return KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        bool evicts;
        uint32_t rows = t->rows;
        const uint32_t most = kv_step_rows(&step->head[h], &rows, s->position, n, &evicts);
        int32_t status = live_grow(cache, s, step, &step->head[h], most, err);
        if (status == KVF_OK && evicts) status = kv_table_own(cache, t, err);
        if (status != KVF_OK) return status;
    }
    return KVF_OK;
}

void kv_step_trim(kvf_cache *cache, kv_sequence *s, uint32_t layer) {
    kv_step *step = kv_step_of(s, layer);
    if (step == NULL) return;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        live_trim(cache, s, step, &step->head[h], kv_table_of(s, layer, h)->rows);
    }
}

int32_t kv_step_retain(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const uint32_t *rows, uint32_t n,
                       kv_err err) {
    kv_step *step = kv_step_of(s, layer);
    if (step == NULL) return KVF_OK;
    kv_live *live = &step->head[head];
    int32_t status = KVF_OK;
    if (step->mass.size != 0 && n > 0) status = be_live_compact(cache, s, live, rows, n, err);
    if (status == KVF_OK && step->pages.size != 0 && n > 0) status = be_live_bounds(cache, s, layer, head, err);
    live_trim(cache, s, step, live, n);
    return status;
}

int32_t kv_step_rekey(kvf_cache *cache, kv_sequence *s, uint32_t layer, kv_err err) {
    const kv_step *step = kv_step_of(s, layer);
    int32_t status = KVF_OK;
    for (uint32_t h = 0; step != NULL && step->pages.size != 0 && h < s->n_stored_head && status == KVF_OK; h++) {
        if (kv_table_of(s, layer, h)->rows > 0) status = be_live_bounds(cache, s, layer, h, err);
    }
    return status;
}

int32_t kv_layer_order(kvf_cache *cache, kv_sequence *s, uint32_t layer, kv_err err) {
    kv_step *step = kv_step_of(s, layer);
    for (uint32_t h = 0; step != NULL && h < s->n_stored_head; h++) {
        if (!step->head[h].shuffled) continue;
        int32_t status = kv_table_own(cache, kv_table_of(s, layer, h), err);
        if (status == KVF_OK) status = be_order_rows(cache, s, layer, h, err);
        if (status != KVF_OK) return status;
        step->head[h].shuffled = false;
    }
    return KVF_OK;
}

/* ---- Forks ---- */

static int32_t fork_head(kvf_cache *cache, kv_sequence *copy, const kv_sequence *s, const kv_step *step, kv_live *to,
                         uint32_t head, uint32_t rows, kv_err err) {
    const uint32_t n_sharing = copy->n_stored_head / s->n_stored_head;
    const kv_live *from = &step->head[head / n_sharing];
    to->evict = from->evict;
    to->shuffled = from->shuffled;
    int32_t status = live_grow(cache, copy, step, to, rows, err);
    const size_t bytes = kv_mass_bytes(cache, copy), part = head % n_sharing * (bytes / sizeof(float));
    for (uint32_t i = 0; i < to->n_mass && status == KVF_OK; i++) {
        status = be_copy(cache->dev, to->mass[i], from->mass[i] + part, bytes, err);
    }
    for (uint32_t i = 0; i < to->n_bounds && status == KVF_OK; i++) {
        status = be_copy(cache->dev, to->bounds[i], from->bounds[i], kv_bounds_bytes(cache), err);
    }
    return status;
}

static int32_t fork_layer(kvf_cache *cache, kv_sequence *copy, const kv_sequence *s, uint32_t layer, kv_err err) {
    const kv_step *step = s->step[layer];
    kv_step *to = step_new(copy, err);
    if (to == NULL) return KVF_ERR_MEMORY;
    copy->step[layer] = to;
    to->mass = step->mass;
    to->queries = step->queries;
    to->pages = step->pages;
    to->relative = step->relative;
    to->evicts = step->evicts;
    to->n_ring = step->n_ring;
    int32_t status = KVF_OK;
    if (step->ring != NULL) {
        to->ring = live_alloc(cache, ring_bytes(cache, step), err);
        status = to->ring == NULL ? KVF_ERR_MEMORY
                                  : be_copy(cache->dev, to->ring, step->ring, ring_bytes(cache, step), err);
    }
    for (uint32_t h = 0; h < copy->n_stored_head && status == KVF_OK; h++) {
        status = fork_head(cache, copy, s, step, &to->head[h], h, kv_table_of(copy, layer, h)->rows, err);
    }
    return status;
}

int32_t kv_step_fork(kvf_cache *cache, kv_sequence *copy, const kv_sequence *s, kv_err err) {
    if (s->step == NULL) return KVF_OK;
    copy->step = calloc(cache->config.n_layer, sizeof *copy->step);
    if (copy->step == NULL) return no_memory(cache->config.n_layer * sizeof *copy->step, err);
    int32_t status = KVF_OK;
    for (uint32_t layer = 0; layer < cache->config.n_layer && status == KVF_OK; layer++) {
        if (s->step[layer] != NULL) status = fork_layer(cache, copy, s, layer, err);
    }
    return status;
}

/* ---- Checks ---- */

static int32_t wrong(kv_err err, uint32_t i, const char *rule, double value) {
    return kv_fail(err, KVF_ERR_ARG, "Cannot %s as operation %u must have %s: %.9g", ACTION, i, rule, value);
}

/* Fields that are not of the operation's kind. */
static bool has_strangers(const kvf_op *op) {
    kvf_op x = *op;
    x.size = x.kind = 0;
    x.head = 0;
    switch (op->kind) {
        case KVF_OP_MASS: x.from = 0, x.decay = 0; break;
        case KVF_OP_QUERIES: x.last = 0; break;
        case KVF_OP_EVICT:
            x.every = x.above = x.keep = x.first = x.last = x.statistic = x.reduce = x.draw = x.seed = 0;
            x.temperature = 0;
            break;
        case KVF_OP_PAGES: x.keep = x.last = x.page_rows = x.reduce = x.cut = 0; break;
        default: x.first = 0; break;
    }
    static const kvf_op none;
    return memcmp(&x, &none, sizeof x) != 0;
}

static int32_t check_op(const kv_sequence *s, uint32_t layer, const kvf_op *op, uint32_t i, kv_err err) {
    if (op->size != sizeof *op) return wrong(err, i, "the size of kvf_op", op->size);
    if (op->kind < KVF_OP_MASS || op->kind > KVF_OP_RELATIVE) return wrong(err, i, "a known kind", op->kind);
    if (op->head != KV_NO_TOKEN && (op->kind != KVF_OP_EVICT || op->head >= s->n_stored_head)) {
        return wrong(err, i, "head 0xffffffff, or a stored head to evict from", op->head);
    }
    if (has_strangers(op)) return wrong(err, i, "0 in the fields of other kinds; its kind is", op->kind);
    const uint64_t guarded = (uint64_t)op->first + op->last;
    switch (op->kind) {
        case KVF_OP_MASS:
            if (!(isfinite(op->decay) && op->decay >= 0)) return wrong(err, i, "a finite decay of at least 0", (double)op->decay);
            if (op->from != KV_NO_TOKEN && (s->observe == NULL || op->from >= s->observe->n_mass)) {
                return wrong(err, i, "a recorded mass to start from, or 0xffffffff", op->from);
            }
            if (op->from != KV_NO_TOKEN && s->observe->mass[(size_t)layer * s->observe->n_mass + op->from] == NULL) {
                return wrong(err, i, "a mass that the layer's attention has filled; it asks for", op->from);
            }
            break;
        case KVF_OP_QUERIES:
            if (op->last == 0 || op->last > 65536) return wrong(err, i, "between 1 and 65536 queries", op->last);
            break;
        case KVF_OP_EVICT:
            if (op->every == 0) return wrong(err, i, "every of at least 1", 0);
            if (op->keep == 0 || op->keep > op->above) return wrong(err, i, "keep between 1 and above", op->keep);
            if (guarded > op->keep) return wrong(err, i, "first and last within keep", (double)guarded);
            if (op->statistic > KVF_STAT_HITS) return wrong(err, i, "a known statistic", op->statistic);
            if (op->reduce > KVF_SUM) return wrong(err, i, "reduce 0, 1 or 2", op->reduce);
            if (op->draw > 1) return wrong(err, i, "draw 0 or 1", op->draw);
            if (!isfinite(op->temperature)) return wrong(err, i, "a finite temperature", (double)op->temperature);
            break;
        case KVF_OP_PAGES:
            if (op->page_rows == 0 || op->page_rows > 65536) return wrong(err, i, "between 1 and 65536 page_rows", op->page_rows);
            if (op->keep == 0) return wrong(err, i, "keep of at least 1", 0);
            if (op->reduce > KVF_SUM) return wrong(err, i, "reduce 0, 1 or 2", op->reduce);
            if (op->cut > 1) return wrong(err, i, "cut 0 or 1", op->cut);
            break;
        default: break;
    }
    return KVF_OK;
}

static int32_t set_once(kvf_op *to, const kvf_op *op, uint32_t i, kv_err err) {
    if (to->size != 0) return wrong(err, i, "a kind (and head) that comes once", op->kind);
    *to = *op;
    return KVF_OK;
}

/* Sorts the operations into the step. */
static int32_t arrange(const kv_sequence *s, uint32_t layer, kv_step *step, const kvf_op *ops, uint32_t n, kv_err err) {
    for (uint32_t i = 0; i < n; i++) {
        const kvf_op *op = &ops[i];
        int32_t status = check_op(s, layer, op, i, err);
        if (status != KVF_OK) return status;
        switch (op->kind) {
            case KVF_OP_MASS: status = set_once(&step->mass, op, i, err); break;
            case KVF_OP_QUERIES: status = set_once(&step->queries, op, i, err); break;
            case KVF_OP_PAGES: status = set_once(&step->pages, op, i, err); break;
            case KVF_OP_RELATIVE: status = set_once(&step->relative, op, i, err); break;
            default:
                step->evicts = true;
                for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
                    if (op->head == KV_NO_TOKEN || op->head == h) status = set_once(&step->head[h].evict, op, i, err);
                }
        }
        if (status != KVF_OK) return status;
    }
    if (step->pages.size != 0 && (step->mass.size != 0 || step->evicts || step->relative.size != 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as pages are chosen beside kept queries only: another operation is there",
                       ACTION);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const kvf_op *e = &step->head[h].evict;
        if (e->size == 0) continue;
        if (e->statistic == KVF_STAT_MASS && step->mass.size == 0) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot %s as rows evicted by mass must carry it: there is no KVF_OP_MASS", ACTION);
        }
        if (e->statistic >= KVF_STAT_WINDOW && (step->queries.size == 0 || step->relative.size != 0)) {
            return kv_fail(err, KVF_ERR_ARG,
                           "Cannot %s as rows evicted by kept queries need them, at true positions: the program has %s", ACTION,
                           step->queries.size == 0 ? "none" : "KVF_OP_RELATIVE");
        }
    }
    return KVF_OK;
}

/* ---- Setting ---- */

/* The last recorded queries open the ring, where they are those of the last tokens. */
static int32_t fill_ring(kvf_cache *cache, const kv_sequence *s, uint32_t layer, kv_step *step, kv_err err) {
    const kv_observations *o = s->observe;
    step->n_ring = 0;
    step->ring = live_alloc(cache, ring_bytes(cache, step), err);
    if (step->ring == NULL) return KVF_ERR_MEMORY;
    if (o == NULL || o->window_q[layer] == NULL || (s->prefill == NULL && s->position != o->n_token)) return KVF_OK;
    const uint32_t size = step->queries.last, dim = cache->config.head_dim;
    step->n_ring = o->n_window < size ? o->n_window : size;
    for (uint32_t head = 0; head < cache->config.n_head; head++) {
        for (uint32_t i = 0; i < step->n_ring; i++) {
            const uint32_t position = o->n_token - step->n_ring + i;
            const float *from = o->window_q[layer] + ((size_t)head * o->n_window + (o->n_window - step->n_ring) + i) * dim;
            float *to = step->ring + ((size_t)head * size + position % size) * dim;
            const int32_t status = be_copy(cache->dev, to, from, dim * sizeof *to, err);
            if (status != KVF_OK) return status;
        }
    }
    return KVF_OK;
}

static int32_t fill_step(kvf_cache *cache, kv_sequence *s, uint32_t layer, kv_step *step, kv_err err) {
    int32_t status = be_program_check(cache, s, step, err);
    if (status == KVF_OK && step->queries.size != 0) status = fill_ring(cache, s, layer, step, err);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        status = live_grow(cache, s, step, &step->head[h], kv_table_of(s, layer, h)->rows, err);
    }
    return status;
}

/* Whether the layer's rows are complete. */
static int32_t check_complete(const kv_sequence *s, uint32_t layer, kv_err err) {
    const kv_prefill *p = s->prefill;
    if (p == NULL ? s->position > 0 : (p->recorded != NULL ? p->recorded[layer] : layer < p->next_layer)) return KVF_OK;
    return kv_fail(err, KVF_ERR_STATE, "Cannot %s as layer %u must have run", ACTION, layer);
}

static int32_t sequence_program(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_op *ops, uint32_t n,
                                kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, ACTION, err);
    if (s == NULL || !kv_check_layer(cache, layer, ACTION, err)) return KVF_ERR_ARG;
    if (n > s->n_stored_head + 4 || (n > 0 && ops == NULL)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as at most %u operations must be given: %u", ACTION, s->n_stored_head + 4,
                       ops == NULL ? 0 : n);
    }
    if (n > 0 && !kv_check_whole(s, layer, ACTION, err)) return KVF_ERR_STATE;
    int32_t status = check_complete(s, layer, err);
    if (status == KVF_OK) status = kv_layer_order(cache, s, layer, err);
    if (status != KVF_OK) return status;
    if (n == 0) {
        kv_step_free(cache, s, layer);
        return KVF_OK;
    }
    kv_step *step = step_new(s, err);
    if (step == NULL) return KVF_ERR_MEMORY;
    status = arrange(s, layer, step, ops, n, err);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        status = kv_check_format_step(kv_table_of(s, layer, h)->format, step, ACTION, err);
    }
    if (status == KVF_OK) status = fill_step(cache, s, layer, step, err);
    if (status == KVF_OK && s->step == NULL) {
        s->step = calloc(cache->config.n_layer, sizeof *s->step);
        if (s->step == NULL) status = no_memory(cache->config.n_layer * sizeof *s->step, err);
    }
    if (status != KVF_OK) {
        step_destroy(cache, s, step);
        return status;
    }
    kv_step *before = s->step[layer];
    s->step[layer] = step;
    status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK && kv_table_of(s, layer, h)->rows > 0; h++) {
        if (step->mass.size != 0) status = be_live_start(cache, s, layer, h, err);
        if (status == KVF_OK && step->pages.size != 0) status = be_live_bounds(cache, s, layer, h, err);
    }
    if (status != KVF_OK) {
        s->step[layer] = before;
        before = step;
    }
    step_destroy(cache, s, before);
    return status;
}

int32_t kvf_sequence_program(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_op *ops, uint32_t n_op,
                             char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, ACTION, err);
    if (status != KVF_OK) return status;
    status = sequence_program(cache, sequence, layer, ops, n_op, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Looking at a choice ---- */

static int32_t program_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *rows,
                            uint32_t n_row, kv_err err) {
    static const char *const action = "read the chosen rows";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err) || !kv_check_head(s, head, action, err)) return KVF_ERR_ARG;
    const kv_step *step = kv_step_of(s, layer);
    if (step == NULL || step->pages.size == 0) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer's program must choose pages: layer %u", action, layer);
    }
    const uint32_t held = kv_table_of(s, layer, head)->rows;
    if (n_row < held || (rows == NULL && held > 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as %u elements must be given: %u", action, held, rows == NULL ? 0 : n_row);
    }
    const kv_observations *o = s->observe;
    const bool recorded = o != NULL && o->n_window > 0 && o->window_q[layer] != NULL && (s->prefill != NULL || s->position == o->n_token);
    if (step->n_ring == 0 && !recorded) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the last query must have been recorded or kept: none was", action);
    }
    const uint32_t dim = cache->config.head_dim, readers = kv_readers(cache, s), first = head * readers;
    const uint32_t ld = step->n_ring > 0 ? step->queries.last : o->n_window;
    const uint32_t seen = s->prefill != NULL ? s->prefill->n_token : s->position;
    const float *q = step->n_ring > 0 ? step->ring + (size_t)((seen - 1) % ld) * dim
                                      : o->window_q[layer] + (size_t)(ld - 1) * dim;
    return held == 0 ? 0 : be_program_rows(cache, s, layer, head, q + (size_t)first * ld * dim, (size_t)ld * dim, rows, err);
}

int32_t kvf_program_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *rows,
                         uint32_t n_row, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the chosen rows", err);
    if (status != KVF_OK) return status;
    status = program_rows(cache, sequence, layer, head, rows, n_row, err);
    kv_leave(cache->dev);
    return status;
}
