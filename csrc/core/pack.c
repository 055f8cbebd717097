/*
 * Packing rows: which ones, into which pages.
 *
 * Whole pages of rows that lie side by side are packed where they are: packed pages are taken, filled from the plain ones,
 * and put in their place. Where rows must change their order or their slots, a new table is built beside the old one.
 * Either happens to one stored head at a time; a failure leaves every head either packed or as it was, and asking again
 * goes on from there.
 */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "packed.h"

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot pack rows as %zu bytes must be available", bytes);
}

static bool packs_once(const kv_format *f) { return (f->config.flags & KVF_PACK_ONCE) != 0; }

/* ---- Filling packed pages ---- */

/* Takes and fits the frame of a table from the n_row rows of its plain pages [first, ...). */
static int32_t make_frame(kvf_cache *cache, kv_table *t, uint32_t first, uint32_t n_row, const uint16_t *channels,
                          kv_err err) {
    if (t->format->frame_bytes == 0 || t->frame != 0) return KVF_OK;
    const uint32_t n_page = (n_row + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS;
    const void **pages = malloc(n_page * sizeof *pages);
    if (pages == NULL) return no_memory(n_page * sizeof *pages, err);
    for (uint32_t i = 0; i < n_page; i++) pages[i] = cache->page[t->page[first + i]].data;
    uint32_t frame;
    int32_t status = kv_pages_take(cache, &frame, 1, t->format->frame_bytes, err);
    if (status == KVF_OK) {
        status = be_pack_fit(cache, t->format, pages, n_row, channels, cache->page[frame].data, err);
        if (status == KVF_OK) {
            t->frame = frame + 1;
        } else {
            kv_page_release(cache, frame);
        }
    }
    free(pages);
    return status;
}

/* Packs n_row rows of the table's plain pages behind the packed ones, in their place; n_row is whole pages or all rows. */
static int32_t pack_pages(kvf_cache *cache, kv_table *t, uint32_t n_row, const uint16_t *channels, kv_err err) {
    if (n_row == 0) return KVF_OK;
    const uint32_t first = kv_packed_pages(t), n_page = (n_row + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS;
    const bool had_frame = t->frame != 0;
    int32_t status = make_frame(cache, t, first, n_row, channels, err);
    if (status != KVF_OK) return status;
    uint32_t *page = malloc(n_page * sizeof *page);
    kv_pack_job *jobs = malloc(n_page * sizeof *jobs);
    status = page == NULL || jobs == NULL ? no_memory(n_page * (sizeof *page + sizeof *jobs), err)
                                          : kv_pages_take(cache, page, n_page, t->format->page_bytes, err);
    if (status == KVF_OK) {
        for (uint32_t i = 0; i < n_page; i++) {
            const uint32_t rest = n_row - i * KVF_PAGE_ROWS;
            jobs[i] = (kv_pack_job){t->format, kv_frame_data(cache, t), cache->page[t->page[first + i]].data,
                                    cache->page[page[i]].data, rest < KVF_PAGE_ROWS ? rest : KVF_PAGE_ROWS};
        }
        status = be_pack_pages(cache, jobs, n_page, err);
        for (uint32_t i = 0; i < n_page; i++) {
            const uint32_t drop = status == KVF_OK ? t->page[first + i] : page[i];
            if (status == KVF_OK) t->page[first + i] = page[i];
            kv_page_release(cache, drop);
        }
        if (status == KVF_OK) t->packed += n_row;
    }
    if (status != KVF_OK && !had_frame && t->frame != 0) {
        kv_page_release(cache, t->frame - 1);
        t->frame = 0;
    }
    free(page);
    free(jobs);
    return status;
}

/* ---- A new table beside the old one ---- */

/* Plain pages for the n rows of `src` that `rows` (host) lists, appended to table t behind what it has. */
static int32_t append_rows(kvf_cache *cache, kv_table *t, const kv_table *src, const uint32_t *rows, uint32_t n,
                           kv_err err) {
    if (n == 0) return KVF_OK;
    const size_t bytes = n * sizeof *rows;
    kv_table part = {0};
    uint32_t *list = be_alloc(cache->dev, bytes);
    int32_t status = list == NULL ? no_memory(bytes, err) : be_upload(cache->dev, list, rows, bytes, err);
    if (status == KVF_OK) status = kv_table_reserve(cache, &part, n, err);
    if (status == KVF_OK) status = be_gather_rows(cache, &part, src, list, n, err);
    if (status == KVF_OK) status = kv_table_grow(t, t->n_page + part.n_page, err);
    if (status == KVF_OK) {
        memcpy(t->page + t->n_page, part.page, part.n_page * sizeof *part.page);
        t->n_page += part.n_page;
        t->rows += n;
        part.n_page = 0;
    }
    kv_table_free(cache, &part);
    be_free(cache->dev, list);
    return status;
}

/*
 * Replaces table t by one that has t's first `whole` packed pages as they are, then rows `head` packed, then rows `tail`
 * plain. The lists are host memory and refer to t.
 */
static int32_t rebuild(kvf_cache *cache, kv_table *t, kv_format *format, uint32_t whole, const uint32_t *head,
                       uint32_t n_head, const uint32_t *tail, uint32_t n_tail, const uint16_t *channels, kv_err err) {
    kv_table fresh = {.format = format};
    kv_format_retain(format);
    int32_t status = kv_table_grow(&fresh, whole, err);
    if (status == KVF_OK) {
        for (uint32_t i = 0; i < whole; i++) {
            fresh.page[i] = t->page[i];
            kv_page_retain(cache, t->page[i]);
        }
        fresh.n_page = whole;
        fresh.rows = fresh.packed = whole * KVF_PAGE_ROWS;
        if (t->frame != 0 && whole + n_head > 0) { /* rows that are packed anew go by the old frame */
            fresh.frame = t->frame;
            kv_page_retain(cache, t->frame - 1);
        }
        status = append_rows(cache, &fresh, t, head, n_head, err);
    }
    if (status == KVF_OK) status = pack_pages(cache, &fresh, n_head, channels, err);
    if (status == KVF_OK) status = append_rows(cache, &fresh, t, tail, n_tail, err);
    if (status != KVF_OK) {
        kv_table_free(cache, &fresh);
        return status;
    }
    kv_table_free(cache, t);
    *t = fresh;
    return KVF_OK;
}

/* Packs one plain table: `chosen` rows (NULL: the first n_chosen) first, the others behind them. */
static int32_t pack_chosen(kvf_cache *cache, kv_table *t, kv_format *format, const uint32_t *chosen, uint32_t n_chosen,
                           const uint16_t *channels, kv_err err) {
    uint32_t *list = malloc((t->rows > 0 ? t->rows : 1) * sizeof *list); /* chosen ones, then the rest */
    if (list == NULL) return no_memory(t->rows * sizeof *list, err);
    uint32_t n_head = 0, n_tail = 0;
    for (uint32_t row = 0; row < t->rows; row++) {
        const bool picked = chosen == NULL ? row < n_chosen : n_head < n_chosen && chosen[n_head] == row;
        if (picked) {
            list[n_head++] = row;
        } else {
            list[n_chosen + n_tail++] = row;
        }
    }
    const int32_t status = rebuild(cache, t, format, 0, list, n_chosen, list + n_chosen, n_tail, channels, err);
    free(list);
    return status;
}

/* ---- After rows have changed ---- */

/* Rows of a table that are due, whole pages. */
static uint32_t due(const kv_table *t) {
    if (t->format == NULL || packs_once(t->format)) return 0;
    const uint32_t plain = t->rows - t->packed, residual = t->format->config.residual;
    return plain > residual ? (plain - residual) / KVF_PAGE_ROWS * KVF_PAGE_ROWS : 0;
}

int32_t kv_table_repack(kvf_cache *cache, kv_table *t, const uint32_t *rows, uint32_t n, kv_err err) {
    kv_format *format = t->format;
    uint32_t whole = 0, was_packed = 0;
    while (whole < t->packed / KVF_PAGE_ROWS && (whole + 1) * KVF_PAGE_ROWS <= n &&
           rows[(whole + 1) * KVF_PAGE_ROWS - 1] == (whole + 1) * KVF_PAGE_ROWS - 1) {
        whole++;
    }
    while (was_packed < n && rows[was_packed] < t->packed) was_packed++;
    const uint32_t kept = whole * KVF_PAGE_ROWS;
    uint32_t want = was_packed;
    if (!packs_once(format)) {
        want = n > format->config.residual ? (n - format->config.residual) / KVF_PAGE_ROWS * KVF_PAGE_ROWS : 0;
    }
    if (want < kept) want = kept;
    return rebuild(cache, t, format, whole, rows + kept, want - kept, rows + want, n - want, NULL, err);
}

int32_t kv_table_unpack(kvf_cache *cache, kv_table *t, kv_packing *was, kv_err err) {
    *was = (kv_packing){0};
    kv_table fresh = {0};
    int32_t status = KVF_OK;
    if (t->packed > 0) {
        uint32_t *all = malloc(t->rows * sizeof *all);
        if (all == NULL) return no_memory(t->rows * sizeof *all, err);
        for (uint32_t i = 0; i < t->rows; i++) all[i] = i;
        status = append_rows(cache, &fresh, t, all, t->rows, err);
        free(all);
    } else { /* plain already */
        status = kv_table_share(cache, &fresh, t, err);
        kv_format_release(cache, fresh.format);
        fresh.format = NULL;
    }
    if (status != KVF_OK) {
        kv_table_free(cache, &fresh);
        return status;
    }
    *was = (kv_packing){t->format, t->frame, t->packed};
    t->format = NULL;
    t->frame = 0;
    kv_table_free(cache, t);
    *t = fresh;
    return KVF_OK;
}

int32_t kv_table_pack_again(kvf_cache *cache, kv_table *t, kv_packing *was, uint32_t n, kv_err err) {
    if (was->format == NULL) return KVF_OK;
    t->format = was->format;
    t->frame = was->frame;
    *was = (kv_packing){0};
    if (!packs_once(t->format)) n = due(t);
    int32_t status;
    if (n % KVF_PAGE_ROWS != 0 && n < t->rows) {
        status = pack_chosen(cache, t, t->format, NULL, n, NULL, err);
    } else {
        status = pack_pages(cache, t, n, NULL, err);
    }
    if (t->packed == 0 && t->frame != 0) {
        kv_page_release(cache, t->frame - 1);
        t->frame = 0;
    }
    return status;
}

/* ---- During decode ---- */

/* Whether two tables hold the same pages, so that one may become the other's copy. */
static bool same_pages(const kv_table *a, const kv_table *b) {
    return a->rows == b->rows && a->packed == b->packed && a->format == b->format && a->n_page == b->n_page &&
           memcmp(a->page, b->page, a->n_page * sizeof *a->page) == 0;
}

/* What is packed at the same time: `page` takes the place of the table's plain page `at`. */
typedef struct due_page {
    kv_table *t;
    uint32_t at, page;
} due_page;

/* The packed page that table i's page `at` gets: its neighbour's where they share the plain one, else a fresh one. */
static int32_t take_due(kvf_cache *cache, due_page *list, uint32_t n, kv_pack_job *jobs, uint32_t *n_job, kv_err err) {
    due_page *d = &list[n];
    const uint32_t plain = d->t->page[d->at];
    for (uint32_t i = cache->page[plain].refs > 1 ? n : 0; i-- > 0;) {
        if (list[i].t->page[list[i].at] != plain || list[i].t->frame != d->t->frame || list[i].t->format != d->t->format) continue;
        d->page = list[i].page;
        kv_page_retain(cache, d->page);
        return KVF_OK;
    }
    const int32_t status = kv_pages_take(cache, &d->page, 1, d->t->format->page_bytes, err);
    if (status != KVF_OK) return status;
    jobs[(*n_job)++] = (kv_pack_job){d->t->format, kv_frame_data(cache, d->t), cache->page[plain].data,
                                     cache->page[d->page].data, KVF_PAGE_ROWS};
    return KVF_OK;
}

int32_t kv_pack_due(kvf_cache *cache, kv_sequence *s, kv_err err) {
    const size_t n_table = (size_t)cache->config.n_layer * s->n_stored_head;
    size_t n_page = 0;
    for (size_t i = 0; i < n_table; i++) n_page += due(&s->table[i]) / KVF_PAGE_ROWS;
    if (n_page == 0) return KVF_OK;
    due_page *list = malloc(n_page * sizeof *list);
    kv_pack_job *jobs = malloc(n_page * sizeof *jobs);
    int32_t status = list == NULL || jobs == NULL ? no_memory(n_page * (sizeof *list + sizeof *jobs), err) : KVF_OK;
    uint32_t n = 0, n_job = 0;
    for (size_t i = 0; i < n_table && status == KVF_OK; i++) {
        kv_table *t = &s->table[i];
        const uint32_t first = kv_packed_pages(t), rows = due(t);
        if (rows == 0) continue;
        status = make_frame(cache, t, first, rows, NULL, err);
        for (uint32_t k = 0; k < rows / KVF_PAGE_ROWS && status == KVF_OK; k++) {
            list[n] = (due_page){t, first + k, 0};
            status = take_due(cache, list, n, jobs, &n_job, err);
            n += status == KVF_OK;
        }
    }
    if (status == KVF_OK) status = be_pack_pages(cache, jobs, n_job, err);
    for (uint32_t i = 0; i < n; i++) {
        kv_table *t = list[i].t;
        if (status != KVF_OK) {
            kv_page_release(cache, list[i].page);
            continue;
        }
        kv_page_release(cache, t->page[list[i].at]);
        t->page[list[i].at] = list[i].page;
        t->packed += KVF_PAGE_ROWS;
    }
    if (status != KVF_OK) { /* a frame without packed pages is no table's state */
        for (size_t i = 0; i < n_table; i++) {
            if (s->table[i].packed > 0 || s->table[i].frame == 0) continue;
            kv_page_release(cache, s->table[i].frame - 1);
            s->table[i].frame = 0;
        }
    }
    free(list);
    free(jobs);
    return status;
}

/* ---- kvf_pack ---- */

/* What is to be packed, the same way for every head. */
typedef struct request {
    kv_format *format;
    const kv_object *rows, *channels;
    uint32_t *row_list;     /* [entries of rows] host */
    uint32_t *channel_list; /* [entries of channels] host */
} request;

static int32_t check_rows(const kv_sequence *s, uint32_t layer, const kv_object *sel, kv_err err) {
    if (sel->n_head != 1 && sel->n_head != s->n_stored_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as the selection must have 1 or %u heads: %u", s->n_stored_head,
                       sel->n_head);
    }
    for (uint32_t h = 0; h < s->n_stored_head; h++) {
        const uint32_t rows = kv_table_of(s, layer, h)->rows, end = sel->ends[sel->n_head == 1 ? 0 : h];
        if (end <= rows) continue;
        return kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as the selection must stay below the %u rows of head %u: %u", rows, h,
                       end - 1);
    }
    return KVF_OK;
}

