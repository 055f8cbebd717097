/*
 * Attention of one step over 16-bit rows. A warp takes a page at a time and its loads go straight from memory into the
 * operands of the tensor cores: rows of keys are the m side, query heads the n side. A query is split into two 16-bit
 * numbers that add up to it, in neighbouring columns, so it loses nothing by the rounding and the two scores of a row lie
 * in one thread. Values are added by plain arithmetic: a thread owns eight columns and every head. The keys of the next
 * page are on their way while a page's values are added.
 */
#include "attention_tile.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS };

/* TILES: groups of four readers. WATCHED: step programs choose pages, or want to know the scores; results are the same. */
template <typename R, int DIM, int TILES, bool WATCHED>
static __global__ void __launch_bounds__(THREADS, 1) tile_kernel(const step_args a) {
    constexpr int READERS = 4 * TILES, STEPS = DIM / 32, LANES = DIM / 8, PER = 32 / LANES;
    constexpr int PART = LANES < 16 ? LANES : 16;   /* loads of values in flight */
    constexpr bool AHEAD = DIM <= 128;              /* room for the next page's keys */
    extern __shared__ float4 shared4[];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    float *weight = (float *)shared4 + warp * 32 * READERS;          /* [32, READERS] */
    float *sums = (float *)shared4 + WARPS * 32 * READERS;           /* [WARPS, READERS, DIM] */
    float *stat = sums + WARPS * READERS * DIM;                      /* [WARPS, READERS, 2] */
    wait_previous();
    allow_next();
    const cu_slot *s = &a.slot[blockIdx.z];
    const uint32_t stored = blockIdx.y;
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)a.layer * s->n_stored + stored;
    if (s->packing[table].kernel != CU_ATTEND_PLAIN) return;
    const uint32_t n_row = s->rows[table] + 1, readers = a.n_head / s->n_stored;
    watched w = {};
    if (WATCHED) w = watch(a, s, stored, table, n_row);
    const uint32_t n_page = WATCHED ? w.n_page : (n_row - 1) / KVF_PAGE_ROWS + 1;
    const uint32_t per_chunk = chunk_rows(n_page * KVF_PAGE_ROWS) / KVF_PAGE_ROWS, n_chunk = (n_page - 1) / per_chunk + 1;
    if (blockIdx.x >= n_chunk) return;
    void *const *pages = s->pages + table * s->cap;
    const float *q = a.q + ((size_t)blockIdx.z * a.n_head + stored * readers) * DIM;

    walk next = {blockIdx.x, blockIdx.x * per_chunk + warp};
    settle(&next, n_chunk, n_page, per_chunk, warp);
    const R *next_keys;
    uint2 next_entry; /* WATCHED: index of the page, and its rows */
    const auto look_ahead = [&] {
        next_keys = NULL;
        if (next.chunk >= n_chunk) return;
        if (WATCHED) next_entry = watched_page(w, next.page, n_row);
        next_keys = (const R *)pages[WATCHED ? next_entry.x : next.page];
    };
    look_ahead();
    uint4 low[2][STEPS], high[2][STEPS];
    const auto load_keys = [&] {
#pragma unroll
        for (int m = 0; m < 2; m++) {
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                const R *at = next_keys + (m * 16 + g) * DIM + i * 32 + t * 8;
                if (WATCHED) low[m][i] = high[m][i] = make_uint4(0, 0, 0, 0); /* rows that were not chosen cost nothing */
                if (!WATCHED || next_entry.y >> (m * 16 + g) & 1) low[m][i] = load_rows(at);
                if (!WATCHED || next_entry.y >> (m * 16 + g + 8) & 1) high[m][i] = load_rows(at + 8 * DIM);
            }
        }
    };
    if (next_keys != NULL) load_keys();

    uint4 query[TILES][STEPS];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        const uint32_t reader = j * 4 + g / 2;
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            query[j][i] = make_uint4(0, 0, 0, 0);
            if (reader < readers) query[j][i] = query_part<R>(q + reader * DIM + i * 32 + t * 8, g % 2);
        }
    }

    for (uint32_t chunk = blockIdx.x; chunk < n_chunk; chunk += gridDim.x) {
        float acc[READERS][8] = {}, max[TILES], sum[TILES];
#pragma unroll
        for (int j = 0; j < TILES; j++) max[j] = -INFINITY, sum[j] = 0;
        while (next.chunk == chunk) {
            const R *page = next_keys;
            const uint32_t in_page = WATCHED ? 0 : min((uint32_t)KVF_PAGE_ROWS, n_row - next.page * KVF_PAGE_ROWS);
            const uint2 entry = next_entry;
            const auto there = [=](uint32_t row) { return WATCHED ? (entry.y >> row & 1) != 0 : row < in_page; };
            const R *values = page + KVF_PAGE_ROWS * DIM;
            next.page += WARPS;
            settle(&next, n_chunk, n_page, per_chunk, warp);
            look_ahead();

            uint4 value[PART];
            const auto load_values = [&](uint32_t first) {
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    const uint32_t row = (first + i) * PER + lane / LANES;
                    value[i] = make_uint4(0, 0, 0, 0); /* what lies beyond the rows may be anything */
                    if (there(row)) value[i] = load_rows(values + row * DIM + lane % LANES * 8);
                }
            };
            if (AHEAD) load_values(0);
            float c[2][TILES][4] = {};
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const uint32_t first[4] = {low[m][i].x, high[m][i].x, low[m][i].y, high[m][i].y};
                    const uint32_t second[4] = {low[m][i].z, high[m][i].z, low[m][i].w, high[m][i].w};
#pragma unroll
                    for (int j = 0; j < TILES; j++) {
                        mma_16x8x16(c[m][j], first, query[j][i].x, query[j][i].y, R());
                        mma_16x8x16(c[m][j], second, query[j][i].z, query[j][i].w, R());
                    }
                }
            }
            if (AHEAD && next_keys != NULL) load_keys();

            float shrink[TILES];
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                float x[4], most = -INFINITY, total = 0;
#pragma unroll
                for (int k = 0; k < 4; k++) { /* row g + 8 * k, reader 4 * j + t */
                    const uint32_t row = g + 8 * k;
                    bool seen = there(row);
                    if (seen && a.window != 0) {
                        seen = s->position - page_positions<R>((void *)page, DIM)[row] < a.window;
                    }
                    x[k] = seen ? (c[k / 2][j][k % 2 * 2] + c[k / 2][j][k % 2 * 2 + 1]) * a.scale : -INFINITY;
                    if (WATCHED && w.line != NULL && there(row) && 4 * j + t < readers) {
                        const uint32_t position = w.moves > 0 ? page_positions<R>((void *)page, DIM)[row] : 0;
                        x[k] = noted(w, 4 * j + t, entry.x * KVF_PAGE_ROWS + row, position, x[k]);
                    }
                    most = fmaxf(most, x[k]);
                }
