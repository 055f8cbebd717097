/* Two neighbouring layers that share the directions of their rows. */
#include "share.h"

#include <stdlib.h>

#include "backend.h"

bool kv_check_whole(const kv_sequence *s, uint32_t layer, const char *action, kv_err err) {
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        if (kv_table_of(s, layer, h)->shared == 0) continue;
        kv_fail(err, KVF_ERR_STATE, "Cannot %s as layer %u must not share directions with another one: it does", action, layer);
        return false;
    }
    return true;
}

/* What one head's two tables become. */
typedef struct pair {
    kv_table before, now;
} pair;

static int32_t check(kvf_cache *cache, const kv_sequence *s, uint32_t layer, float interpolation, uint32_t n_exact,
                     float within, const char *action, kv_err err) {
    if (layer == 0) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as there must be a layer before it: layer is 0", action);
    if (!(interpolation >= 0 && interpolation <= 1)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as interpolation must be from 0 to 1: %g", action, interpolation);
    }
    if (!(within < 0 || (within <= 1 && n_exact == 0))) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as within must be below 0, or from 0 to 1 and n_exact 0: %g and %u", action, within,
                       n_exact);
    }
    if (s->prefill != NULL && s->prefill->projected && s->prefill->next_layer == layer) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the attention of layer %u must have run", action, layer);
    }
    if (!kv_check_whole(s, layer - 1, action, err) || !kv_check_whole(s, layer, action, err)) return KVF_ERR_STATE;
    if (kv_step_of(s, layer - 1) != NULL || kv_step_of(s, layer) != NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as neither layer may have a step program: one has", action);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const kv_table *a = kv_table_of(s, layer - 1, h), *b = kv_table_of(s, layer, h);
        if (a->rows != b->rows || a->rows == 0 || a->format != NULL || b->format != NULL) {
            return kv_fail(err, KVF_ERR_STATE, "Cannot %s as both layers must hold as many plain rows, at least one: %u and %u in head %u",
                           action, a->rows, b->rows, h);
        }
        if (n_exact > a->rows) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot %s as n_exact must be at most the %u rows: %u", action, a->rows, n_exact);
        }
    }
    (void)cache;
    return KVF_OK;
}

/*
 * How many rows are exact: those whose distance lies less than `within` of the range of distances below the greatest.
 */
static int32_t count_distant(kvf_cache *cache, const kv_table *before, const kv_table *now, float within, uint32_t *n_exact,
                             kv_err err) {
    const uint32_t n = now->rows;
    float *distance = malloc(2 * (size_t)n * sizeof *distance);
    if (distance == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot share directions as %zu bytes must be available", 2 * (size_t)n * sizeof *distance);
    const int32_t status = be_share_distances(cache, before, now, n, distance, err);
    for (uint32_t what = 0; what < 2 && status == KVF_OK; what++) {
        const float *x = distance + (size_t)what * n;
        float least = x[0], most = x[0];
        for (uint32_t i = 1; i < n; i++) {
            least = x[i] < least ? x[i] : least;
            most = x[i] > most ? x[i] : most;
        }
        n_exact[what] = 0;
        for (uint32_t i = 0; i < n; i++) n_exact[what] += x[i] > most - within * (most - least);
    }
    free(distance);
    return status;
}

/* Pages for both tables: those of whole pages are the same, and each has its own last one where rows do not fill it. */
static int32_t take(kvf_cache *cache, pair *p, uint32_t n, const uint32_t *n_exact, kv_err err) {
    const uint32_t whole = n / KVF_PAGE_ROWS, n_page = whole + (n % KVF_PAGE_ROWS != 0);
    const kv_scale_layout layout = kv_scale_of(&cache->config, n, n_exact);
    if (layout.bytes > UINT32_MAX) return kv_fail(err, KVF_ERR_MEMORY, "Cannot share directions as %zu bytes must be available", layout.bytes);
    kv_table *tables[2] = {&p->before, &p->now};
    for (uint32_t i = 0; i < 2; i++) {
        kv_table *t = tables[i];
        int32_t status = kv_table_grow(t, n_page, err);
        const uint32_t lent = i == 0 ? 0 : whole;
        if (status == KVF_OK) status = kv_pages_take(cache, t->page + lent, n_page - lent, cache->page_bytes, err);
        if (status != KVF_OK) return status;
        for (uint32_t j = 0; j < lent; j++) {
            t->page[j] = p->before.page[j];
            kv_page_retain(cache, t->page[j]);
        }
        t->n_page = n_page;
        t->rows = n;
        uint32_t scale;
        if ((status = kv_pages_take(cache, &scale, 1, (uint32_t)layout.bytes, err)) != KVF_OK) return status;
        t->scale = scale + 1;
        t->shared = n;
        t->exact[0] = n_exact[0];
        t->exact[1] = n_exact[1];
        t->borrows = i == 1;
    }
    return KVF_OK;
}

static int32_t fill(kvf_cache *cache, const kv_table *before, const kv_table *now, const pair *p, float interpolation, kv_err err) {
    const uint32_t n_page = p->before.n_page;
    void **pages = malloc(n_page * sizeof *pages);
    if (pages == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot share directions as %zu bytes must be available", n_page * sizeof *pages);
    for (uint32_t j = 0; j < n_page; j++) pages[j] = cache->page[p->before.page[j]].data;
    void *const own[2] = {cache->page[p->before.scale - 1].data, cache->page[p->now.scale - 1].data};
    int32_t status = be_share_rows(cache, before, now, p->before.rows, interpolation, p->before.exact, pages, own, err);
    const uint32_t last = n_page - 1;
    if (status == KVF_OK && p->now.page[last] != p->before.page[last]) {
        status = be_copy(cache->dev, cache->page[p->now.page[last]].data, pages[last], cache->page_bytes, err);
    }
    free(pages);
    return status;
}

static int32_t share_directions(kvf_cache *cache, uint32_t sequence, uint32_t layer, float interpolation, uint32_t n_exact,
                                float within, kv_err err) {
    static const char *const action = "share directions";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    int32_t status = check(cache, s, layer, interpolation, n_exact, within, action, err);
    if (status != KVF_OK) return status;
    pair *pairs = calloc(s->n_stored_head, sizeof *pairs);
    if (pairs == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot %s as %zu bytes must be available", action, s->n_stored_head * sizeof *pairs);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        const kv_table *before = kv_table_of(s, layer - 1, h), *now = kv_table_of(s, layer, h);
        uint32_t exact[2] = {n_exact, n_exact};
        if (within >= 0) status = count_distant(cache, before, now, within, exact, err);
        if (status == KVF_OK) status = take(cache, &pairs[h], now->rows, exact, err);
        if (status == KVF_OK) status = fill(cache, before, now, &pairs[h], interpolation, err);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        kv_table *tables[2] = {kv_table_of(s, layer - 1, h), kv_table_of(s, layer, h)};
        kv_table *fresh[2] = {&pairs[h].before, &pairs[h].now};
        for (uint32_t i = 0; i < 2; i++) {
            kv_table *gone = status == KVF_OK ? tables[i] : fresh[i];
            kv_table_free(cache, gone);
            if (status == KVF_OK) *tables[i] = *fresh[i];
        }
    }
    free(pairs);
    return status;
}

int32_t kvf_share_directions(kvf_cache *cache, uint32_t sequence, uint32_t layer, float interpolation, uint32_t n_exact,
                             float within, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "share directions", err);
    if (status != KVF_OK) return status;
    status = share_directions(cache, sequence, layer, interpolation, n_exact, within, err);
    kv_leave(cache->dev);
    return status;
}