static int32_t check_channels(const kvf_cache *cache, const kv_sequence *s, const kv_object *sel, uint32_t n, kv_err err) {
    if (sel->n_head != 1 && sel->n_head != s->n_stored_head) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as the channels must be of 1 or %u heads: %u", s->n_stored_head,
                       sel->n_head);
    }
    for (uint32_t h = 0; h < sel->n_head; h++) {
        if (sel->counts[h] != n) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as head %u must have key_channels = %u channels: %u", h, n,
                           sel->counts[h]);
        }
        if (sel->ends[h] > cache->config.head_dim) {
            return kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as the channels must be below head_dim %u: %u",
                           cache->config.head_dim, sel->ends[h] - 1);
        }
    }
    return KVF_OK;
}

/* Entries of a selection, on the host; NULL with *status for want of memory, or when there are none. */
static uint32_t *entries_of(kvf_cache *cache, const kv_object *sel, int32_t *status, kv_err err) {
    size_t n = 0;
    for (uint32_t h = 0; h < sel->n_head; h++) n += sel->counts[h];
    uint32_t *list = malloc((n > 0 ? n : 1) * sizeof *list);
    if (list == NULL) {
        *status = no_memory(n * sizeof *list, err);
    } else if (n > 0) {
        *status = be_download(cache->dev, list, sel->rows, n * sizeof *list, err);
    }
    return list;
}

