/*
 * Products of decode: few tokens, weights read once. 16-bit weights go through mma with 16 weight rows as m and 8 tokens as
 * n, whatever the batch, so a token's sums have one order: columns are dealt out in groups of 64 to eight warps, a warp adds
 * its own in ascending order, and the warps' sums are added in warp order, four and four.
 *
 * One block a multiprocessor. Each warp has a ring of its own that copies fill while it computes, across the ends of rows,
 * so that it never runs dry before the block's last. For one token there is room for the next product's block beside it,
 * which has its ring filled when it may begin.
 */
#include "norm.cuh"
#include "ptx.cuh"

enum { WARPS = 8, PART = 17 /* floats of 16 rows, apart */ };

typedef struct skinny_args {
    const void *w;
    const void *x;
    const float *norm_x; /* [n_col] f32 whose norm is the only token, in place of x */
    const float *norm_weight;
    float eps;
    uint32_t n_col;
    const float *bias;
    float *out;
    void *act;
    const cu_slot *slot;
    const uint32_t *chosen; /* expert of each entry, or NULL: dense */
    size_t expert_stride;   /* elements */
    uint32_t epilogue;
    uint32_t x_div;         /* entries that share one row of x */
    uint32_t ld;
    uint32_t n_row; /* of the result */
    uint32_t n;     /* tokens, or entries */
    uint32_t ldo;
    uint32_t units;  /* groups of 16 weight rows; a SwiGLU group is eight of gate and the same eight of up */
    uint32_t items;  /* units, of all entries */
    uint32_t share, extra; /* items of a block, and blocks that take one more */
    uint32_t inputs; /* rows of x that a place of the ring holds */
    uint32_t spread; /* items go round the blocks, instead of a range to each */
} skinny_args;

template <typename W>
static __device__ __forceinline__ void finish(const skinny_args &a, uint32_t token, uint32_t row, float y, float up,
                                              float before) {
    float *out = a.out + (size_t)token * a.ldo + row;
    if (a.epilogue == CU_STORE) {
        *out = y;
    } else if (a.epilogue == CU_ADD) {
        *out = before + (a.bias != NULL ? y + a.bias[row] : y);
    } else if (a.epilogue == CU_SWIGLU) {
        from_f32((W *)a.act + (size_t)token * a.ldo + row, y / (1.0f + expf(-y)) * up);
    } else if (a.slot[token].run) {
        a.slot[token].logits[row] = y;
    }
}

/* Where a block is: items [item, item + count) are one pass; each pass takes all groups of tokens, stage by stage. */
typedef struct place {
    uint32_t item, count, part, stage;
    uint32_t entry, unit; /* of the item; entry 0 where there are none */
} place;

/*
 * MT: units of a pass, at most   NT: groups of eight tokens of a pass   HALVES: 32 columns of a stage
 * STAGES: of a warp's ring   NORM: the token is the norm of norm_x
 */
