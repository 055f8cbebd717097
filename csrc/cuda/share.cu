/* Directions that two layers share: finding them, and putting rows together again. */
#include "numbers.cuh"

extern "C" {
#include "../core/share.h"
}

/* Least length, and distance of a cosine from 1, that directions are told apart by. */
#define LEAST 1e-6

/* ---- What kernels see of it ---- */

/* In place of its length an exact row has minus its place among the exact ones, counted from 1. */
cu_own cu_own_of(const kvf_cache *cache, const kv_table *t) {
    cu_own own = {};
    if (t->shared == 0) return own;
    const kv_scale_layout l = kv_scale_of(&cache->config, t->shared, t->exact);
    const char *data = (const char *)cache->page[t->scale - 1].data;
    for (int what = 0; what < 2; what++) {
        own.length[what] = (const float *)(data + l.length[what]);
        own.exact[what] = data + l.exact[what];
    }
    own.shared = t->shared;
    return own;
}

/* ---- Putting together ---- */

/* A warp turns a row's direction into the row. x: [n, head_dim] */
template <typename R>
static __global__ void restore_kernel(float *x, const cu_own own, uint32_t head_dim, uint32_t what) {
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= own.shared) return;
    const float length = own.length[what][row];
    const R *exact = length < 0 ? own_exact<R>(own, what, length, head_dim) : NULL;
    for (uint32_t d = lane; d < head_dim; d += 32) {
        float *at = &x[(size_t)row * head_dim + d];
        *at = exact != NULL ? to_f32(exact[d]) : *at * length;
    }
}

int32_t cu_restore_rows(kvf_cache *cache, const kv_table *t, uint32_t what, float *rows, kv_err err) {
    if (t->shared == 0) return KVF_OK;
    const cu_own own = cu_own_of(cache, t);
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (restore_kernel<R><<<cu_div_up(t->shared, 8), 256, 0, cu_of(cache->dev)->stream>>>(
                     rows, own, cache->config.head_dim, what)));
    CU_LAUNCHED("reading shared rows");
    return KVF_OK;
}

/* ---- Finding ---- */

typedef struct share_args {
    void *const *from[2]; /* pages of the two layers */
    void *const *pages;   /* where directions go; NULL: only distances are wanted */
    float *length[2][2];  /* [layer][keys, values]: [n] */
    void *exact[2][2];    /* [n_exact, head_dim] */
    float *distance;      /* [keys, values][n] */
    const uint32_t *row;  /* n_exact of keys, then n_exact of values */
    uint32_t *differ;     /* set to 1 where positions are not the same */
    double interpolation;
    uint32_t n, head_dim;
    uint32_t n_exact[2];
} share_args;

template <typename R>
static __device__ R *part_of(void *page, uint32_t what, uint32_t slot, uint32_t head_dim) {
    return (what == 0 ? page_keys<R>(page) : page_values<R>(page, head_dim)) + slot * head_dim;
}

