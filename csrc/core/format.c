/* Formats of packed rows: what is allowed, and the list of those in use. */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "packed.h"

_Static_assert(sizeof(kvf_format) == 64, "layout of the ABI");

/* ---- Checks ---- */

/* The fields of one part, under the names that the caller knows. */
typedef struct part_fields {
    const char *name;
    uint32_t bits, axis, group, levels, outliers, rank;
} part_fields;

static int32_t refuse(const part_fields *p, const char *field, const char *rule, uint32_t value, kv_err err) {
    return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as %s_%s must %s: %u", p->name, field, rule, value);
}

static int32_t check_part(const part_fields *p, uint32_t n_channel, kv_err err) {
    if (p->bits != 0 && p->bits != 2 && p->bits != 3 && p->bits != 4 && p->bits != 8) {
        return refuse(p, "bits", "be 0, 2, 3, 4 or 8", p->bits, err);
    }
    if (p->bits == 0) {
        if (p->axis != 0) return refuse(p, "axis", "be 0 without bits", p->axis, err);
        if (p->group != 0) return refuse(p, "group", "be 0 without bits", p->group, err);
        if (p->levels != 0) return refuse(p, "levels", "be 0 without bits", p->levels, err);
        if (p->outliers != 0) return refuse(p, "outliers", "be 0 without bits", p->outliers, err);
        if (p->rank != 0) return refuse(p, "rank", "be 0 without bits", p->rank, err);
        return KVF_OK;
    }
    if (p->axis > KVF_PER_TOKEN) return refuse(p, "axis", "be 0 (per channel) or 1 (per token)", p->axis, err);
    if (p->axis == KVF_PER_CHANNEL && p->group != 0) return refuse(p, "group", "be 0 per channel", p->group, err);
    if (p->group % KV_RUN != 0 || p->group > 256) return refuse(p, "group", "be a multiple of 16, at most 256", p->group, err);
    if (p->levels > KVF_LEVELS_FITTED) return refuse(p, "levels", "be 0 (even) or 1 (fitted)", p->levels, err);
    if (p->levels == KVF_LEVELS_FITTED && p->bits > 4) return refuse(p, "bits", "be at most 4 for fitted levels", p->bits, err);
    if (p->outliers > n_channel * KVF_PAGE_ROWS / 4) return refuse(p, "outliers", "be at most a quarter of a page", p->outliers, err);
    if (p->rank > n_channel || p->rank > 32) return refuse(p, "rank", "be at most 32 and the channels", p->rank, err);
    return KVF_OK;
}

static int32_t check_format(const kvf_cache *cache, const kvf_format *f, kv_err err) {
    const uint32_t dim = cache->config.head_dim;
    if (f == NULL || f->size != sizeof *f) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as kvf_format must have %zu bytes: size is %u", sizeof *f,
                       f == NULL ? 0 : f->size);
    }
    if ((f->flags & ~(uint32_t)(KVF_PACK_ONCE | KVF_KEYS_UNROTATED)) != 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as flags must be known: %u", f->flags);
    }
    if (f->residual > KV_MAX_TOKEN) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as residual must be at most %u: %u", KV_MAX_TOKEN, f->residual);
    }
    if (f->key_channels > dim) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as key_channels must be at most head_dim %u: %u", dim,
                       f->key_channels);
    }
    if (f->key_channels > 0 && (f->flags & KVF_PACK_ONCE) == 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as key_channels must come with KVF_PACK_ONCE: flags are %u",
                       f->flags);
    }
    if ((f->flags & KVF_KEYS_UNROTATED) != 0 && (f->key_bits == 0 || f->key_channels > 0 || dim % 2 != 0)) {
        return kv_fail(err, KVF_ERR_ARG,
                       "Cannot use the format as unrotated keys must have bits and all channels: key_bits %u, key_channels %u",
                       f->key_bits, f->key_channels);
    }
    const uint32_t n_channel = f->key_channels > 0 ? f->key_channels : dim;
    const part_fields key = {"key", f->key_bits, f->key_axis, f->key_group, f->key_levels, f->key_outliers, f->key_rank};
    const part_fields value = {"value",         f->value_bits,     f->value_axis, f->value_group,
                               f->value_levels, f->value_outliers, f->value_rank};
    const int32_t status = check_part(&key, n_channel, err);
    if (status != KVF_OK) return status;
    if (f->key_bits == 0 && f->value_bits == 0 && f->key_channels == 0) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use the format as it must make rows smaller: key_bits 0, value_bits 0");
    }
    return check_part(&value, dim, err);
}

