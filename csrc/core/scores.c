/* Scores of a layer's rows, score algebra, and selection by score. */
#include <stdlib.h>
#include <string.h>

#include "object.h"

/* ---- Of a layer ---- */

/* The layer's rows are those of the prompt, as they were recorded. */
static int32_t check_recorded(const kv_sequence *s, uint32_t layer, const char *action, kv_err err) {
    if (!kv_check_whole(s, layer, action, err)) return KVF_ERR_STATE;
    const kv_observations *o = s->observe;
    if (o == NULL) return kv_fail(err, KVF_ERR_STATE, "Cannot %s as observations must be there: none were recorded or kept", action);
    const uint32_t rows = kv_table_of(s, layer, 0)->rows;
    for (uint32_t h = 1; h < s->n_stored_head; h++) {
        const uint32_t other = kv_table_of(s, layer, h)->rows;
        if (other == rows) continue;
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as all heads must hold the prompt: head 0 holds %u rows, head %u holds %u",
                       action, rows, h, other);
    }
    /* As many rows as the prompt had, but after decode: evicted ones have been replaced by new ones. */
    const bool decoded = s->prefill == NULL && s->position != o->n_token;
    if (rows == o->n_token && !decoded) return KVF_OK;
    return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer must hold the prompt's %u rows: %u rows at position %u", action,
                   o->n_token, rows, s->position);
}

static int32_t check_reduce(uint32_t reduce, const char *action, kv_err err) {
    if (reduce <= KVF_SUM) return KVF_OK;
    return kv_fail(err, KVF_ERR_ARG, "Cannot %s as reduce must be 0, 1 or 2: %u", action, reduce);
}

/* Window scores from the queries that the layer's program keeps. */
static int32_t kept_window(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags, uint32_t reduce,
                           kv_err err) {
    const kv_step *step = kv_step_of(s, layer);
    if (window == 0 || window > step->n_ring) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot score by the window as it must be between 1 and the %u kept queries: %u",
                       step->n_ring, window);
    }
    int32_t status = kv_layer_order(cache, s, layer, err);
    if (status != KVF_OK) return status;
    kv_object *out = kv_scores_of_layer(cache, s, layer, flags & KVF_WINDOW_ALL_ROWS ? 0 : window, &status, err);
    if (out == NULL) return status;
    if (out->n_row > 0) status = be_scores_kept(cache, s, layer, window, flags, reduce, out->values, out->n_row, err);
    return kv_object_publish(cache, out, status, err);
}

static int32_t scores_window(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t flags,
                             uint32_t reduce, kv_err err) {
    static const char *const action = "score by the window";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    if ((flags & ~(uint32_t)(KVF_WINDOW_MEAN | KVF_WINDOW_ALL_ROWS | KVF_WINDOW_REDUCE_FIRST | KVF_WINDOW_HITS)) != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as flags must be known: %u", action, flags);
    }
    int32_t status = check_reduce(reduce, action, err);
    if (status != KVF_OK) return status;
    const kv_step *step = kv_step_of(s, layer);
    if (step != NULL && step->queries.size != 0 && kv_decoded(s)) {
        return kept_window(cache, s, layer, window, flags, reduce, err);
    }
    if ((status = check_recorded(s, layer, action, err)) != KVF_OK) return status;
    const kv_observations *o = s->observe;
    if (window == 0 || window > o->n_window) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as window must be between 1 and the %u recorded queries: %u", action,
                       o->n_window, window);
    }
    if (o->window_q[layer] == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer must have run: %u", action, layer);
    }
    const uint32_t n_row = flags & KVF_WINDOW_ALL_ROWS ? o->n_token : o->n_token - window;
    kv_object *out = kv_scores_new(cache, s->n_stored_head, n_row, &status, err);
    if (out == NULL) return status;
    if (n_row > 0) status = be_scores_window(cache, s, layer, window, flags, reduce, out->values, n_row, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_window(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t flags,
                          uint32_t reduce, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "score by the window", err);
    if (status != KVF_OK) return status;
    status = scores_window(cache, sequence, layer, window, flags, reduce, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t attention_map(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t block, float *map,
                             double map_bytes, kv_err err) {
    static const char *const action = "map attention";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    if (block == 0) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as a block must have tokens: 0", action);
    const int32_t status = check_recorded(s, layer, action, err);
    if (status != KVF_OK) return status;
    const kv_observations *o = s->observe;
    if (o->n_window == 0) return kv_fail(err, KVF_ERR_STATE, "Cannot %s as queries must be recorded: there are 0", action);
    if (o->window_q[layer] == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer must have run: %u", action, layer);
    }
    const double n_block = (o->n_token - 1) / block + 1;
    const double bytes = n_block * n_block * cache->config.n_head * sizeof *map;
    if (map == NULL || !(map_bytes >= bytes)) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as %.0f bytes must be given: %.0f", action, bytes,
                       map == NULL ? 0 : map_bytes);
    }
    return be_attention_map(cache, s, layer, block, map, err);
}

