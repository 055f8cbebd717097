/*
 * Attention over a part of the rows. What a head attends to is found first: for columns and diagonals once a layer, from the
 * last queries; for blocks with the queries of a chunk. A block of threads then owns a tile of queries of one head and walks
 * the rows that the tile may see, 32 or 64 at a time, wherever they lie. One warp finds the next ones while it goes along: nothing of
 * size tiles x rows is kept.
 */
#include "query_tile.cuh"
#include "select.cuh"
#include "tensor_tile.cuh"

#define TILE 64u         /* queries that share a part, rows of a block, and the width of a diagonal */
#define FIRST_COLUMNS 30u /* always kept */
#define FIRST_DISTANCES 100u
#define MOST_BLOCKS 100u
#define STEP KVF_PAGE_ROWS
#define CHOOSERS 256u
#define FIT_BYTES (32u << 20) /* fits of query tiles that are chosen from together */

/* What one query head attends to. */
typedef struct part {
    uint32_t kind, a, b;
    uint32_t n_column, n_distance;
    const uint32_t *column;   /* lines: [n_column] ascending */
    const uint32_t *distance; /* lines: [n_distance] ascending */
    uint32_t *block;          /* blocks: [tiles of a chunk, a], ascending; as many as there are rows' blocks to see count */
} part;

struct cu_sparse {
    kvf_device *dev;
    uint32_t n_head, n_token, n_tile, window, row_dtype;
    cu_view view;
    uint32_t n_stored;
    bool lines, blocks;
    part *host;      /* [n_head] */
    part *parts;     /* device [n_head] */
    uint32_t *lists; /* device: columns of all heads, then distances of all heads */
    uint32_t *distances;
    uint32_t *block; /* device [n_head, tiles of a chunk, most blocks] */
    float *mean_k;   /* device [n_stored, n_tile, head_dim] */
    float *mean_q;   /* device [n_head, tiles of a chunk, head_dim] */
    uint32_t *fit;   /* device: what CHOOSERS choose from */
    uint32_t most_block, cap_tile, at_once;
};

static __device__ __forceinline__ uint32_t oldest_of(uint32_t token, uint32_t window) {
    return window != 0 && token >= window ? token - window + 1 : 0;
}

/* ---- Lines ---- */

/*
 * Probabilities that queries give to each distance, summed over the queries. A block owns 32 distances of one head; for each
 * tile of queries it takes the rows that lie so far behind. queries.position: of the first; out: [n_head, n_row]
 */
template <typename R, int DIM, int QI>
static __global__ void __launch_bounds__(256) distance_kernel(float *out, const cu_view view, const cu_queries queries,
                                                              const float *lse, const part *parts, uint32_t n_row, float scale) {
    constexpr uint32_t STRIDE = DIM + 4, QUERIES = 16 * QI, N_STEP = (QUERIES + 2 * STEP - 2) / STEP;
    extern __shared__ float4 shared4[];
    float *qs = (float *)shared4, *rows = qs + QUERIES * STRIDE, *ps = rows + STEP * STRIDE;
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16, head = blockIdx.y, head_dim = view.head_dim;
    const int32_t d0 = (int32_t)(blockIdx.x * STEP);
    if (parts[head].kind != KVF_ATTEND_LINES) return;
    void *const *pages = view.pages + (size_t)(head / view.readers) * view.cap;
    float sum = 0; /* of distance d0 + threadIdx.x */
    for (uint32_t q0 = 0; q0 < queries.n; q0 += QUERIES) {
        const uint32_t n = min(QUERIES, queries.n - q0), first = queries.position + q0;
        __syncthreads();
        fill_queries(qs, STRIDE, queries.q + head * queries.head_stride + (size_t)q0 * head_dim, n, QUERIES, head_dim, scale);
        for (uint32_t step = 0; step < N_STEP; step++) {
            const int32_t row0 = (int32_t)first - d0 - (STEP - 1) + (int32_t)(step * STEP);
            if (row0 + STEP <= 0) continue;
            __syncthreads();
            fill_rows<R>(rows, STRIDE, head_dim, [=](uint32_t r) {
                const int32_t row = row0 + (int32_t)r;
                if (row < 0 || row >= (int32_t)n_row) return (const R *)NULL;
                return (const R *)page_keys<R>(pages[row / KVF_PAGE_ROWS]) + row % KVF_PAGE_ROWS * head_dim;
            });
            __syncthreads();
            float s[QI][2];
            score_tile<QI>(s, qs, rows, STRIDE, head_dim);
#pragma unroll
            for (int i = 0; i < QI; i++) {
                const uint32_t query = ty * QI + i;
                const float sums = query < n ? lse[(size_t)head * queries.n + q0 + query] * LOG2E : 0.0f;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const int32_t row = row0 + (int32_t)(tx + 16 * j);
                    const bool seen = query < n && row >= 0 && visible(first + query, (uint32_t)row, queries.window);
                    ps[query * 33 + tx + 16 * j] = seen ? exp2f(s[i][j] - sums) : 0.0f;
                }
            }
            __syncthreads();
            /* query i and distance d0 + d meet in row first + i - d0 - d */
            for (int32_t r = 0, d = (int32_t)threadIdx.x; r < STEP && d < STEP; r++) {
                const int32_t i = r + (int32_t)(step * STEP) - (STEP - 1) + d;
                if (i >= 0 && i < (int32_t)n) sum += ps[i * 33 + r];
            }
        }
    }
    if (threadIdx.x < STEP && d0 + threadIdx.x < n_row) out[(size_t)head * n_row + d0 + threadIdx.x] = sum;
}

