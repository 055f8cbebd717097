/* What the CUDA build does not do yet: each is refused by name. */
#include "cuda.h"

#define PENDING(what) return kv_fail(err, KVF_ERR_DEVICE, "Cannot " what " as the CUDA build does not do it yet")

extern "C" int32_t be_share_distances(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n,
                                      float *to_host, kv_err err) {
    (void)cache, (void)before, (void)now, (void)n, (void)to_host;
    PENDING("share directions");
}
extern "C" int32_t be_share_rows(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n,
                                 float interpolation, const uint32_t *n_exact, void *const *pages, void *const own[2],
                                 kv_err err) {
    (void)cache, (void)before, (void)now, (void)n, (void)interpolation, (void)n_exact, (void)pages, (void)own;
    PENDING("share directions");
}
