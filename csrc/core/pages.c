/*
 * The page pool of a cache and the page tables.
 *
 * A page's memory is allocated when the first table takes it and freed when the last one lets it go. Nothing is kept
 * back: what the ledger calls resident is all that the pool has, and a row that was evicted with its page is gone. Only
 * the slots are recycled, by a free list.
 */
#include <stdlib.h>
#include <string.h>

#include "backend.h"

static uint32_t pages_for(uint32_t rows) { return rows / KVF_PAGE_ROWS + (rows % KVF_PAGE_ROWS != 0); }

/* ---- Pool ---- */

/* Without memory of the device. */
static int32_t no_device_memory(const kvf_cache *cache, double bytes, kv_err err) {
    be_device_refresh(cache->dev);
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot reserve rows as %.0f bytes must be available: %.0f are free", bytes,
                   cache->dev->info.free_bytes);
}

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot reserve rows as %zu bytes must be available", bytes);
}

/* Makes n free slots. */
static int32_t grow_slots(kvf_cache *cache, uint32_t n, kv_err err) {
    const uint32_t n_free = cache->n_page - cache->held_page;
    if (n <= n_free || n - n_free <= cache->cap_page - cache->n_page) return KVF_OK;
    uint64_t cap = (uint64_t)cache->cap_page + cache->cap_page / 2;
    const uint64_t least = (uint64_t)cache->held_page + n;
    if (cap < least) cap = least;
    if (cap < 64) cap = 64;
    if (cap >= KV_NO_TOKEN) return no_memory((size_t)least * sizeof *cache->page, err);
    kv_page *page = realloc(cache->page, (size_t)cap * sizeof *page);
    if (page == NULL) return no_memory((size_t)cap * sizeof *page, err);
    cache->page = page;
    cache->cap_page = (uint32_t)cap;
    return KVF_OK;
}

/* Puts a slot without memory on the free list. */
static void give_slot(kvf_cache *cache, uint32_t index) {
    cache->held_bytes -= cache->page[index].bytes;
    cache->page[index] = (kv_page){NULL, 0, cache->free_page, 0};
    cache->free_page = index;
    cache->held_page--;
}

int32_t kv_check_limit(const kvf_cache *cache, double need, kv_err err) {
    const double limit = cache->config.limit_bytes;
    const double held = kv_held_bytes(cache);
    if (limit == 0 || held + need <= limit) return KVF_OK;
    return kv_fail(err, KVF_ERR_MEMORY,
                   "Cannot reserve rows as limit_bytes of the cache must hold them: %.0f bytes needed, %.0f of %.0f free",
                   need, limit - held, limit);
}

static int32_t check_limit(const kvf_cache *cache, uint64_t n, uint32_t bytes, kv_err err) {
    return kv_check_limit(cache, (double)n * bytes, err);
}

int32_t kv_pages_take(kvf_cache *cache, uint32_t *page, uint32_t n, uint32_t bytes, kv_err err) {
    if (n == 0) return KVF_OK;
    int32_t status = check_limit(cache, n, bytes, err);
    if (status != KVF_OK) return status;
    status = grow_slots(cache, n, err);
    if (status != KVF_OK) return status;
    for (uint32_t i = 0; i < n; i++) {
        void *data = be_alloc(cache->dev, bytes);
        if (data == NULL) {
            while (i > 0) kv_page_release(cache, page[--i]);
            return no_device_memory(cache, (double)n * bytes, err);
        }
        uint32_t index = cache->free_page;
        if (index != KV_NO_TOKEN) {
            cache->free_page = cache->page[index].next;
        } else {
            index = cache->n_page++;
        }
        cache->page[index] = (kv_page){data, 1, KV_NO_TOKEN, bytes};
        cache->held_page++;
        cache->held_bytes += bytes;
        page[i] = index;
    }
    kv_note_peak(cache);
    return KVF_OK;
}

void kv_page_retain(kvf_cache *cache, uint32_t page) { cache->shared_page += cache->page[page].refs++ == 1; }

void kv_page_release(kvf_cache *cache, uint32_t page) {
    cache->shared_page -= cache->page[page].refs == 2;
    if (--cache->page[page].refs > 0) return;
    be_free(cache->dev, cache->page[page].data);
    give_slot(cache, page);
}

/* ---- Tables ---- */

int32_t kv_table_grow(kv_table *t, uint32_t n_page, kv_err err) {
    if (n_page <= t->cap_page) return KVF_OK;
    uint32_t cap = t->cap_page + t->cap_page / 2;
    if (cap < n_page) cap = n_page;
    uint32_t *page = realloc(t->page, (size_t)cap * sizeof *page);
    if (page == NULL) return no_memory((size_t)cap * sizeof *page, err);
    t->page = page;
    t->cap_page = cap;
    return KVF_OK;
}

static void release_from(kvf_cache *cache, kv_table *t, uint32_t first) {
    while (t->n_page > first) kv_page_release(cache, t->page[--t->n_page]);
}

void kv_table_free(kvf_cache *cache, kv_table *t) {
    release_from(cache, t, 0);
    if (t->frame != 0) kv_page_release(cache, t->frame - 1);
    if (t->scale != 0) kv_page_release(cache, t->scale - 1);
    kv_format_release(cache, t->format);
    free(t->page);
    *t = (kv_table){0};
}

