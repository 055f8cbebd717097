/* What the CUDA build does not do yet: each is refused by name. */
#include "cuda.h"

#define PENDING(what) return kv_fail(err, KVF_ERR_DEVICE, "Cannot " what " as the CUDA build does not do it yet")

extern "C" int32_t be_program_check(const kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_err err) {
    (void)cache, (void)s, (void)step;
    return kv_fail(err, KVF_ERR_DEVICE, "Cannot set the program as the CUDA build does not run step programs yet: use the CPU");
}

/* Without programs nothing asks for the rest. */
static int32_t no_programs(kv_err err) {
    return kv_fail(err, KVF_ERR_DEVICE, "Cannot act on a step program as the CUDA build does not run them yet: use the CPU");
}

extern "C" int32_t be_live_start(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)head;
    return no_programs(err);
}

extern "C" int32_t be_live_compact(kvf_cache *cache, kv_sequence *s, kv_live *live, const uint32_t *rows, uint32_t n,
                                   kv_err err) {
    (void)cache, (void)s, (void)live, (void)rows, (void)n;
    return no_programs(err);
}

extern "C" int32_t be_live_bounds(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)head;
    return no_programs(err);
}

extern "C" int32_t be_order_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)head;
    return no_programs(err);
}

extern "C" int32_t be_program_rows(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const float *q,
                                   size_t ld_q, uint32_t *to_host, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)head, (void)q, (void)ld_q, (void)to_host;
    return no_programs(err);
}

extern "C" int32_t be_scores_kept(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t window, uint32_t flags,
                                  uint32_t reduce, float *out, uint32_t ld, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)window, (void)flags, (void)reduce, (void)out, (void)ld;
    return no_programs(err);
}

extern "C" int32_t be_scores_live(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t reduce, float *out,
                                  uint32_t ld, kv_err err) {
    (void)cache, (void)s, (void)layer, (void)reduce, (void)out, (void)ld;
    return no_programs(err);
}

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
