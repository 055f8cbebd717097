/* The highest scores: per head as ascending rows, or counted over all heads. Ties go to the lowest row, NaN comes last. */
#include "select.cuh"

enum { THREADS = 1024 };

/* One head's share of a selection. */
typedef struct top_job {
    uint32_t count;
    uint32_t offset; /* of its rows in the selection */
} top_job;

enum { HEADS_AT_ONCE = 64, BINS = 2048 };

/* Of the heads from `first` on, by value: nothing is copied to the device for them. */
typedef struct top_jobs {
    top_job job[HEADS_AT_ONCE];
} top_jobs;

/* A block per head. */
static __global__ void __launch_bounds__(THREADS) top_kernel(uint32_t *rows, const float *scores, uint32_t n_row,
                                                             const __grid_constant__ top_jobs jobs, uint32_t first) {
    __shared__ cut_state state;
    __shared__ uint32_t part[THREADS / 32];
    const float *x = scores + (size_t)(first + blockIdx.x) * n_row;
    const top_job job = jobs.job[blockIdx.x];
    if (job.count == 0) return;
    top_rows<THREADS>(&state, part, [x](size_t i) { return order_key(x[i]); }, n_row, job.count, rows + job.offset);
}

/*
 * The same where a head's keys stay in registers, up to HELD a thread: three passes of 11, 11 and 10 bits, which parts
 * probabilities by half octaves and less, so that few threads count into one bin at once.
 */
template <uint32_t HELD>
static __global__ void __launch_bounds__(THREADS) top_held_kernel(uint32_t *rows, const float *scores, uint32_t n_row,
                                                                  const __grid_constant__ top_jobs jobs, uint32_t first) {
    __shared__ uint32_t bin[BINS], part[THREADS / 32], found[2], before[HELD * (THREADS / 32)];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float *x = scores + (size_t)(first + blockIdx.x) * n_row;
    const top_job job = jobs.job[blockIdx.x];
    if (job.count == 0) return;
    /* What is not there counts as NaN: below all that is there, or behind its like. */
    uint32_t key[HELD];
#pragma unroll
    for (uint32_t j = 0; j < HELD; j++) {
        const uint32_t i = j * THREADS + threadIdx.x;
        key[j] = i < n_row ? order_key(x[i]) : 0;
    }
    uint32_t cut = 0, left = job.count, total;
#pragma unroll
    for (uint32_t pass = 0; pass < 3; pass++) {
        const uint32_t shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bits = pass == 2 ? 10 : 11;
        for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) bin[i] = 0;
        __syncthreads();
#pragma unroll
        for (uint32_t j = 0; j < HELD; j++) {
            if (pass > 0 && key[j] >> (shift + bits) != cut >> (shift + bits)) continue;
            atomicAdd(&bin[key[j] >> shift & ((1u << bits) - 1)], 1u);
        }
        __syncthreads();
        const uint32_t top = BINS - 1 - 2 * threadIdx.x, high = bin[top], mine = high + bin[top - 1];
        const uint32_t upto = block_scan<THREADS>(mine, part, &total), above = upto - mine;
        if (above < left && upto >= left) {
            const bool lower = above + high < left;
            found[0] = top - lower;
            found[1] = left - above - (lower ? high : 0);
        }
        __syncthreads();
        cut |= found[0] << shift;
        left = found[1];
    }
    /* 32 neighbours at a time, in order: how many are above the cut and how many equal it. */
    const auto vote = [&](uint32_t j, uint32_t *above, uint32_t *equal) {
        *above = __ballot_sync(0xffffffffu, key[j] > cut);
        *equal = __ballot_sync(0xffffffffu, key[j] == cut);
    };
#pragma unroll
    for (uint32_t j = 0; j < HELD; j++) {
        uint32_t above, equal;
        vote(j, &above, &equal);
        if (lane == 0) before[j * (THREADS / 32) + warp] = (uint32_t)__popc(above) << 16 | (uint32_t)__popc(equal);
    }
    __syncthreads();
    const uint32_t mine = threadIdx.x < HELD * (THREADS / 32) ? before[threadIdx.x] : 0;
    const uint32_t upto = block_scan<THREADS>(mine, part, &total);
    if (threadIdx.x < HELD * (THREADS / 32)) before[threadIdx.x] = upto - mine;
    __syncthreads();
    const uint32_t lower = (1u << lane) - 1;
