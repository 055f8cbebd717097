/*
 * Actions on one layer of a sequence: retaining rows, with or without merging the others into them; spreading values.
 *
 * Retaining rows takes one of three ways per head. All kept: nothing happens. The head alone owns the pages that it will
 * keep: rows move to the front within them, so that eviction needs no memory and the peak stays that of the full layer.
 * Shared pages (with a fork, or within a query_head group): the rows are gathered into fresh pages. All memory is taken
 * before the first row moves; from then on only the device can fail.
 */
#include <stdlib.h>
#include <string.h>

#include "backend.h"

/* What becomes of one head. */
typedef struct keep {
    kv_row_list kept;
    kv_table fresh;  /* pages to gather into; empty when nothing moves or rows move in place */
    float *merged;   /* backend memory: keys, then values of the kept rows; NULL when nothing is merged into them */
    kv_packing was;  /* how the rows were packed, while they are plain for merging */
} keep;

#define NO_MERGE UINT32_MAX

static uint32_t pages_for(uint32_t rows) { return (rows + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS; }

static bool owns(const kvf_cache *cache, const kv_table *t, uint32_t n_page) {
    for (uint32_t i = 0; i < n_page; i++) {
        if (cache->page[t->page[i]].refs > 1) return false;
    }
    return true;
}

static int32_t check_selection(const kv_sequence *s, uint32_t layer, const kv_object *sel, kv_err err) {
    if (sel == NULL) return KVF_OK;
    if (sel->n_head != 1 && sel->n_head != s->n_stored_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot retain rows as the selection must have 1 or %u heads: %u", s->n_stored_head,
                       sel->n_head);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        const uint32_t end = sel->ends[sel->n_head == 1 ? 0 : h];
        if (end > rows) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot retain rows as the selection must stay below the %u rows of head %u: %u", rows,
                           h, end - 1);
        }
    }
    return KVF_OK;
}

/* Fills keeps[h].kept; rows lie in `room`, one head's after the other's. */
static int32_t choose(kvf_cache *cache, const kv_sequence *s, uint32_t layer, const kv_object *sel, uint32_t first,
                      uint32_t last, keep *keeps, uint32_t *room, kv_err err) {
    const uint32_t *list = sel == NULL ? NULL : sel->rows;
    kv_union *heads = calloc(s->n_stored_head, sizeof *heads);
    if (heads == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as memory ran out");
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        const uint32_t n_sel = sel == NULL ? 0 : sel->counts[sel->n_head == 1 ? 0 : h];
        const uint32_t end = sel == NULL ? 0 : sel->ends[sel->n_head == 1 ? 0 : h];
        heads[h] = (kv_union){list, n_sel, end, first < rows ? first : rows, last < rows ? last : rows, rows, {room, 0}};
        room += rows;
        if (sel != NULL && sel->n_head > 1) list += n_sel;
    }
    const int32_t status = be_rows_union(cache->dev, heads, s->n_stored_head, err);
    for (uint32_t h = 0; h < s->n_stored_head; h++) keeps[h].kept = heads[h].out;
    free(heads);
    return status;
}

/* Takes the pages of all heads that cannot move their rows in place. */
static int32_t take_pages(kvf_cache *cache, const kv_sequence *s, uint32_t layer, keep *keeps, kv_err err) {
    uint64_t n_page = 0;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const kv_table *t = kv_table_of(s, layer, h);
        const uint32_t need = pages_for(keeps[h].kept.n);
        if (keeps[h].kept.n == t->rows || t->format != NULL || owns(cache, t, need)) continue;
        const int32_t status = kv_table_grow(&keeps[h].fresh, need, err);
        if (status != KVF_OK) return status;
        keeps[h].fresh.rows = keeps[h].kept.n;
        n_page += need;
    }
    if (n_page == 0) return KVF_OK;
    if (n_page >= KV_NO_TOKEN) return kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as %.0f pages must be available", (double)n_page);
    uint32_t *page = malloc((size_t)n_page * sizeof *page);
    if (page == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as %.0f pages must be available", (double)n_page);
    const int32_t status = kv_pages_take(cache, page, (uint32_t)n_page, cache->page_bytes, err);
    const uint32_t *next = page;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *fresh = &keeps[h].fresh;
        fresh->n_page = pages_for(fresh->rows);
        if (fresh->n_page > 0) memcpy(fresh->page, next, fresh->n_page * sizeof *next);
        next += fresh->n_page;
    }
    free(page);
    return status;
}