template <typename W, int MT, int NT, int HALVES, int STAGES, bool NORM>
static __global__ void __launch_bounds__(32 * WARPS, 2) skinny_kernel(const skinny_args a) {
    enum {
        CHUNKS = 4 * HALVES, /* 16 bytes each, of a row */
        ROWS = 32 / CHUNKS,  /* that a warp copies at once */
        STEPS = 16 / ROWS    /* copies of a unit */
    };
    extern __shared__ uint4 shared[];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t copy_row = lane / CHUNKS, copy_chunk = lane % CHUNKS;
    const bool swiglu = a.epilogue == CU_SWIGLU;
    const uint32_t shift = swiglu ? 3 : 4, rows = 1 << shift; /* of a unit */
    const uint32_t rounds = (a.ld + 64 * WARPS - 1) / (64 * WARPS), stages = rounds * (2 / HALVES);
    const uint32_t chunks = a.ld / 8; /* of a row in memory */
    const uint32_t parts = a.chosen != NULL ? 1 : (a.n + NT * 8 - 1) / (NT * 8);
    const uint32_t slot_size = (MT * 16 + (NORM ? 0 : a.inputs)) * CHUNKS;
    uint4 *ring = shared + warp * STAGES * slot_size;
    uint4 *resident = shared + WARPS * STAGES * slot_size; /* of NORM: [rounds * 8 * WARPS] */
    float *sums = (float *)(resident + (NORM ? rounds * 8 * WARPS : 0));
    const uint32_t step = a.spread ? gridDim.x : 1;
    const uint32_t begin = a.spread ? blockIdx.x : blockIdx.x * a.share + min(blockIdx.x, a.extra);
    const uint32_t end = a.spread ? a.items : begin + a.share + (blockIdx.x < a.extra);

    /* Where a chunk of a row lies, so that eight rows' chunks of one column never collide. */
    const auto swizzled = [](uint32_t row, uint32_t chunk) {
        return row * CHUNKS + (chunk ^ (HALVES == 2 ? row & 7 : row >> 1 & 3));
    };
    const auto enter = [&](place &p) {
        p.entry = a.chosen != NULL ? p.item / a.units : 0;
        p.unit = p.item - p.entry * a.units;
        p.count = 1;
        if (MT == 1 || p.item >= end) return;
        const uint32_t left = min(end - p.item, a.units - p.unit), passes = (left + MT - 1) / MT;
        p.count = (left + passes - 1) / passes;
    };
    /* The next part or pass. */
    const auto turn = [&](place &p) {
        p.stage = 0;
        if (++p.part < parts) return;
        p.part = 0;
        p.item += p.count * step;
        enter(p);
    };

    /* What copies need: the lane's column, and where its rows of weights are from there, in chunks. */
    place ahead = {begin, 0, 0, 0, 0, 0};
    const uint32_t chunk0 = warp * 8 + copy_chunk;
    const uint4 *w = NULL, *x = NULL;
    uint32_t from[MT * STEPS], chunk = chunk0, inputs = a.inputs;
    const auto aim = [&]() {
        w = (const uint4 *)a.w + chunk0, x = (const uint4 *)a.x + copy_row * chunks + chunk0;
        if (a.chosen == NULL) {
            x += ahead.part * NT * 8 * chunks;
            inputs = min(a.inputs, a.n - ahead.part * NT * 8);
        } else if (ahead.item < end) {
            w += a.chosen[ahead.entry] * a.expert_stride / 8;
            x += (size_t)(ahead.entry / a.x_div) * chunks;
        }
#pragma unroll
        for (uint32_t k = 0; k < MT * STEPS; k++) {
            const uint32_t r = k % STEPS * ROWS + copy_row;
            uint32_t row = min((ahead.unit + k / STEPS) * rows + (swiglu ? r % 8 : r), a.n_row - 1);
            if (swiglu && r >= 8) row += a.n_row;
            from[k] = row * chunks;
        }
        chunk = chunk0;
    };
    /* Of a lane's places only the last bit of four rows changes with the row. */
    const uint32_t spot[2] = {swizzled(copy_row, copy_chunk), swizzled(ROWS + copy_row, copy_chunk) - ROWS * CHUNKS};
    const auto copy_weights = [&](uint4 *to) {
#pragma unroll
        for (uint32_t m = 0; m < MT; m++) {
            if (m >= ahead.count) break;
#pragma unroll
            for (uint32_t k = 0; k < STEPS; k++) {
                copy_async(&to[(m * 16 + k * ROWS) * CHUNKS + spot[k % 2]], w + from[m * STEPS + k], chunk < chunks);
            }
        }
    };
    /* Rows that no token has stay what they are: nobody looks at their products. */
    const auto copy_inputs = [&](uint4 *to) {
        if constexpr (!NORM) {
#pragma unroll
            for (uint32_t i = 0; i < NT * 8; i += ROWS) {
                copy_async_if(&to[(MT * 16 + i) * CHUNKS + spot[i / ROWS % 2]], x + i * chunks, chunk < chunks,
                              i + copy_row < inputs);
            }
        }
    };
    const auto move_on = [&]() {
        const uint32_t by = HALVES == 2 ? 8 * WARPS : ahead.stage % 2 == 0 ? 4 : 8 * WARPS - 4;
        chunk += by, w += by, x += by;
        if (++ahead.stage < stages) return;
        turn(ahead);
        aim();
    };

    /* What products need: the row and column that a lane gives to load_matrix, of weights and of two groups of tokens. */
    const uint32_t w_spot = swizzled(lane % 16, lane / 16);
    uint32_t x_spot[NT > 1 ? NT / 2 : 1];
#pragma unroll
    for (uint32_t i = 0; i < sizeof x_spot / sizeof *x_spot; i++) {
        const uint32_t row = min(i * 16 + lane % 8 + (NT > 1 ? lane / 16 * 8 : 0), NORM ? 0 : a.inputs - 1);
        x_spot[i] = swizzled(MT * 16 + row, NT > 1 ? lane / 8 % 2 : lane / 8);
    }

    enter(ahead);
    place now = ahead;
    allow_next();
    /* Weights never change: the first of them come while the kernel before this one still runs. */
    if (a.chosen != NULL) wait_previous();
    aim();
    for (uint32_t k = 0; k < STAGES; k++) {
        if (ahead.item < end) copy_weights(ring + k * slot_size);
        if (NORM) copy_commit();
        move_on();
    }
    if (NORM) {
        const uint32_t at = 4 * threadIdx.x;
        float4 weight[4] = {};
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t i = at + k * 4 * NORM_THREADS;
            if (i < a.n_col) weight[k] = *(const float4 *)(a.norm_weight + i);
        }
        wait_previous();
        const float scale = norm_scale(a.norm_x, a.n_col, a.eps);
        const auto normed = [&](uint32_t i, const float4 &f) {
            float4 v = {};
            if (i >= rounds * 64 * WARPS) return;
            if (i < a.n_col) v = *(const float4 *)(a.norm_x + i);
            ((uint2 *)resident)[i / 4] = make_uint2(pack<W>(v.x * scale * f.x, v.y * scale * f.y),
                                                    pack<W>(v.z * scale * f.z, v.w * scale * f.w));
        };
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) normed(at + k * 4 * NORM_THREADS, weight[k]);
        for (uint32_t i = at + 16 * NORM_THREADS; i < rounds * 64 * WARPS; i += 4 * NORM_THREADS) {
            normed(i, i < a.n_col ? *(const float4 *)(a.norm_weight + i) : float4());
        }
        __syncthreads();
    } else {
        if (a.chosen == NULL) wait_previous();
        ahead = now;
        aim();
        for (uint32_t k = 0; k < STAGES; k++) {
            if (ahead.item < end) copy_inputs(ring + k * slot_size);
            copy_commit();
            move_on();
        }
    }

    float acc[MT][NT][4] = {};
    uint32_t slot = 0, side = 0;
    float before = 0; /* what a sum is added to, fetched ahead where a thread has one */
    /* At first there is always more to copy, then what has been copied is used up. */
    for (uint32_t draining = 0; draining < 2; draining++) {
        while ((draining ? now.item : ahead.item) < end) {
            uint4 *place_of = ring + slot * slot_size;
            copy_wait_but<STAGES - 1>();
            __syncwarp();
#pragma unroll
            for (uint32_t h = 0; h < HALVES; h++) {
                uint32_t v[2][NT][2], r[4]; /* of two products of 16 columns */
                if constexpr (NT == 1) {
                    const uint32_t at = HALVES == 2 ? now.stage * 8 * WARPS : now.stage / 2 * 8 * WARPS + now.stage % 2 * 4;
                    load_matrix(r, NORM ? &resident[at + warp * 8 + h * 4 + lane / 8] : &place_of[x_spot[0] ^ h * 4]);
                    v[0][0][0] = r[0], v[0][0][1] = r[1], v[1][0][0] = r[2], v[1][0][1] = r[3];
                } else {
#pragma unroll
                    for (uint32_t k = 0; k < 2; k++) {
#pragma unroll
                        for (uint32_t i = 0; i < NT; i += 2) {
                            load_matrix(r, &place_of[x_spot[i / 2] ^ (h * 4 + k * 2)]);
                            v[k][i][0] = r[0], v[k][i][1] = r[1], v[k][i + 1][0] = r[2], v[k][i + 1][1] = r[3];
                        }
                    }
                }
#pragma unroll
                for (uint32_t m = 0; m < MT; m++) {
                    if (m >= now.count) break;
#pragma unroll
                    for (uint32_t k = 0; k < 2; k++) {
                        load_matrix(r, &place_of[m * 16 * CHUNKS + (w_spot ^ (h * 4 + k * 2))]);
#pragma unroll
                        for (uint32_t i = 0; i < NT; i++) mma_16x8x16(acc[m][i], r, v[k][i][0], v[k][i][1], W());
                    }
                }
            }
            __syncwarp();
            if (!draining) {
                copy_weights(place_of);
                copy_inputs(place_of);
                move_on();
            }
            copy_commit();
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            if (++now.stage < stages) {
                if (MT == 1 && a.epilogue == CU_ADD && now.stage + 1 == stages && threadIdx.x < 16 * a.inputs) {
                    const uint32_t row = now.unit * 16 + threadIdx.x % 16;
                    if (row < a.n_row) before = a.out[(size_t)(now.entry + threadIdx.x / 16) * a.ldo + row];
                }
                continue;
            }
            const uint32_t token0 = now.part * NT * 8, n = a.chosen != NULL ? 1 : min(a.n - token0, (uint32_t)NT * 8);
#pragma unroll
            for (uint32_t m = 0; m < MT; m++) {
                if (m >= now.count) break;
                float *part = sums + (NT == 1 ? side : 0) * WARPS * a.inputs * PART;
#pragma unroll
                for (uint32_t i = 0; i < NT; i++) {
#pragma unroll
                    for (uint32_t k = 0; k < 4; k++) {
                        const uint32_t token = i * 8 + 2 * t + k % 2;
                        if (token < n) part[(warp * a.inputs + token) * PART + g + k / 2 * 8] = acc[m][i][k];
                        acc[m][i][k] = 0;
                    }
                }
                __syncthreads();
                side ^= 1;
                const uint32_t row0 = (now.unit + m) * rows;
                for (uint32_t i = threadIdx.x; i < n * rows; i += 32 * WARPS) {
                    const uint32_t r = i & (rows - 1), k = i >> shift, token = a.chosen != NULL ? now.entry : token0 + k;
                    if (row0 + r >= a.n_row) continue;
                    float y[2] = {}, up[2] = {};
#pragma unroll
                    for (uint32_t j = 0; j < WARPS; j++) {
                        y[j / 4] += part[(j * a.inputs + k) * PART + r];
                        if (swiglu) up[j / 4] += part[(j * a.inputs + k) * PART + r + 8];
                    }
                    if ((MT > 1 || stages == 1) && a.epilogue == CU_ADD) before = a.out[(size_t)token * a.ldo + row0 + r];
                    finish<W>(a, token, row0 + r, y[0] + y[1], up[0] + up[1], before);
                }
                if (NT > 1) __syncthreads();
            }
            turn(now);
        }
    }
}