/* Head h's entries in a list of all heads'. */
static const uint32_t *of_head(const kv_object *sel, const uint32_t *list, uint32_t h, uint32_t *n) {
    if (sel->n_head == 1) h = 0;
    for (uint32_t i = 0; i < h; i++) list += sel->counts[i];
    *n = sel->counts[h];
    return list;
}

static int32_t pack_head(kvf_cache *cache, kv_table *t, uint32_t head, const request *r, kv_err err) {
    uint16_t channels[256];
    const uint16_t *kept = NULL;
    uint32_t n = 0;
    if (r->channels != NULL) {
        const uint32_t *from = of_head(r->channels, r->channel_list, head, &n);
        for (uint32_t i = 0; i < n; i++) channels[i] = (uint16_t)from[i];
        kept = channels;
    }
    if (r->rows != NULL) {
        const uint32_t *chosen = of_head(r->rows, r->row_list, head, &n);
        return pack_chosen(cache, t, r->format, chosen, n, kept, err);
    }
    const uint32_t residual = r->format->config.residual;
    n = t->rows > residual ? t->rows - residual : 0;
    if (!packs_once(r->format)) n -= n % KVF_PAGE_ROWS;
    if (n % KVF_PAGE_ROWS != 0 && n < t->rows) return pack_chosen(cache, t, r->format, NULL, n, kept, err);
    t->format = r->format;
    const int32_t status = pack_pages(cache, t, n, kept, err);
    if (status == KVF_OK) {
        kv_format_retain(t->format);
    } else {
        t->format = NULL;
    }
    return status;
}

