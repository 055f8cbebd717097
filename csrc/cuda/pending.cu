/* What the CUDA build does not do yet: each is refused by name. */
#include "cuda.h"

extern "C" int32_t be_attention_map(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t block, float *to_host,
                                    kv_err err) {
    (void)cache, (void)s, (void)layer, (void)block, (void)to_host;
    return kv_fail(err, KVF_ERR_DEVICE, "Cannot map attention as the CUDA build does not do that yet: use the CPU");
}