/* f32 weights: a warp per row of the result, lanes over columns, token after token. */
static __global__ void __launch_bounds__(32 * WARPS) skinny_f32_kernel(const skinny_args a) {
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32;
    wait_previous();
    allow_next();
    if (row >= a.n_row) return;
    const float *w = (const float *)a.w;
    const uint32_t entry = blockIdx.y;
    uint32_t x_row = entry;
    if (a.chosen != NULL) {
        w += a.chosen[entry] * a.expert_stride;
        x_row = entry / a.x_div;
    }
    const float *x = (const float *)a.x + (size_t)x_row * a.ld;
    const float *first = w + (size_t)row * a.ld, *second = w + (size_t)(a.n_row + row) * a.ld;
    float y = 0, up = 0;
    for (uint32_t k = lane; k < a.ld; k += 32) {
        y = fmaf(first[k], x[k], y);
        if (a.epilogue == CU_SWIGLU) up = fmaf(second[k], x[k], up);
    }
    y = warp_sum(y);
    if (a.epilogue == CU_SWIGLU) up = warp_sum(up);
    if (lane == 0) finish<float>(a, entry, row, y, up, a.epilogue == CU_ADD ? a.out[(size_t)entry * a.ldo + row] : 0.0f);
}

/* ---- Host ---- */

