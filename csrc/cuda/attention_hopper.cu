/*
 * Attention of a prefill on compute capability 9.0, for 16-bit rows and results, heads of 64 or 128 columns and rows that
 * are all there. A block has three warpgroups: one brings keys and values, 128 rows at a time, into rings in shared memory;
 * two own 64 queries each and run the products on the tensor cores, with the scores of a tile under way while the values
 * of the tile before it are added. The two take turns, so that one's exponentials run beside the other's products. Blocks
 * stay and walk a list of (128 queries, head). The order of a query's sums is that of its rows, whatever else is in the
 * launch. Queries must be rounded to the rows' type already.
 */
#include "attention_prefill.cuh"
#include "ptx_hopper.cuh"

enum {
    GROUP = 128, /* threads of a warpgroup */
    CONSUMERS = 2,
    THREADS = GROUP * (1 + CONSUMERS),
    GROUP_QUERIES = 64,
    QUERIES = GROUP_QUERIES * CONSUMERS,
    ROWS = 128, /* of a tile */
    TILE_PAGES = ROWS / KVF_PAGE_ROWS,
    STAGES = 2,
    PANEL_ROW = 128, /* bytes */
    /* 128 * 40 + 256 * 232 is what 384 threads of 168 registers start with */
    PRODUCER_REGISTERS = 40,
    CONSUMER_REGISTERS = 232,
    /* named barriers */
    TURN_BARRIER = 1,                      /* and the next: consumer's turn */
    GROUP_BARRIER = TURN_BARRIER + CONSUMERS /* and the next: within a consumer */
};

/* Keys or values of the tiles in flight. */
typedef struct ring {
    uint64_t full[STAGES];
    uint64_t free[STAGES];
} ring;

template <int DIM>
static __host__ __device__ constexpr uint32_t tile_bytes(uint32_t rows) {
    return rows * DIM * 2;
}
template <int DIM>
static constexpr size_t shared_bytes(void) {
    return 1024 /* to align the rest */ + tile_bytes<DIM>(QUERIES) + 2 * STAGES * tile_bytes<DIM>(ROWS) + 2 * sizeof(ring);
}

/* Byte of 16-byte column c of a row, in panels of `rows` rows. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t place(uint32_t rows, uint32_t row, uint32_t c) {
    return c / 8 * rows * PANEL_ROW + row * PANEL_ROW + (c % 8 ^ row % 8) * 16;
}

/* 128 queries of one head, and the tiles that they see. */
typedef struct work {
    void *const *pages;
    uint32_t head;
    uint32_t q0;
    uint32_t n;     /* queries */
    uint32_t first; /* position of the first */
    uint32_t tile;
    uint32_t n_tile;
} work;

[[maybe_unused]] static __device__ __forceinline__ work work_of(const prefill_args &a, uint32_t item) {
    work w;
    const uint32_t n_block = (a.queries.n + QUERIES - 1) / QUERIES, window = a.queries.window;
    /* late queries see most: they come first; heads that share rows lie side by side */
    w.head = item % a.queries.n_head;
    w.q0 = (n_block - 1 - item / a.queries.n_head) * QUERIES;
    w.n = min((uint32_t)QUERIES, a.queries.n - w.q0);
    w.first = a.queries.position + w.q0;
    w.pages = a.view.pages + (size_t)(w.head / a.view.readers) * a.view.cap;
    w.tile = window != 0 && w.first >= window ? (w.first - window + 1) / ROWS : 0;
    w.n_tile = (w.first + w.n + ROWS - 1) / ROWS;
    return w;
}