#pragma unroll
    for (uint32_t j = 0; j < HELD; j++) {
        uint32_t above, equal;
        vote(j, &above, &equal);
        const uint32_t base = before[j * (THREADS / 32) + warp], i = j * THREADS + threadIdx.x;
        const uint32_t n_above = (base >> 16) + __popc(above & lower), n_equal = (base & 0xffff) + __popc(equal & lower);
        if (key[j] > cut || (key[j] == cut && n_equal < left)) rows[job.offset + n_above + min(n_equal, left)] = i;
    }
}

extern "C" int32_t be_select_top(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row,
                                 const uint32_t *counts, uint32_t *rows, kv_err err) {
    cudaStream_t stream = cu_of(dev)->stream;
    uint32_t at = 0;
    CU_PASS(cu_enter(dev, err));
    for (uint32_t first = 0; first < n_head; first += HEADS_AT_ONCE) {
        top_jobs jobs = {};
        const uint32_t n = n_head - first < HEADS_AT_ONCE ? n_head - first : (uint32_t)HEADS_AT_ONCE;
        for (uint32_t i = 0; i < n; i++) {
            jobs.job[i].count = counts[first + i], jobs.job[i].offset = at;
            at += counts[first + i];
        }
        if (n_row <= 8 * THREADS) top_held_kernel<8><<<n, THREADS, 0, stream>>>(rows, scores, n_row, jobs, first);
        else if (n_row <= 32 * THREADS) top_held_kernel<32><<<n, THREADS, 0, stream>>>(rows, scores, n_row, jobs, first);
        else top_kernel<<<n, THREADS, 0, stream>>>(rows, scores, n_row, jobs, first);
        CU_LAUNCHED("selecting rows");
    }
    return KVF_OK;
}

/* One block; heads in order, so that ties go to the lowest head first. */
static __global__ void __launch_bounds__(THREADS) share_kernel(uint32_t *counts, const float *scores, uint32_t n_head,
                                                               uint32_t n_row, uint32_t total) {
    __shared__ cut_state state;
    __shared__ uint32_t found[2];
    uint32_t cut, ties, equal = 0;
    radix_cut(&state, [scores](size_t i) { return order_key(scores[i]); }, (size_t)n_head * n_row, total, &cut, &ties);
    for (uint32_t h = 0; h < n_head; h++) {
        if (threadIdx.x < 2) found[threadIdx.x] = 0;
        __syncthreads();
        uint32_t mine_above = 0, mine_equal = 0;
        for (uint32_t i = threadIdx.x; i < n_row; i += THREADS) {
            const uint32_t key = order_key(scores[(size_t)h * n_row + i]);
            mine_above += key > cut;
            mine_equal += key == cut;
        }
        atomicAdd(&found[0], mine_above);
        atomicAdd(&found[1], mine_equal);
        __syncthreads();
        if (threadIdx.x == 0) counts[h] = found[0] + min(equal + found[1], ties) - min(equal, ties);
        equal += found[1];
        __syncthreads();
    }
}

extern "C" int32_t be_scores_share(kvf_device *dev, const float *scores, uint32_t n_head, uint32_t n_row, uint32_t total,
                                   uint32_t *counts, kv_err err) {
    void *device;
    CU_PASS(cu_enter(dev, err));
    memset(counts, 0, n_head * sizeof *counts);
    if (total == 0) return KVF_OK;
    CU_PASS(cu_scratch(dev, &device, n_head * sizeof *counts, err));
    share_kernel<<<1, THREADS, 0, cu_of(dev)->stream>>>((uint32_t *)device, scores, n_head, n_row, total);
    CU_LAUNCHED("sharing rows");
    return be_download(dev, counts, device, n_head * sizeof *counts, err);
}
