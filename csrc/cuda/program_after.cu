/*
 * Step programs after a layer's attention: masses and eviction. A block works on one stored head of one slot at a time. It
 * runs beside products that take as long as many heads do, so blocks are small, and there is one a multiprocessor: they
 * must leave the products their room. Which rows go is decided by (statistic, position), never by where a row lies; a row
 * that goes is replaced by one of the last rows.
 */
#include "program.cuh"
#include "select.cuh"

enum { THREADS = 128, WARPS = THREADS / 32 };

/* ---- Draws: the arithmetic of the CPU build's portable level, operation by operation ---- */

static __device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
static __device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }

/* log(x) to about 1e-7 relative, for positive normal x. */
static __device__ float log_of(float x) {
    const uint32_t above = __float_as_uint(x) - 0x3f3504f3u; /* sqrt(1/2): the mantissa lies between it and sqrt(2) */
    const float e = (float)((int32_t)above >> 23);
    const float m = plus(__uint_as_float((above & 0x007fffffu) + 0x3f3504f3u), -1.0f);
    const float factor[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                            -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
    float p = 7.0376836292e-2f;
#pragma unroll
    for (int i = 0; i < 8; i++) p = plus(times(p, m), factor[i]);
    const float square = times(m, m);
    float y = plus(times(times(m, square), p), times(e, -2.12194440e-4f));
    y = plus(y, -times(square, 0.5f));
    return plus(plus(m, y), times(e, 0.693359375f));
}

/* kv_draw_bits' draw. */
static __device__ float draw_of(uint32_t position, const uint32_t keys[2]) {
    /* bits + 0.5 needs 25 bits, so that the highest ones round to 1 */
    const float u = times(plus((float)kv_draw_bits(position, keys), 0.5f), 0x1p-24f);
    return -log_of(-log_of(fminf(u, 1.0f - 0x1p-24f)));
}

/* ---- One head ---- */

typedef struct after_args {
    cu_slot *slot;
    cu_program_work work; /* of the first layer */
    uint32_t layer, n_layer, n_head, head_dim, dtype;
    size_t line_step, norm_step; /* from one layer's to the next one's */
} after_args;

typedef struct head_job {
    head_rows rows;
    const cu_program *p;
    const float *score; /* of the head's first reader, ld apart */
    const float2 *norm; /* [readers] */
    uint32_t readers, seen, ld;
    float *line;     /* of the stored head: kept queries' statistic, then keys of the rows */
    uint32_t *moves; /* room for n_row entries */
    float inverse;   /* of the draw's temperature, 0: nothing but the draw decides */
    uint32_t keys[2];
} head_job;

/* What speaks for evicting a row whose reduced statistic is x, as a number that orders alike. */
static __device__ __forceinline__ uint32_t weigh(const head_job &j, uint32_t position, float x) {
    const kvf_op *op = &j.p->evict;
    if (position < op->first || position + op->last >= j.seen) return order_key(-INFINITY);
    x = op->statistic == KVF_STAT_POSITION ? -(float)position : x == x ? -x : INFINITY;
    if (op->draw) x = j.inverse > 0 ? plus(times(x, j.inverse), -draw_of(position, j.keys)) : -draw_of(position, j.keys);
    return order_key(x);
}

/*
 * One pass over the rows, four that lie together at a time: what attention gave to each is added to its masses, and with
 * `weighs` use(row, key, position) is told what speaks for its eviction.
 */
template <typename Use>
static __device__ __forceinline__ void go_through(const head_job &j, bool weighs, Use use) {
    enum { TILE = 4 /* readers whose loads are in flight together */ };
    const kvf_op op = j.p->evict;
    const bool has_mass = j.p->has_mass;
    const float decay = j.p->decay;
    const uint32_t n_row = j.rows.n_row;
    for (uint32_t row = 4 * threadIdx.x; row < n_row; row += 4 * THREADS) {
        uint32_t position[4] = {};
        float x[4] = {};
        if (weighs) {
            const uint32_t *at = positions_at(j.rows, row / KVF_PAGE_ROWS) + row % KVF_PAGE_ROWS;
#pragma unroll
            for (int k = 0; k < 4; k++) position[k] = at[k]; /* beyond the rows: anything */
        }
        if (weighs && op.statistic >= KVF_STAT_WINDOW) {
            const float4 y = *(const float4 *)(j.line + row);
            x[0] = y.x, x[1] = y.y, x[2] = y.z, x[3] = y.w;
        }
        for (uint32_t r0 = 0; has_mass && r0 < j.readers; r0 += TILE) {
            float4 *place = (float4 *)mass_of(j.p, r0, row);
            float4 score[TILE], mass[TILE];
#pragma unroll
            for (int r = 0; r < TILE; r++) {
                if (r0 + r >= j.readers) break;
                score[r] = *(const float4 *)(j.score + (size_t)(r0 + r) * j.ld + row);
                mass[r] = place[r * (KV_SEGMENT_ROWS / 4)];
            }
#pragma unroll
            for (int r = 0; r < TILE; r++) {
                if (r0 + r >= j.readers) break;
                const float2 norm = j.norm[r0 + r];
                const float inverse = 1.0f / norm.y;
                const float s[4] = {score[r].x, score[r].y, score[r].z, score[r].w};
                float m[4] = {mass[r].x, mass[r].y, mass[r].z, mass[r].w};
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    const float given = exp2f(s[k] - norm.x) * inverse;
                    m[k] = row + k == n_row - 1 ? given : fmaf(m[k], decay, given); /* the new row's place held anything */
                    if (op.statistic != KVF_STAT_MASS) continue;
                    x[k] = r0 + r == 0 ? m[k] : op.reduce == KVF_MAX ? (m[k] > x[k] ? m[k] : x[k]) : plus(x[k], m[k]);
                }
                place[r * (KV_SEGMENT_ROWS / 4)] = make_float4(m[0], m[1], m[2], m[3]);
            }
        }
        if (!weighs) continue;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (row + k >= n_row) break;
            if (op.statistic == KVF_STAT_MASS && op.reduce == KVF_MEAN) x[k] /= (float)j.readers;
            use(row + k, weigh(j, position[k], x[k]), position[k]);
        }
    }
}

