/* The page pool and page tables: reference counts, copy on write, limits. */
#include <stdlib.h>
#include <string.h>

#include "entry.h"

/* A page with one reference, or KV_NO_TOKEN with the message written. */
static uint32_t page_take(kvf_cache *cache, kv_err err) {
    const double limit = cache->config.limit_bytes;
    if (limit > 0 && cache->resident_bytes + cache->page_bytes > limit) {
        kv_fail(err, KVF_ERR_MEMORY, "Cannot store rows as the cache must stay within %.0f bytes: %.0f are held, %u needed",
                limit, cache->resident_bytes, cache->page_bytes);
        return KV_NO_TOKEN;
    }
    if (cache->free_page == KV_NO_TOKEN && cache->n_page == cache->cap_page) {
        const uint32_t cap = cache->cap_page == 0 ? 256 : cache->cap_page * 2;
        kv_page *grown = cap > cache->cap_page ? realloc(cache->page, (size_t)cap * sizeof *grown) : NULL;
        if (grown == NULL) {
            kv_fail(err, KVF_ERR_MEMORY, "Cannot store rows as memory ran out: %u pages are held", cache->held_page);
            return KV_NO_TOKEN;
        }
        cache->page = grown;
        cache->cap_page = cap;
    }
    void *data = be_alloc(cache->dev, cache->page_bytes);
    if (data == NULL) {
        kv_fail(err, KVF_ERR_MEMORY, "Cannot store rows as memory ran out: %.0f bytes are held, %u needed",
                cache->resident_bytes, cache->page_bytes);
        return KV_NO_TOKEN;
    }
    uint32_t index = cache->free_page;
    if (index != KV_NO_TOKEN) {
        cache->free_page = cache->page[index].next;
    } else {
        index = cache->n_page++;
    }
    cache->page[index] = (kv_page){.data = data, .refs = 1, .next = KV_NO_TOKEN};
    cache->held_page++;
    cache->resident_bytes += cache->page_bytes;
    if (cache->resident_bytes > cache->peak_bytes) cache->peak_bytes = cache->resident_bytes;
    return index;
}

static void page_release(kvf_cache *cache, uint32_t index) {
    kv_page *page = &cache->page[index];
    if (--page->refs > 0) return;
    be_free(cache->dev, page->data);
    page->data = NULL;
    page->next = cache->free_page;
    cache->free_page = index;
    cache->held_page--;
    cache->resident_bytes -= cache->page_bytes;
}

static bool grow_list(kv_table *t, uint32_t n_page) {
    if (n_page <= t->cap_page) return true;
    uint32_t cap = t->cap_page == 0 ? 8 : t->cap_page;
    while (cap < n_page) cap *= 2;
    uint32_t *grown = realloc(t->page, (size_t)cap * sizeof *grown);
    if (grown == NULL) return false;
    t->page = grown;
    t->cap_page = cap;
    return true;
}

int32_t kv_table_reserve(kvf_cache *cache, kv_table *t, uint32_t n, kv_err err) {
    const uint32_t needed = kv_pages_for(t->rows + n);
    if (!grow_list(t, needed)) return kv_fail(err, KVF_ERR_MEMORY, "Cannot store rows as memory ran out");
    const uint32_t before = t->n_page;
    while (t->n_page < needed) {
        const uint32_t page = page_take(cache, err);
        if (page == KV_NO_TOKEN) goto undo;
        t->page[t->n_page++] = page;
    }
    /* The page that the next row goes to may be shared: write to a copy. */
    if (n > 0 && t->rows % KVF_PAGE_ROWS != 0) {
        uint32_t *tail = &t->page[t->rows / KVF_PAGE_ROWS];
        if (cache->page[*tail].refs > 1) {
            const uint32_t own = page_take(cache, err);
            if (own == KV_NO_TOKEN) goto undo;
            const int32_t status =
                be_copy(cache->dev, cache->page[own].data, cache->page[*tail].data, cache->page_bytes, err);
            if (status != KVF_OK) {
                page_release(cache, own);
                while (t->n_page > before) page_release(cache, t->page[--t->n_page]);
                return status;
            }
            page_release(cache, *tail);
            *tail = own;
        }
    }
    return KVF_OK;
undo:
    while (t->n_page > before) page_release(cache, t->page[--t->n_page]);
    return KVF_ERR_MEMORY;
}

void kv_table_trim(kvf_cache *cache, kv_table *t) {
    while (t->n_page > kv_pages_for(t->rows)) page_release(cache, t->page[--t->n_page]);
}

void kv_table_clear(kvf_cache *cache, kv_table *t) {
    while (t->n_page > 0) page_release(cache, t->page[--t->n_page]);
    free(t->page);
    *t = (kv_table){0};
}

int32_t kv_table_share(kvf_cache *cache, kv_table *dst, const kv_table *src, kv_err err) {
    if (!grow_list(dst, src->n_page)) return kv_fail(err, KVF_ERR_MEMORY, "Cannot share rows as memory ran out");
    for (uint32_t i = 0; i < src->n_page; i++) {
        dst->page[i] = src->page[i];
        cache->page[src->page[i]].refs++;
    }
    dst->n_page = src->n_page;
    dst->rows = src->rows;
    return KVF_OK;
}

int32_t kv_layer_reserve_prefill(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t n, kv_err err) {
    const uint32_t copies = s->n_stored_head / cache->config.n_kv_head;
    for (uint32_t head = 0; head < s->n_stored_head; head++) {
        kv_table *t = kv_table_of(s, layer, head);
        const int32_t status = head % copies == 0 ? kv_table_reserve(cache, t, n, err)
                                                  : kv_table_share(cache, t, kv_table_of(s, layer, head - head % copies), err);
        if (status == KVF_OK) continue;
        for (uint32_t h = 0; h <= head; h++) kv_table_clear(cache, kv_table_of(s, layer, h));
        return status;
    }
    return KVF_OK;
}
