/*
 * cuBLASLt, opened at run time: a machine without it uses our own kernels. The few prototypes and constants needed are
 * declared here because a bare compiler has no headers of it.
 */
#include <dlfcn.h>

#include "cuda.h"

enum {
    BLAS_OP_N = 0,
    BLAS_OP_T = 1,
    BLAS_COMPUTE_F32 = 68, /* f32 accumulation, no TF32 */
    BLAS_R_F32 = 0,
    BLAS_R_F16 = 2,
    BLAS_R_BF16 = 14,
    BLAS_DESC_TRANSA = 3,
    BLAS_DESC_TRANSB = 4,
    BLAS_PREF_WORKSPACE = 1,
    BLAS_PREF_ALIGNMENT = 5, /* of w; 6, 7, 8: of x, the sum, the result */
    BLAS_PLANS = 64
};
#define BLAS_WORKSPACE ((size_t)32 << 20)

typedef struct blas_algo {
    uint64_t data[8];
} blas_algo;

typedef struct blas_heuristic {
    blas_algo algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} blas_heuristic;

/* What one shape of product needs; kept, because asking costs more than multiplying. */
typedef struct blas_plan {
    uint32_t dtype, out_dtype, n_row, depth, ldw, ldx, n, ldo;
    uint32_t alignment; /* bytes that all pointers are aligned to: 256 or 16 */
    void *desc, *w, *x, *out;
    blas_algo algo;
} blas_plan;

struct cu_blas {
    void *library;
    void *handle;
    void *workspace;
    blas_plan plan[BLAS_PLANS];
    uint32_t n_plan;
    uint32_t next_plan;
    int (*destroy)(void *);
    int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *,
                  void *, void *, void *, const blas_algo *, void *, size_t, cudaStream_t);
    int (*desc_create)(void **, int, int);
    int (*desc_destroy)(void *);
    int (*desc_set)(void *, int, const void *, size_t);
    int (*layout_create)(void **, int, uint64_t, uint64_t, int64_t);
    int (*layout_destroy)(void *);
    int (*pref_create)(void **);
    int (*pref_destroy)(void *);
    int (*pref_set)(void *, int, const void *, size_t);
    int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int, blas_heuristic *, int *);
};

static bool resolve(cu_blas *b, void *to, const char *name) {
    void *symbol = dlsym(b->library, name);
    memcpy(to, &symbol, sizeof symbol);
    return symbol != NULL;
}

cu_blas *cu_blas_open(void) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so"};
    cu_blas *b = (cu_blas *)calloc(1, sizeof *b);
    if (b == NULL) return NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && b->library == NULL; i++) b->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    int (*create)(void **) = NULL;
    if (b->library != NULL && resolve(b, &create, "cublasLtCreate") && resolve(b, &b->destroy, "cublasLtDestroy") &&
        resolve(b, &b->matmul, "cublasLtMatmul") && resolve(b, &b->desc_create, "cublasLtMatmulDescCreate") &&
        resolve(b, &b->desc_destroy, "cublasLtMatmulDescDestroy") &&
        resolve(b, &b->desc_set, "cublasLtMatmulDescSetAttribute") &&
        resolve(b, &b->layout_create, "cublasLtMatrixLayoutCreate") &&
        resolve(b, &b->layout_destroy, "cublasLtMatrixLayoutDestroy") &&
        resolve(b, &b->pref_create, "cublasLtMatmulPreferenceCreate") &&
        resolve(b, &b->pref_destroy, "cublasLtMatmulPreferenceDestroy") &&
        resolve(b, &b->pref_set, "cublasLtMatmulPreferenceSetAttribute") &&
        resolve(b, &b->heuristic, "cublasLtMatmulAlgoGetHeuristic") &&
        cudaMalloc(&b->workspace, BLAS_WORKSPACE) == cudaSuccess && create(&b->handle) == 0) {
        return b;
    }
    cudaGetLastError();
    cu_blas_close(b);
    return NULL;
}

static void plan_close(cu_blas *b, blas_plan *p) {
    if (p->desc != NULL) b->desc_destroy(p->desc);
    if (p->w != NULL) b->layout_destroy(p->w);
    if (p->x != NULL) b->layout_destroy(p->x);
    if (p->out != NULL) b->layout_destroy(p->out);
    memset(p, 0, sizeof *p);
}