/* Row `to` becomes row `from`; called by one warp. */
static __device__ void move_row(const head_job &j, uint32_t to, uint32_t from) {
    const uint32_t lane = threadIdx.x % 32, words = j.rows.head_dim * element_bytes(j.rows.dtype) / 4;
    uint32_t *a = (uint32_t *)j.rows.pages[to / KVF_PAGE_ROWS], *b = (uint32_t *)j.rows.pages[from / KVF_PAGE_ROWS];
    if (words % 4 == 0) {
        const uint32_t vectors = words / 4;
        uint4 *a4 = (uint4 *)a + to % KVF_PAGE_ROWS * vectors, *b4 = (uint4 *)b + from % KVF_PAGE_ROWS * vectors;
        for (uint32_t i = lane; i < 2 * vectors; i += 32) { /* keys, then values */
            const uint32_t at = i / vectors * KVF_PAGE_ROWS * vectors + i % vectors;
            a4[at] = b4[at];
        }
    } else {
        for (uint32_t i = lane; i < 2 * words; i += 32) {
            const uint32_t part = i / words * KVF_PAGE_ROWS * words, at = i % words;
            a[part + to % KVF_PAGE_ROWS * words + at] = b[part + from % KVF_PAGE_ROWS * words + at];
        }
    }
    if (lane == 0) {
        positions_at(j.rows, to / KVF_PAGE_ROWS)[to % KVF_PAGE_ROWS] = position_of(j.rows, from);
    }
    for (uint32_t r = lane; j.p->has_mass && r < j.readers; r += 32) *mass_of(j.p, r, to) = *mass_of(j.p, r, from);
}

/* Evicts the row with the highest key; among equals the one with the highest position. */
static __device__ void evict_one(const head_job &j) {
    __shared__ unsigned long long best_of[WARPS];
    __shared__ uint32_t row_of[WARPS];
    const uint32_t n_row = j.rows.n_row, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned long long best = 0;
    uint32_t found = 0;
    go_through(j, true, [&](uint32_t row, uint32_t key, uint32_t position) {
        const unsigned long long order = (unsigned long long)key << 32 | position;
        if (order >= best) best = order, found = row;
    });
    const auto join = [&](int step) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
        const uint32_t row = __shfl_xor_sync(0xffffffffu, found, step);
        if (other > best) best = other, found = row; /* no two rows have one position */
    };
    for (int step = 16; step > 0; step /= 2) join(step);
    if (lane == 0) best_of[warp] = best, row_of[warp] = found;
    __syncthreads();
    if (warp != 0) return;
    best = lane < WARPS ? best_of[lane] : 0, found = lane < WARPS ? row_of[lane] : 0;
    for (int step = WARPS / 2; step > 0; step /= 2) join(step);
    found = __shfl_sync(0xffffffffu, found, 0);
    if (found < n_row - 1) move_row(j, found, n_row - 1);
}

