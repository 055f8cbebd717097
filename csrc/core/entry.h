/* What every public entry point does first: handles are checked, one call at a time is let in. */
#ifndef KVF_ENTRY_H
#define KVF_ENTRY_H

#include "backend.h"

#define KV_DEVICE_MAGIC 0x6b766631u
#define KV_MODEL_MAGIC 0x6b766632u
#define KV_CACHE_MAGIC 0x6b766633u

/* Empties the message and takes the device; the caller must kv_leave when this is KVF_OK. */
int32_t kv_enter(kvf_device *dev, kv_err err);
void kv_leave(kvf_device *dev);
int32_t kv_enter_model(kvf_model *model, kv_err err);
int32_t kv_enter_cache(kvf_cache *cache, kv_err err);

/* Counted by kvf_live_handles. */
void kv_handle_made(void);
void kv_handle_gone(void);
void kv_device_hold(kvf_device *dev);
void kv_device_release(kvf_device *dev);

/* Runs `call` (which may use `e`) between enter and leave and returns its status. */
#define KV_CACHE_CALL(cache, call)                        \
    do {                                                  \
        const kv_err e = {err, err_cap};                  \
        const int32_t entered = kv_enter_cache(cache, e); \
        if (entered != KVF_OK) return entered;            \
        const int32_t status = (call);                    \
        kv_leave((cache)->dev);                           \
        return status;                                    \
    } while (0)

#define KV_MODEL_CALL(model, call)                        \
    do {                                                  \
        const kv_err e = {err, err_cap};                  \
        const int32_t entered = kv_enter_model(model, e); \
        if (entered != KVF_OK) return entered;            \
        const int32_t status = (call);                    \
        kv_leave((model)->dev);                           \
        return status;                                    \
    } while (0)

/* The live sequence or object with that id, or NULL with the message written. */
kv_sequence *kv_find_sequence(kvf_cache *cache, uint32_t id, kv_err err);
kv_object *kv_find_object(kvf_cache *cache, uint32_t id, uint32_t kind, kv_err err);
/* Frees what a sequence or an object holds; the slot is free afterwards. */
void kv_sequence_clear(kvf_cache *cache, kv_sequence *s);
void kv_object_clear(kvf_cache *cache, kv_object *o);

/* Drops one reference. */
void kv_observations_release(kvf_cache *cache, kv_observations *o);
/* Gives back every page of a table and its list. */
void kv_table_clear(kvf_cache *cache, kv_table *t);
/* dst (empty) gets the same pages as src, one reference more each. */
int32_t kv_table_share(kvf_cache *cache, kv_table *dst, const kv_table *src, kv_err err);
/* Pages for `rows` rows. */
static inline uint32_t kv_pages_for(uint32_t rows) { return rows / KVF_PAGE_ROWS + (rows % KVF_PAGE_ROWS != 0); }

#endif
