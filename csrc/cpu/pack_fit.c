/*
 * Fitting what the packed pages of a table share: levels and bases. Up to FIT_PAGES pages, evenly spread over the rows,
 * take part.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pack.h"

#define FIT_PAGES 16
#define BINS 512
#define ROUNDS 32

static int32_t no_memory(size_t bytes, kv_err err) {
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot fit the format as %zu bytes must be available", bytes);
}

/* ---- Rotation ---- */

static void turn(const kv_format *f, uint32_t half, uint32_t position, float *cosine, float *sine, size_t step) {
    for (uint32_t i = 0; i < half; i++) {
        const double angle = (double)position * (double)f->inv_freq[i];
        cosine[i * step] = (float)cos(angle);
        sine[i * step] = (float)sin(angle);
    }
}

/* Blocks of positions that `highest` needs, in a table that grows by doubling. */
static int32_t grow_high(kv_format *f, cpu_turns *t, uint32_t half, uint32_t highest, kv_err err) {
    const uint32_t need = highest / KVF_PAGE_ROWS + 1;
    if (need <= t->n_high) return KVF_OK;
    const uint32_t n = need > 2 * t->n_high ? need : 2 * t->n_high;
    const size_t bytes = (size_t)n * 2 * half * sizeof *t->high;
    float *high = realloc(t->high, bytes);
    if (high == NULL) return no_memory(bytes, err);
    t->high = high;
    for (; t->n_high < n; t->n_high++) {
        float *at = high + (size_t)t->n_high * 2 * half;
        turn(f, half, t->n_high * KVF_PAGE_ROWS, at, at + half, 1);
    }
    return KVF_OK;
}

int32_t be_format_open(kvf_cache *cache, kv_format *f, kv_err err) {
    if (f->inv_freq == NULL) return KVF_OK;
    const uint32_t half = cache->config.head_dim / 2;
    const size_t bytes = (size_t)2 * half * KVF_PAGE_ROWS * sizeof(float);
    cpu_turns *t = calloc(1, sizeof *t);
    if (t != NULL) t->low = malloc(bytes);
    if (t == NULL || t->low == NULL) {
        free(t);
        return no_memory(bytes, err);
    }
    for (uint32_t p = 0; p < KVF_PAGE_ROWS; p++) {
        turn(f, half, p, t->low + p, t->low + (size_t)half * KVF_PAGE_ROWS + p, KVF_PAGE_ROWS);
    }
    f->impl = t;
    return KVF_OK;
}

int32_t cpu_turns_reach(kvf_cache *cache, kv_format *f, const void *page, uint32_t n_row, kv_err err) {
    if (f->impl == NULL) return KVF_OK;
    const kvf_cache_config *c = &cache->config;
    const uint8_t *positions = (const uint8_t *)page + cpu_page_positions_offset(c->head_dim, c->row_dtype);
    uint32_t highest = 0;
    for (uint32_t i = 0; i < n_row; i++) {
        const uint32_t position = ((const uint32_t *)(const void *)positions)[i];
        highest = position > highest ? position : highest;
    }
    return grow_high(f, f->impl, c->head_dim / 2, highest, err);
}

void be_format_close(kvf_cache *cache, kv_format *format) {
    (void)cache;
    cpu_turns *t = format->impl;
    if (t == NULL) return;
    free(t->low);
    free(t->high);
    free(t);
    format->impl = NULL;
}

/* ---- The pages that take part ---- */

typedef struct fit {
    kvf_cache *cache;
    kv_format *format;
    const void *const *pages;
    const uint16_t *channels;
    uint32_t n_row;
    kv_layout layout;
    float x[CPU_TILE_FLOATS];
    uint8_t mark[CPU_TILE_FLOATS];
    float loss[CPU_TILE_FLOATS];
    uint8_t *page; /* a packed page to try things on */
} fit;

