/* Caches and their ledger. */
#include <math.h>
#include <stdlib.h>

#include "backend.h"

_Static_assert(sizeof(kvf_cache_config) == 32, "layout of the ABI");
_Static_assert(sizeof(kvf_ledger) == 48, "layout of the ABI");

static int32_t check_config(const kvf_cache_config *c, kv_err err) {
    if (c == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as the config must not be NULL");
    if (c->size != sizeof *c) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as kvf_cache_config must have %zu bytes: size is %u", sizeof *c,
                       c->size);
    }
    if (c->n_layer == 0 || c->n_layer > KV_MAX_LAYER) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as n_layer must be between 1 and %u: %u", KV_MAX_LAYER,
                       c->n_layer);
    }
    if (c->n_head == 0 || c->n_head > KV_MAX_HEAD) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as n_head must be between 1 and %u: %u", KV_MAX_HEAD, c->n_head);
    }
    if (c->n_kv_head == 0 || c->n_head % c->n_kv_head != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as n_kv_head must divide n_head: %u and %u", c->n_kv_head,
                       c->n_head);
    }
    if (c->head_dim == 0 || c->head_dim > 256) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as head_dim must be between 1 and 256: %u", c->head_dim);
    }
    if (c->row_dtype > KVF_BF16) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as row_dtype must be F32, F16 or BF16: %u", c->row_dtype);
    }
    if (!isfinite(c->limit_bytes) || c->limit_bytes < 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot create a cache as limit_bytes must be finite and at least 0: %g",
                       c->limit_bytes);
    }
    return KVF_OK;
}

kvf_cache *kvf_cache_create(kvf_device *dev, const kvf_cache_config *config, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    if (kv_enter(dev, KV_DEVICE, "create a cache", err) != KVF_OK) return NULL;
    kvf_cache *cache = NULL;
    if (check_config(config, err) == KVF_OK) {
        cache = calloc(1, sizeof *cache);
        if (cache == NULL) {
            kv_fail(err, KVF_ERR_MEMORY, "Cannot create a cache as %zu bytes must be available", sizeof *cache);
        } else {
            cache->handle.kind = KV_CACHE;
            cache->dev = dev;
            cache->config = *config;
            cache->group = config->n_head / config->n_kv_head;
            cache->page_bytes = be_page_bytes(config);
            cache->free_page = KV_NO_TOKEN;
            kv_device_retain(dev);
            kv_handle_add(&cache->handle);
        }
    }
    kv_leave(dev);
    return cache;
}

void kvf_cache_free(kvf_cache *cache) {
    if (!kv_enter_to_free(cache, KV_CACHE)) return;
    kvf_device *dev = cache->dev;
    for (uint32_t i = 0; i < cache->sequences.n_slot; i++) kv_sequence_destroy(cache, cache->sequences.slot[i].item);
    for (uint32_t i = 0; i < cache->objects.n_slot; i++) kv_object_destroy(cache, cache->objects.slot[i].item);
    be_cache_close(cache);
    free(cache->sequences.slot);
    free(cache->objects.slot);
    free(cache->page); /* the sequences held all pages */
    free(cache);
    kv_leave(dev);
    kv_device_release(dev);
}

int32_t kvf_cache_ledger(kvf_cache *cache, kvf_ledger *ledger, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "read the ledger", err);
    if (status != KVF_OK) return status;
    if (ledger == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot read the ledger as it must not be NULL");
    } else if (ledger->size != sizeof *ledger) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot read the ledger as kvf_ledger must have %zu bytes: size is %u",
                         sizeof *ledger, ledger->size);
    } else {
        *ledger = (kvf_ledger){.size = sizeof *ledger,
                               .n_sequence = cache->sequences.n_live,
                               .n_page = cache->held_page,
                               .n_object = cache->objects.n_live,
                               .resident_bytes = kv_held_bytes(cache),
                               .peak_bytes = cache->peak_bytes};
        for (uint32_t i = 0; i < cache->sequences.n_slot; i++) {
            const kv_sequence *s = cache->sequences.slot[i].item;
            if (s == NULL) continue;
            ledger->promised_bytes += kv_promised_bytes(cache, s);
            ledger->owned_bytes += kv_owned_bytes(cache, s);
        }
    }
    kv_leave(cache->dev);
    return status;
}

int32_t kvf_cache_reset_peak(kvf_cache *cache, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    const int32_t status = kv_enter(cache, KV_CACHE, "reset the peak", err);
    if (status != KVF_OK) return status;
    cache->peak_bytes = kv_held_bytes(cache);
    kv_leave(cache->dev);
    return KVF_OK;
}

double kvf_cache_page_bytes(kvf_cache *cache) {
    const kv_err err = {NULL, 0};
    if (kv_enter(cache, KV_CACHE, "measure a page", err) != KVF_OK) return 0;
    const double bytes = cache->page_bytes;
    kv_leave(cache->dev);
    return bytes;
}
