/*
 * What the kernels of decode attention share. The rows of a head are cut into chunks by their number alone; every chunk's
 * partial result is computed in one way whatever block takes it, and the block that comes last adds the chunks in their
 * order. So a sequence's result depends on its own rows only, and there is no second kernel.
 */
#ifndef KVF_CUDA_ATTENTION_DECODE_H
#define KVF_CUDA_ATTENTION_DECODE_H

#include "program.cuh"

typedef struct step_args {
    const cu_slot *slot;
    const float *q;    /* [n, n_head, head_dim] */
    float *partial;    /* [n, n_head, n_chunk, partial_stride]: sums, then maximum and sum of weights */
    uint32_t *arrived; /* [n, n_head]: blocks that are done, 0 between launches */
    void *out;         /* [n, ldo] in out_dtype */
    float scale;       /* with log2(e) folded in */
    uint32_t layer;
    uint32_t n_head;
    uint32_t head_dim;
    uint32_t n_chunk; /* that partial has room for */
    uint32_t window;
    uint32_t out_dtype;
    uint32_t ldo;
    cu_program_work work; /* of step programs; not CU_WATCHES: nothing to choose from or to note */
} step_args;

/* What attention of a head goes over, and what it notes, where a step program says so. */
typedef struct watched {
    const uint2 *pick; /* NULL: all pages in their order */
    uint32_t n_page;   /* of the list */
    uint32_t moves;    /* scores of rows at positions below it are in the lines */
    float *line;       /* of the head's first query head; NULL: neither read nor written */
    uint32_t ld;
    bool notes;        /* scores are written to the line */
} watched;

static __device__ __forceinline__ watched watch(const step_args &a, const cu_slot *s, uint32_t stored, size_t table,
                                                uint32_t n_row) {
    watched w = {NULL, (n_row - 1) / KVF_PAGE_ROWS + 1, 0, NULL, a.work.ld, false};
    const cu_program *p = a.work.acts & CU_WATCHES ? program_of(s, table) : NULL;
    if (p == NULL) return w;
    w.moves = moves_below(p, n_row, s->position + 1);
    w.notes = p->has_mass;
    if (w.notes || w.moves > 0) w.line = score_line(a.work, blockIdx.z, stored * (a.n_head / s->n_stored));
    if (p->pages.size == 0) return w;
    wait_previous(); /* for the choice */
    w.pick = pick_line(a.work, blockIdx.z, stored);
    w.n_page = a.work.n_pick[(size_t)blockIdx.z * a.work.max_stored + stored];
    return w;
}
/* Whether a step program chooses pages of the table; packed ones are then attended to by the kernel for any format. */
static __device__ __forceinline__ bool chooses(const step_args &a, const cu_slot *s, size_t table) {
    const cu_program *p = a.work.acts & CU_CHOOSES ? program_of(s, table) : NULL;
    return p != NULL && p->pages.size != 0;
}
/* Notes a score for masses, where CU_WATCHES is set; for kernels without registers to spare. */
static __device__ __forceinline__ void note(const step_args &a, uint32_t reader, uint32_t row, float x) {
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y;
    const cu_program *p = program_of(s, (size_t)a.layer * s->n_stored + stored);
    const uint32_t readers = a.n_head / s->n_stored;
    if (p == NULL || !p->has_mass || reader >= readers) return;
    score_line(a.work, blockIdx.z, stored * readers + reader)[row] = x;
}
/* Page and rows of entry i of the list. */
static __device__ __forceinline__ uint2 watched_page(const watched &w, uint32_t i, uint32_t n_row) {
    if (w.pick != NULL) return w.pick[i];
    const uint32_t n = min((uint32_t)KVF_PAGE_ROWS, n_row - i * KVF_PAGE_ROWS);
    return make_uint2(i, n == 32 ? 0xffffffffu : (1u << n) - 1);
}
/* The score x of a row, or that of one that moves along; noted. */
static __device__ __forceinline__ float noted(const watched &w, uint32_t reader, uint32_t row, uint32_t position, float x) {
    if (w.line == NULL) return x;
    float *place = w.line + (size_t)reader * w.ld + row;
    if (row < w.moves && position < w.moves) return *place;
    if (w.notes) *place = x;
    return x;
}

/* Rows of a chunk of a head that holds n_row rows. */
static __device__ __forceinline__ uint32_t chunk_rows(uint32_t n_row) {
    uint32_t rows = CU_ATTENTION_CHUNK;
    while ((n_row - 1) / rows >= CU_ATTENTION_CHUNKS) rows *= 2;
    return rows;
}

/* Floats of a partial result; whole groups of 16 bytes. */
static __host__ __device__ __forceinline__ uint32_t partial_stride(uint32_t head_dim) { return (head_dim + 2 + 3) / 4 * 4; }
/*
 * Chunks of plain 16-bit rows: at least so many pages, and at most so many chunks. 33 chunks of 8 heads are 264 blocks, two for
 * each of 132 multiprocessors.
 */
enum { CU_TILE_PAGES = 4, CU_TILE_CHUNKS = 33 };
/* Partial result of a chunk of one query head. */
static __device__ __forceinline__ float *partial_of(const step_args &a, uint32_t slot, uint32_t head, uint32_t chunk) {
    return a.partial + (((size_t)slot * a.n_head + head) * a.n_chunk + chunk) * partial_stride(a.head_dim);
}