static uint32_t n_sample(const fit *f) {
    const uint32_t n = (f->n_row + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS;
    return n < FIT_PAGES ? n : FIT_PAGES;
}

/* Reads sample i's part into f->x. */
static cpu_source sample(fit *f, uint32_t i, bool keys) {
    const uint32_t n_page = (f->n_row + KVF_PAGE_ROWS - 1) / KVF_PAGE_ROWS;
    const uint32_t at = (uint32_t)((uint64_t)i * n_page / n_sample(f));
    const uint32_t rest = f->n_row - at * KVF_PAGE_ROWS, n = rest < KVF_PAGE_ROWS ? rest : KVF_PAGE_ROWS;
    cpu_pack_source(f->cache, &f->layout, keys ? f->format->impl : NULL, f->pages[at], n, f->channels, keys, f->x);
    return cpu_source_of(keys ? &f->layout.key : &f->layout.value, n, f->x, f->mark);
}

/* ---- Levels ---- */

static uint32_t bin_of(float t) {
    const float at = (t + 1.0f) * (0.5f * BINS);
    return at > 0 ? (at < BINS - 1 ? (uint32_t)at : BINS - 1) : 0;
}

/* Counts the elements of a sample by where they lie between the bounds of their group. */
static void count_sample(fit *f, uint32_t i, bool keys, const uint8_t *frame, double *count) {
    const cpu_source s = sample(f, i, keys);
    const kv_part *p = s.part;
    cpu_pack_part(&s, cpu_ops_of(f->cache->dev), f->cache->config.row_dtype, frame, false, f->page);
    for (uint32_t line = 0; line < s.n_line; line++) {
        for (uint32_t lane = 0; lane < s.n_lane; lane++) {
            const size_t at = (size_t)line * p->ld + lane;
            if (s.mark[at]) continue;
            const uint32_t g = p->by_line ? line * p->n_group + lane / p->group : line / p->group * p->ld + lane;
            const float scale = cpu_get(f->page + p->scales, g, KVF_F16);
            if (scale > 0) count[bin_of((s.x[at] - cpu_get(f->page + p->offsets, g, KVF_F16)) / scale)]++;
        }
    }
}

/* Lloyd's rounds on the counts, from evenly spaced levels: each level moves to the mean of what is nearest to it. */
static void fit_levels(fit *f, bool keys, uint8_t *frame) {
    const kv_part *p = keys ? &f->layout.key : &f->layout.value;
    if (!p->fitted) return;
    const uint32_t n = 1u << p->bits;
    float levels[16];
    double count[BINS] = {0};
    for (uint32_t i = 0; i < n; i++) levels[i] = -1.0f + 2.0f * (float)i / (float)(n - 1);
    memcpy(frame + p->levels, levels, n * sizeof *levels);
    for (uint32_t i = 0; i < n_sample(f); i++) count_sample(f, i, keys, frame, count);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        double sum[16] = {0}, weight[16] = {0};
        uint32_t at = 0;
        for (uint32_t b = 0; b < BINS; b++) {
            const double t = ((double)b + 0.5) * (2.0 / BINS) - 1.0;
            while (at + 1 < n && t > 0.5 * ((double)levels[at] + (double)levels[at + 1])) at++;
            sum[at] += count[b] * t;
            weight[at] += count[b];
        }
        for (uint32_t i = 0; i < n; i++) {
            if (weight[i] > 0) levels[i] = (float)(sum[i] / weight[i]);
        }
    }
    memcpy(frame + p->levels, levels, n * sizeof *levels);
}

/* ---- Basis ---- */

/* square[channel][channel] += loss . loss^T over the rows of a sample. */
static void add_square(fit *f, uint32_t i, bool keys, const uint8_t *frame, float *square) {
    const cpu_source s = sample(f, i, keys);
    const kv_part *p = s.part;
    const cpu_ops *ops = cpu_ops_of(f->cache->dev);
    const uint32_t n_channel = keys ? p->n_line : p->n_lane;
    cpu_pack_part(&s, ops, f->cache->config.row_dtype, frame, false, f->page);
    cpu_pack_loss(&s, ops, f->page, frame, f->loss);
    float row[256];
    for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) {
        for (uint32_t c = 0; c < n_channel; c++) row[c] = f->loss[keys ? (size_t)c * p->ld + slot : (size_t)slot * p->ld + c];
        for (uint32_t c = 0; c < n_channel; c++) ops->axpy(square + (size_t)c * n_channel, row[c], row, n_channel);
    }
}