/*
 * Products of one token with and without a norm take turns. On a multiprocessor of compute capability 9.0 there is room for one
 * of each, but not for two without: otherwise the blocks of one stand in pairs on half of the multiprocessors, those of the
 * next on the other half, and so on, while the rest is idle. So a block without takes at least APART bytes of the 228 KiB,
 * and one with at most BESIDE; each costs one KiB more.
 */
static const size_t APART = 115 << 10, BESIDE = 110 << 10;

template <int MT, int NT, int HALVES, int STAGES, bool NORM>
static size_t bytes_of(const skinny_args &a) {
    const size_t slot = (size_t)(MT * 16 + (NORM ? 0 : a.inputs)) * HALVES * 64;
    const size_t resident = NORM ? (size_t)cu_div_up(a.ld, 64 * WARPS) * 128 * WARPS : 0;
    return WARPS * STAGES * slot + resident + (NT == 1 ? 2 : 1) * WARPS * a.inputs * PART * sizeof(float);
}

template <typename W, int MT, int NT, int HALVES, int STAGES, bool NORM>
static cudaError_t launch(const cu_device *d, const skinny_args &given) {
    const auto kernel = skinny_kernel<W, MT, NT, HALVES, STAGES, NORM>;
    size_t bytes = bytes_of<MT, NT, HALVES, STAGES, NORM>(given);
    if (NT == 1 && MT == 1 && !NORM && bytes < APART && APART <= d->shared_bytes) bytes = APART;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)d->shared_bytes);
    if (e == cudaSuccess) e = cu_all_shared(kernel);
    if (e != cudaSuccess) return e;
    skinny_args a = given;
    const uint32_t blocks = a.items < d->n_sm ? a.items : d->n_sm;
    a.share = a.items / blocks, a.extra = a.items % blocks;
    return cu_launch_next(d, kernel, dim3(blocks), dim3(32 * WARPS), bytes, a);
}

