/*
 * Filling packed pages. A page's bytes depend on its own rows and on the frame only. Plain C without contraction, so that
 * all instruction sets pack alike but for the rotation.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pack.h"

/* ---- Numbers ---- */

#define F16_MAX 65504.0f

/* The f16 next to h, towards +inf (up) or -inf; h is finite. */
static uint16_t next_half(uint16_t h, bool up) {
    const bool negative = (h & 0x8000u) != 0;
    if ((h & 0x7fffu) == 0) return up ? 0x0001u : 0x8001u;
    return (uint16_t)(negative == up ? h - 1 : h + 1);
}

/* The highest f16 not above x, or the lowest not below it; within the finite range. */
static uint16_t half_of(float x, bool up) {
    x = x > F16_MAX ? F16_MAX : x > -F16_MAX ? x : -F16_MAX;
    const uint16_t h = cpu_to_f16(x);
    const float y = cpu_from_f16(h);
    if ((up && y >= x) || (!up && y <= x)) return h;
    return next_half(h, up);
}

/* ---- Groups ---- */

/* Lanes [first, end) of a line whose scales are one (by line) or lie side by side, from `param` on. */
typedef struct stretch {
    uint32_t first, end, param;
} stretch;

/* The stretch of a line that begins at lane `first`. */
static stretch stretch_at(const cpu_source *s, uint32_t line, uint32_t first) {
    const kv_part *p = s->part;
    if (!p->by_line) return (stretch){first, s->n_lane, line / p->group * p->ld + first};
    const uint32_t g = first / p->group, end = (g + 1) * p->group;
    return (stretch){first, end < s->n_lane ? end : s->n_lane, line * p->n_group + g};
}

#define EACH_STRETCH(s, line, at)                                                                                       \
    for (uint32_t line = 0; line < (s)->n_line; line++)                                                                 \
        for (stretch at = stretch_at(s, line, 0); at.first < (s)->n_lane; at = stretch_at(s, line, at.end))

/* Lowest and highest element of each group, marked ones left out; 0 where a group has none. */
static void bounds_of(const cpu_source *s, float *low, float *high) {
    const kv_part *p = s->part;
    for (uint32_t i = 0; i < p->n_param; i++) low[i] = INFINITY, high[i] = -INFINITY;
    EACH_STRETCH(s, line, at) {
        const float *x = s->x + (size_t)line * p->ld;
        const uint8_t *mark = s->mark + (size_t)line * p->ld;
        if (p->by_line) {
            float least = low[at.param], most = high[at.param];
            for (uint32_t i = at.first; i < at.end; i++) {
                least = mark[i] == 0 && x[i] < least ? x[i] : least;
                most = mark[i] == 0 && x[i] > most ? x[i] : most;
            }
            low[at.param] = least;
            high[at.param] = most;
            continue;
        }
        for (uint32_t i = at.first; i < at.end; i++) {
            const uint32_t g = at.param + i - at.first;
            low[g] = mark[i] == 0 && x[i] < low[g] ? x[i] : low[g];
            high[g] = mark[i] == 0 && x[i] > high[g] ? x[i] : high[g];
        }
    }
    for (uint32_t i = 0; i < p->n_param; i++) {
        if (!(low[i] <= high[i])) low[i] = high[i] = 0;
    }
}

/* ---- Outliers ---- */

typedef struct far_one {
    float distance;
    uint32_t place; /* [channel][slot] */
} far_one;

/* a is dropped before b: nearer, or as far and at a later place. */
static bool before(far_one a, far_one b) {
    return a.distance < b.distance || (a.distance == b.distance && a.place > b.place);
}

/* Heap whose top is the one that is dropped next. */
static void sift(far_one *heap, uint32_t n, uint32_t i) {
    for (;;) {
        uint32_t least = i;
        for (uint32_t child = 2 * i + 1; child < n && child <= 2 * i + 2; child++) {
            if (before(heap[child], heap[least])) least = child;
        }
        if (least == i) return;
        const far_one swap = heap[i];
        heap[i] = heap[least];
        heap[least] = swap;
        i = least;
    }
}

static int by_place(const void *a, const void *b) {
    const uint32_t x = ((const far_one *)a)->place, y = ((const far_one *)b)->place;
    return (x > y) - (x < y);
}