template <typename R, int DIM, int QI>
static cudaError_t launch_distances(float *out, const cu_view &view, const cu_queries &q, const float *lse, const part *parts,
                                    uint32_t n_row, cudaStream_t stream) {
    constexpr size_t bytes = tile_bytes<DIM, QI>();
    const cudaError_t e =
        cudaFuncSetAttribute(distance_kernel<R, DIM, QI>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    distance_kernel<R, DIM, QI><<<dim3(cu_div_up(n_row, STEP), q.n_head), 256, bytes, stream>>>(
        out, view, q, lse, parts, n_row, LOG2E / sqrtf((float)view.head_dim));
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_distances_dim(float *out, const cu_view &view, const cu_queries &q, const float *lse,
                                        const part *parts, uint32_t n_row, cudaStream_t stream) {
    if (view.head_dim <= 64) return launch_distances<R, 64, 4>(out, view, q, lse, parts, n_row, stream);
    if (view.head_dim <= 128) return launch_distances<R, 128, 4>(out, view, q, lse, parts, n_row, stream);
    return launch_distances<R, 256, 2>(out, view, q, lse, parts, n_row, stream);
}

/* Room for the columns, then for the distances of all heads that have them. */
static int32_t make_lines(cu_sparse *x, kv_err err) {
    size_t n_list = 0, at = 0;
    for (uint32_t h = 0; h < x->n_head; h++) n_list += (size_t)x->host[h].n_column + x->host[h].n_distance;
    CU_PASS(cu_alloc(x->dev, (void **)&x->lists, n_list * sizeof *x->lists, "the lines of a sparse prefill", err));
    for (uint32_t h = 0; h < x->n_head; h++) x->host[h].column = x->lists + at, at += x->host[h].n_column;
    x->distances = x->lists + at;
    for (uint32_t h = 0; h < x->n_head; h++) x->host[h].distance = x->lists + at, at += x->host[h].n_distance;
    return KVF_OK;
}

/* last: queries of the last tokens */
static int32_t find_lines(cu_sparse *x, const cu_queries *last, kv_err err) {
    const uint32_t n = x->n_token, n_head = x->n_head;
    const size_t size = (size_t)n_head * n, n_lse = (size_t)n_head * last->n;
    cudaStream_t stream = cu_of(x->dev)->stream;
    uint32_t counts[KV_MAX_HEAD];
    float *by_row; /* [n_head, n], as is by_distance */
    CU_PASS(cu_scratch(x->dev, (void **)&by_row, (2 * size + n_lse) * sizeof *by_row + last->n, err));
    float *by_distance = by_row + size, *lse = by_distance + size;
    uint8_t *sets = (uint8_t *)(lse + n_lse);
    CU_PASS(cu_attention_prefill(x->dev, &x->view, x->row_dtype, last, NULL, 0, 0, lse, err));
    CU_TRY(cudaMemsetAsync(sets, 1, last->n, stream), "finding lines");
    CU_PASS(cu_column_mass(x->dev, &x->view, x->row_dtype, last, lse, sets, 1, &by_row, n, false, err));
    cudaError_t e;
    CU_WITH_TYPE(x->row_dtype, R, e = launch_distances_dim<R>(by_distance, x->view, *last, lse, x->parts, n, stream));
    CU_TRY(e, "finding lines");
    const uint32_t columns = n < FIRST_COLUMNS ? n : FIRST_COLUMNS, near = n < FIRST_DISTANCES ? n : FIRST_DISTANCES;
    CU_PASS(be_scores_fill(x->dev, by_row, n_head, n, 0, columns, INFINITY, err));
    CU_PASS(be_scores_fill(x->dev, by_distance, n_head, n, 0, near, INFINITY, err));
    for (uint32_t h = 0; h < n_head; h++) counts[h] = x->host[h].n_column;
    CU_PASS(be_select_top(x->dev, by_row, n_head, n, counts, x->lists, err));
    for (uint32_t h = 0; h < n_head; h++) counts[h] = x->host[h].n_distance;
    return be_select_top(x->dev, by_distance, n_head, n, counts, x->distances, err);
}

/* ---- Blocks ---- */

/* Means of blocks of keys; missing ones count as zeros. A block of threads per block and stored head. */
template <typename R>
static __global__ void mean_keys_kernel(float *mean, const cu_view view, uint32_t n_token) {
    const uint32_t first = blockIdx.x * TILE, n = min(TILE, n_token - first), head_dim = view.head_dim;
    void *const *pages = view.pages + (size_t)blockIdx.y * view.cap;
    for (uint32_t d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t row = first + i;
            sum += to_f32(page_keys<R>(pages[row / KVF_PAGE_ROWS])[row % KVF_PAGE_ROWS * head_dim + d]) / (float)TILE;
        }
        mean[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * head_dim + d] = sum;
    }
}

/* The same of queries: [n_head, tiles, head_dim] */
static __global__ void mean_queries_kernel(float *mean, const cu_queries queries, uint32_t head_dim) {
    const uint32_t first = blockIdx.x * TILE, n = min(TILE, queries.n - first);
    const float *q = queries.q + blockIdx.y * queries.head_stride + (size_t)first * head_dim;
    for (uint32_t d = threadIdx.x; d < head_dim; d += blockDim.x) {
        float sum = 0;
        for (uint32_t i = 0; i < n; i++) sum += q[(size_t)i * head_dim + d] / (float)TILE;
        mean[((size_t)blockIdx.y * gridDim.x + blockIdx.x) * head_dim + d] = sum;
    }
}

typedef struct choose_args {
    const part *parts;
    const float *mean_q; /* [n_head, n_chunk_tile, head_dim] */
    const float *mean_k; /* [n_stored, n_tile, head_dim] */
    uint32_t *fit;       /* [gridDim.x, n_head, n_tile] */
    uint32_t readers, head_dim, window;
    uint32_t n_tile;
    uint32_t n_chunk_tile;
    uint32_t chunk_tile; /* index of the chunk's first tile */
    uint32_t first_tile; /* within the chunk, of this launch */
} choose_args;

/* Chooses the blocks of one tile of one head. */
static __global__ void __launch_bounds__(CHOOSERS) choose_kernel(const choose_args a) {
    __shared__ cut_state state;
    __shared__ uint32_t chosen[CHOOSERS / 32];
    const uint32_t head = blockIdx.y, in_chunk = a.first_tile + blockIdx.x, tile = a.chunk_tile + in_chunk;
    const part *p = &a.parts[head];
    if (p->kind != KVF_ATTEND_BLOCKS) return;
    const uint32_t lane = threadIdx.x % 32, first = oldest_of(tile * TILE, a.window) / TILE, n_seen = tile + 1 - first;
    const float *q = a.mean_q + ((size_t)head * a.n_chunk_tile + in_chunk) * a.head_dim;
    const float *k = a.mean_k + (size_t)(head / a.readers) * a.n_tile * a.head_dim;
    uint32_t *fit = a.fit + ((size_t)blockIdx.x * gridDim.y + head) * a.n_tile;
    for (uint32_t b = threadIdx.x / 32; b < n_seen; b += CHOOSERS / 32) {
        float dot = 0;
        for (uint32_t d = lane; d < a.head_dim; d += 32) dot = fmaf(q[d], k[(size_t)(first + b) * a.head_dim + d], dot);
        dot = warp_sum(dot);
        if (lane == 0) fit[b] = order_key(a.window != 0 && b == n_seen - 1 ? INFINITY : dot);
    }
    __syncthreads();
    uint32_t *out = p->block + (size_t)in_chunk * p->a;
    const uint32_t n = min(p->a, n_seen);
    top_rows<CHOOSERS>(&state, chosen, [fit](size_t i) { return fit[i]; }, n_seen, n, out);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += CHOOSERS) out[i] += first;
}