/* Evicts n rows; the rows that stay of the last n fill the holes before them. */
static __device__ void evict_many(const head_job &j, uint32_t n) {
    __shared__ cut_state state;
    __shared__ uint32_t part[32];
    const uint32_t n_row = j.rows.n_row, keep = n_row - n, warp = threadIdx.x / 32;
    uint32_t *order = (uint32_t *)j.line, cut, ties, cut_position, one;
    go_through(j, true, [order](uint32_t row, uint32_t key, uint32_t) { order[row] = key; });
    __syncthreads();
    radix_cut(&state, [order](size_t i) { return order[i]; }, n_row, n, &cut, &ties);
    __syncthreads();
    const head_rows rows = j.rows;
    const auto place = [order, rows, cut](size_t i) { return order[i] == cut ? position_of(rows, (uint32_t)i) + 1 : 0; };
    radix_cut(&state, place, n_row, ties, &cut_position, &one);
    const auto goes = [order, place, cut, cut_position](uint32_t i) { return order[i] > cut || place(i) >= cut_position; };
    uint32_t *hole = j.moves, *from = j.moves + n_row / 2;
    const uint32_t n_hole = for_each_ranked(part, keep, goes, [hole](uint32_t i, uint32_t rank) { hole[rank] = i; });
    for_each_ranked(part, n, [goes, keep](uint32_t i) { return !goes(keep + i); },
                    [from, keep](uint32_t i, uint32_t rank) { from[rank] = keep + i; });
    __syncthreads();
    for (uint32_t i = warp; i < n_hole; i += WARPS) move_row(j, hole[i], from[i]);
}

/* One stored head of one slot, of the layer-th of the layers that are done together. */
static __device__ void after_head(const after_args &a, uint32_t stored, uint32_t slot, uint32_t layer) {
    const cu_slot *s = &a.slot[slot];
    if (!s->run || stored >= s->n_stored) return;
    const size_t table = (size_t)(a.layer + layer) * s->n_stored + stored;
    const cu_program *p = program_of(s, table);
    if (p == NULL || (!p->has_mass && p->evict.size == 0)) return;
    cu_program_work work = a.work;
    work.line += layer * a.line_step, work.norm += layer * a.norm_step;
    head_job j = {};
    j.rows.pages = s->pages + table * s->cap, j.rows.n_row = s->rows[table] + 1;
    j.rows.head_dim = a.head_dim, j.rows.dtype = a.dtype;
    j.p = p, j.readers = a.n_head / s->n_stored, j.seen = s->position + 1, j.ld = work.ld;
    j.score = score_line(work, slot, stored * j.readers);
    j.norm = work.norm + (size_t)slot * work.n_head + stored * j.readers;
    j.line = head_line(work, slot, stored);
    j.moves = (uint32_t *)j.score;
    if (!evicts(p, j.rows.n_row, j.seen)) {
        if (p->has_mass) go_through(j, false, [](uint32_t, uint32_t, uint32_t) {});
        return;
    }
    const uint32_t keep = p->evict.keep, n = j.rows.n_row - keep;
    j.inverse = p->evict.temperature > 0 ? 1.0f / p->evict.temperature : 0.0f;
    if (p->evict.draw) { /* as kv_draw_keys */
        uint32_t keys[4];
        philox(j.seen, stored, a.layer + layer, 0, p->evict.seed, 0x65766963u, keys);
        j.keys[0] = keys[0], j.keys[1] = keys[1];
    }
    if (n == 1) evict_one(j);
    else evict_many(j, n);
    if (threadIdx.x == 0) s->rows[table] = keep - 1; /* the end of the step counts the new row */
}

static __global__ void __launch_bounds__(THREADS, 5) after_kernel(const after_args a) {
    const uint32_t heads = a.work.max_stored, slots = a.work.n;
    wait_previous();
    for (uint32_t i = blockIdx.x; i < heads * slots * a.n_layer; i += gridDim.x) {
        after_head(a, i % heads, i / heads % slots, i / heads / slots);
        __syncthreads(); /* shared memory is free again */
    }
}

/* Layers that are done together: lines of as many more are there for those that run meanwhile. */
static uint32_t together(const cu_program_work *work, uint32_t n_layer) {
    return work->depth >= n_layer ? n_layer : work->depth / 2;
}