/* Marks the n_outlier elements farthest from the middle of their groups; fills found, ascending by place. */
static uint32_t find_outliers(const cpu_source *s, far_one *found) {
    const kv_part *p = s->part;
    float low[512], high[512];
    uint32_t n = 0;
    if (p->n_outlier == 0) return 0;
    bounds_of(s, low, high);
    EACH_STRETCH(s, line, at) {
        for (uint32_t i = at.first; i < at.end; i++) {
            const uint32_t g = at.param + (p->by_line ? 0 : i - at.first);
            const far_one one = {fabsf(s->x[(size_t)line * p->ld + i] - 0.5f * (low[g] + high[g])),
                                 p->keys ? line * KVF_PAGE_ROWS + i : i * KVF_PAGE_ROWS + line};
            if (n < p->n_outlier) {
                found[n++] = one;
                if (n == p->n_outlier) {
                    for (uint32_t k = n / 2; k-- > 0;) sift(found, n, k);
                }
            } else if (before(found[0], one)) {
                found[0] = one;
                sift(found, n, 0);
            }
        }
    }
    qsort(found, n, sizeof *found, by_place);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t channel = found[i].place / KVF_PAGE_ROWS, slot = found[i].place % KVF_PAGE_ROWS;
        s->mark[p->keys ? (size_t)channel * p->ld + slot : (size_t)slot * p->ld + channel] = 1;
    }
    return n;
}

/* ---- Scales and codes ---- */

void cpu_pack_scales(const cpu_source *s, uint16_t *offsets, uint16_t *scales) {
    const kv_part *p = s->part;
    const float steps = (float)((1u << p->bits) - 1);
    float low[512], high[512];
    bounds_of(s, low, high);
    for (uint32_t i = 0; i < p->n_param; i++) {
        float reach;
        if (p->fitted) { /* levels lie in [-1, 1] */
            offsets[i] = half_of(0.5f * low[i] + 0.5f * high[i], false);
            const float middle = cpu_from_f16(offsets[i]);
            reach = high[i] - middle > middle - low[i] ? high[i] - middle : middle - low[i];
        } else {
            offsets[i] = half_of(low[i], false);
            reach = (high[i] - cpu_from_f16(offsets[i])) / steps;
        }
        scales[i] = half_of(reach > 0 ? reach : 0, true);
    }
}

/* Codes of elements x[0, n), n <= 256, with offset and scale as the steps say: 0 for one of both, 1 for one each. */
static void codes_of(const kv_part *p, const float *between, const float *x, const float *offset, const float *scale,
                     uint32_t step, uint32_t n, uint32_t *code) {
    const float top = (float)((1u << p->bits) - 1), magic = 12582912.0f; /* 1.5 * 2^23: rounds half to even */
    float t[256];
    for (uint32_t i = 0; i < n; i++) t[i] = scale[i * step] > 0 ? (x[i] - offset[i * step]) / scale[i * step] : 0;
    if (p->fitted) { /* the nearest level: so many middles between levels lie below */
        for (uint32_t i = 0; i < n; i++) code[i] = 0;
        for (uint32_t k = 0; k + 1 < 1u << p->bits; k++) {
            for (uint32_t i = 0; i < n; i++) code[i] += t[i] > between[k];
        }
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        const float held = t[i] > 0 ? (t[i] < top ? t[i] : top) : 0; /* NaN is 0 */
        code[i] = (uint32_t)(int32_t)((held + magic) - magic);
    }
}

static void put_run(uint8_t *to, const uint32_t *code, uint32_t bits) {
    if (bits == 8) {
        for (uint32_t i = 0; i < KV_RUN; i++) to[i] = (uint8_t)code[i];
        return;
    }
    if (bits == 4) {
        uint32_t word[2] = {0, 0};
        for (uint32_t i = 0; i < KV_RUN; i++) word[i % 2] |= code[i] << i / 2 * 4;
        memcpy(to, word, sizeof word);
        return;
    }
    uint32_t low = 0, high = 0;
    for (uint32_t i = 0; i < KV_RUN; i++) {
        low |= (code[i] & 3u) << 2 * i;
        high |= code[i] >> 2 << i;
    }
    memcpy(to, &low, sizeof low);
    if (bits == 3) memcpy(to + 4, &high, 2);
}