/*
 * Called by every block of a stored head that took chunks, after its last one: the last of `n_block` adds all `n_chunk`
 * chunks up. weight: shared [readers, n_chunk]
 */
static __device__ __forceinline__ void finish_head(const step_args &a, uint32_t stored, uint32_t readers, uint32_t n_chunk,
                                                   uint32_t n_block, float *weight) {
    constexpr int FIRST = 16; /* chunks whose sums are on their way while the weights are found */
    __shared__ bool last;
    const uint32_t slot = blockIdx.z, head0 = stored * readers, lane = threadIdx.x % 32, stride = partial_stride(a.head_dim);
    __syncthreads();
    if (n_block > 1) {
        if (threadIdx.x == 0) {
            uint32_t *arrived = &a.arrived[(size_t)slot * a.n_head + stored];
            last = add_in_order(arrived, 1u) == n_block - 1; /* after what the whole block wrote, before what it reads */
            if (last) *arrived = 0;
        }
        __syncthreads();
        if (!last) return;
    }
    const bool fours = a.head_dim % 4 == 0;
    const uint32_t width = fours ? a.head_dim / 4 : a.head_dim, n_item = readers * width;
    const float *mine = partial_of(a, slot, head0 + threadIdx.x / width, 0) + threadIdx.x % width * 4;
    float4 early[FIRST];
#pragma unroll
    for (uint32_t c = 0; c < FIRST; c++) {
        early[c] = make_float4(0, 0, 0, 0);
        if (fours && threadIdx.x < n_item && c < n_chunk) early[c] = __ldcg((const float4 *)(mine + (size_t)c * stride));
    }
    for (uint32_t r = threadIdx.x / 32; r < readers; r += blockDim.x / 32) {
        const float *p = partial_of(a, slot, head0 + r, 0) + a.head_dim;
        float max = -INFINITY, total = 0;
        float2 stat[CU_ATTENTION_CHUNKS / 32 + 1]; /* a kernel may have one chunk more */
#pragma unroll
        for (uint32_t i = 0; i < CU_ATTENTION_CHUNKS / 32 + 1; i++) {
            stat[i] = make_float2(-INFINITY, 0);
            if (32 * i + lane < n_chunk) stat[i] = __ldcg((const float2 *)(p + (size_t)(32 * i + lane) * stride));
            max = fmaxf(max, stat[i].x);
        }
        max = warp_max(max);
#pragma unroll
        for (uint32_t i = 0; i < CU_ATTENTION_CHUNKS / 32 + 1; i++) {
            stat[i].x = exp2f(stat[i].x - max);
            total += stat[i].x * stat[i].y;
        }
        total = warp_sum(total);
        if (lane == 0 && a.work.acts & CU_WATCHES) a.work.norm[(size_t)slot * a.n_head + head0 + r] = make_float2(max, total);
#pragma unroll
        for (uint32_t i = 0; i < CU_ATTENTION_CHUNKS / 32 + 1; i++) {
            if (32 * i + lane < n_chunk) weight[r * n_chunk + 32 * i + lane] = stat[i].x / total;
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_item; i += blockDim.x) {
        const uint32_t r = i / width;
        const float *w = weight + r * n_chunk;
        const size_t to = (size_t)slot * a.ldo + (head0 + r) * a.head_dim;
        const float *p = partial_of(a, slot, head0 + r, 0);
        if (!fours) {
            float sum = 0;
#pragma unroll 8
            for (uint32_t c = 0; c < n_chunk; c++) sum = fmaf(__ldcg(p + (size_t)c * stride + i % width), w[c], sum);
            store_as(a.out, a.out_dtype, to + i % width, sum);
            continue;
        }
        float4 sum = make_float4(0, 0, 0, 0);
        const auto add = [&](float4 x, float factor) {
            sum.x = fmaf(x.x, factor, sum.x), sum.y = fmaf(x.y, factor, sum.y);
            sum.z = fmaf(x.z, factor, sum.z), sum.w = fmaf(x.w, factor, sum.w);
        };
        const float4 *four = (const float4 *)(p + i % width * 4);
        uint32_t c = 0;
        if (i == threadIdx.x) {
#pragma unroll
            for (uint32_t k = 0; k < FIRST; k++) {
                if (k < n_chunk) add(early[k], w[k]);
            }
            c = FIRST;
        }
#pragma unroll 16
        for (; c < n_chunk; c++) add(__ldcg(four + (size_t)c * (stride / 4)), w[c]);
        store_as(a.out, a.out_dtype, to + i % width * 4, sum.x);
        store_as(a.out, a.out_dtype, to + i % width * 4 + 1, sum.y);
        store_as(a.out, a.out_dtype, to + i % width * 4 + 2, sum.z);
        store_as(a.out, a.out_dtype, to + i % width * 4 + 3, sum.w);
    }
}

/* 16-bit rows of 32, 64, 128 or 256 columns, at most eight readers: tensor cores. True when it is such a case. */
bool cu_attention_tile(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid,
                       cudaError_t *status);
/* Tables of CU_ATTEND_ANY. */
cudaError_t cu_attention_packed(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid);
/* Tables of CU_ATTEND_CODES_4 or CU_ATTEND_CODES_2. */
cudaError_t cu_attention_codes(const cu_device *d, uint32_t kernel, uint32_t row_dtype, uint32_t readers, const step_args &a,
                               dim3 grid);

#endif