/* A table with a format: its rows are packed, or will be. */
static int32_t repack(kvf_cache *cache, kv_table *t, const keep *k, kv_err err) {
    const size_t bytes = k->kept.n * sizeof *k->kept.rows;
    uint32_t *rows = malloc(bytes > 0 ? bytes : 1);
    if (rows == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as %zu bytes must be available", bytes);
    int32_t status = bytes > 0 ? be_download(cache->dev, rows, k->kept.rows, bytes, err) : KVF_OK;
    if (status == KVF_OK) status = kv_table_repack(cache, t, rows, k->kept.n, err);
    free(rows);
    return status;
}

/* Whether the head's rows move to the front of its own pages. */
static bool moves_in_place(const kv_table *t, const keep *k) {
    return k->kept.n < t->rows && t->format == NULL && k->fresh.n_page == 0;
}

/* Of all heads whose rows move in place, at once. */
static int32_t move_in_place(kvf_cache *cache, kv_sequence *s, uint32_t layer, const keep *keeps, kv_err err) {
    kv_row_list *list = calloc(s->n_stored_head, sizeof *list);
    bool any = false;
    if (list == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as memory ran out");
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        if (moves_in_place(kv_table_of(s, layer, h), &keeps[h])) list[h] = keeps[h].kept;
        any = any || list[h].n > 0;
    }
    const int32_t status = any ? be_compact_rows(cache, s, layer, list, err) : KVF_OK;
    free(list);
    return status;
}

/* Moves the rows and swaps the tables. */
static int32_t move_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, keep *keeps, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *fresh = &keeps[h].fresh;
        if (fresh->n_page > 0) {
            status = be_gather_rows(cache, fresh, kv_table_of(s, layer, h), keeps[h].kept.rows, keeps[h].kept.n, err);
        }
    }
    if (status == KVF_OK) status = move_in_place(cache, s, layer, keeps, err);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        if (keeps[h].kept.n == t->rows) continue;
        if (t->format != NULL) {
            status = repack(cache, t, &keeps[h], err);
            if (status != KVF_OK) return status;
        } else if (moves_in_place(t, &keeps[h])) {
            t->rows = keeps[h].kept.n;
            kv_table_trim(cache, t);
        } else {
            kv_table_free(cache, t);
            *t = keeps[h].fresh;
            keeps[h].fresh = (kv_table){0};
        }
        status = kv_step_retain(cache, s, layer, h, keeps[h].kept.rows, keeps[h].kept.n, err);
    }
    return status;
}

/* What the kept rows become when the others are merged into them, before any row moves. */
static int32_t merge_rows(kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t merge, keep *keeps, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        const kv_table *t = kv_table_of(s, layer, h);
        const uint32_t n = keeps[h].kept.n;
        if (n == 0 || n == t->rows) continue;
        const size_t size = (size_t)n * cache->config.head_dim;
        keeps[h].merged = be_alloc(cache->dev, 2 * size * sizeof(float));
        if (keeps[h].merged == NULL) {
            return kv_fail(err, KVF_ERR_MEMORY, "Cannot merge rows as %zu bytes must be available", 2 * size * sizeof(float));
        }
        status = be_merge_rows(cache, t, keeps[h].kept.rows, n, merge, keeps[h].merged, keeps[h].merged + size, err);
    }
    return status;
}

static int32_t replace_merged(kvf_cache *cache, kv_sequence *s, uint32_t layer, const keep *keeps, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        if (keeps[h].merged == NULL) continue;
        const size_t size = (size_t)keeps[h].kept.n * cache->config.head_dim;
        status = be_replace_rows(cache, kv_table_of(s, layer, h), keeps[h].merged, keeps[h].merged + size, keeps[h].kept.n,
                                 err);
    }
    return status;
}