/* The stream's next kernel waits for the layers that were done in the turn before last, or in the last one. */
static int32_t join_turn(cu_device *d, uint32_t turn, kv_err err) {
    CU_TRY(cudaStreamWaitEvent(d->stream, d->join[turn % 2], 0), "a step program");
    d->alone = true;
    return KVF_OK;
}

int32_t cu_programs_begin(kvf_model *model, uint32_t layer, const cu_program_work *work, kv_err err) {
    if (!(work->acts & CU_AFTER) || layer < work->depth || layer % together(work, model->config.n_layer) != 0) return KVF_OK;
    return join_turn(cu_of(model->dev), layer / together(work, model->config.n_layer), err);
}

int32_t cu_programs_join(kvf_device *dev, uint32_t n_layer, const cu_program_work *work, kv_err err) {
    if (!(work->acts & CU_AFTER)) return KVF_OK;
    return join_turn(cu_of(dev), (n_layer - 1) / together(work, n_layer), err);
}

/* Layers [first, first + n), whose attention is over; their lines lie one after the other. */
static int32_t queue_after(kvf_model *model, uint32_t first, uint32_t n, uint32_t row_dtype, cu_slot *slot,
                           const cu_program_work *work, kv_err err) {
    const kvf_model_config *c = &model->config;
    after_args a = {};
    a.work = cu_program_layer(work, first);
    for (uint32_t i = 0; i < n; i++) {
        const cu_program_work own = cu_program_layer(work, first + i);
        if (i == 1) a.line_step = (size_t)(own.line - a.work.line), a.norm_step = (size_t)(own.norm - a.work.norm);
        if (work->acts & CU_WEIGHS) CU_PASS(cu_kept_step(model->dev, first + i, row_dtype, c->head_dim, slot, &own, err));
    }
    a.slot = slot, a.layer = first, a.n_layer = n, a.n_head = c->n_head, a.head_dim = c->head_dim, a.dtype = row_dtype;
    const cu_device *d = cu_of(model->dev);
    const uint32_t heads = work->max_stored * work->n * n;
    CU_TRY(cu_all_shared(after_kernel), "a step program"); /* it stands beside the products */
    const dim3 grid(heads < d->n_sm ? heads : d->n_sm);
    return cu_check(cu_launch_next(d, after_kernel, grid, dim3(THREADS), 0, a), "a step program", err);
}

int32_t cu_programs_after(kvf_model *model, uint32_t layer, uint32_t row_dtype, cu_slot *slot, const cu_program_work *work,
                          kv_err err) {
    const uint32_t n_layer = model->config.n_layer, most = together(work, n_layer), turn = most == 0 ? 0 : layer / most;
    if (!(work->acts & CU_AFTER) || (layer + 1 != n_layer && (layer + 1) % most != 0)) return KVF_OK;
    cu_device *d = cu_of(model->dev);
    const cudaStream_t stream = d->stream;
    CU_TRY(cudaEventRecord(d->fork, stream), "a step program");
    CU_TRY(cudaStreamWaitEvent(d->side, d->fork, 0), "a step program");
    d->stream = d->side, d->alone = true;
    const int32_t status = queue_after(model, turn * most, layer + 1 - turn * most, row_dtype, slot, work, err);
    d->stream = stream, d->alone = false;
    CU_PASS(status);
    CU_TRY(cudaEventRecord(d->join[turn % 2], d->side), "a step program");
    return KVF_OK;
}

/* ---- What core asks for ---- */

/* Masses of row i: the recorded ones of its position, or 0. recorded: [readers, n_token], NULL: all 0 */
static __global__ void start_kernel(const cu_program *p, const uint32_t *position, uint32_t n, uint32_t readers,
                                    const float *recorded, uint32_t n_token) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    for (uint32_t r = 0; r < readers; r++) {
        const bool known = recorded != NULL && position[row] < n_token;
        *mass_of(p, r, row) = known ? recorded[(size_t)r * n_token + position[row]] : 0.0f;
    }
}

extern "C" int32_t be_live_start(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, kv_err err) {
    kvf_device *dev = cache->dev;
    const kv_table *t = kv_table_of(s, layer, head);
    const uint32_t readers = kv_readers(cache, s), from = kv_step_of(s, layer)->mass.from;
    const kv_observations *o = from == KV_NO_TOKEN ? NULL : s->observe;
    const cu_program *p;
    cu_view view;
    void *position;
    CU_PASS(cu_enter(dev, err));
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    CU_PASS(cu_layer_program(cache, s, layer, &p, err));
    CU_PASS(cu_scratch(dev, &position, t->rows * sizeof(uint32_t), err));
    CU_PASS(cu_positions(cache, t, (uint32_t *)position, err));
    const float *recorded = o == NULL ? NULL : o->mass[(size_t)layer * o->n_mass + from] + (size_t)head * readers * o->n_token;
    start_kernel<<<cu_div_up(t->rows, 256), 256, 0, cu_of(dev)->stream>>>(p + head, (const uint32_t *)position, t->rows, readers,
                                                                      recorded, o == NULL ? 0 : o->n_token);
    CU_LAUNCHED("masses");
    return KVF_OK;
}