/* The blocks of a chunk's tiles. */
static int32_t choose_blocks(cu_sparse *x, const cu_queries *queries, kv_err err) {
    const uint32_t n_tile = cu_div_up(queries->n, TILE);
    cudaStream_t stream = cu_of(x->dev)->stream;
    mean_queries_kernel<<<dim3(n_tile, x->n_head), 128, 0, stream>>>(x->mean_q, *queries, x->view.head_dim);
    CU_LAUNCHED("choosing blocks");
    choose_args a = {};
    a.parts = x->parts, a.mean_q = x->mean_q, a.mean_k = x->mean_k, a.fit = x->fit, a.readers = x->view.readers;
    a.head_dim = x->view.head_dim, a.window = x->window, a.n_tile = x->n_tile, a.n_chunk_tile = n_tile;
    a.chunk_tile = queries->position / TILE;
    for (; a.first_tile < n_tile; a.first_tile += x->at_once) {
        const uint32_t n = n_tile - a.first_tile < x->at_once ? n_tile - a.first_tile : x->at_once;
        choose_kernel<<<dim3(n, x->n_head), CHOOSERS, 0, stream>>>(a);
        CU_LAUNCHED("choosing blocks");
    }
    return KVF_OK;
}

/* ---- Which rows a tile walks ---- */