/* v = square . v, scaled to length 1; returns the length before. */
static float power_step(const float *square, uint32_t n, float *v) {
    float next[256];
    double length = 0;
    for (uint32_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint32_t k = 0; k < n; k++) sum += (double)square[(size_t)i * n + k] * (double)v[k];
        next[i] = (float)sum;
        length += sum * sum;
    }
    length = sqrt(length);
    for (uint32_t i = 0; i < n; i++) v[i] = length > 0 && isfinite(length) ? (float)((double)next[i] / length) : 0;
    return (float)length;
}

/* The directions along which the codes lose most, by power iteration with deflation; false without memory. */
static bool fit_basis(fit *f, bool keys, uint8_t *frame) {
    const kv_part *p = keys ? &f->layout.key : &f->layout.value;
    const uint32_t n = keys ? p->n_line : p->n_lane;
    if (p->rank == 0) return true;
    float *square = calloc((size_t)n * n, sizeof *square);
    if (square == NULL) return false;
    for (uint32_t i = 0; i < n_sample(f); i++) add_square(f, i, keys, frame, square);
    for (uint32_t r = 0; r < p->rank; r++) {
        float v[256];
        for (uint32_t i = 0; i < n; i++) v[i] = 1.0f + 0.125f * (float)(i % 7); /* along no axis */
        float length = 0;
        for (uint32_t round = 0; round < ROUNDS; round++) length = power_step(square, n, v);
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t k = 0; k < n; k++) square[(size_t)i * n + k] -= length * v[i] * v[k];
        }
        memcpy(frame + p->basis + (size_t)r * n * sizeof *v, v, n * sizeof *v);
    }
    free(square);
    return true;
}

/* ---- All of it ---- */

typedef struct fit_job {
    fit *parts; /* keys, values */
    uint8_t *frame;
    bool failed[2];
} fit_job;

static void fit_part(void *arg, uint32_t what, uint32_t thread) {
    (void)thread;
    fit_job *j = arg;
    fit *f = &j->parts[what];
    f->page = malloc(f->layout.page_bytes);
    j->failed[what] = f->page == NULL;
    if (!j->failed[what]) {
        fit_levels(f, what == 0, j->frame);
        j->failed[what] = !fit_basis(f, what == 0, j->frame);
    }
    free(f->page);
}

int32_t be_pack_fit(kvf_cache *cache, kv_format *format, const void *const *pages, uint32_t n_row,
                    const uint16_t *channels, void *frame, kv_err err) {
    for (uint32_t i = 0; i * KVF_PAGE_ROWS < n_row; i++) {
        const uint32_t rest = n_row - i * KVF_PAGE_ROWS;
        const int32_t status = cpu_turns_reach(cache, format, pages[i], rest < KVF_PAGE_ROWS ? rest : KVF_PAGE_ROWS, err);
        if (status != KVF_OK) return status;
    }
    fit_job j = {.parts = malloc(2 * sizeof *j.parts), .frame = frame};
    if (j.parts == NULL) return no_memory(2 * sizeof *j.parts, err);
    for (uint32_t what = 0; what < 2; what++) {
        fit *f = &j.parts[what];
        f->cache = cache;
        f->format = format;
        f->pages = pages;
        f->channels = channels;
        f->n_row = n_row;
        f->layout = kv_layout_of(&cache->config, &format->config);
    }
    const kv_layout *l = &j.parts[0].layout;
    memset(frame, 0, l->frame_bytes);
    if (channels != NULL) memcpy(frame, channels, l->n_channel * sizeof *channels);
    const uint32_t page_bytes = l->page_bytes;
    cpu_parallel(cache->dev, 2, fit_part, &j);
    free(j.parts);
    return j.failed[0] || j.failed[1] ? no_memory(page_bytes, err) : KVF_OK;
}
