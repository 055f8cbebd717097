/* Making objects: used by the files that have entry points which return one. */
#ifndef KVF_OBJECT_H
#define KVF_OBJECT_H

#include "backend.h"

/* Objects without an id; values and rows are not initialised. NULL with *status and a message. */
kv_object *kv_scores_new(kvf_cache *cache, uint32_t n_head, uint32_t n_row, int32_t *status, kv_err err);
kv_object *kv_selection_new(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, int32_t *status, kv_err err);
/* Returns the new id when `status` is KVF_OK; otherwise, or when no id is left, destroys the object. */
int32_t kv_object_publish(kvf_cache *cache, kv_object *object, int32_t status, kv_err err);

#endif