static int32_t pack_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer, const request *r, kv_err err) {
    kv_table before = {0}; /* the head before, as it was */
    int32_t status = KVF_OK;
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *t = kv_table_of(s, layer, h), was = {0};
        if (t->format != NULL) continue; /* an earlier call came so far */
        /* query heads of one group hold the same pages until something parts them: they stay together */
        const bool together = h > 0 && t->rows > 0 && same_pages(t, &before) && r->rows == NULL && r->channels == NULL;
        if (together) {
            status = kv_table_share(cache, &was, kv_table_of(s, layer, h - 1), err);
            if (status != KVF_OK) break;
            kv_table_free(cache, t);
            *t = was;
            continue;
        }
        kv_table_free(cache, &before);
        if (s->n_stored_head > cache->config.n_kv_head) status = kv_table_share(cache, &before, t, err);
        if (status == KVF_OK) status = pack_head(cache, t, h, r, err);
    }
    kv_table_free(cache, &before);
    return status;
}

static int32_t pack(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_format *format, uint32_t rows,
                    uint32_t channels, kv_err err) {
    kv_sequence *s = kv_find_sequence(cache, sequence, "pack rows", err);
    if (s == NULL || !kv_check_layer(cache, layer, "pack rows", err)) return KVF_ERR_ARG;
    if (!kv_check_whole(s, layer, "pack rows", err)) return KVF_ERR_STATE;
    if (s->prefill != NULL && s->prefill->projected && s->prefill->next_layer == layer) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot pack rows as the attention of layer %u must have run", layer);
    }
    request r = {0};
    int32_t status = kv_format_find(cache, format, s->inv_freq, &r.format, err);
    if (status != KVF_OK) return status;
    status = kv_check_format_step(r.format, kv_step_of(s, layer), "pack rows", err);
    if (status == KVF_OK && rows != 0) {
        r.rows = kv_find_object(cache, rows, KV_SELECTION, "pack rows", err);
        status = r.rows == NULL ? KVF_ERR_ARG : check_rows(s, layer, r.rows, err);
        if (status == KVF_OK && !packs_once(r.format)) {
            status = kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as a selection must come with KVF_PACK_ONCE: flags are %u",
                             format->flags);
        }
    }
    if (status == KVF_OK && (channels != 0) != (format->key_channels > 0)) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot pack rows as channels must be given if and only if key_channels is: %u and %u",
                         channels, format->key_channels);
    }
    if (status == KVF_OK && channels != 0) {
        r.channels = kv_find_object(cache, channels, KV_SELECTION, "pack rows", err);
        status = r.channels == NULL ? KVF_ERR_ARG : check_channels(cache, s, r.channels, format->key_channels, err);
    }
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        const kv_format *has = kv_table_of(s, layer, h)->format;
        if (has == NULL || (has == r.format && !packs_once(has))) continue;
        status = kv_fail(err, KVF_ERR_STATE, "Cannot pack rows as layer %u must be plain: its head %u is packed in another way",
                         layer, h);
    }
    if (status == KVF_OK && r.rows != NULL) r.row_list = entries_of(cache, r.rows, &status, err);
    if (status == KVF_OK && r.channels != NULL) r.channel_list = entries_of(cache, r.channels, &status, err);
    if (status == KVF_OK) status = pack_layer(cache, s, layer, &r, err);
    free(r.row_list);
    free(r.channel_list);
    kv_format_release(cache, r.format);
    return status;
}

int32_t kvf_pack(kvf_cache *cache, uint32_t sequence, uint32_t layer, const kvf_format *format, uint32_t rows,
                 uint32_t channels, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "pack rows", err);
    if (status != KVF_OK) return status;
    status = pack(cache, sequence, layer, format, rows, channels, err);
    kv_leave(cache->dev);
    return status;
}