void cu_blas_close(cu_blas *b) {
    if (b == NULL) return;
    for (uint32_t i = 0; i < b->n_plan; i++) plan_close(b, &b->plan[i]);
    if (b->handle != NULL) b->destroy(b->handle);
    if (b->workspace != NULL) cudaFree(b->workspace);
    free(b); /* the library stays: it does not survive being closed and opened again */
}

static int type_of(uint32_t dtype) { return dtype == KVF_F32 ? BLAS_R_F32 : dtype == KVF_F16 ? BLAS_R_F16 : BLAS_R_BF16; }

/* Column-major: out^T [n_row, n] = w^T' [n_row, depth] * x^T [depth, n]. */
static bool plan_open(cu_blas *b, blas_plan *p) {
    const int type = type_of(p->dtype);
    const int transposed = BLAS_OP_T, plain = BLAS_OP_N;
    const size_t workspace = BLAS_WORKSPACE;
    void *pref = NULL;
    blas_heuristic found;
    int n_found = 0;
    bool ok = b->desc_create(&p->desc, BLAS_COMPUTE_F32, BLAS_R_F32) == 0 &&
              b->desc_set(p->desc, BLAS_DESC_TRANSA, &transposed, sizeof transposed) == 0 &&
              b->desc_set(p->desc, BLAS_DESC_TRANSB, &plain, sizeof plain) == 0 &&
              b->layout_create(&p->w, type, p->depth, p->n_row, p->ldw) == 0 &&
              b->layout_create(&p->x, type, p->depth, p->n, p->ldx) == 0 &&
              b->layout_create(&p->out, type_of(p->out_dtype), p->n_row, p->n, p->ldo) == 0 && b->pref_create(&pref) == 0 &&
              b->pref_set(pref, BLAS_PREF_WORKSPACE, &workspace, sizeof workspace) == 0;
    for (int i = 0; i < 4 && ok; i++) {
        ok = b->pref_set(pref, BLAS_PREF_ALIGNMENT + i, &p->alignment, sizeof p->alignment) == 0;
    }
    ok = ok && b->heuristic(b->handle, p->desc, p->w, p->x, p->out, p->out, pref, 1, &found, &n_found) == 0 &&
         n_found == 1 && found.status == 0;
    if (pref != NULL) b->pref_destroy(pref);
    if (ok) p->algo = found.algo;
    return ok;
}

bool cu_blas_gemm(cu_device *d, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t ldx, uint32_t n, void *out,
                  uint32_t out_dtype, uint32_t ldo, bool add) {
    cu_blas *b = d->blas;
    if (b == NULL) return false;
    blas_plan want = {};
    want.dtype = dtype, want.out_dtype = out_dtype, want.n_row = w->n_row, want.depth = w->n_col, want.ldw = w->ld;
    want.ldx = ldx, want.n = n, want.ldo = ldo;
    const uintptr_t low = (uintptr_t)w->data | (uintptr_t)x | (uintptr_t)out;
    if (low % 16 != 0) return false;
    want.alignment = low % 256 == 0 ? 256 : 16;
    blas_plan *p = NULL;
    for (uint32_t i = 0; i < b->n_plan && p == NULL; i++) {
        blas_plan *q = &b->plan[i];
        if (q->dtype == dtype && q->out_dtype == out_dtype && q->n_row == want.n_row && q->depth == want.depth && q->ldw == want.ldw &&
            q->ldx == ldx && q->n == n && q->ldo == ldo && q->alignment == want.alignment) {
            p = q;
        }
    }
    if (p == NULL) {
        if (!plan_open(b, &want)) {
            plan_close(b, &want);
            return false;
        }
        if (b->n_plan < BLAS_PLANS) {
            p = &b->plan[b->n_plan++];
        } else {
            p = &b->plan[b->next_plan++ % BLAS_PLANS];
            plan_close(b, p);
        }
        *p = want;
    }
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    return b->matmul(b->handle, p->desc, &one, w->data, p->w, x, p->x, &beta, out, p->out, out, p->out, &p->algo,
                     b->workspace, BLAS_WORKSPACE, d->stream) == 0;
}