/* A block per reader: a tile of rows is read whole before it is written, and later rows never come from below it. */
static __global__ void __launch_bounds__(THREADS) compact_kernel(const cu_program *p, const uint32_t *rows, uint32_t n) {
    for (uint32_t base = 0; base < n; base += THREADS) {
        const uint32_t i = base + threadIdx.x;
        const float x = i < n ? *mass_of(p, blockIdx.x, rows[i]) : 0.0f;
        __syncthreads();
        if (i < n) *mass_of(p, blockIdx.x, i) = x;
        __syncthreads();
    }
}

extern "C" int32_t be_live_compact(kvf_cache *cache, kv_sequence *s, kv_live *live, const uint32_t *rows, uint32_t n,
                                   kv_err err) {
    const cu_program *p;
    cu_mirror *m;
    uint32_t layer = 0;
    for (const kv_step *step = kv_step_of(s, 0); step == NULL || live < step->head || live >= step->head + s->n_stored_head;) {
        step = kv_step_of(s, ++layer);
    }
    const uint32_t table = layer * s->n_stored_head + (uint32_t)(live - kv_step_of(s, layer)->head);
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_mirror_sync(cache, s, table, 1, &m, err));
    CU_PASS(cu_program_sync(cache, s, table, 1, &p, err));
    compact_kernel<<<kv_readers(cache, s), THREADS, 0, cu_of(cache->dev)->stream>>>(p + table, rows, n);
    CU_LAUNCHED("compacting masses");
    return KVF_OK;
}

/* Masses in a new order: row i's become those of row order[i]. room: [readers, n]; turn 0 reads, turn 1 writes. */
static __global__ void order_kernel(const cu_program *p, const uint32_t *order, uint32_t n, float *room, uint32_t turn) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float *place = &room[(size_t)blockIdx.y * n + i];
    if (turn == 0) *place = *mass_of(p, blockIdx.y, order[i]);
    else *mass_of(p, blockIdx.y, i) = *place;
}

int32_t cu_masses_order(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t head, const uint32_t *order, uint32_t n,
                        float *room, kv_err err) {
    const cu_program *p;
    cu_view view;
    if (kv_step_of(s, layer)->mass.size == 0) return KVF_OK;
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    CU_PASS(cu_layer_program(cache, s, layer, &p, err));
    const dim3 grid(cu_div_up(n, 256), kv_readers(cache, s));
    for (uint32_t turn = 0; turn < 2; turn++) {
        order_kernel<<<grid, 256, 0, cu_of(cache->dev)->stream>>>(p + head, order, n, room, turn);
        CU_LAUNCHED("ordering masses");
    }
    return KVF_OK;
}

/* out[stored, row]: masses reduced over the group. */
static __global__ void live_kernel(float *out, uint32_t ld, const cu_program *p, const uint32_t *rows, uint32_t readers,
                                   uint32_t reduce) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x, stored = blockIdx.y;
    if (row >= rows[stored]) return;
    float x = 0;
    for (uint32_t r = 0; r < readers; r++) {
        const float y = *mass_of(&p[stored], r, row);
        x = r == 0 ? y : reduce == KVF_MAX ? fmaxf(x, y) : x + y;
    }
    out[(size_t)stored * ld + row] = reduce == KVF_MEAN ? x / (float)readers : x;
}

extern "C" int32_t be_scores_live(kvf_cache *cache, kv_sequence *s, uint32_t layer, uint32_t reduce, float *out, uint32_t ld,
                                  kv_err err) {
    const cu_program *p;
    cu_view view;
    CU_PASS(cu_enter(cache->dev, err));
    CU_PASS(cu_layer_view(cache, s, layer, &view, err));
    CU_PASS(cu_layer_program(cache, s, layer, &p, err));
    live_kernel<<<dim3(cu_div_up(ld, 256), s->n_stored_head), 256, 0, cu_of(cache->dev)->stream>>>(out, ld, p, view.rows,
                                                                                              view.readers, reduce);
    CU_LAUNCHED("masses");
    return KVF_OK;
}
