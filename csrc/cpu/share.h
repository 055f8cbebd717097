/* Rows of which pages hold only the direction: putting them together again. */
#ifndef KVF_CPU_SHARE_H
#define KVF_CPU_SHARE_H

#include "cpu.h"

/*
 * A tile of directions, as cpu_page_tile has it, becomes the table's own rows: n rows from `first` on. what: 0 keys,
 * 1 values.
 */
void cpu_restore_tile(const kvf_cache *cache, const kv_table *t, uint32_t first, uint32_t n, uint32_t what, float *tile);

#endif
