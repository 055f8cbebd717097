/* Reading packed pages, and pages of either kind as tiles of f32. */
#include <string.h>

#include "convert.h"
#include "packed.h"
#include "share.h"

/* ---- Packed pages ---- */

cpu_packed cpu_packed_of(const kvf_cache *cache, const kv_table *t) {
    return (cpu_packed){kv_layout_of(&cache->config, &t->format->config), cache->config.row_dtype, cpu_ops_of(cache->dev),
                        t->format->impl, kv_frame_data(cache, t)};
}

/* Puts the elements that were stored as they are. Places are of [channel][slot]. */
static void put_outliers(const kv_part *p, const uint8_t *page, uint32_t dtype, float *tile) {
    const uint16_t *places = (const uint16_t *)(const void *)(page + p->places);
    const uint8_t *outliers = page + p->outliers;
    uint32_t n = p->n_outlier;
    while (n > 0 && places[n - 1] == KV_NO_PLACE) n--;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t channel = places[i] / KVF_PAGE_ROWS, slot = places[i] % KVF_PAGE_ROWS;
        tile[p->keys ? places[i] : slot * p->ld + channel] = cpu_get(outliers, i, dtype);
    }
}

/* n elements of `dtype` as f32. */
static void widen(float *out, const void *from, size_t n, uint32_t dtype) {
    const uint16_t *half = from;
    if (dtype == KVF_F32) {
        memcpy(out, from, n * sizeof *out);
    } else if (dtype == KVF_BF16) {
        for (size_t i = 0; i < n; i++) out[i] = cpu_from_bf16(half[i]);
    } else {
        for (size_t i = 0; i < n; i++) out[i] = cpu_from_f16(half[i]);
    }
}

/* A part that has no bits: the page itself, or converted. */
static const float *plain_part(const kv_part *p, const uint8_t *page, uint32_t dtype, float *tile) {
    const uint8_t *from = page + p->codes;
    if (dtype == KVF_F32) return (const float *)(const void *)from;
    widen(tile, from, (size_t)p->n_line * p->n_lane, dtype);
    return tile;
}

const float *cpu_packed_keys(const cpu_packed *p, const uint8_t *page, float *tile) {
    const kv_part *k = &p->layout.key;
    if (k->bits == 0) return plain_part(k, page, p->dtype, tile);
    p->ops->unpack_tile(tile, k, page, p->frame);
    put_outliers(k, page, p->dtype, tile);
    if (p->turns != NULL) {
        p->ops->turn_tile(tile, cpu_packed_positions(p, page), k->n_line / 2, p->turns->low, p->turns->high, false);
    }
    return tile;
}

const float *cpu_packed_values(const cpu_packed *p, const uint8_t *page, float *tile) {
    const kv_part *v = &p->layout.value;
    if (v->bits == 0) return plain_part(v, page, p->dtype, tile);
    p->ops->unpack_tile(tile, v, page, p->frame);
    put_outliers(v, page, p->dtype, tile);
    return tile;
}

/* ---- Pages of either kind ---- */

static const uint8_t *page_data(const kvf_cache *cache, const kv_table *t, uint32_t page) {
    return cache->page[t->page[page]].data;
}

const uint32_t *cpu_positions_of(const kvf_cache *cache, const kv_table *t, uint32_t page) {
    const uint8_t *data = page_data(cache, t, page);
    const kvf_cache_config *c = &cache->config;
    if (page >= kv_packed_pages(t)) return (const uint32_t *)(const void *)(data + cpu_page_positions_offset(c->head_dim, c->row_dtype));
    return (const uint32_t *)(const void *)(data + kv_layout_of(c, &t->format->config).positions);
}

static void plain_tile(const kvf_cache *cache, const uint8_t *data, uint32_t what, float *tile) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    const uint8_t *from = what == 0 ? data : data + cpu_page_values_offset(dim, dtype);
    widen(tile, from, (size_t)dim * KVF_PAGE_ROWS, dtype);
}

/* Moves the kept channels' lines to their places, from the last one on, and clears the others. */
static void spread(float *tile, const uint16_t *channels, uint32_t n, uint32_t dim) {
    uint32_t next = n;
    for (uint32_t d = dim; d-- > 0;) {
        float *line = tile + (size_t)d * KVF_PAGE_ROWS;
        if (next > 0 && channels[next - 1] == d) {
            memmove(line, tile + (size_t)--next * KVF_PAGE_ROWS, KVF_PAGE_ROWS * sizeof *line);
        } else {
            memset(line, 0, KVF_PAGE_ROWS * sizeof *line);
        }
    }
}

void cpu_page_tile(const kvf_cache *cache, const kv_table *t, uint32_t page, uint32_t what, float *tile) {
    const uint8_t *data = page_data(cache, t, page);
    const uint32_t dim = cache->config.head_dim;
    if (page >= kv_packed_pages(t)) {
        plain_tile(cache, data, what, tile);
        if (t->shared > 0) cpu_restore_tile(cache, t, kv_page_first(t, page), KVF_PAGE_ROWS, what, tile);
        return;
    }
    const cpu_packed p = cpu_packed_of(cache, t);
    if (what == 0) {
        const float *keys = cpu_packed_keys(&p, data, tile);
        if (keys != tile) memcpy(tile, keys, (size_t)p.layout.n_channel * KVF_PAGE_ROWS * sizeof *tile);
        if (p.layout.pruned) spread(tile, cpu_packed_channels(&p), p.layout.n_channel, dim);
    } else {
        const float *values = cpu_packed_values(&p, data, tile);
        const uint32_t ld = cpu_packed_ld(&p);
        for (uint32_t i = 0; i < KVF_PAGE_ROWS; i++) memmove(tile + (size_t)i * dim, values + (size_t)i * ld, dim * sizeof *tile);
    }
}