/* Where a tile's walk is; one warp moves it. */
typedef struct walk {
    uint32_t start, end;    /* the tile's tokens; rows from `end` on are seen by none of them */
    uint32_t oldest;        /* rows before it neither */
    uint32_t last, left;    /* diagonals: end of the pieces so far, and distances that may still add one */
    uint32_t phase, next;
    uint32_t first, count;  /* the run of rows that is being handed out: rows, or places in the list of columns */
    bool listed;
    uint32_t n_run, n_row;  /* of the current step */
    uint32_t run_at[STEP], run_first[STEP];
    bool run_listed[STEP];
} walk;

/* How many of n ascending numbers are below x. */
static __device__ uint32_t below(const uint32_t *list, uint32_t n, uint32_t x) {
    uint32_t low = 0, high = n;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (list[mid] < x) low = mid + 1;
        else high = mid;
    }
    return low;
}

/*
 * The next 64 rows of the tile's diagonals, ascending: those of the nearest distance whose rows end behind what was taken,
 * or 64 more where they begin less than 64 rows behind it. False when there are no more.
 */
static __device__ bool next_piece(walk *w, const part *p, uint32_t *from) {
    const uint32_t behind = w->start + TILE; /* distance 0 ends here */
    if (w->last >= behind) return false;
    w->left = below(p->distance, w->left, behind - w->last);
    if (w->left == 0) return false;
    const uint32_t distance = p->distance[w->left - 1], to = max(behind - distance, TILE);
    const bool apart = w->last == 0 || to > w->last + TILE;
    *from = apart ? to - TILE : w->last;
    w->last = *from + TILE;
    return true;
}

/* Pieces of diagonals, then the columns between them. */
static __device__ bool next_lines(walk *w, const part *p) {
    uint32_t from;
    while (w->phase == 0) {
        if (next_piece(w, p, &from)) {
            w->first = max(from, w->oldest);
            const uint32_t to = min(from + TILE, w->end);
            if (w->first >= to) continue;
            w->count = to - w->first;
            return true;
        }
        w->phase = 1, w->last = 0, w->left = p->n_distance, w->next = 0;
    }
    w->listed = true;
    for (;;) {
        const uint32_t behind = w->last;
        if (w->next == p->n_column || !next_piece(w, p, &from)) return false;
        const uint32_t first = max(behind, w->oldest), to = min(from, w->end);
        if (first >= to) continue;
        w->first = w->next + below(p->column + w->next, p->n_column - w->next, first);
        w->next = w->first + below(p->column + w->first, p->n_column - w->first, to);
        w->count = w->next - w->first;
        if (w->count > 0) return true;
    }
}

/* The next run of rows, each row once; false when there are no more. `block`: the tile's. */
static __device__ bool next_run(walk *w, const part *p, const uint32_t *block, uint32_t n_block) {
    if (p->kind == KVF_ATTEND_LINES) return next_lines(w, p);
    while (p->kind == KVF_ATTEND_BLOCKS && w->next < n_block) {
        const uint32_t from = block[w->next++] * TILE, to = min(from + TILE, w->end);
        w->first = max(from, w->oldest);
        if (w->first >= to) continue;
        w->count = to - w->first;
        return true;
    }
    if (p->kind == KVF_ATTEND_BLOCKS) return false;
    /* first rows, then recent ones; or all as recent ones */
    uint32_t recent = w->oldest;
    if (p->kind == KVF_ATTEND_ENDS) recent = max(recent, oldest_of(w->start, p->b));
    if (w->phase == 0) {
        w->phase = 1;
        w->first = w->oldest;
        const uint32_t to = min(p->kind == KVF_ATTEND_ENDS ? p->a : 0, recent);
        w->count = to > w->first ? to - w->first : 0;
        if (w->count > 0) return true;
    }
    if (w->phase > 1 || recent >= w->end) return false;
    w->phase = 2;
    w->first = recent;
    w->count = w->end - recent;
    return true;
}

static __device__ __forceinline__ void begin_walk(walk *w, const part *p, const cu_queries &queries, uint32_t in_chunk, uint32_t n_row) {
    w->start = queries.position + in_chunk * TILE;
    w->end = min(w->start + TILE, n_row);
    w->oldest = oldest_of(w->start, queries.window);
    w->last = w->phase = w->next = w->count = 0;
    w->left = p->n_distance;
    w->listed = false;
}