/* The block's item in a round; rounds go forth and back, as the list descends. May be beyond the list. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t item_of(uint32_t round) {
    return round * gridDim.x + (round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

/* Half of the group brings keys (skip 0), half of it values (skip: bytes of a page's keys); rows beyond n_row are zeros. */
template <int DIM>
static __device__ __forceinline__ void produce(const prefill_args &a, uint32_t n_item, char *tiles, uint32_t skip, ring *ring) {
    constexpr uint32_t COLUMNS = DIM / 8, STEP = GROUP / 2 / COLUMNS; /* rows copied at once, a divisor of 8 */
    const uint32_t thread = threadIdx.x % (GROUP / 2), c = thread % COLUMNS, r0 = thread / COLUMNS;
    const uint32_t n_row = a.queries.position + a.queries.n;
    const uint32_t even = place(ROWS, r0, c), odd = place(ROWS, r0 + STEP, c); /* the pattern repeats after eight rows */
    uint32_t turn = 0; /* tiles so far */
    skip += r0 * DIM * 2 + c * 16;
    for (uint32_t round = 0; round * gridDim.x < n_item; round++) {
        const uint32_t item = item_of(round);
        if (item >= n_item) continue;
        const work w = work_of(a, item);
        const char *page[TILE_PAGES];
        const auto find = [&](uint32_t tile) {
#pragma unroll
            for (uint32_t p = 0; p < TILE_PAGES; p++) {
                const uint32_t row = tile * ROWS + p * KVF_PAGE_ROWS;
                page[p] = (const char *)w.pages[row < n_row ? row / KVF_PAGE_ROWS : 0] + skip;
            }
        };
        find(w.tile);
        for (uint32_t tile = w.tile; tile < w.n_tile; tile++, turn++) {
            const uint32_t stage = turn % STAGES;
            const int left = (int)(n_row - tile * ROWS - r0);
            barrier_wait(&ring->free[stage], turn / STAGES % 2 ^ 1);
            char *to = tiles + stage * tile_bytes<DIM>(ROWS);
#pragma unroll
            for (int r = 0; r < ROWS; r += STEP) {
                copy_async((uint4 *)(to + (r % 8 == 0 ? even : odd) + r / 8 * 8 * PANEL_ROW),
                           page[r / KVF_PAGE_ROWS] + r % KVF_PAGE_ROWS * DIM * 2, r < left);
            }
            copy_commit();
            if (tile + 1 < w.n_tile) find(tile + 1); /* while the rows are on their way */
            copy_wait();
            fence_products();
            barrier_arrive(&ring->full[stage]);
        }
    }
}

/* Softmax of a thread's two rows of scores, as mma_16x8x16 deals them. */
typedef struct softmax {
    float max[2];
    float sum[2]; /* of this thread's columns; added up at the end */
    float shrink[2];
} softmax;

/* Scores of the 128 rows from row0 that the group's queries may not see become -infinity; low: the group's first query. */
[[maybe_unused]] static __device__ __forceinline__ void mask(float s[ROWS / 2], uint32_t row0, uint32_t low, uint32_t warp,
                                                             uint32_t window) {
    if (row0 + ROWS - 1 <= low && (window == 0 || low + GROUP_QUERIES - 1 < row0 + window)) return;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int query = (int)(low - row0 + warp * 16) + h * 8 + g - 2 * t; /* counted from this thread's first row */
        const int oldest = window == 0 ? INT32_MIN : query - (int)window;
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int row = 8 * j + e;
                if (row > query || row <= oldest) s[4 * j + 2 * h + e] = -INFINITY;
            }
        }
    }
}

/* Scores become probabilities relative to the greatest score so far. */
[[maybe_unused]] static __device__ __forceinline__ void soften(float s[ROWS / 2], softmax *x, float scale) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = -INFINITY, total = 0;
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++) most = fmaxf(most, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        most = fmaxf(most * scale, x->max[h]);
        const float base = most == -INFINITY ? 0.0f : most;
        x->shrink[h] = exp2_fast(x->max[h] - base);
        x->max[h] = most;
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *p = &s[4 * j + 2 * h + e];
                *p = exp2_fast(fmaf(*p, scale, -base));
                total += *p;
            }
        }
        x->sum[h] = x->sum[h] * x->shrink[h] + total;
    }
}

/* Probabilities as the first operand of the product with values: step k of 16 rows is p[4 k] to p[4 k + 3]. */
template <typename R>
static __device__ __forceinline__ void operands(uint32_t p[ROWS / 4], const float s[ROWS / 2]) {
#pragma unroll
    for (int i = 0; i < ROWS / 4; i++) p[i] = pack_pair(s[2 * i], s[2 * i + 1], R());
}

template <typename R, int DIM>
static __device__ __forceinline__ void start_scores(float s[ROWS / 2], uint64_t queries, uint64_t keys) {
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        product_scores(s, queries + k / 4 * (GROUP_QUERIES * PANEL_ROW / 16) + k % 4 * 2,
                       keys + k / 4 * (ROWS * PANEL_ROW / 16) + k % 4 * 2, k > 0, R());
    }
    product_commit();
}

template <typename R, int DIM>
static __device__ __forceinline__ void start_values(float out[DIM / 2], const uint32_t p[ROWS / 4], uint64_t values) {
#pragma unroll
    for (int k = 0; k < ROWS / 16; k++) product_values<DIM>(out, p + 4 * k, values + k * 128, R());
    product_commit();
}

