/* Ids of sequences and objects within a cache. */
#include <stdlib.h>

#include "core.h"

#define KV_ID_GENERATIONS 0x8000u

uint32_t kv_ids_add(kv_ids *ids, void *item) {
    if (ids->n_live == ids->n_slot) {
        if (ids->n_slot == KV_MAX_ID) return 0;
        uint32_t n = ids->n_slot == 0 ? 16 : 2 * ids->n_slot;
        if (n > KV_MAX_ID) n = KV_MAX_ID;
        kv_slot *slot = realloc(ids->slot, n * sizeof *slot);
        if (slot == NULL) return 0;
        for (uint32_t i = ids->n_slot; i < n; i++) slot[i] = (kv_slot){NULL, 0};
        ids->slot = slot;
        ids->n_slot = n;
    }
    uint32_t index = ids->n_full;
    while (ids->slot[index].item != NULL) index++;
    ids->n_full = index + 1;
    ids->slot[index].item = item;
    ids->n_live++;
    return ids->slot[index].generation << 16 | (index + 1);
}

void *kv_ids_get(const kv_ids *ids, uint32_t id) {
    const uint32_t index = kv_id_slot(id); /* of 0: none */
    if (index >= ids->n_slot || ids->slot[index].generation != id >> 16) return NULL;
    return ids->slot[index].item;
}

void *kv_ids_remove(kv_ids *ids, uint32_t id) {
    void *item = kv_ids_get(ids, id);
    if (item == NULL) return NULL;
    const uint32_t index = kv_id_slot(id);
    kv_slot *slot = &ids->slot[index];
    slot->item = NULL;
    slot->generation = (slot->generation + 1) % KV_ID_GENERATIONS;
    ids->n_live--;
    if (index < ids->n_full) ids->n_full = index;
    return item;
}