/* The next rows, KV_NO_TOKEN behind them; returns how many. row: shared [STEP]. Called by one warp. */
static __device__ uint32_t next_rows(walk *w, const part *p, uint32_t in_chunk, uint32_t *row) {
    const uint32_t lane = threadIdx.x % 32;
    if (lane == 0) {
        const uint32_t *block = p->block + (size_t)in_chunk * p->a;
        const uint32_t n_block = min(p->a, (w->start - w->oldest / TILE * TILE) / TILE + 1);
        w->n_run = w->n_row = 0;
        while (w->n_row < STEP && (w->count > 0 || next_run(w, p, block, n_block))) {
            const uint32_t n = min(w->count, STEP - w->n_row);
            w->run_at[w->n_run] = w->n_row, w->run_first[w->n_run] = w->first, w->run_listed[w->n_run] = w->listed;
            w->n_run++, w->n_row += n, w->first += n, w->count -= n;
        }
    }
    __syncwarp();
    const uint32_t n = w->n_row;
    uint32_t at = KV_NO_TOKEN;
    if (lane < n) {
        uint32_t i = w->n_run - 1;
        while (w->run_at[i] > lane) i--;
        at = w->run_first[i] + lane - w->run_at[i];
        if (w->run_listed[i]) at = p->column[at];
    }
    row[lane] = at;
    __syncwarp();
    return n;
}

/* ---- Attention ---- */

typedef struct sparse_args {
    prefill_args p;
    const part *parts;
    unsigned long long *pairs; /* [n_head], added to; may be NULL */
} sparse_args;

/* Whether a query sees a row that its tile walks over. */
static __device__ __forceinline__ bool sees(const part &p, uint32_t query, uint32_t row, uint32_t window) {
    return visible(query, row, window) && (p.kind != KVF_ATTEND_ENDS || row < p.a || query - row < p.b);
}

template <typename R, int DIM, int QI>
static __global__ void __launch_bounds__(256) sparse_kernel(const sparse_args x) {
    constexpr uint32_t STRIDE = DIM + 4, QUERIES = 16 * QI;
    extern __shared__ float4 shared4[];
    float *qs = (float *)shared4, *rows = qs + QUERIES * STRIDE, *ps = rows + STEP * STRIDE;
    __shared__ walk w;
    __shared__ part p;
    __shared__ uint32_t row[STEP], n_next;
    const prefill_args &a = x.p;
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16, head_dim = a.view.head_dim, head = blockIdx.x;
    /* late tiles see most: they start first */
    const uint32_t q0 = (gridDim.y - 1 - blockIdx.y) * QUERIES, n = min(QUERIES, a.queries.n - q0), in_chunk = q0 / TILE;
    const uint32_t first = a.queries.position + q0, window = a.queries.window;
    void *const *pages = a.view.pages + (size_t)(head / a.view.readers) * a.view.cap;
    if (threadIdx.x == 0) {
        p = x.parts[head];
        begin_walk(&w, &p, a.queries, in_chunk, a.view.rows[head / a.view.readers]);
    }
    fill_queries(qs, STRIDE, a.queries.q + head * a.queries.head_stride + (size_t)q0 * head_dim, n, QUERIES, head_dim, a.scale);
    query_tile<DIM, QI> tile;
    clear_tile(tile);
    uint32_t pairs = 0;
    for (;;) {
        __syncthreads();
        if (threadIdx.x < 32) {
            const uint32_t next = next_rows(&w, &p, in_chunk, row);
            if (threadIdx.x == 0) n_next = next;
        }
        __syncthreads();
        const uint32_t n_row = n_next;
        if (n_row == 0) break;
        const uint32_t *at = row;
        fill_rows<R>(rows, STRIDE, head_dim, [=](uint32_t r) {
            if (r >= n_row) return (const R *)NULL;
            return (const R *)page_keys<R>(pages[at[r] / KVF_PAGE_ROWS]) + at[r] % KVF_PAGE_ROWS * head_dim;
        });
        __syncthreads();
        float s[QI][2];
        score_tile<QI>(s, qs, rows, STRIDE, head_dim);
#pragma unroll
        for (int i = 0; i < QI; i++) {
            const uint32_t query = first + ty * QI + i;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                if (!sees(p, query, row[tx + 16 * j], window)) s[i][j] = -INFINITY;
                else if (ty * QI + i < n) pairs++;
            }
        }
        weigh_scores(tile, s, ps);
        if (a.out == NULL) continue;
        __syncthreads();
        fill_rows<R>(rows, STRIDE, head_dim, [=](uint32_t r) {
            if (r >= n_row) return (const R *)NULL;
            void *page = pages[at[r] / KVF_PAGE_ROWS];
            return (const R *)page_values<R>(page, head_dim) + at[r] % KVF_PAGE_ROWS * head_dim;
        });
        __syncthreads();
        add_values(tile, ps, rows, n_row);
    }
    store_tile(tile, a, head, q0, n);
    if (x.pairs == NULL) return;
    for (int step = 16; step > 0; step /= 2) pairs += __shfl_xor_sync(0xffffffffu, pairs, step);
    if (threadIdx.x % 32 == 0) atomicAdd(&x.pairs[head], (unsigned long long)pairs);
}