template <typename R, int DIM>
static __device__ __forceinline__ void consume(const prefill_args &a, uint32_t n_item, char *queries, const char *keys,
                                               const char *values, ring *key_ring, ring *value_ring) {
    constexpr uint32_t COLUMNS = DIM / 8;
    const uint32_t consumer = threadIdx.x / GROUP - 1, thread = threadIdx.x % GROUP, lane = thread % 32, warp = thread / 32;
    const uint32_t g = lane / 4, t = lane % 4;
    queries += consumer * tile_bytes<DIM>(GROUP_QUERIES);
    const uint64_t query_matrix = product_matrix(queries, 0), key_matrix = product_matrix(keys, 0);
    const uint64_t value_matrix = product_matrix(values, ROWS * PANEL_ROW);
    uint32_t turn = 0;
    if (consumer == 1) named_arrive(TURN_BARRIER, CONSUMERS * GROUP); /* the other one begins */
    for (uint32_t round = 0; round * gridDim.x < n_item; round++) {
        const uint32_t item = item_of(round);
        if (item >= n_item) continue;
        const work w = work_of(a, item);
        const uint32_t q0 = consumer * GROUP_QUERIES, n = w.n > q0 ? min((uint32_t)GROUP_QUERIES, w.n - q0) : 0;
        const float *from = a.queries.q + w.head * a.queries.head_stride + (size_t)w.q0 * DIM;
        float s[ROWS / 2], out[DIM / 2] = {};
        float raw[COLUMNS / 2][8]; /* all loads first: they wait together */
#pragma unroll
        for (uint32_t i = 0; i < COLUMNS / 2; i++) {
            const uint32_t r = (thread + i * GROUP) / COLUMNS, c = thread % COLUMNS;
            load8(from + min(q0 + r, w.n - 1) * DIM + c * 8, raw[i]); /* results of queries beyond the last are not stored */
        }
#pragma unroll
        for (uint32_t i = 0; i < COLUMNS / 2; i++) {
            const uint32_t r = (thread + i * GROUP) / COLUMNS, c = thread % COLUMNS;
            const float *x = raw[i];
            *(uint4 *)(queries + place(GROUP_QUERIES, r, c)) =
                make_uint4(pack_pair(x[0], x[1], R()), pack_pair(x[2], x[3], R()), pack_pair(x[4], x[5], R()),
                           pack_pair(x[6], x[7], R()));
        }
        fence_products();
        named_wait(GROUP_BARRIER + consumer, GROUP);

        uint32_t p[ROWS / 4];
        softmax x = {{-INFINITY, -INFINITY}, {0, 0}, {0, 0}};
        /* The first tile has no values to add yet. */
        uint32_t stage = turn % STAGES, parity = turn / STAGES % 2;
        barrier_wait(&key_ring->full[stage], parity);
        named_wait(TURN_BARRIER + consumer, CONSUMERS * GROUP);
        product_touched<ROWS / 2>(s);
        product_fence();
        start_scores<R, DIM>(s, query_matrix, key_matrix + stage * (tile_bytes<DIM>(ROWS) / 16));
        named_arrive(TURN_BARRIER + 1 - consumer, CONSUMERS * GROUP);
        product_wait<0>();
        product_touched<ROWS / 2>(s);
        if (lane == 0) barrier_arrive(&key_ring->free[stage]);
        mask(s, w.tile * ROWS, w.first + q0, warp, a.queries.window);
        soften(s, &x, a.scale);
        operands<R>(p, s);
        turn++;
        for (uint32_t tile = w.tile + 1; tile < w.n_tile; tile++, turn++) {
            const uint32_t before = stage, before_parity = parity;
            stage = turn % STAGES, parity = turn / STAGES % 2;
            barrier_wait(&key_ring->full[stage], parity);
            barrier_wait(&value_ring->full[before], before_parity);
            named_wait(TURN_BARRIER + consumer, CONSUMERS * GROUP);
            product_touched<ROWS / 2>(s);
            product_touched<DIM / 2>(out);
            product_fence();
            start_scores<R, DIM>(s, query_matrix, key_matrix + stage * (tile_bytes<DIM>(ROWS) / 16));
            start_values<R, DIM>(out, p, value_matrix + before * (tile_bytes<DIM>(ROWS) / 16));
            named_arrive(TURN_BARRIER + 1 - consumer, CONSUMERS * GROUP);
            product_wait<1>();
            product_touched<ROWS / 2>(s);
            if (lane == 0) barrier_arrive(&key_ring->free[stage]);
            mask(s, tile * ROWS, w.first + q0, warp, a.queries.window);
            soften(s, &x, a.scale);
            product_wait<0>();
            product_touched<DIM / 2>(out);
            if (lane == 0) barrier_arrive(&value_ring->free[before]);
#pragma unroll
            for (int i = 0; i < DIM / 2; i++) out[i] *= x.shrink[i / 2 % 2];
            operands<R>(p, s);
        }
        barrier_wait(&value_ring->full[stage], parity);
        product_touched<DIM / 2>(out);
        product_fence();
        start_values<R, DIM>(out, p, value_matrix + stage * (tile_bytes<DIM>(ROWS) / 16));
        product_wait<0>();
        product_touched<DIM / 2>(out);
        if (lane == 0) barrier_arrive(&value_ring->free[stage]);

        /* The queries' place takes the results, so that whole rows are written. */
        named_wait(GROUP_BARRIER + consumer, GROUP);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = x.sum[h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const uint32_t row = warp * 16 + h * 8 + g;
            const float inverse = total > 0 ? 1.0f / total : 0.0f;
#pragma unroll
            for (uint32_t c = 0; c < COLUMNS; c++) {
                ((uint32_t *)(queries + place(GROUP_QUERIES, row, c)))[t] =
                    pack_pair(out[4 * c + 2 * h] * inverse, out[4 * c + 2 * h + 1] * inverse, R());
            }
            if (a.lse != NULL && t == 0 && row < n) {
                a.lse[(size_t)w.head * a.queries.n + w.q0 + q0 + row] =
                    total > 0 ? x.max[h] / LOG2E + logf(total) : -INFINITY;
            }
        }
        named_wait(GROUP_BARRIER + consumer, GROUP);
        for (uint32_t i = thread; i < n * COLUMNS; i += GROUP) {
            const uint32_t r = i / COLUMNS, c = i % COLUMNS;
            *(uint4 *)((R *)a.out + (size_t)(w.q0 + q0 + r) * a.ldo + w.head * DIM + c * 8) =
                *(const uint4 *)(queries + place(GROUP_QUERIES, r, c));
        }
        named_wait(GROUP_BARRIER + consumer, GROUP);
    }
    if (consumer == 0) named_wait(TURN_BARRIER, CONSUMERS * GROUP); /* the last turn, which nobody takes */
}