/* ---- Those in use ---- */

void kv_format_retain(kv_format *format) { format->refs++; }

void kv_format_release(kvf_cache *cache, kv_format *format) {
    if (format == NULL || --format->refs > 0) return;
    for (kv_format **at = &cache->formats; *at != NULL; at = &(*at)->next) {
        if (*at != format) continue;
        *at = format->next;
        break;
    }
    be_format_close(cache, format);
    free(format->inv_freq);
    free(format);
}

static bool same_angles(const kvf_cache *cache, const float *a, const float *b) {
    if (a == NULL || b == NULL) return a == b;
    return memcmp(a, b, cache->config.head_dim / 2 * sizeof *a) == 0;
}

int32_t kv_format_find(kvf_cache *cache, const kvf_format *config, const float *inv_freq, kv_format **out, kv_err err) {
    int32_t status = check_format(cache, config, err);
    if (status != KVF_OK) return status;
    const bool unrotated = (config->flags & KVF_KEYS_UNROTATED) != 0;
    if (unrotated && inv_freq == NULL) {
        return kv_fail(err, KVF_ERR_STATE,
                       "Cannot use the format as unrotated keys must have a known rotation: none was recorded");
    }
    if (!unrotated) inv_freq = NULL;
    for (kv_format *f = cache->formats; f != NULL; f = f->next) {
        if (memcmp(&f->config, config, sizeof *config) != 0 || !same_angles(cache, f->inv_freq, inv_freq)) continue;
        f->refs++;
        *out = f;
        return KVF_OK;
    }
    kv_format *f = calloc(1, sizeof *f);
    if (f != NULL && unrotated) f->inv_freq = kv_copy_angles(cache, inv_freq);
    if (f == NULL || (unrotated && f->inv_freq == NULL)) {
        free(f);
        return kv_fail(err, KVF_ERR_MEMORY, "Cannot use the format as %zu bytes must be available", sizeof *f);
    }
    const kv_layout layout = kv_layout_of(&cache->config, config);
    f->refs = 1;
    f->config = *config;
    f->page_bytes = layout.page_bytes;
    f->frame_bytes = layout.frame_bytes;
    status = be_format_open(cache, f, err);
    if (status != KVF_OK) {
        free(f->inv_freq);
        free(f);
        return status;
    }
    f->next = cache->formats;
    cache->formats = f;
    *out = f;
    return KVF_OK;
}

int32_t kv_check_format_step(const kv_format *format, const kv_step *step, const char *action, kv_err err) {
    if (format == NULL || step == NULL) return KVF_OK;
    const char *const with = step->evicts ? "eviction" : step->relative.size != 0 ? "relative positions" : NULL;
    if (with != NULL) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as packed rows must not meet a step program with %s", action, with);
    }
    if ((format->config.flags & KVF_PACK_ONCE) != 0) {
        return kv_fail(err, KVF_ERR_STATE, "Cannot %s as rows packed once must not meet a step program: the layer has both",
                       action);
    }
    return KVF_OK;
}

/* ---- Facts ---- */

int32_t kvf_format_bytes(kvf_cache *cache, const kvf_format *format, double *bytes, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    int32_t status = kv_enter(cache, KV_CACHE, "measure the format", err);
    if (status != KVF_OK) return status;
    status = check_format(cache, format, err);
    if (status == KVF_OK && bytes == NULL) {
        status = kv_fail(err, KVF_ERR_ARG, "Cannot measure the format as bytes must not be NULL");
    }
    if (status == KVF_OK) {
        const kv_layout layout = kv_layout_of(&cache->config, format);
        bytes[0] = layout.page_bytes;
        bytes[1] = layout.frame_bytes;
    }
    kv_leave(cache->dev);
    return status;
}
