/* Radix selection by one block: the key that cuts off the k highest of n, and how many of its equals belong to them. */
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

/* key(i) for i < n, 1 <= k <= number of nonzero keys or n. Four passes of eight bits. All threads get the result. */
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
        if (threadIdx.x == 0) {
            uint32_t bin = 255, left = state->left;
            while (bin > 0 && state->bin[bin] < left) left -= state->bin[bin--];
            state->prefix |= bin << shift;
            state->left = left;
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

#endif