#pragma unroll
                for (int step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
                most = fmaxf(most, max[j]);
                const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    x[k] = exp2f(x[k] - base);
                    total += x[k];
                    weight[(g + 8 * k) * READERS + 4 * j + t] = x[k];
                }
#pragma unroll
                for (int step = 4; step < 32; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
                shrink[j] = exp2f(max[j] - base);
                sum[j] = fmaf(sum[j], shrink[j], total);
                max[j] = most;
            }
#pragma unroll
            for (int r = 0; r < READERS; r++) {
                const float factor = __shfl_sync(0xffffffffu, shrink[r / 4], r % 4);
#pragma unroll
                for (int k = 0; k < 8; k++) acc[r][k] *= factor;
            }
            __syncwarp();
#pragma unroll
            for (int first = 0; first < LANES; first += PART) {
                if (!AHEAD || first > 0) load_values(first);
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    const uint32_t row = (first + i) * PER + lane / LANES;
                    float v[8];
                    unpack8(value[i], v, R());
#pragma unroll
                    for (int j = 0; j < TILES; j++) {
                        const float4 p = *(const float4 *)&weight[row * READERS + 4 * j];
                        const float four[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
                        for (int r = 0; r < 4; r++) {
#pragma unroll
                            for (int k = 0; k < 8; k++) acc[4 * j + r][k] = fmaf(four[r], v[k], acc[4 * j + r][k]);
                        }
                    }
                }
            }
            __syncwarp();
            if (!AHEAD && next_keys != NULL) load_keys();
        }
        /* The warps' shares of the chunk, in order. */