static void put_codes(const cpu_source *s, const uint8_t *frame, uint8_t *page) {
    const kv_part *p = s->part;
    float levels[16], between[16], offset[512], scale[512];
    if (p->fitted) {
        const uint32_t n = 1u << p->bits;
        memcpy(levels, frame + p->levels, n * sizeof *levels);
        for (uint32_t i = 0; i + 1 < n; i++) between[i] = 0.5f * (levels[i] + levels[i + 1]);
    }
    for (uint32_t i = 0; i < p->n_param; i++) {
        offset[i] = cpu_get(page + p->offsets, i, KVF_F16);
        scale[i] = cpu_get(page + p->scales, i, KVF_F16);
    }
    memset(page + p->codes, 0, (size_t)p->n_line * (p->ld / KV_RUN) * 2 * p->bits);
    for (uint32_t line = 0; line < s->n_line; line++) {
        uint32_t code[256] = {0};
        for (stretch at = stretch_at(s, line, 0); at.first < s->n_lane; at = stretch_at(s, line, at.end)) {
            codes_of(p, between, s->x + (size_t)line * p->ld + at.first, offset + at.param, scale + at.param, !p->by_line,
                     at.end - at.first, code + at.first);
        }
        for (uint32_t i = 0; p->n_outlier > 0 && i < s->n_lane; i++) code[i] = s->mark[(size_t)line * p->ld + i] ? 0 : code[i];
        uint8_t *to = page + p->codes + (size_t)line * (p->ld / KV_RUN) * 2 * p->bits;
        for (uint32_t r = 0; r < p->ld / KV_RUN; r++) put_run(to + r * 2 * p->bits, code + r * KV_RUN, p->bits);
    }
}

/* ---- Low rank ---- */

void cpu_pack_loss(const cpu_source *s, const cpu_ops *ops, const uint8_t *page, const uint8_t *frame, float *loss) {
    const kv_part *p = s->part;
    kv_part codes_only = *p;
    codes_only.rank = 0;
    ops->unpack_tile(loss, &codes_only, page, frame);
    for (uint32_t line = 0; line < p->n_line; line++) {
        for (uint32_t lane = 0; lane < p->ld; lane++) {
            const size_t at = (size_t)line * p->ld + lane;
            const bool there = line < s->n_line && lane < s->n_lane && !s->mark[at];
            loss[at] = there ? s->x[at] - loss[at] : 0;
        }
    }
}

/* left[r][slot] = what is lost of the slot's row along basis r. */
static void put_left(const cpu_source *s, const uint8_t *frame, const float *loss, uint8_t *page) {
    const kv_part *p = s->part;
    const uint32_t n_channel = p->keys ? p->n_line : p->n_lane;
    for (uint32_t r = 0; r < p->rank; r++) {
        const float *basis = (const float *)(const void *)(frame + p->basis) + (size_t)r * n_channel;
        float sum[KVF_PAGE_ROWS] = {0};
        for (uint32_t c = 0; c < n_channel; c++) { /* channels outside, so that the slots go side by side */
            const float *x = loss + (p->keys ? (size_t)c * p->ld : c);
            const uint32_t step = p->keys ? 1 : p->ld;
            for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) sum[slot] += x[slot * step] * basis[c];
        }
        for (uint32_t slot = 0; slot < KVF_PAGE_ROWS; slot++) {
            const uint16_t h = half_of(sum[slot], false);
            memcpy(page + p->left + 2 * (r * KVF_PAGE_ROWS + slot), &h, sizeof h);
        }
    }
}

/* ---- Parts ---- */

void cpu_pack_part(const cpu_source *s, const cpu_ops *ops, uint32_t dtype, const uint8_t *frame, bool with_rank,
                   uint8_t *page) {
    const kv_part *p = s->part;
    if (p->bits == 0) {
        for (uint32_t line = 0; line < p->n_line; line++) {
            for (uint32_t lane = 0; lane < p->n_lane; lane++) {
                const bool there = line < s->n_line && lane < s->n_lane;
                cpu_put(page + p->codes, (size_t)line * p->n_lane + lane, dtype, there ? s->x[(size_t)line * p->ld + lane] : 0);
            }
        }
        return;
    }
    far_one found[256 * KVF_PAGE_ROWS / 4];
    memset(s->mark, 0, (size_t)p->n_line * p->ld);
    const uint32_t n = find_outliers(s, found);
    for (uint32_t i = 0; i < p->n_outlier; i++) {
        const uint16_t place = i < n ? (uint16_t)found[i].place : KV_NO_PLACE;
        const uint32_t channel = place / KVF_PAGE_ROWS, slot = place % KVF_PAGE_ROWS;
        memcpy(page + p->places + 2 * i, &place, sizeof place);
        cpu_put(page + p->outliers, i, dtype,
                i < n ? s->x[p->keys ? (size_t)channel * p->ld + slot : (size_t)slot * p->ld + channel] : 0);
    }
    cpu_pack_scales(s, (uint16_t *)(void *)(page + p->offsets), (uint16_t *)(void *)(page + p->scales));
    put_codes(s, frame, page);
    if (!with_rank || p->rank == 0) return;
    float loss[CPU_TILE_FLOATS];
    cpu_pack_loss(s, ops, page, frame, loss);
    put_left(s, frame, loss, page);
}

