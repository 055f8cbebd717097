/* What the CUDA build does not do yet: each is refused by name. */
#include "cuda.h"

#define PENDING(what) return kv_fail(err, KVF_ERR_DEVICE, "Cannot " what " as the CUDA build does not do it yet")

extern "C" int32_t be_prefill_sparse(kvf_cache *cache, kv_sequence *s, kv_err err) {
    (void)cache, (void)s;
    PENDING("attend sparsely");
}

extern "C" int32_t be_prefill_recall(kvf_cache *cache, kv_sequence *s, const uint32_t *patterns, uint32_t n_candidate,
                                     float *shares, kv_err err) {
    (void)cache, (void)s, (void)patterns, (void)n_candidate, (void)shares;
    PENDING("measure patterns");
}

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
