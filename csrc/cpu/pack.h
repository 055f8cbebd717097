/* The steps of filling a packed page; used to fill pages and to fit what they share. */
#ifndef KVF_CPU_PACK_H
#define KVF_CPU_PACK_H

#include "convert.h"
#include "packed.h"

/* What one part of a page is made from: elements [line][part->ld], of which [n_line][n_lane] are there. */
typedef struct cpu_source {
    const kv_part *part;
    const float *x;
    uint8_t *mark; /* as large as x; 1: stored as it is, takes no part in scales and codes */
    uint32_t n_line, n_lane;
} cpu_source;

cpu_source cpu_source_of(const kv_part *part, uint32_t n_row, const float *x, uint8_t *mark);
/*
 * Reads the first n_row slots of a plain page into x, as the part wants them: the kept channels of the keys (channels
 * NULL: all), turned back where `turns` is given, or the values.
 */
void cpu_pack_source(const kvf_cache *cache, const kv_layout *l, const cpu_turns *turns, const uint8_t *page, uint32_t n_row,
                     const uint16_t *channels, bool keys, float *x);
/* Scales of all groups, f16; offsets too. */
void cpu_pack_scales(const cpu_source *s, uint16_t *offsets, uint16_t *scales);
/* Fills one part of a page: outliers (and `mark`), scales, codes, and the low-rank correction if wanted. */
void cpu_pack_part(const cpu_source *s, const cpu_ops *ops, uint32_t dtype, const uint8_t *frame, bool with_rank,
                   uint8_t *page);
/* What the codes of a filled part lose: [n_line][ld], 0 for marked elements and those that are not there. */
void cpu_pack_loss(const cpu_source *s, const cpu_ops *ops, const uint8_t *page, const uint8_t *frame, float *loss);

/* Makes the format's rotation reach the positions of the first n_row slots of a plain page. */
int32_t cpu_turns_reach(kvf_cache *cache, kv_format *format, const void *page, uint32_t n_row, kv_err err);

#endif