/* Before merging: kept rows are written to, so they must be plain. */
static int32_t unpack(kvf_cache *cache, kv_sequence *s, uint32_t layer, keep *keeps, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        if (t->format != NULL) status = kv_table_unpack(cache, t, &keeps[h].was, err);
    }
    return status;
}

/* The end of it, whatever happened between: every table gets its format back. */
static int32_t pack_again(kvf_cache *cache, kv_sequence *s, uint32_t layer, keep *keeps, kv_err err) {
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        const uint32_t packed = keeps[h].was.packed;
        const int32_t one = kv_table_pack_again(cache, t, &keeps[h].was, packed < t->rows ? packed : t->rows, err);
        if (status == KVF_OK) status = one;
    }
    return status;
}

/* merge: a kvf_merge, or NO_MERGE. */
static int32_t retain(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                      uint32_t last, uint32_t merge, kv_err err) {
    if (merge != NO_MERGE && merge > KVF_MERGE_SIMILARITY) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot retain rows as merge must be 0 (midpoint) or 1 (similarity): %u", merge);
    }
    kv_sequence *s = kv_find_sequence(cache, sequence, "retain rows", err);
    if (s == NULL || !kv_check_layer(cache, layer, "retain rows", err)) return KVF_ERR_ARG;
    if (!kv_check_whole(s, layer, "retain rows", err)) return KVF_ERR_STATE;
    if (s->prefill != NULL && s->prefill->projected && s->prefill->next_layer == layer) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot retain rows as the attention of layer %u must have run", layer);
    }
    const kv_object *sel = NULL;
    if (selection != 0) {
        sel = kv_find_object(cache, selection, KV_SELECTION, "retain rows", err);
        if (sel == NULL) return KVF_ERR_ARG;
    }
    int32_t status = check_selection(s, layer, sel, err);
    if (status == KVF_OK) status = kv_layer_order(cache, s, layer, err);
    if (status != KVF_OK) return status;

    size_t n_row = 0;
    for (uint32_t h = 0; h < s->n_stored_head; h++) n_row += kv_table_of(s, layer, h)->rows;
    if (n_row == 0) return KVF_OK;
    keep *keeps = calloc(s->n_stored_head, sizeof *keeps);
    uint32_t *room = be_alloc(cache->dev, n_row * sizeof *room);
    if (keeps == NULL || room == NULL) {
        status = kv_fail(err, KVF_ERR_MEMORY, "Cannot retain rows as %zu bytes must be available", n_row * sizeof *room);
    }
    if (status == KVF_OK) status = choose(cache, s, layer, sel, first, last, keeps, room, err);
    if (status == KVF_OK && merge != NO_MERGE) status = unpack(cache, s, layer, keeps, err);
    if (status == KVF_OK) status = take_pages(cache, s, layer, keeps, err);
    if (status == KVF_OK && merge != NO_MERGE) status = merge_rows(cache, s, layer, merge, keeps, err);
    if (status == KVF_OK) status = move_rows(cache, s, layer, keeps, err);
    if (status == KVF_OK && merge != NO_MERGE) status = replace_merged(cache, s, layer, keeps, err);
    if (status == KVF_OK && merge != NO_MERGE) status = kv_step_rekey(cache, s, layer, err);
    if (keeps != NULL) {
        const int32_t packed = pack_again(cache, s, layer, keeps, err);
        if (status == KVF_OK) status = packed;
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            kv_table_free(cache, &keeps[h].fresh);
            be_free(cache->dev, keeps[h].merged);
        }
    }
    be_free(cache->dev, room);
    free(keeps);
    return status;
}

