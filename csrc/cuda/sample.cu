/*
 * Choosing the next token on the device, as kv_sample does on the host. Drawing needs no sort: sums of weights over the
 * candidates in falling order are found digit by digit of their keys. Weights are integers (2^40 is the likeliest token's),
 * so sums do not depend on the order in which threads add.
 */
#include "select.cuh"

enum { THREADS = 1024 };

typedef struct pick_state {
    cut_state cut;
    unsigned long long sum[256];
    unsigned long long before; /* weight of all keys above the prefix */
    uint32_t prefix;
    uint32_t count;
    float max;
    uint32_t best;
    uint32_t warp_best[THREADS / 32];
    uint32_t part[THREADS / 32];
} pick_state;

static __device__ __forceinline__ bool is_stop(const cu_slot *s, uint32_t token) {
    for (uint32_t i = 0; i < s->n_stop; i++) {
        if (s->stop[i] == token) return true;
    }
    return false;
}

/* Key of a candidate; 0 for tokens that cannot be chosen. */
static __device__ __forceinline__ uint32_t key_of(const cu_slot *s, uint32_t token, bool no_stop) {
    const float x = s->logits[token];
    if (isnan(x) || x == -INFINITY || (no_stop && is_stop(s, token))) return 0;
    return order_key(x);
}

static __device__ __forceinline__ unsigned long long weight_of(uint32_t key, double max, double temperature) {
    const uint32_t u = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    return (unsigned long long)(exp(((double)__uint_as_float(u) - max) / temperature) * 0x1p40);
}

/* Highest logit and lowest id among equals. */
static __device__ uint32_t greedy(pick_state *p, const cu_slot *s, uint32_t vocab, bool no_stop) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t key = 0, best = KV_NO_TOKEN;
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
        const uint32_t k = key_of(s, i, no_stop);
        if (k > key) key = k, best = i;
    }
    for (int step = 16; step > 0; step /= 2) {
        const uint32_t k = __shfl_xor_sync(0xffffffffu, key, step), b = __shfl_xor_sync(0xffffffffu, best, step);
        if (k > key || (k == key && b < best)) key = k, best = b;
    }
    if (lane == 0) p->part[warp] = key, p->warp_best[warp] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < THREADS / 32; w++) {
            const uint32_t k = p->part[w], b = p->warp_best[w];
            if (k > key || (k == key && b < best)) key = k, best = b;
        }
        p->best = best;
        p->max = key == 0 ? 0.0f : __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
        if (best == KV_NO_TOKEN) { /* nothing can be chosen: the first token that is allowed */
            uint32_t i = 0;
            while (i < vocab && no_stop && is_stop(s, i)) i++;
            p->best = i < vocab ? i : 0;
            p->count = 0;
        } else {
            p->count = 1;
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

/* A block per slot. */
static __global__ void __launch_bounds__(THREADS) sample_kernel(cu_slot *slot, uint32_t vocab,
                                                                const cu_step_control *control, uint32_t *tokens) {
    __shared__ pick_state p;
    cu_slot *s = &slot[blockIdx.x];
    uint32_t *to = &tokens[(size_t)control->now * gridDim.x + blockIdx.x];
    if (!s->live || s->finished) {
        if (threadIdx.x == 0) *to = KV_NO_TOKEN;
        return;
    }
    const bool no_stop = s->n_generated < s->min_new_token;
    uint32_t token = greedy(&p, s, vocab, no_stop);
    if (s->temperature > 0 && p.count > 0) {
        __syncthreads();
        token = draw(&p, s, vocab, no_stop);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    *to = token;
    s->n_generated++;
    s->finished = is_stop(s, token);
    s->pending = s->finished ? KV_NO_TOKEN : token;
}

int32_t cu_sample_step(kvf_device *dev, cu_slot *slot, uint32_t n, uint32_t vocab, const cu_step_control *control,
                       uint32_t *tokens, kv_err err) {
    sample_kernel<<<n, THREADS, 0, cu_of(dev)->stream>>>(slot, vocab, control, tokens);
    CU_LAUNCHED("sampling");
    return KVF_OK;
}