#pragma unroll
        for (int r = 0; r < READERS; r++) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
#pragma unroll
                for (int step = LANES; step < 32; step *= 2) acc[r][k] += __shfl_xor_sync(0xffffffffu, acc[r][k], step);
            }
            if (lane < LANES) {
                float4 *to = (float4 *)&sums[(warp * READERS + r) * DIM + lane * 8];
                to[0] = make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
                to[1] = make_float4(acc[r][4], acc[r][5], acc[r][6], acc[r][7]);
            }
        }
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (g != 0) continue;
            stat[(warp * READERS + 4 * j + t) * 2] = max[j];
            stat[(warp * READERS + 4 * j + t) * 2 + 1] = sum[j];
        }
        __syncthreads();
        store_chunk<READERS, DIM, WARPS>(a, stored, readers, chunk, sums, stat);
        __syncthreads();
    }
    finish_head(a, stored, readers, n_chunk, min(gridDim.x, n_chunk), (float *)shared4);
}

template <typename R, int DIM, int TILES, bool WATCHED>
static cudaError_t launch_kernel(const cu_device *d, const step_args &a, dim3 grid) {
    constexpr size_t bytes = (size_t)WARPS * 4 * TILES * (32 + DIM + 2) * sizeof(float);
    static_assert(bytes >= 4 * TILES * CU_ATTENTION_CHUNKS * sizeof(float), "the last block's weights fit");
    const cudaError_t e = cudaFuncSetAttribute(tile_kernel<R, DIM, TILES, WATCHED>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)bytes);
    return e != cudaSuccess ? e : cu_launch_next(d, tile_kernel<R, DIM, TILES, WATCHED>, grid, dim3(THREADS), bytes, a);
}

template <typename R, int DIM, int TILES>
static cudaError_t launch(const cu_device *d, const step_args &a, dim3 grid) {
    return a.work.acts & CU_WATCHES ? launch_kernel<R, DIM, TILES, true>(d, a, grid) : launch_kernel<R, DIM, TILES, false>(d, a, grid);
}

template <typename R, int DIM>
static cudaError_t launch_tiles(const cu_device *d, uint32_t readers, const step_args &a, dim3 grid) {
    return readers <= 4 ? launch<R, DIM, 1>(d, a, grid) : launch<R, DIM, 2>(d, a, grid);
}

template <typename R>
static cudaError_t launch_dim(const cu_device *d, uint32_t readers, const step_args &a, dim3 grid) {
    if (a.head_dim == 32) return launch_tiles<R, 32>(d, readers, a, grid);
    if (a.head_dim == 64) return launch_tiles<R, 64>(d, readers, a, grid);
    if (a.head_dim == 128) return launch_tiles<R, 128>(d, readers, a, grid);
    return launch_tiles<R, 256>(d, readers, a, grid);
}

bool cu_attention_tile(const cu_device *d, uint32_t row_dtype, uint32_t readers, const step_args &a, dim3 grid,
                       cudaError_t *status) {
    const uint32_t dim = a.head_dim;
    if (row_dtype == KVF_F32 || readers > 8 || (dim != 32 && dim != 64 && dim != 128 && dim != 256)) return false;
    *status = row_dtype == KVF_F16 ? launch_dim<__half>(d, readers, a, grid) : launch_dim<__nv_bfloat16>(d, readers, a, grid);
    return true;
}
