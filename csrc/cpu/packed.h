/* Packed pages on the CPU: reading tiles of them, and filling them. The layout is that of core/packed.h. */
#ifndef KVF_CPU_PACKED_H
#define KVF_CPU_PACKED_H

#include "cpu.h"

/* Floats of a tile's buffer, keys or values. */
#define CPU_TILE_FLOATS (256 * KVF_PAGE_ROWS)

/* Rotation by position, as cpu_ops.turn_tile wants it: kv_format.impl of formats with unrotated keys. */
typedef struct cpu_turns {
    uint32_t n_high; /* positions below n_high * KVF_PAGE_ROWS can be rotated */
    float *low;      /* [2][half][KVF_PAGE_ROWS] cosines and sines of positions 0 .. KVF_PAGE_ROWS - 1 */
    float *high;     /* [n_high][2][half], of positions h * KVF_PAGE_ROWS */
} cpu_turns;

/* What reading packed pages of a table needs. */
typedef struct cpu_packed {
    kv_layout layout;
    uint32_t dtype;
    const cpu_ops *ops;
    const cpu_turns *turns; /* NULL: keys are packed as they were rotated */
    const uint8_t *frame;
} cpu_packed;

/* t has a format. */
cpu_packed cpu_packed_of(const kvf_cache *cache, const kv_table *t);
/* Keys of a packed page, kept channels only, rotated: [n_channel][KVF_PAGE_ROWS]. In `tile` or in the page. */
const float *cpu_packed_keys(const cpu_packed *p, const uint8_t *page, float *tile);
/* Values of a packed page: [KVF_PAGE_ROWS][layout.value.ld] (ld head_dim without bits). In `tile` or in the page. */
const float *cpu_packed_values(const cpu_packed *p, const uint8_t *page, float *tile);
/* Floats from one row's values to the next one's. */
static inline uint32_t cpu_packed_ld(const cpu_packed *p) {
    return p->layout.value.bits == 0 ? p->layout.value.n_lane : p->layout.value.ld;
}
static inline const uint32_t *cpu_packed_positions(const cpu_packed *p, const uint8_t *page) {
    return (const uint32_t *)(const void *)(page + p->layout.positions);
}
/* The kept channels, [n_channel] ascending; NULL: all. */
static inline const uint16_t *cpu_packed_channels(const cpu_packed *p) {
    return p->layout.pruned ? (const uint16_t *)(const void *)p->frame : NULL;
}

/*
 * Page `page` of a table, packed or plain, as f32: keys [head_dim][KVF_PAGE_ROWS] with zeros in channels that are not
 * stored, or values [KVF_PAGE_ROWS][head_dim]. Fills `tile`.
 */
void cpu_page_tile(const kvf_cache *cache, const kv_table *t, uint32_t page, uint32_t what, float *tile);
/* Positions of a page of a table, packed or plain. */
const uint32_t *cpu_positions_of(const kvf_cache *cache, const kv_table *t, uint32_t page);

#endif
