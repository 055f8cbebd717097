/* Radix selection by one block: the key that cuts off the k highest of n, how many of its equals belong to them, and which these are. */
#ifndef KVF_CUDA_SELECT_H
#define KVF_CUDA_SELECT_H

#include "numbers.cuh"

/* A number that orders as the score does; NaN lowest, -0 equal to 0. */
static __device__ __forceinline__ uint32_t order_key(float x) {
    if (isnan(x)) return 0;
    const uint32_t u = __float_as_uint(x + 0.0f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

typedef struct cut_state {
    uint32_t bin[256];
    uint32_t prefix;
    uint32_t left; /* of the k, those at or below the prefix so far */
} cut_state;

/*
 * key(i) for i < n, 1 <= k <= number of nonzero keys or n. Four passes of eight bits. All threads get the result; there are 32
 * at least.
 */
template <typename Key>
static __device__ void radix_cut(cut_state *state, Key key, size_t n, uint32_t k, uint32_t *cut, uint32_t *ties) {
    if (threadIdx.x == 0) state->prefix = 0, state->left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) state->bin[i] = 0;
        __syncthreads();
        const uint32_t prefix = state->prefix, mask = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        for (size_t i = threadIdx.x; i < n; i += blockDim.x) {
            const uint32_t x = key(i);
            if ((x & mask) == prefix) atomicAdd(&state->bin[x >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x < 32) { /* a lane for eight bins, the first one for the highest */
            const uint32_t highest = 255 - 8 * threadIdx.x, left = state->left;
            uint32_t mine = 0;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) mine += state->bin[highest - i];
            uint32_t upto = mine;
#pragma unroll
            for (uint32_t step = 1; step < 32; step *= 2) {
                const uint32_t y = __shfl_up_sync(0xffffffffu, upto, step);
                if (threadIdx.x >= step) upto += y;
            }
            const uint32_t above = upto - mine;
            __syncwarp(); /* all have read what is left */
            if (above < left && (upto >= left || threadIdx.x == 31)) { /* the last one where there are fewer than k */
                uint32_t bin = highest, rest = left - above;
                while (bin > highest - 7 && state->bin[bin] < rest) rest -= state->bin[bin--];
                state->prefix |= bin << shift;
                state->left = rest;
            }
        }
        __syncthreads();
    }
    *cut = state->prefix;
    *ties = state->left;
}

/*
 * Calls use(i, rank) for every i < n with is(i), where rank counts those before it; returns how many there are. All threads
 * of the block call it, with `part` shared [32].
 */
template <typename Is, typename Use>
static __device__ uint32_t for_each_ranked(uint32_t *part, uint32_t n, Is is, Use use) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warp = blockDim.x / 32;
    uint32_t before = 0;
    for (uint32_t base = 0; base < n; base += blockDim.x) {
        const uint32_t i = base + threadIdx.x;
        const bool mine = i < n && is(i);
        const uint32_t vote = __ballot_sync(0xffffffffu, mine);
        __syncthreads();
        if (lane == 0) part[warp] = __popc(vote);
        __syncthreads();
        uint32_t rank = before + __popc(vote & ((1u << lane) - 1));
        for (uint32_t w = 0; w < n_warp; w++) {
            if (w < warp) rank += part[w];
            before += part[w];
        }
        if (mine) use(i, rank);
    }
    return before;
}

/* Inclusive sum over the block of two 16-bit counts in one word. */
template <uint32_t THREADS>
static __device__ uint32_t block_scan(uint32_t x, uint32_t *part, uint32_t *total) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t y = __shfl_up_sync(0xffffffffu, x, step);
        if (lane >= (uint32_t)step) x += y;
    }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    uint32_t before = 0, all = 0;
    for (uint32_t i = 0; i < THREADS / 32; i++) {
        if (i == warp) before = all;
        all += part[i];
    }
    *total = all;
    return x + before;
}

/* The k highest of n, ties to the lowest, ascending into out; k > 0. part: shared [THREADS / 32] */
template <uint32_t THREADS, typename Key>
static __device__ void top_rows(cut_state *state, uint32_t *part, Key key, uint32_t n, uint32_t k, uint32_t *out) {
    uint32_t cut, ties, above = 0, equal = 0;
    radix_cut(state, key, n, k, &cut, &ties);
    for (uint32_t base = 0; base < n; base += THREADS) {
        const uint32_t i = base + threadIdx.x, x = i < n ? key(i) : 0;
        const bool is_above = i < n && x > cut, is_equal = i < n && x == cut;
        uint32_t total;
        const uint32_t sum = block_scan<THREADS>((uint32_t)is_above << 16 | (uint32_t)is_equal, part, &total);
        const uint32_t above_before = above + (sum >> 16) - is_above, equal_before = equal + (sum & 0xffff) - is_equal;
        if (is_above || (is_equal && equal_before < ties)) out[above_before + min(equal_before, ties)] = i;
        above += total >> 16;
        equal += total & 0xffff;
    }
}

#endif