/* The first of two that fits. */
template <typename W, int MT, int NT, int HALVES, int STAGES, int LESS_MT, int LESS_HALVES, int LESS_STAGES, bool NORM>
static cudaError_t launch_fitting(const cu_device *d, const skinny_args &a, size_t room) {
    if (bytes_of<MT, NT, HALVES, STAGES, NORM>(a) <= room) return launch<W, MT, NT, HALVES, STAGES, NORM>(d, a);
    return launch<W, LESS_MT, NT, LESS_HALVES, LESS_STAGES, NORM>(d, a);
}

template <typename W>
static cudaError_t launch_type(const cu_device *d, skinny_args a) {
    const uint32_t n = a.chosen != NULL ? 1 : a.n;
    const size_t room = d->shared_bytes, beside = room < BESIDE ? room : BESIDE;
    a.units = cu_div_up(a.n_row, a.epilogue == CU_SWIGLU ? 8 : 16);
    a.items = a.chosen != NULL ? a.units * a.n : a.units;
    a.inputs = n < 32 ? n : 32;
    a.spread = n == 1;
    if (a.norm_x != NULL && bytes_of<1, 1, 2, 6, true>(a) <= beside) return launch<W, 1, 1, 2, 6, true>(d, a);
    if (a.norm_x != NULL) return launch_fitting<W, 1, 1, 2, 5, 1, 2, 3, true>(d, a, beside);
    if (n == 1) return launch_fitting<W, 1, 1, 2, 6, 1, 2, 3, false>(d, a, room);
    if (n <= 8) return launch_fitting<W, 2, 1, 2, 5, 2, 1, 3, false>(d, a, room);
    /* Where a block has two units at most, places for four would stay half empty: smaller ones, and more of them. */
    const bool few = cu_div_up(a.items, d->n_sm) <= 2;
    if (n <= 16 && few) return launch_fitting<W, 2, 2, 2, 4, 2, 1, 3, false>(d, a, room);
    if (n <= 16) return launch_fitting<W, 4, 2, 2, 2, 2, 1, 3, false>(d, a, room);
    if (few) return launch_fitting<W, 2, 4, 2, 3, 2, 1, 2, false>(d, a, room);
    return launch_fitting<W, 4, 4, 2, 2, 2, 1, 2, false>(d, a, room);
}

