/* Making objects: used by the files that have entry points which return one. */
#ifndef KVF_OBJECT_H
#define KVF_OBJECT_H

#include "backend.h"

/* Objects without an id; values and rows are not initialised. NULL with *status and a message. */
kv_object *kv_scores_new(kvf_cache *cache, uint32_t n_head, uint32_t n_row, int32_t *status, kv_err err);
/* Of the shape of `in`; and of a layer's heads, which may hold different numbers of rows, `less` fewer each. */
kv_object *kv_scores_like(kvf_cache *cache, const kv_object *in, int32_t *status, kv_err err);
kv_object *kv_scores_of_layer(kvf_cache *cache, const kv_sequence *s, uint32_t layer, uint32_t less, int32_t *status,
                              kv_err err);
/* What lies behind shorter heads' rows becomes the lowest score. */
int32_t kv_scores_pad(kvf_cache *cache, const kv_object *scores, kv_err err);
kv_object *kv_selection_new(kvf_cache *cache, uint32_t n_head, const uint32_t *counts, int32_t *status, kv_err err);
/* Returns the new id when `status` is KVF_OK; otherwise, or when no id is left, destroys the object. */
int32_t kv_object_publish(kvf_cache *cache, kv_object *object, int32_t status, kv_err err);

#endif