int32_t kv_table_share(kvf_cache *cache, kv_table *to, const kv_table *from, kv_err err) {
    const int32_t status = kv_table_grow(to, from->n_page, err);
    if (status != KVF_OK) return status;
    for (uint32_t i = 0; i < from->n_page; i++) {
        to->page[i] = from->page[i];
        kv_page_retain(cache, to->page[i]);
    }
    to->n_page = from->n_page;
    to->rows = from->rows;
    to->packed = from->packed;
    to->frame = from->frame;
    if (to->frame != 0) kv_page_retain(cache, to->frame - 1);
    to->format = from->format;
    if (to->format != NULL) kv_format_retain(to->format);
    to->shared = from->shared;
    to->exact[0] = from->exact[0];
    to->exact[1] = from->exact[1];
    to->scale = from->scale;
    if (to->scale != 0) kv_page_retain(cache, to->scale - 1);
    to->borrows = from->borrows;
    return KVF_OK;
}

void kv_table_trim(kvf_cache *cache, kv_table *t) { release_from(cache, t, kv_table_pages(t)); }

int32_t kv_table_own(kvf_cache *cache, kv_table *t, kv_err err) {
    uint32_t n = 0;
    if (cache->shared_page == 0) return KVF_OK;
    for (uint32_t i = 0; i < t->n_page; i++) n += cache->page[t->page[i]].refs > 1;
    if (n == 0) return KVF_OK;
    uint32_t *copy = malloc(n * sizeof *copy);
    if (copy == NULL) return no_memory(n * sizeof *copy, err);
    int32_t status = kv_pages_take(cache, copy, n, cache->page_bytes, err);
    if (status == KVF_OK) {
        uint32_t used = 0;
        for (uint32_t i = 0; i < t->n_page && status == KVF_OK; i++) {
            const kv_page *from = &cache->page[t->page[i]];
            if (from->refs <= 1) continue;
            status = be_copy(cache->dev, cache->page[copy[used]].data, from->data, cache->page_bytes, err);
            if (status != KVF_OK) break;
            kv_page_release(cache, t->page[i]);
            t->page[i] = copy[used++];
        }
        while (used < n) kv_page_release(cache, copy[used++]);
    }
    free(copy);
    return status;
}

int32_t kv_table_reserve(kvf_cache *cache, kv_table *t, uint32_t n, kv_err err) {
    if (n == 0) return KVF_OK;
    if (n > UINT32_MAX - KVF_PAGE_ROWS - t->rows) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot reserve rows as a head must hold fewer than 2^32: %u and %u more", t->rows, n);
    }
    const uint32_t plain = t->rows - t->packed;
    const uint32_t tail = kv_packed_pages(t) + plain / KVF_PAGE_ROWS;
    const bool shared = plain % KVF_PAGE_ROWS != 0 && cache->page[t->page[tail]].refs > 1;
    const uint32_t need = kv_packed_pages(t) + pages_for(plain + n);
    const uint32_t had = t->n_page;
    if (!shared && need <= had) return KVF_OK;
    /* The copy of the tail is taken along with the new pages, as the last one, so that all or none are there. */
    const uint32_t more = need > had ? need - had : 0;
    int32_t status = kv_table_grow(t, had + more + 1, err);
    if (status == KVF_OK) status = kv_pages_take(cache, t->page + had, more + shared, cache->page_bytes, err);
    if (status != KVF_OK) return status;
    t->n_page = had + more;
    if (shared) {
        const uint32_t copy = t->page[t->n_page];
        status = be_copy(cache->dev, cache->page[copy].data, cache->page[t->page[tail]].data, cache->page_bytes, err);
        if (status != KVF_OK) {
            kv_page_release(cache, copy);
            release_from(cache, t, had);
            return status;
        }
        kv_page_release(cache, t->page[tail]);
        t->page[tail] = copy;
    }
    return KVF_OK;
}

int32_t kv_layer_reserve_prefill(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err) {
    const uint32_t n_page = pages_for(n);
    const uint32_t n_kv_head = cache->config.n_kv_head;
    const uint32_t n_sharing = s->n_stored_head / n_kv_head; /* tables of one group */
    int32_t status = check_limit(cache, (uint64_t)n_page * n_kv_head, cache->page_bytes, err);
    for (uint32_t h = 0; h < s->n_stored_head && status == KVF_OK; h++) {
        kv_table *t = kv_table_of(s, layer, h);
        status = kv_table_grow(t, n_page, err);
        if (status != KVF_OK) break;
        if (h % n_sharing == 0) {
            status = kv_pages_take(cache, t->page, n_page, cache->page_bytes, err);
            if (status == KVF_OK) t->n_page = n_page;
        } else {
            const kv_table *first = kv_table_of(s, layer, h - h % n_sharing);
            memcpy(t->page, first->page, (size_t)n_page * sizeof *t->page);
            for (uint32_t i = 0; i < n_page; i++) kv_page_retain(cache, t->page[i]);
            t->n_page = n_page;
        }
    }
    if (status != KVF_OK) {
        for (uint32_t h = 0; h < s->n_stored_head; h++) kv_table_trim(cache, kv_table_of(s, layer, h));
    }
    return status;
}
