/*
 * The end of a step: choosing the next token on the device, as kv_sample does on the host, and counting. Several blocks look
 * for a slot's best logit, and the last one to arrive goes on with the slot. Drawing needs no sort: sums of weights over the
 * candidates in falling order are found digit by digit of their keys. Weights are integers (2^40 is the likeliest token's),
 * so sums do not depend on the order in which threads add.
 */
#include "ptx.cuh"
#include "select.cuh"

enum { THREADS = 1024, PART = 8 * THREADS /* logits of a block, where blocks are few */ };

typedef struct pick_state {
    cut_state cut;
    unsigned long long sum[256];
    unsigned long long before; /* weight of all keys above the prefix */
    uint32_t prefix;
    uint32_t count;
    float max;
    uint32_t best;
    unsigned long long warp_best[THREADS / 32];
    uint32_t part[THREADS / 32];
} pick_state;

static __device__ __forceinline__ bool is_stop(const cu_slot *s, uint32_t token) {
    for (uint32_t i = 0; i < s->n_stop; i++) {
        if (s->stop[i] == token) return true;
    }
    return false;
}

/* Key of a candidate; 0 for tokens that cannot be chosen. */
static __device__ __forceinline__ uint32_t key_of(const cu_slot *s, uint32_t token, bool no_stop, float x) {
    if (isnan(x) || x == -INFINITY || (no_stop && is_stop(s, token))) return 0;
    return order_key(x);
}
static __device__ __forceinline__ uint32_t key_of(const cu_slot *s, uint32_t token, bool no_stop) {
    return key_of(s, token, no_stop, s->logits[token]);
}

static __device__ __forceinline__ unsigned long long weight_of(uint32_t key, double max, double temperature) {
    const uint32_t u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    return (unsigned long long)(exp(((double)__uint_as_float(u) - max) / temperature) * 0x1p40);
}

/* Highest key and lowest id among equals of this block's part of the logits, as one number; 0: nothing can be chosen. */
static __device__ unsigned long long look(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = gridDim.x * THREADS;
    const float4 *logits = (const float4 *)s->logits;
    unsigned long long best = 0;
    const auto take = [&](uint32_t token, float x) {
        const uint32_t key = key_of(s, token, no_stop, x);
        const unsigned long long one = (unsigned long long)key << 32 | ~token;
        if (key != 0 && one > best) best = one;
    };
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
#pragma unroll 2
    for (; i < vocab / 4; i += stride) {
        const float4 x = logits[i];
        take(4 * i, x.x), take(4 * i + 1, x.y), take(4 * i + 2, x.z), take(4 * i + 3, x.w);
    }
    for (i = vocab / 4 * 4 + blockIdx.x * THREADS + threadIdx.x; i < vocab; i += stride) take(i, s->logits[i]);
    for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
        if (other > best) best = other;
    }
    if (lane == 0) p->warp_best[warp] = best;
    __syncthreads();
    if (warp != 0) return 0;
    best = p->warp_best[lane];
    for (int step = 16; step > 0; step /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, step);
        if (other > best) best = other;
    }
    return best;
}

/* The token of the highest logit; p->count: whether there is one. */
static __device__ uint32_t greedy(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop, unsigned long long best) {
    if (threadIdx.x == 0) {
        const uint32_t key = (uint32_t)(best >> 32);
        p->best = ~(uint32_t)best;
        p->max = key == 0 ? 0.0f : __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
        p->count = best != 0;
        if (best == 0) { /* nothing can be chosen: the first token that is allowed */
            uint32_t i = 0;
            while (i < vocab && no_stop && is_stop(s, i)) i++;
            p->best = i < vocab ? i : 0;
        }
    }
    __syncthreads();
    return p->best;
}

/*
 * The key at which the running sum of weights, from the highest key down, passes `target`. Candidates: keys above `cut`,
 * and `ties` of those equal to it. before: weight of the keys above the result.
 */
static __device__ uint32_t find_weight(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop, uint32_t cut,
                                       uint32_t ties, unsigned long long target, double max, double temperature) {
    if (threadIdx.x == 0) p->prefix = 0, p->before = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) p->sum[threadIdx.x] = 0;
        __syncthreads();
        const uint32_t prefix = p->prefix, mask = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
            const uint32_t key = key_of(s, i, no_stop);
            if (key > cut && (key & mask) == prefix) {
                atomicAdd(&p->sum[key >> shift & 255], weight_of(key, max, temperature));
            }
        }
        if (threadIdx.x == 0 && ties > 0 && (cut & mask) == prefix) {
            atomicAdd(&p->sum[cut >> shift & 255], ties * weight_of(cut, max, temperature));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t bin = 255;
            unsigned long long before = p->before;
            while (bin > 0 && before + p->sum[bin] <= target) before += p->sum[bin--];
            p->prefix |= bin << shift;
            p->before = before;
        }
        __syncthreads();
    }
    return p->prefix;
}

/* Weight of all candidates. */
static __device__ unsigned long long total_weight(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop,
                                                  uint32_t cut, uint32_t ties, double max, double temperature) {
    unsigned long long sum = 0;
    if (threadIdx.x == 0) p->before = ties > 0 ? ties * weight_of(cut, max, temperature) : 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
        const uint32_t key = key_of(s, i, no_stop);
        if (key > cut) sum += weight_of(key, max, temperature);
    }
    atomicAdd(&p->before, sum);
    __syncthreads();
    sum = p->before;
    __syncthreads();
    return sum;
}