int32_t kvf_retain(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                   uint32_t last, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "retain rows", err);
    if (status != KVF_OK) return status;
    status = retain(cache, sequence, layer, selection, first, last, NO_MERGE, err);
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_retain_merged(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t selection, uint32_t first,
                          uint32_t last, uint32_t merge, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "retain rows", err);
    if (status != KVF_OK) return status;
    if (merge == NO_MERGE) merge--; /* refused like any other number */
    status = retain(cache, sequence, layer, selection, first, last, merge, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Spreading ---- */

static int32_t spread_values(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t shares, uint32_t first,
                             uint32_t span, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "spread values", err);
    if (s == NULL || !kv_check_layer(cache, layer, "spread values", err)) return KVF_ERR_ARG;
    if (!kv_check_whole(s, layer, "spread values", err)) return KVF_ERR_STATE;
    const kv_object *in = kv_find_object(cache, shares, KV_SCORES, "spread values", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (span == 0) return kv_fail(err, KVF_ERR_ARG, "Cannot spread values as span must be at least 1: 0");
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows;
        if (in->n_head == s->n_stored_head && in->n_row == rows) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot spread values as the shares must be %u x %u: %u x %u", s->n_stored_head, rows,
                       in->n_head, in->n_row);
    }
    if (in->n_row <= span || first >= in->n_row - span) return KVF_OK;
    int32_t status = kv_layer_order(cache, s, layer, err);
    keep *keeps = calloc(s->n_stored_head, sizeof *keeps);
    if (keeps == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot spread values as memory ran out");
    if (status == KVF_OK) status = unpack(cache, s, layer, keeps, err);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        status = kv_table_own(cache, kv_table_of(s, layer, h), err);
    }
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        status = be_spread_values(cache, kv_table_of(s, layer, h), in->values + (size_t)h * in->n_row, first, span, err);
    }
    const int32_t packed = pack_again(cache, s, layer, keeps, err);
    free(keeps);
    return status == KVF_OK ? packed : status;
}

int32_t kvf_spread_values(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t shares, uint32_t first,
                          uint32_t span, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "spread values", err);
    if (status != KVF_OK) return status;
    status = spread_values(cache, sequence, layer, shares, first, span, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Reading ---- */

/* A head's table, its rows in order; NULL with a message and *status set. */
static const kv_table *find_table(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, const char *action,
                                  int32_t *status, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    *status = KVF_ERR_ARG;
    if (s == NULL || !kv_check_layer(cache, layer, action, err) || !kv_check_head(s, head, action, err)) return NULL;
    *status = kv_layer_order(cache, s, layer, err);
    return *status == KVF_OK ? kv_table_of(s, layer, head) : NULL;
}

static int32_t read_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t what, float *rows,
                         double rows_bytes, kv_err err) {
    int32_t status;
    const kv_table *t = find_table(cache, sequence, layer, head, "read rows", &status, err);
    if (t == NULL) return status;
    if (what > 1) return kv_fail(err, KVF_ERR_ARG, "Cannot read rows as what must be 0 (keys) or 1 (values): %u", what);
    const double bytes = (double)t->rows * cache->config.head_dim * sizeof *rows;
    if (!(rows_bytes >= bytes) || (rows == NULL && t->rows > 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read rows as %.0f bytes must be given: %.0f", bytes,
                       rows == NULL ? 0 : rows_bytes);
    }
    return t->rows == 0 ? KVF_OK : be_read_rows(cache, t, what, rows, err);
}

int32_t kvf_read_rows(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t what, float *rows,
                      double rows_bytes, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read rows", err);
    if (status != KVF_OK) return status;
    status = read_rows(cache, sequence, layer, head, what, rows, rows_bytes, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t read_positions(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *positions,
                              uint32_t n_position, kv_err err) {
    int32_t status;
    const kv_table *t = find_table(cache, sequence, layer, head, "read positions", &status, err);
    if (t == NULL) return status;
    if (n_position < t->rows || (positions == NULL && t->rows > 0)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot read positions as %u elements must be given: %u", t->rows,
                       positions == NULL ? 0 : n_position);
    }
    return t->rows == 0 ? KVF_OK : be_read_positions(cache, t, positions, err);
}

int32_t kvf_read_positions(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t head, uint32_t *positions,
                           uint32_t n_position, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read positions", err);
    if (status != KVF_OK) return status;
    status = read_positions(cache, sequence, layer, head, positions, n_position, err);
    kv_leave(cache->dev);
    return status;
}