template <typename R, int DIM, int QI>
static cudaError_t launch_sparse(const sparse_args &x, cudaStream_t stream) {
    constexpr size_t bytes = tile_bytes<DIM, QI>();
    const cudaError_t e =
        cudaFuncSetAttribute(sparse_kernel<R, DIM, QI>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    const dim3 grid(x.p.queries.n_head, cu_div_up(x.p.queries.n, 16 * QI));
    sparse_kernel<R, DIM, QI><<<grid, 256, bytes, stream>>>(x);
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_sparse_dim(const sparse_args &x, cudaStream_t stream) {
    if (x.p.view.head_dim <= 64) return launch_sparse<R, 64, 4>(x, stream);
    if (x.p.view.head_dim <= 128) return launch_sparse<R, 128, 4>(x, stream);
    return launch_sparse<R, 256, 2>(x, stream);
}

/* ---- The same on tensor cores ---- */

enum { WARPS = 4 }; /* each takes 16 of a tile's queries */

/* Starts copying 64 rows; what `row` does not name becomes zeros. */
template <typename R, int DIM>
static __device__ __forceinline__ void fetch_rows(uint4 *keys, uint4 *values, void *const *pages, const uint32_t *row) {
    constexpr int COLUMNS = DIM / 8;
#pragma unroll
    for (int k = 0; k < TENSOR_ROWS * COLUMNS / (32 * WARPS); k++) {
        const uint32_t i = threadIdx.x + k * 32 * WARPS, r = i / COLUMNS, c = i % COLUMNS;
        const bool inside = row[r] != KV_NO_TOKEN;
        const uint32_t at = inside ? row[r] : 0;
        const R *from = (const R *)pages[at / KVF_PAGE_ROWS] + at % KVF_PAGE_ROWS * DIM + c * 8;
        copy_async(&keys[place<DIM>(r, c)], from, inside);
        copy_async(&values[place<DIM>(r, c)], from + KVF_PAGE_ROWS * DIM, inside);
    }
}

/* For 16-bit rows and results. The first warp finds the rows of the step after next while the copies of the next one run. */
template <typename R, int DIM>
static __global__ void __launch_bounds__(32 * WARPS) sparse_tensor_kernel(const sparse_args x) {
    constexpr int COLUMNS = DIM / 8;
    extern __shared__ uint4 tiles[];
    uint4 *queries = tiles, *keys = queries + TILE * COLUMNS, *values = keys + 2 * TENSOR_ROWS * COLUMNS;
    __shared__ walk w;
    __shared__ part p;
    __shared__ uint32_t rows[2][TENSOR_ROWS], n_next[2];
    const prefill_args &a = x.p;
    const uint32_t warp = threadIdx.x / 32, head = blockIdx.x, stored = head / a.view.readers, window = a.queries.window;
    /* late tiles see most: they start first */
    const uint32_t in_chunk = gridDim.y - 1 - blockIdx.y, q0 = in_chunk * TILE, n = min(TILE, a.queries.n - q0);
    const uint32_t query0 = a.queries.position + q0 + warp * 16;
    void *const *pages = a.view.pages + (size_t)stored * a.view.cap;
    const auto find = [&](uint32_t stage) {
        if (warp != 0) return;
        uint32_t found = next_rows(&w, &p, in_chunk, rows[stage]);
        found += next_rows(&w, &p, in_chunk, rows[stage] + STEP);
        if (threadIdx.x == 0) n_next[stage] = found;
    };
    if (threadIdx.x == 0) {
        p = x.parts[head];
        begin_walk(&w, &p, a.queries, in_chunk, a.view.rows[stored]);
    }
    place_queries<R, DIM>(queries, a.queries.q + head * a.queries.head_stride + (size_t)q0 * DIM, n, TILE);
    __syncthreads();
    find(0);
    __syncthreads();
    if (n_next[0] > 0) fetch_rows<R, DIM>(keys, values, pages, rows[0]);
    copy_commit();
    find(1);
    tensor_state<DIM, 1> state;
    clear_state(state);
    for (uint32_t stage = 0;; stage ^= 1) {
        copy_wait();
        __syncthreads(); /* this step's rows are there, the next step's are known, and nobody reads the other stage */
        if (n_next[stage] == 0) break;
        if (n_next[stage ^ 1] > 0) {
            fetch_rows<R, DIM>(keys + (stage ^ 1) * TENSOR_ROWS * COLUMNS, values + (stage ^ 1) * TENSOR_ROWS * COLUMNS, pages,
                               rows[stage ^ 1]);
        }
        copy_commit();
        float s[1][TENSOR_TILES][4] = {};
        score_rows<R, DIM, 1>(s, queries, warp * 16, keys + stage * TENSOR_ROWS * COLUMNS);
        const uint32_t *row = rows[stage];
        const part *mine = &p;
        weigh_rows(state, s, a.scale, true, [=](uint32_t query, uint32_t r) { return !sees(*mine, query0 + query, row[r], window); });
        add_rows<R, DIM, 1>(state, s, values + stage * TENSOR_ROWS * COLUMNS);
        __syncthreads(); /* nobody looks at this step's row numbers any more */
        find(stage);
    }
    copy_wait();
    store_state<R, DIM, 1>(state, a, head, q0, warp * 16, n);
}

template <typename R, int DIM>
static cudaError_t launch_tensor(const sparse_args &x, cudaStream_t stream) {
    constexpr size_t bytes = (size_t)(TILE + 4 * TENSOR_ROWS) * DIM * sizeof(R);
    const cudaError_t e = cudaFuncSetAttribute(sparse_tensor_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    sparse_tensor_kernel<R, DIM><<<dim3(x.p.queries.n_head, cu_div_up(x.p.queries.n, TILE)), 32 * WARPS, bytes, stream>>>(x);
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_tensor_dim(const sparse_args &x, cudaStream_t stream) {
    if (x.p.view.head_dim == 32) return launch_tensor<R, 32>(x, stream);
    if (x.p.view.head_dim == 64) return launch_tensor<R, 64>(x, stream);
    return launch_tensor<R, 128>(x, stream);
}

/* True when it is a case for tensor cores: the same ones as of attention over all rows. Pairs are counted elsewhere. */
static bool attend_tensor(uint32_t row_dtype, const sparse_args &x, cudaStream_t stream, cudaError_t *e) {
    const uint32_t dim = x.p.view.head_dim;
    if (x.pairs != NULL) return false;
    if (row_dtype == KVF_F32 || x.p.out == NULL || x.p.out_dtype != row_dtype || (dim != 32 && dim != 64 && dim != 128)) return false;
    *e = row_dtype == KVF_F16 ? launch_tensor_dim<__half>(x, stream) : launch_tensor_dim<__nv_bfloat16>(x, stream);
    return true;
}

int32_t cu_sparse_attend(cu_sparse *x, const cu_queries *queries, void *out, uint32_t out_dtype, uint32_t ldo, float *lse,
                         unsigned long long *pairs, kv_err err) {
    sparse_args a = {};
    cudaError_t e;
    if (x->blocks) CU_PASS(choose_blocks(x, queries, err));
    a.p.view = x->view, a.p.queries = *queries, a.p.out = out, a.p.out_dtype = out_dtype, a.p.ldo = ldo, a.p.lse = lse;
    a.p.scale = LOG2E / sqrtf((float)x->view.head_dim);
    a.parts = x->parts, a.pairs = pairs;
    if (!attend_tensor(x->row_dtype, a, cu_of(x->dev)->stream, &e)) {
        CU_WITH_TYPE(x->row_dtype, R, e = launch_sparse_dim<R>(a, cu_of(x->dev)->stream));
    }
    return cu_check(e, "sparse attention", err);
}

/* A block per head. */
static __global__ void __launch_bounds__(256) kept_kernel(float *kept, const float *part, const float *all, uint32_t n) {
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < n; i += 256) {
        const size_t at = (size_t)blockIdx.x * n + i;
        sum += expf(part[at] - all[at]);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) kept[blockIdx.x] += sum;
}

int32_t cu_sparse_kept(kvf_device *dev, float *kept, const float *part, const float *all, uint32_t n_head, uint32_t n, kv_err err) {
    kept_kernel<<<n_head, 256, 0, cu_of(dev)->stream>>>(kept, part, all, n);
    CU_LAUNCHED("shares of patterns");
    return KVF_OK;
}

/* ---- Lives ---- */

/* Whether a pattern leaves no row out. */
static bool keeps_all(const part *p, uint32_t n_token, uint32_t n_tile) {
    return p->kind == KVF_ATTEND_ALL    ? true
           : p->kind == KVF_ATTEND_ENDS ? p->a >= n_token || p->b >= n_token
           : p->kind == KVF_ATTEND_LINES ? p->n_column >= n_token || p->n_distance >= n_token
                                         : p->a >= n_tile;
}

static int32_t make_blocks(cu_sparse *x, kv_err err) {
    const size_t dim = x->view.head_dim, head_tiles = (size_t)x->n_head * x->cap_tile;
    const size_t fits = (size_t)x->n_head * x->n_tile * sizeof *x->fit;
    x->at_once = fits * x->cap_tile <= FIT_BYTES ? x->cap_tile : (uint32_t)(FIT_BYTES / fits);
    if (x->at_once == 0) x->at_once = 1;
    CU_PASS(cu_alloc(x->dev, (void **)&x->mean_k, (size_t)x->n_stored * x->n_tile * dim * sizeof(float), "means of keys", err));
    CU_PASS(cu_alloc(x->dev, (void **)&x->mean_q, head_tiles * dim * sizeof(float), "means of queries", err));
    CU_PASS(cu_alloc(x->dev, (void **)&x->block, head_tiles * x->most_block * sizeof *x->block, "chosen blocks", err));
    CU_PASS(cu_alloc(x->dev, (void **)&x->fit, x->at_once * fits, "fits of blocks", err));
    for (uint32_t h = 0; h < x->n_head; h++) x->host[h].block = x->block + (size_t)h * x->cap_tile * x->most_block;
    CU_WITH_TYPE(x->row_dtype, R,
                 (mean_keys_kernel<R><<<dim3(x->n_tile, x->n_stored), 128, 0, cu_of(x->dev)->stream>>>(x->mean_k, x->view,
                                                                                                  x->n_token)));
    CU_LAUNCHED("means of keys");
    return KVF_OK;
}

static int32_t find_parts(cu_sparse *x, const cu_queries *last, kv_err err) {
    const size_t bytes = x->n_head * sizeof *x->parts;
    if (x->lines) CU_PASS(make_lines(x, err));
    if (x->blocks) CU_PASS(make_blocks(x, err));
    CU_PASS(cu_alloc(x->dev, (void **)&x->parts, bytes, "the patterns of a sparse prefill", err));
    CU_PASS(be_upload(x->dev, x->parts, x->host, bytes, err));
    return x->lines ? find_lines(x, last, err) : KVF_OK;
}

int32_t cu_sparse_open(kvf_cache *cache, const cu_view *view, const uint32_t *patterns, const cu_queries *last, uint32_t n_token,
                       uint32_t chunk, cu_sparse **out, kv_err err) {
    const uint32_t n_head = cache->config.n_head;
    *out = NULL;
    cu_sparse *x = (cu_sparse *)calloc(1, sizeof *x);
    if (x != NULL) x->host = (part *)calloc(n_head, sizeof *x->host);
    if (x == NULL || x->host == NULL) {
        free(x);
        return kv_fail(err, KVF_ERR_MEMORY, "Cannot attend sparsely as memory ran out");
    }
    x->dev = cache->dev, x->n_head = n_head, x->n_token = n_token, x->n_tile = cu_div_up(n_token, TILE);
    x->window = last->window, x->row_dtype = cache->config.row_dtype, x->view = *view, x->n_stored = n_head / view->readers;
    x->cap_tile = cu_div_up(chunk < n_token ? chunk : n_token, TILE);
    const uint32_t most = n_token / TILE + 1 < MOST_BLOCKS ? n_token / TILE + 1 : MOST_BLOCKS;
    bool all = true;
    for (uint32_t h = 0; h < n_head; h++) {
        part *p = &x->host[h];
        p->kind = patterns[3 * h], p->a = patterns[3 * h + 1], p->b = patterns[3 * h + 2];
        if (p->kind == KVF_ATTEND_LINES) p->n_column = p->a < n_token ? p->a : n_token, p->n_distance = p->b < n_token ? p->b : n_token;
        if (p->kind == KVF_ATTEND_BLOCKS && p->a > most) p->a = most;
        if (p->kind == KVF_ATTEND_BLOCKS && p->a > x->most_block) x->most_block = p->a;
        x->lines |= p->kind == KVF_ATTEND_LINES;
        x->blocks |= p->kind == KVF_ATTEND_BLOCKS;
        all &= keeps_all(p, n_token, x->n_tile);
    }
    const int32_t status = all ? KVF_OK : find_parts(x, last, err);
    if (status == KVF_OK && !all) *out = x;
    else cu_sparse_close(x);
    return status;
}

void cu_sparse_close(cu_sparse *x) {
    if (x == NULL) return;
    be_free(x->dev, x->parts);
    be_free(x->dev, x->lists);
    be_free(x->dev, x->block);
    be_free(x->dev, x->mean_k);
    be_free(x->dev, x->mean_q);
    be_free(x->dev, x->fit);
    free(x->host);
    free(x);
}