static __device__ uint32_t draw(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop) {
    const double max = p->max, temperature = s->temperature;
    uint32_t cut = 0, ties = 0, valid = 0;
    if (threadIdx.x == 0) p->count = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) valid += key_of(s, i, no_stop) != 0;
    atomicAdd(&p->count, valid);
    __syncthreads();
    if (s->top_k > 0 && s->top_k < p->count) {
        radix_cut(&p->cut, [s, no_stop](size_t i) { return key_of(s, (uint32_t)i, no_stop); }, vocab, s->top_k, &cut, &ties);
    }
    unsigned long long total = total_weight(p, s, vocab, no_stop, cut, ties, max, temperature);
    if (s->top_p < 1) {
        unsigned long long reach = (unsigned long long)ceil((double)s->top_p * (double)total);
        if (reach == 0) reach = 1;
        if (reach > total) reach = total;
        const uint32_t key = find_weight(p, s, vocab, no_stop, cut, ties, reach - 1, max, temperature);
        const unsigned long long before = p->before, weight = weight_of(key, max, temperature);
        __syncthreads();
        ties = (uint32_t)((reach - before + weight - 1) / weight);
        cut = key;
        total = before + ties * weight;
    }
    uint32_t words[4];
    philox(s->n_generated, 0, 0, 0x746f6b65u, s->seed_low, s->seed_high, words);
    const unsigned long long target = __umul64hi((unsigned long long)words[0] << 32 | words[1], total);
    const uint32_t key = find_weight(p, s, vocab, no_stop, cut, ties, target, max, temperature);
    uint32_t rank = (uint32_t)((target - p->before) / weight_of(key, max, temperature));
    /* The candidate of that key with `rank` lower ids. */
    if (threadIdx.x == 0) p->best = KV_NO_TOKEN;
    __syncthreads();
    for (uint32_t base = 0; base < vocab; base += THREADS) {
        const uint32_t i = base + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const bool is = i < vocab && key_of(s, i, no_stop) == key;
        const uint32_t vote = __ballot_sync(0xffffffffu, is);
        if (lane == 0) p->part[warp] = __popc(vote);
        __syncthreads();
        uint32_t before = __popc(vote & ((1u << lane) - 1)), all = 0;
        for (uint32_t w = 0; w < THREADS / 32; w++) {
            if (w < warp) before += p->part[w];
            all += p->part[w];
        }
        if (is && before == rank) p->best = i;
        __syncthreads();
        if (rank < all) break;
        rank -= all;
    }
    return p->best;
}

/* Whether this block is the last of `n` to come here; everything that the others wrote before is seen then. */
static __device__ bool arrives_last(uint32_t *arrived, uint32_t n) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(arrived, 1u) == n - 1;
        if (last) *arrived = 0;
    }
    __syncthreads();
    const bool is_last = last;
    __syncthreads();
    if (is_last) __threadfence();
    return is_last;
}

/* Grid: parts of the logits, slots. */
static __global__ void __launch_bounds__(THREADS) end_kernel(cu_slot *slot, uint32_t n_layer, uint32_t vocab,
                                                             cu_step_control *control, uint32_t *tokens, uint32_t *word) {
    __shared__ pick_state p;
    cu_slot *s = &slot[blockIdx.y];
    wait_previous();
    const bool ran = n_layer > 0 && s->run, samples = tokens != NULL && s->live && !s->finished;
    const bool no_stop = s->n_generated < s->min_new_token;
    if (ran && blockIdx.x == 0) {
        for (uint32_t i = threadIdx.x; i < n_layer * s->n_stored; i += THREADS) s->rows[i]++;
    }
    if (samples) {
        const unsigned long long best = look(&p, s, vocab, no_stop);
        if (threadIdx.x == 0 && best != 0) atomicMax(&s->best, best);
    }
    if (!arrives_last(&s->arrived, gridDim.x)) return;
    uint32_t token = KV_NO_TOKEN;
    if (samples) {
        token = greedy(&p, s, vocab, no_stop, __ldcg(&s->best));
        if (s->temperature > 0 && p.count > 0) {
            __syncthreads();
            token = draw(&p, s, vocab, no_stop);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (tokens != NULL) tokens[(size_t)control->step * gridDim.y + blockIdx.y] = token;
        if (ran) s->position++, s->pending = KV_NO_TOKEN;
        if (samples) {
            s->best = 0;
            s->n_generated++;
            s->finished = is_stop(s, token);
            s->pending = s->finished ? KV_NO_TOKEN : token;
        }
    }
    if (!arrives_last(&control->arrived, gridDim.y) || threadIdx.x >= 32) return;
    uint32_t alive = 0;
    for (uint32_t b = threadIdx.x; b < gridDim.y; b += 32) alive += slot[b].live && !__ldcg(&slot[b].finished);
    for (int step = 16; step > 0; step /= 2) alive += __shfl_xor_sync(0xffffffffu, alive, step);
    if (threadIdx.x != 0) return;
    *(volatile uint32_t *)word = alive;
    control->step++;
}

int32_t cu_end_step(kvf_device *dev, cu_slot *slot, uint32_t n, uint32_t n_layer, uint32_t vocab, cu_step_control *control,
                    uint32_t *tokens, kv_err err) {
    const cu_device *d = cu_of(dev);
    const uint32_t most = cu_div_up(vocab, PART), room = cu_div_up(d->n_sm, n);
    const dim3 grid(tokens == NULL ? 1 : most < room ? most : room, n);
    return cu_check(cu_launch_next(d, end_kernel, grid, dim3(THREADS), 0, slot, n_layer, vocab, control, tokens, d->word_device),
                    "the end of a step", err);
}