int32_t kvf_attention_map(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t block, float *map,
                          double map_bytes, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "map attention", err);
    if (status != KVF_OK) return status;
    status = attention_map(cache, sequence, layer, block, map, map_bytes, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_channels(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t reduce,
                               kv_err err) {
    static const char *const action = "score the channels";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    int32_t status = check_reduce(reduce, action, err);
    if (status != KVF_OK) return status;
    const kv_observations *o = s->observe;
    if (o == NULL || o->window_q[layer] == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer's queries must be there: none were recorded or kept", action);
    }
    if (window == 0 || window > o->n_window) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as window must be between 1 and the %u recorded queries: %u", action,
                       o->n_window, window);
    }
    kv_object *out = kv_scores_new(cache, s->n_stored_head, cache->config.head_dim, &status, err);
    if (out == NULL) return status;
    status = be_scores_channels(cache, s, layer, window, reduce, out->values, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_channels(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t window, uint32_t reduce,
                            char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "score the channels", err);
    if (status != KVF_OK) return status;
    status = scores_channels(cache, sequence, layer, window, reduce, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_mass(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t mass, uint32_t reduce, kv_err err) {
    static const char *const action = "score by column mass";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    int32_t status = check_reduce(reduce, action, err);
    if (status != KVF_OK) return status;
    const kv_step *step = kv_step_of(s, layer);
    if (step != NULL && step->mass.size != 0 && step->mass.from == mass && kv_decoded(s)) {
        if ((status = kv_layer_order(cache, s, layer, err)) != KVF_OK) return status;
        kv_object *live = kv_scores_of_layer(cache, s, layer, 0, &status, err);
        if (live == NULL) return status;
        if (live->n_row > 0) status = be_scores_live(cache, s, layer, reduce, live->values, live->n_row, err);
        return kv_object_publish(cache, live, status, err);
    }
    if ((status = check_recorded(s, layer, action, err)) != KVF_OK) return status;
    const kv_observations *o = s->observe;
    if (mass >= o->n_mass) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as mass must be below the %u recorded: %u", action, o->n_mass, mass);
    }
    if (o->mass[(size_t)layer * o->n_mass + mass] == NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as the layer must have run: %u", action, layer);
    }
    kv_object *out = kv_scores_new(cache, s->n_stored_head, o->n_token, &status, err);
    if (out == NULL) return status;
    status = be_scores_mass(cache, s, layer, mass, reduce, out->values, o->n_token, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_mass(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t mass, uint32_t reduce, char *text,
                        uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "score by column mass", err);
    if (status != KVF_OK) return status;
    status = scores_mass(cache, sequence, layer, mass, reduce, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_norm(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t what, kv_err err) {
    static const char *const action = "score by norm";
    kv_sequence *s = kv_find_sequence(cache, sequence, action, err);
    if (s == NULL || !kv_check_layer(cache, layer, action, err)) return KVF_ERR_ARG;
    if (!kv_check_whole(s, layer, action, err)) return KVF_ERR_STATE;
    if (what > 1) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as what must be 0 (keys) or 1 (values): %u", action, what);
    int32_t status = kv_layer_order(cache, s, layer, err);
    if (status != KVF_OK) return status;
    kv_object *out = kv_scores_of_layer(cache, s, layer, 0, &status, err);
    if (out == NULL) return status;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        const kv_table *t = kv_table_of(s, layer, h);
        if (t->rows > 0) status = be_scores_norm(cache, t, what, out->values + (size_t)h * out->n_row, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_norm(kvf_cache *cache, uint32_t sequence, uint32_t layer, uint32_t what, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "score by norm", err);
    if (status != KVF_OK) return status;
    status = scores_norm(cache, sequence, layer, what, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Algebra ---- */

static int32_t scores_pool(kvf_cache *cache, uint32_t scores, uint32_t kind, uint32_t width, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "pool the scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (kind > 1) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot pool the scores as kind must be 0 (maximum) or 1 (average): %u", kind);
    }
    if (width % 2 == 0) return kv_fail(err, KVF_ERR_ARG, "Cannot pool the scores as width must be odd: %u", width);
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    if (in->lens == NULL && in->n_row > 0) {
        status = be_scores_pool(cache->dev, in->values, out->values, in->n_head, in->n_row, kind, width, err);
    }
    for (uint32_t h = 0; in->lens != NULL && h < in->n_head && status == KVF_OK; h++) {
        const size_t at = (size_t)h * in->n_row;
        if (in->lens[h] > 0) status = be_scores_pool(cache->dev, in->values + at, out->values + at, 1, in->lens[h], kind, width, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_pool(kvf_cache *cache, uint32_t scores, uint32_t kind, uint32_t width, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "pool the scores", err);
    if (status != KVF_OK) return status;
    status = scores_pool(cache, scores, kind, width, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_affine(kvf_cache *cache, uint32_t scores, float a, float b, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "scale the scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    const size_t n = (size_t)in->n_head * in->n_row;
    if (n > 0) status = be_scores_affine(cache->dev, in->values, out->values, n, a, b, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_affine(kvf_cache *cache, uint32_t scores, float a, float b, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "scale the scores", err);
    if (status != KVF_OK) return status;
    status = scores_affine(cache, scores, a, b, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_combine(kvf_cache *cache, uint32_t a, uint32_t b, uint32_t what, kv_err err) {
    const kv_object *x = kv_find_object(cache, a, KV_SCORES, "combine the scores", err);
    const kv_object *y = x == NULL ? NULL : kv_find_object(cache, b, KV_SCORES, "combine the scores", err);
    if (y == NULL) return KVF_ERR_ARG;
    if (what > 2) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot combine the scores as what must be 0 (sum), 1 (product) or 2 (less): %u", what);
    }
    bool equal = x->n_head == y->n_head && x->n_row == y->n_row;
    for (uint32_t h = 0; equal && h < x->n_head; h++) equal = kv_len_of(x, h) == kv_len_of(y, h);
    if (!equal) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot combine the scores as their shapes must be equal: %u x %u and %u x %u",
                       x->n_head, x->n_row, y->n_head, y->n_row);
    }
    int32_t status;
    kv_object *out = kv_scores_like(cache, x, &status, err);
    if (out == NULL) return status;
    const size_t n = (size_t)x->n_head * x->n_row;
    if (n > 0) status = be_scores_combine(cache->dev, x->values, y->values, out->values, n, what, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_combine(kvf_cache *cache, uint32_t a, uint32_t b, uint32_t what, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "combine the scores", err);
    if (status != KVF_OK) return status;
    status = scores_combine(cache, a, b, what, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_fill(kvf_cache *cache, uint32_t scores, uint32_t first, uint32_t end, float value, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "fill the scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    for (uint32_t h = 0; h < in->n_head && first <= end; h++) {
        if (in->lens == NULL || end <= in->lens[h]) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot fill the scores as the range must lie within the %u rows of head %u: %u to %u",
                       in->lens[h], h, first, end);
    }
    if (first > end || end > in->n_row) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot fill the scores as the range must lie within %u rows: %u to %u", in->n_row, first,
                       end);
    }
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    const size_t bytes = (size_t)in->n_head * in->n_row * sizeof(float);
    if (bytes > 0) status = be_copy(cache->dev, out->values, in->values, bytes, err);
    if (status == KVF_OK && first < end) {
        status = be_scores_fill(cache->dev, out->values, in->n_head, in->n_row, first, end, value, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_fill(kvf_cache *cache, uint32_t scores, uint32_t first, uint32_t end, float value, char *text,
                        uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "fill the scores", err);
    if (status != KVF_OK) return status;
    status = scores_fill(cache, scores, first, end, value, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_fill_last(kvf_cache *cache, uint32_t scores, uint32_t count, float value, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "fill the last scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    const size_t bytes = (size_t)in->n_head * in->n_row * sizeof(float);
    if (bytes > 0) status = be_copy(cache->dev, out->values, in->values, bytes, err);
    for (uint32_t h = 0; h < in->n_head && status == KVF_OK; h++) {
        const uint32_t len = kv_len_of(in, h), first = len > count ? len - count : 0;
        if (first == len) continue;
        status = be_scores_fill(cache->dev, out->values + (size_t)h * in->n_row, 1, in->n_row, first, len, value, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_fill_last(kvf_cache *cache, uint32_t scores, uint32_t count, float value, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "fill the last scores", err);
    if (status != KVF_OK) return status;
    status = scores_fill_last(cache, scores, count, value, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_concentrate(kvf_cache *cache, uint32_t scores, uint32_t count, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "concentrate the scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (count > in->n_row) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot concentrate the scores as count must be <= %u: %u", in->n_row, count);
    }
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    if (in->lens == NULL && in->n_row > 0) {
        status = be_scores_concentrate(cache->dev, in->values, out->values, in->n_head, in->n_row, count, err);
    }
    for (uint32_t h = 0; in->lens != NULL && h < in->n_head && status == KVF_OK; h++) {
        const size_t at = (size_t)h * in->n_row;
        const uint32_t len = in->lens[h];
        if (len == 0) continue;
        status = be_scores_concentrate(cache->dev, in->values + at, out->values + at, 1, len, count < len ? count : len, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_concentrate(kvf_cache *cache, uint32_t scores, uint32_t count, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "concentrate the scores", err);
    if (status != KVF_OK) return status;
    status = scores_concentrate(cache, scores, count, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_log(kvf_cache *cache, uint32_t scores, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "take logarithms", err);
    if (in == NULL) return KVF_ERR_ARG;
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    const size_t n = (size_t)in->n_head * in->n_row;
    if (n > 0) status = be_scores_log(cache->dev, in->values, out->values, n, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_log(kvf_cache *cache, uint32_t scores, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "take logarithms", err);
    if (status != KVF_OK) return status;
    status = scores_log(cache, scores, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_fill_selected(kvf_cache *cache, uint32_t scores, uint32_t selection, float value, kv_err err) {
    static const char *const action = "fill the selected scores";
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, action, err);
    const kv_object *sel = in == NULL ? NULL : kv_find_object(cache, selection, KV_SELECTION, action, err);
    if (sel == NULL) return KVF_ERR_ARG;
    if (sel->n_head != 1 && sel->n_head != in->n_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as the selection must have 1 or %u heads: %u", action, in->n_head, sel->n_head);
    }
    for (uint32_t h = 0; h < sel->n_head; h++) {
        if (sel->ends[h] <= in->n_row) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as the selection must stay below the %u rows: %u", action, in->n_row,
                       sel->ends[h] - 1);
    }
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    const size_t bytes = (size_t)in->n_head * in->n_row * sizeof(float);
    if (bytes > 0) status = be_copy(cache->dev, out->values, in->values, bytes, err);
    const uint32_t *rows = sel->rows;
    for (uint32_t h = 0; h < in->n_head && status == KVF_OK; h++) {
        const uint32_t n = sel->counts[sel->n_head == 1 ? 0 : h];
        if (n > 0) {
            status = be_scores_fill_selected(cache->dev, out->values + (size_t)h * in->n_row, rows, n, value, err);
        }
        if (sel->n_head > 1) rows += n;
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_fill_selected(kvf_cache *cache, uint32_t scores, uint32_t selection, float value, char *text,
                                 uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "fill the selected scores", err);
    if (status != KVF_OK) return status;
    status = scores_fill_selected(cache, scores, selection, value, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_relative(kvf_cache *cache, uint32_t scores, uint32_t lead, uint32_t span, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "relate the scores", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (span == 0 || lead > in->n_row) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot relate the scores as span must be at least 1 and lead at most %u: %u and %u",
                       in->n_row, span, lead);
    }
    int32_t status;
    kv_object *out = kv_scores_like(cache, in, &status, err);
    if (out == NULL) return status;
    if (in->lens == NULL && in->n_row > 0) {
        status = be_scores_relative(cache->dev, in->values, out->values, in->n_head, in->n_row, lead, span, err);
    }
    for (uint32_t h = 0; in->lens != NULL && h < in->n_head && status == KVF_OK; h++) {
        const size_t at = (size_t)h * in->n_row;
        const uint32_t len = in->lens[h];
        if (len == 0) continue;
        status = be_scores_relative(cache->dev, in->values + at, out->values + at, 1, len, lead < len ? lead : len, span, err);
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_relative(kvf_cache *cache, uint32_t scores, uint32_t lead, uint32_t span, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "relate the scores", err);
    if (status != KVF_OK) return status;
    status = scores_relative(cache, scores, lead, span, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_random(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer, kv_err err) {
    int32_t status;
    kv_object *out = kv_scores_new(cache, n_head, n_row, &status, err);
    if (out == NULL) return status;
    if (n_row > 0) status = be_scores_random(cache->dev, out->values, n_head, n_row, seed, layer, err);
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_scores_random(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t seed, uint32_t layer, char *text,
                          uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "draw scores", err);
    if (status != KVF_OK) return status;
    status = scores_random(cache, n_head, n_row, seed, layer, err);
    kv_leave(cache->dev);
    return status;
}

/* ---- Selection ---- */

static int32_t select_top(kvf_cache *cache, uint32_t scores, const uint32_t *counts, uint32_t n_head, kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "select rows", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head != in->n_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot select rows as counts must have %u elements: %u", in->n_head,
                       counts == NULL ? 0 : n_head);
    }
    for (uint32_t h = 0; h < n_head; h++) {
        if (counts[h] > in->n_row) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot select rows as counts must be at most %u: %u for head %u", in->n_row,
                           counts[h], h);
        }
    }
    uint32_t *take = malloc(n_head * sizeof *take);
    if (take == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot select rows as memory ran out");
    for (uint32_t h = 0; h < n_head; h++) take[h] = counts[h] < kv_len_of(in, h) ? counts[h] : kv_len_of(in, h);
    int32_t status;
    kv_object *out = kv_selection_new(cache, n_head, take, &status, err);
    free(take);
    if (out == NULL) return status;
    for (uint32_t h = 0; h < n_head; h++) out->ends[h] = out->counts[h] > 0 ? kv_len_of(in, h) : 0;
    if (in->lens == NULL && out->n_row > 0) {
        status = be_select_top(cache->dev, in->values, n_head, in->n_row, out->counts, out->rows, err);
    }
    uint32_t *rows = out->rows;
    for (uint32_t h = 0; in->lens != NULL && h < n_head && status == KVF_OK; h++) {
        if (out->counts[h] == 0) continue;
        status = be_select_top(cache->dev, in->values + (size_t)h * in->n_row, 1, in->lens[h], &out->counts[h], rows, err);
        rows += out->counts[h];
    }
    return kv_object_publish(cache, out, status, err);
}

int32_t kvf_select_top(kvf_cache *cache, uint32_t scores, const uint32_t *counts, uint32_t n_head, char *text,
                       uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "select rows", err);
    if (status != KVF_OK) return status;
    status = select_top(cache, scores, counts, n_head, err);
    kv_leave(cache->dev);
    return status;
}

static int32_t scores_share(kvf_cache *cache, uint32_t scores, uint32_t total, uint32_t *counts, uint32_t n_head,
                            kv_err err) {
    const kv_object *in = kv_find_object(cache, scores, KV_SCORES, "share the budget", err);
    if (in == NULL) return KVF_ERR_ARG;
    if (counts == NULL || n_head < in->n_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot share the budget as counts must have %u elements: %u", in->n_head,
                       counts == NULL ? 0 : n_head);
    }
    uint32_t n = 0; /* at most KV_MAX_ELEMENT */
    for (uint32_t h = 0; h < in->n_head; h++) n += kv_len_of(in, h);
    if (total > n) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot share the budget as total must be at most %u: %u", n, total);
    }
    memset(counts, 0, in->n_head * sizeof *counts);
    if (total == 0) return KVF_OK;
    int32_t status = kv_scores_pad(cache, in, err);
    if (status != KVF_OK) return status;
    status = be_scores_share(cache->dev, in->values, in->n_head, in->n_row, total, counts, err);
    for (uint32_t h = 0; h < in->n_head; h++) {
        if (counts[h] > kv_len_of(in, h)) counts[h] = kv_len_of(in, h);
    }
    return status;
}

int32_t kvf_scores_share(kvf_cache *cache, uint32_t scores, uint32_t total, uint32_t *counts, uint32_t n_head,
                         char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "share the budget", err);
    if (status != KVF_OK) return status;
    status = scores_share(cache, scores, total, counts, n_head, err);
    kv_leave(cache->dev);
    return status;
}
