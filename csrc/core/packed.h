/*
 * How a packed page and a table's frame page lie in memory: the same bytes in both builds.
 *
 * A page holds KVF_PAGE_ROWS rows of one stored head in two parts, keys and values. A part is a tile of lines and lanes:
 *
 *   keys    a line per kept channel, a lane per slot (as in the CPU's plain pages: ready for q . K^T)
 *   values  a line per slot, a lane per channel (ready for P . V)
 *
 * Element (line, lane) is offset + scale * level(code), then plus the low-rank correction, then an outlier if it is one.
 *
 *   codes    [n_line][ld / 16] runs of 16 codes, 2 * bits bytes each (little-endian):
 *              2 bits  u32, code i at bit 2i
 *              3 bits  u32 with the low two bits as above, then u16 with the high bit of code i at bit i
 *              4 bits  two u32; code i is nibble i / 2 of word i % 2
 *              8 bits  16 bytes
 *            without bits: [n_line][n_lane] elements of the cache's row_dtype
 *   offsets  [n_param] f16, scales [n_param] f16. By line: parameter line * n_group + lane / group. Otherwise: parameter
 *            (line / group) * ld + lane
 *   left     [rank][KVF_PAGE_ROWS] f16; the correction of (channel, slot) is the sum over r of left[r][slot] * basis[r][channel]
 *   outlier  [n_outlier] u16 places, then as many elements of row_dtype. Place: channel * KVF_PAGE_ROWS + slot, channels
 *            counted among the kept ones; places that are not used are KV_NO_PLACE, at the end
 *
 * After both parts: [KVF_PAGE_ROWS] u32 positions. A page's size is a multiple of 64.
 *
 * The frame page holds what all packed pages of a table share: the kept channels of the keys, u16, ascending; per part
 * the [2^bits] f32 levels, when they are fitted (otherwise level(code) = code), and the [rank][channels] f32 basis.
 */
#ifndef KVF_CORE_PACKED_H
#define KVF_CORE_PACKED_H

#include <string.h>

#include "core.h"

#define KV_RUN 16 /* codes of a run */
#define KV_NO_PLACE 0xffffu

typedef struct kv_part {
    bool keys;
    uint32_t bits;    /* 0: elements as they are */
    uint32_t n_line;
    uint32_t n_lane;
    uint32_t ld;      /* n_lane, whole runs */
    bool by_line;     /* scales belong to a line and a group of lanes, else to a lane and a group of lines */
    uint32_t group;   /* lanes, or lines, that share a scale */
    uint32_t n_group;
    uint32_t n_param;
    bool fitted;      /* levels lie in the frame */
    uint32_t n_outlier;
    uint32_t rank;
    /* bytes from the start of the page */
    uint32_t codes, offsets, scales, left, places, outliers;
    /* bytes from the start of the frame */
    uint32_t levels, basis;
} kv_part;

typedef struct kv_layout {
    kv_part key, value;
    uint32_t n_channel;   /* kept channels of the keys */
    uint32_t positions;   /* bytes from the start of the page */
    uint32_t page_bytes;
    bool pruned;          /* the frame begins with the kept channels */
    uint32_t frame_bytes; /* 0: no frame */
} kv_layout;

static inline uint32_t kv_round_up(uint32_t n, uint32_t to) { return (n + to - 1) / to * to; }

/* Lays one part out behind `at` bytes of the page; returns the bytes behind it, a multiple of 4. */
static inline uint32_t kv_part_layout(kv_part *p, uint32_t element, uint32_t at) {
    p->codes = at;
    if (p->bits == 0) return kv_round_up(at + p->n_line * p->n_lane * element, 4);
    at += p->n_line * p->ld / KV_RUN * 2 * p->bits;
    at = kv_round_up(at, 4);
    p->offsets = at;
    p->scales = at + 2 * p->n_param;
    p->left = p->scales + 2 * p->n_param;
    p->places = p->left + 2 * p->rank * KVF_PAGE_ROWS;
    p->outliers = kv_round_up(p->places + 2 * p->n_outlier, 4);
    return kv_round_up(p->outliers + p->n_outlier * element, 4);
}

/* Layout of a checked format. */
static inline kv_layout kv_layout_of(const kvf_cache_config *c, const kvf_format *f) {
    kv_layout l;
    memset(&l, 0, sizeof l);
    l.pruned = f->key_channels > 0;
    l.n_channel = l.pruned ? f->key_channels : c->head_dim;
    const uint32_t element = c->row_dtype == KVF_F32 ? 4 : 2;
    kv_part *k = &l.key, *v = &l.value;
    k->keys = true;
    k->bits = f->key_bits;
    k->n_line = l.n_channel;
    k->n_lane = k->ld = KVF_PAGE_ROWS;
    k->by_line = f->key_axis == KVF_PER_CHANNEL;
    k->fitted = f->key_levels == KVF_LEVELS_FITTED;
    k->n_outlier = f->key_outliers;
    k->rank = f->key_rank;
    v->bits = f->value_bits;
    v->n_line = KVF_PAGE_ROWS;
    v->n_lane = c->head_dim;
    v->ld = kv_round_up(c->head_dim, KV_RUN);
    v->by_line = f->value_axis == KVF_PER_TOKEN;
    v->fitted = f->value_levels == KVF_LEVELS_FITTED;
    v->n_outlier = f->value_outliers;
    v->rank = f->value_rank;
    /* Per channel a scale spans the page's rows, per token a group of channels. */
    k->group = k->by_line ? KVF_PAGE_ROWS : f->key_group > 0 ? f->key_group : l.n_channel;
    v->group = v->by_line ? (f->value_group > 0 ? f->value_group : v->ld) : KVF_PAGE_ROWS;
    k->n_group = ((k->by_line ? k->n_lane : k->n_line) + k->group - 1) / k->group;
    v->n_group = ((v->by_line ? v->n_lane : v->n_line) + v->group - 1) / v->group;
    k->n_param = k->n_group * (k->by_line ? k->n_line : k->ld);
    v->n_param = v->n_group * (v->by_line ? v->n_line : v->ld);
    l.positions = kv_part_layout(v, element, kv_part_layout(k, element, 0));
    l.page_bytes = kv_round_up(l.positions + KVF_PAGE_ROWS * (uint32_t)sizeof(uint32_t), 64);
    uint32_t at = 0;
    if (l.pruned) at += kv_round_up(2 * l.n_channel, 4);
    k->levels = at;
    if (k->fitted) at += 4u << k->bits;
    v->levels = at;
    if (v->fitted) at += 4u << v->bits;
    k->basis = at;
    at += 4 * k->rank * l.n_channel;
    v->basis = at;
    at += 4 * v->rank * c->head_dim;
    l.frame_bytes = kv_round_up(at, 64);
    return l;
}

#endif
