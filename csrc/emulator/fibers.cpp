/*
 * Device threads as coroutines. A thread runs until it waits; then another one of the block runs. So between two waits a
 * thread sees no half-done work of others, but which threads come first is shuffled by the seed: a missing barrier shows as
 * a result that depends on the seed, and a barrier that not all threads reach as a deadlock, which ends the process.
 */
#include "fibers.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

static const size_t STACK = 256 << 10;

struct barrier {
    uint32_t arrived, generation;
};

struct fiber {
    char *stack;
    uint3 index;
    bool done;
    const barrier *waits; /* NULL: can run */
    uint32_t generation;
    uint32_t warp;
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
};

struct warp_state {
    barrier wait;
    exchange slots[2];
    uint32_t live;
    uint32_t used[32]; /* exchanges that each lane has begun */
};

struct block_state {
    std::vector<fiber> fibers;
    std::vector<warp_state> warps;
    barrier block, named[16];
    uint32_t live, votes;
    fiber *now;
    char *shared;
    const work *body;
};

static block_state state;

#if defined(__x86_64__)

static void *scheduler_sp;

/* Saves what a callee must keep, and the stack; then the other's. */
extern "C" void emulator_switch(void **save, void *load);
__asm__(
    ".text\n.globl emulator_switch\n.hidden emulator_switch\n.type emulator_switch,@function\nemulator_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emulator_switch,.-emulator_switch\n");

static void to_scheduler(fiber *f) { emulator_switch(&f->sp, scheduler_sp); }
static void to_fiber(fiber *f) { emulator_switch(&scheduler_sp, f->sp); }

#else

static ucontext_t scheduler;

static void to_scheduler(fiber *f) { swapcontext(&f->context, &scheduler); }
static void to_fiber(fiber *f) { swapcontext(&scheduler, &f->context); }

#endif

static void arrive(barrier *b, uint32_t count) {
    if (++b->arrived < count) return;
    b->arrived = 0;
    b->generation++;
}

/* A thread that returns no longer counts: those that wait for it go on. */
static void leave(barrier *b, uint32_t count) {
    if (b->arrived == 0 || b->arrived < count) return;
    b->arrived = 0;
    b->generation++;
}

static void wait(barrier *b, uint32_t count) {
    fiber *f = state.now;
    f->generation = b->generation;
    arrive(b, count);
    if (b->generation != f->generation) return;
    f->waits = b;
    to_scheduler(f);
}

static void thread_main(void) {
    (*state.body)();
    fiber *f = state.now;
    f->done = true;
    leave(&state.block, --state.live);
    leave(&state.warps[f->warp].wait, --state.warps[f->warp].live);
    to_scheduler(f);
    abort();
}

static void prepare(fiber *f) {
#if defined(__x86_64__)
    void **top = (void **)(f->stack + STACK);
    *--top = nullptr; /* keeps the stack aligned at the entry */
    *--top = (void *)thread_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    makecontext(&f->context, thread_main, 0);
#endif
    f->done = false;
    f->waits = nullptr;
}

void block_barrier(void) { wait(&state.block, state.live); }
void named_barrier(uint32_t id, uint32_t count) { wait(&state.named[id], count); }
void named_arrive(uint32_t id, uint32_t count) { arrive(&state.named[id], count); }
void warp_barrier(void) {
    warp_state *w = &state.warps[state.now->warp];
    wait(&w->wait, w->live);
}
void give_way(void) { to_scheduler(state.now); }
void *dynamic_shared(void) { return state.shared; }

exchange *next_exchange(void) {
    warp_state *w = &state.warps[state.now->warp];
    return &w->slots[w->used[lane_id()]++ % 2];
}

uint32_t block_reduce_or(uint32_t value) {
    state.votes |= value;
    block_barrier();
    const uint32_t out = state.votes;
    block_barrier();
    state.votes = 0;
    block_barrier(); /* nobody votes anew before */
    return out;
}

static uint32_t shuffle_state;
static uint32_t draw(uint32_t n) {
    shuffle_state = shuffle_state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)shuffle_state * n >> 32);
}

static void run_block(uint32_t n_thread, uint32_t seed) {
    std::vector<uint32_t> order(n_thread);
    state.live = n_thread;
    state.votes = 0;
    state.block = {};
    for (barrier &b : state.named) b = {};
    state.warps.assign((n_thread + 31) / 32, warp_state());
    for (uint32_t i = 0; i < n_thread; i++) {
        fiber *f = &state.fibers[i];
        f->index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        f->warp = i / 32;
        state.warps[f->warp].live++;
        prepare(f);
        order[i] = i;
    }
    for (uint32_t i = n_thread; seed != 0 && i > 1; i--) std::swap(order[i - 1], order[draw(i)]);
    uint32_t idle = 0;
    while (state.live > 0) {
        bool ran = false, moved = false;
        for (uint32_t i : order) {
            fiber *f = &state.fibers[i];
            if (f->done || (f->waits != nullptr && f->waits->generation == f->generation)) continue;
            moved |= f->waits != nullptr;
            f->waits = nullptr;
            state.now = f;
            threadIdx = f->index;
            const uint32_t live = state.live;
            to_fiber(f);
            moved |= f->waits != nullptr || state.live != live;
            ran = true;
        }
        /* Polling threads run without getting anywhere. */
        idle = moved ? 0 : idle + 1;
        if (!ran || idle > 1000000) {
            fprintf(stderr, "emulator: %u threads of block (%u, %u, %u) wait for one that never comes\n", state.live,
                    blockIdx.x, blockIdx.y, blockIdx.z);
            abort();
        }
    }
}

void run_grid(const work &body, dim3 grid, dim3 block, size_t shared_bytes, uint32_t seed) {
    const uint32_t n_thread = block.x * block.y * block.z;
    while (state.fibers.size() < n_thread) {
        fiber f = {};
        f.stack = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f.stack == MAP_FAILED) abort();
        state.fibers.push_back(f);
    }
    state.body = &body;
    blockDim = block;
    gridDim = grid;
    shuffle_state = seed;
    /* Of exactly the size that was asked for, so that an address sanitizer sees what lies beyond. */
    state.shared = (char *)aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024 + (shared_bytes == 0) * 1024);
    if (state.shared == nullptr) abort();
    const uint64_t n_block = (uint64_t)grid.x * grid.y * grid.z;
    for (uint64_t i = 0; i < n_block; i++) {
        const uint64_t at = seed % 2 ? n_block - 1 - i : i;
        blockIdx = {(uint32_t)(at % grid.x), (uint32_t)(at / grid.x % grid.y), (uint32_t)(at / grid.x / grid.y)};
        memset(state.shared, 0xff, shared_bytes);
        run_block(n_thread, seed);
    }
    free(state.shared);
    state.shared = nullptr;
}

}  // namespace emulator