static __device__ double warp_total(double x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* A warp takes a row's keys (blockIdx.y 0) or values: distance, and with pages lengths and the direction between. */
template <typename R>
static __global__ void share_kernel(const share_args a) {
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32, what = blockIdx.y;
    if (row >= a.n) return;
    const uint32_t index = row / KVF_PAGE_ROWS, slot = row % KVF_PAGE_ROWS;
    const R *x = part_of<R>(a.from[0][index], what, slot, a.head_dim), *y = part_of<R>(a.from[1][index], what, slot, a.head_dim);
    double xx = 0, yy = 0, cosine = 0, norm = 0;
    for (uint32_t d = lane; d < a.head_dim; d += 32) {
        const double p = to_f32(x[d]), q = to_f32(y[d]);
        xx += p * p;
        yy += q * q;
    }
    xx = fmax(sqrt(warp_total(xx)), LEAST);
    yy = fmax(sqrt(warp_total(yy)), LEAST);
    for (uint32_t d = lane; d < a.head_dim; d += 32) cosine += to_f32(x[d]) / xx * (to_f32(y[d]) / yy);
    const double angle = acos(fmin(fmax(warp_total(cosine), -1 + LEAST), 1 - LEAST));
    if (lane == 0) {
        a.distance[(size_t)what * a.n + row] = (float)(angle / acos(-1.0));
        const uint32_t position = page_positions<R>(a.from[0][index], a.head_dim)[slot];
        if (position != page_positions<R>(a.from[1][index], a.head_dim)[slot]) *a.differ = 1;
    }
    if (a.pages == NULL) return;
    const double sine = sin(angle), t = a.interpolation;
    const double near = sin((1 - t) * angle) / sine / xx, far = sin(t * angle) / sine / yy;
    for (uint32_t d = lane; d < a.head_dim; d += 32) {
        const double between = near * to_f32(x[d]) + far * to_f32(y[d]);
        norm += between * between;
    }
    norm = fmax(sqrt(warp_total(norm)), LEAST);
    R *to = part_of<R>(a.pages[index], what, slot, a.head_dim);
    for (uint32_t d = lane; d < a.head_dim; d += 32) {
        from_f32(&to[d], (float)((near * to_f32(x[d]) + far * to_f32(y[d])) / norm));
    }
    if (lane != 0) return;
    a.length[0][what][row] = (float)xx;
    a.length[1][what][row] = (float)yy;
    if (what == 0) page_positions<R>(a.pages[index], a.head_dim)[slot] = page_positions<R>(a.from[0][index], a.head_dim)[slot];
}

/* A warp keeps one exact row of keys or values (blockIdx.y) of one layer (blockIdx.z). */
template <typename R>
static __global__ void exact_kernel(const share_args a) {
    const uint32_t e = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t what = blockIdx.y, layer = blockIdx.z;
    if (e >= a.n_exact[what]) return;
    const uint32_t row = a.row[(what == 0 ? 0 : a.n_exact[0]) + e];
    const R *from = part_of<R>(a.from[layer][row / KVF_PAGE_ROWS], what, row % KVF_PAGE_ROWS, a.head_dim);
    R *to = (R *)a.exact[layer][what] + (size_t)e * a.head_dim;
    for (uint32_t d = lane; d < a.head_dim; d += 32) to[d] = from[d];
    if (lane == 0) a.length[layer][what][row] = -(float)(e + 1);
}

/* Of two plain tables. Distances, then the flag: scratch. */
static int32_t find_directions(kvf_cache *cache, const kv_table *before, const kv_table *now, share_args *a, kv_err err) {
    cudaStream_t stream = cu_of(cache->dev)->stream;
    uint32_t differ = 0;
    a->n = now->rows, a->head_dim = cache->config.head_dim;
    CU_PASS(cu_table_push(cache, before, (void ***)&a->from[0], err));
    CU_PASS(cu_table_push(cache, now, (void ***)&a->from[1], err));
    CU_PASS(cu_scratch(cache->dev, (void **)&a->distance, (2 * (size_t)a->n + 1) * sizeof(float), err));
    a->differ = (uint32_t *)(a->distance + 2 * (size_t)a->n);
    CU_TRY(cudaMemsetAsync(a->differ, 0, sizeof *a->differ, stream), "sharing directions");
    CU_WITH_TYPE(cache->config.row_dtype, R, (share_kernel<R><<<dim3(cu_div_up(a->n, 8), 2), 256, 0, stream>>>(*a)));
    CU_LAUNCHED("sharing directions");
    CU_PASS(be_download(cache->dev, &differ, a->differ, sizeof differ, err));
    if (differ == 0) return KVF_OK;
    return kv_fail(err, KVF_ERR_ARG, "Cannot share directions as both layers must hold rows of the same positions: they do not");
}

extern "C" int32_t be_share_distances(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n,
                                      float *to_host, kv_err err) {
    share_args a = {};
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(find_directions(cache, before, now, &a, err));
    return be_download(cache->dev, to_host, a.distance, 2 * (size_t)n * sizeof *to_host, err);
}

/* The rows of the greatest distance, the lower one among equals, ascending. row: of both layers, [n_exact of keys and values] */
static int32_t keep_exact(kvf_cache *cache, share_args *a, uint32_t *const row[2], kv_err err) {
    const uint32_t all = a->n_exact[0] + a->n_exact[1], most = a->n_exact[0] > a->n_exact[1] ? a->n_exact[0] : a->n_exact[1];
    if (all == 0) return KVF_OK;
    CU_PASS(be_select_top(cache->dev, a->distance, 2, a->n, a->n_exact, row[0], err));
    CU_PASS(be_copy(cache->dev, row[1], row[0], all * sizeof **row, err));
    a->row = row[0];
    CU_WITH_TYPE(cache->config.row_dtype, R,
                 (exact_kernel<R><<<dim3(cu_div_up(most, 8), 2, 2), 256, 0, cu_of(cache->dev)->stream>>>(*a)));
    CU_LAUNCHED("keeping exact rows");
    return KVF_OK;
}

extern "C" int32_t be_share_rows(kvf_cache *cache, const kv_table *before, const kv_table *now, uint32_t n,
                                 float interpolation, const uint32_t *n_exact, void *const *pages, void *const own[2],
                                 kv_err err) {
    const kv_scale_layout l = kv_scale_of(&cache->config, n, n_exact);
    share_args a = {};
    uint32_t *row[2];
    CU_PASS(cu_enter(cache->dev, err));
    a.interpolation = interpolation, a.n_exact[0] = n_exact[0], a.n_exact[1] = n_exact[1];
    for (int i = 0; i < 2; i++) {
        char *data = (char *)own[i];
        for (int what = 0; what < 2; what++) {
            a.length[i][what] = (float *)(data + l.length[what]);
            a.exact[i][what] = data + l.exact[what];
        }
        row[i] = (uint32_t *)(data + l.row[0]); /* of keys; those of values follow */
    }
    CU_PASS(cu_push(cache->dev, (void **)&a.pages, pages, cu_div_up(n, KVF_PAGE_ROWS) * sizeof *pages, err));
    CU_PASS(find_directions(cache, before, now, &a, err));
    return keep_exact(cache, &a, row, err);
}