template <typename R, int DIM>
static __global__ void __launch_bounds__(THREADS, 1) hopper_kernel(const prefill_args a, uint32_t n_item) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint4 shared4[];
    char *queries = (char *)(((uintptr_t)shared4 + 1023) / 1024 * 1024);
    char *keys = queries + tile_bytes<DIM>(QUERIES), *values = keys + STAGES * tile_bytes<DIM>(ROWS);
    ring *rings = (ring *)(values + STAGES * tile_bytes<DIM>(ROWS)); /* of keys and of values */
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) {
            barrier_init(&rings[i / STAGES].full[i % STAGES], GROUP / 2);
            barrier_init(&rings[i / STAGES].free[i % STAGES], CONSUMERS * GROUP / 32);
        }
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        registers_give<PRODUCER_REGISTERS>();
        const bool second = threadIdx.x >= GROUP / 2;
        produce<DIM>(a, n_item, second ? values : keys, second ? KVF_PAGE_ROWS * DIM * 2 : 0, &rings[second]);
    } else {
        registers_take<CONSUMER_REGISTERS>();
        consume<R, DIM>(a, n_item, queries, keys, values, &rings[0], &rings[1]);
    }
#else
    (void)a, (void)n_item;
    __trap(); /* code of another target was chosen, which has no products: results must not pass for zeros */
#endif
}

template <typename R, int DIM>
static cudaError_t launch(const prefill_args &a, const cu_device *d) {
    constexpr size_t bytes = shared_bytes<DIM>();
    const cudaError_t e = cudaFuncSetAttribute(hopper_kernel<R, DIM>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess) return e;
    const uint32_t n_item = cu_div_up(a.queries.n, QUERIES) * a.queries.n_head;
    hopper_kernel<R, DIM><<<n_item < d->n_sm ? n_item : d->n_sm, THREADS, bytes, d->stream>>>(a, n_item);
    return cudaGetLastError();
}

template <typename R>
static cudaError_t launch_dim(const prefill_args &a, const cu_device *d) {
    return a.view.head_dim == 64 ? launch<R, 64>(a, d) : launch<R, 128>(a, d);
}

bool cu_attention_hopper(const cu_device *d, uint32_t row_dtype, const prefill_args &a, cudaError_t *status) {
    const uint32_t dim = a.view.head_dim;
    if (!d->warpgroups || !a.queries.whole || row_dtype == KVF_F32 || (dim != 64 && dim != 128)) return false;
    /* results are written 16 bytes at a time */
    if (a.out == NULL || a.out_dtype != row_dtype || a.ldo % 8 != 0 || (uintptr_t)a.out % 16 != 0) return false;
    *status = row_dtype == KVF_F16 ? launch_dim<__half>(a, d) : launch_dim<__nv_bfloat16>(a, d);
    return true;
}