static int32_t run(kvf_device *dev, uint32_t dtype, const skinny_args &a, kv_err err) {
    const cu_device *d = cu_of(dev);
    cudaError_t e;
    if (a.n == 0 || a.n_row == 0) return KVF_OK;
    if (dtype == KVF_F16) e = launch_type<__half>(d, a);
    else if (dtype == KVF_BF16) e = launch_type<__nv_bfloat16>(d, a);
    else e = cu_launch_next(d, skinny_f32_kernel, dim3(cu_div_up(a.n_row, WARPS), a.n), dim3(32 * WARPS), 0, a);
    return cu_check(e, "a product of decode", err);
}

static skinny_args args_of(const cu_matrix *w, uint32_t n_row, const void *x, uint32_t n, cu_skinny_out out) {
    skinny_args a = {};
    a.w = w->data, a.x = x, a.ld = w->ld, a.n = n;
    a.epilogue = out.epilogue;
    a.n_row = out.epilogue == CU_SWIGLU ? n_row / 2 : n_row;
    a.out = out.out, a.act = out.act, a.ldo = out.ld, a.bias = out.bias, a.slot = out.slot;
    return a;
}

int32_t cu_skinny(kvf_device *dev, uint32_t dtype, const cu_matrix *w, const void *x, uint32_t n, cu_skinny_out out,
                  kv_err err) {
    return run(dev, dtype, args_of(w, w->n_row, x, n, out), err);
}

int32_t cu_skinny_norm(kvf_device *dev, uint32_t dtype, const cu_matrix *w, void *h, const float *x, const float *weight,
                       float eps, uint32_t n, cu_skinny_out out, kv_err err) {
    if (n > 1 || dtype == KVF_F32 || w->n_col % 4 != 0) {
        CU_PASS(cu_rms_norm(dev, dtype, h, w->ld, x, weight, n, w->n_col, eps, err));
        return cu_skinny(dev, dtype, w, h, n, out, err);
    }
    skinny_args a = args_of(w, w->n_row, NULL, n, out);
    a.norm_x = x, a.norm_weight = weight, a.eps = eps, a.n_col = w->n_col;
    return run(dev, dtype, a, err);
}

int32_t cu_skinny_experts(kvf_device *dev, uint32_t dtype, const cu_matrix *w, uint32_t n_row, const uint32_t *chosen,
                          uint32_t x_div, const void *x, uint32_t n_entry, cu_skinny_out out, kv_err err) {
    skinny_args a = args_of(w, n_row, x, n_entry, out);
    a.chosen = chosen, a.x_div = x_div, a.expert_stride = (size_t)n_row * w->ld;
    return run(dev, dtype, a, err);
}