/* ---- Pages ---- */

void cpu_pack_source(const kvf_cache *cache, const kv_layout *l, const cpu_turns *turns, const uint8_t *page, uint32_t n_row,
                     const uint16_t *channels, bool keys, float *x) {
    const uint32_t dim = cache->config.head_dim, dtype = cache->config.row_dtype;
    if (!keys) {
        const uint8_t *from = page + cpu_page_values_offset(dim, dtype);
        for (uint32_t i = 0; i < n_row; i++) {
            for (uint32_t d = 0; d < dim; d++) x[(size_t)i * l->value.ld + d] = cpu_get(from, (size_t)i * dim + d, dtype);
        }
        return;
    }
    for (uint32_t i = 0; i < l->n_channel; i++) {
        const size_t at = (size_t)(channels == NULL ? i : channels[i]) * KVF_PAGE_ROWS;
        for (uint32_t j = 0; j < KVF_PAGE_ROWS; j++) {
            x[(size_t)i * KVF_PAGE_ROWS + j] = j < n_row ? cpu_get(page, at + j, dtype) : 0;
        }
    }
    if (turns == NULL) return;
    uint32_t positions[KVF_PAGE_ROWS] = {0};
    memcpy(positions, page + cpu_page_positions_offset(dim, dtype), n_row * sizeof *positions);
    cpu_ops_of(cache->dev)->turn_tile(x, positions, dim / 2, turns->low, turns->high, true);
}

cpu_source cpu_source_of(const kv_part *part, uint32_t n_row, const float *x, uint8_t *mark) {
    return (cpu_source){part, x, mark, part->keys ? part->n_line : n_row, part->keys ? n_row : part->n_lane};
}

typedef struct pages_job {
    kvf_cache *cache;
    const kv_pack_job *jobs;
} pages_job;

static void pack_page(void *arg, uint32_t index, uint32_t thread) {
    (void)thread;
    const pages_job *all = arg;
    const kv_pack_job *j = &all->jobs[index];
    const kvf_cache_config *c = &all->cache->config;
    const cpu_ops *ops = cpu_ops_of(all->cache->dev);
    const kv_layout l = kv_layout_of(c, &j->format->config);
    const uint16_t *channels = l.pruned ? j->frame : NULL;
    float x[CPU_TILE_FLOATS];
    uint8_t mark[CPU_TILE_FLOATS];
    cpu_pack_source(all->cache, &l, j->format->impl, j->from, j->n_row, channels, true, x);
    const cpu_source keys = cpu_source_of(&l.key, j->n_row, x, mark);
    cpu_pack_part(&keys, ops, c->row_dtype, j->frame, true, j->to);
    cpu_pack_source(all->cache, &l, NULL, j->from, j->n_row, NULL, false, x);
    const cpu_source values = cpu_source_of(&l.value, j->n_row, x, mark);
    cpu_pack_part(&values, ops, c->row_dtype, j->frame, true, j->to);
    uint32_t positions[KVF_PAGE_ROWS] = {0};
    memcpy(positions, (const uint8_t *)j->from + cpu_page_positions_offset(c->head_dim, c->row_dtype),
           j->n_row * sizeof *positions);
    memcpy((uint8_t *)j->to + l.positions, positions, sizeof positions);
}

int32_t be_pack_pages(kvf_cache *cache, const kv_pack_job *jobs, uint32_t n_job, kv_err err) {
    for (uint32_t i = 0; i < n_job; i++) {
        const int32_t status = cpu_turns_reach(cache, jobs[i].format, jobs[i].from, jobs[i].n_row, err);
        if (status != KVF_OK) return status;
    }
    pages_job j = {cache, jobs};
    cpu_parallel(cache->dev, n_job, pack_page, &j);
    return KVF_OK;
}
