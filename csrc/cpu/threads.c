/*
 * Thread pool: persistent workers and the caller take chunks of one job at a time from an atomic counter.
 *
 * A worker that sleeps or is preempted never holds up a job whose chunks are all done by others: the caller waits for
 * chunks, not for workers. So the job's number, its chunks and the next one share one word: a chunk is claimed by a
 * compare-and-swap on it, which fails when the worker had looked at an older job.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define cpu_relax() _mm_pause()
#elif defined(__aarch64__)
#define cpu_relax() __asm__ volatile("yield")
#else
#define cpu_relax() ((void)0)
#endif

/* A barrier by spinning costs 0.1 us, by futex 30 us; a decode step has about a hundred jobs. */
#define SPIN_NS 50000

typedef struct worker {
    cpu_pool *pool;
    pthread_t thread;
    uint32_t index;
} worker;

struct cpu_pool {
    _Alignas(64) atomic_uint_fast64_t state;
    _Alignas(64) atomic_uint done; /* chunks of the job that are finished */
    /* the job; written only while no chunk of the last one is left to claim */
    _Alignas(64) _Atomic(cpu_fn) fn;
    _Atomic(void *) arg;
    _Alignas(64) atomic_uint n_sleeping;
    atomic_uint caller_sleeps;
    atomic_bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t wake; /* for workers: a new job or stop */
    pthread_cond_t idle; /* for the caller: all chunks done */
    uint32_t n_worker;
    worker *worker;
};

uint32_t cpu_fp_enter(void) {
#if defined(__x86_64__)
    const uint32_t saved = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* all exceptions masked, round to nearest, denormals are zero, flush to zero */
    return saved;
#elif defined(__aarch64__)
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)1 << 24));
    return (uint32_t)saved;
#else
    return 0;
#endif
}

void cpu_fp_leave(uint32_t saved) {
#if defined(__x86_64__)
    _mm_setcsr(saved);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)saved));
#else
    (void)saved;
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The state word: number of the job, its chunks, the next one to claim. All in one, so that a claim is for one job. */
#define STATE(job, n, next) ((uint_fast64_t)(job) << 48 | (uint_fast64_t)(n) << 24 | (next))
#define STATE_JOB(state) ((uint32_t)((state) >> 48))
#define STATE_N(state) ((uint32_t)((state) >> 24) & 0xffffffu)
#define STATE_NEXT(state) ((uint32_t)(state) & 0xffffffu)

/* Takes chunks of the present job until none is left; returns the job's number. */
static uint32_t take_chunks(cpu_pool *p, uint32_t thread) {
    uint_fast64_t state = atomic_load_explicit(&p->state, memory_order_acquire);
    for (;;) {
        const uint32_t n = STATE_N(state), chunk = STATE_NEXT(state);
        if (chunk >= n) return STATE_JOB(state);
        /* A successful claim proves that these were this job's: they change only when no chunk is left. */
        const cpu_fn fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&p->arg, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&p->state, &state, state + 1, memory_order_acq_rel,
                                                   memory_order_acquire)) {
            continue;
        }
        fn(arg, chunk, thread);
        state = atomic_load_explicit(&p->state, memory_order_acquire);
        if (atomic_fetch_add(&p->done, 1) + 1 == n && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->mutex);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->mutex);
        }
    }
}

static uint32_t job_of(cpu_pool *p) { return STATE_JOB(atomic_load(&p->state)); }

static void *work(void *arg) {
    const worker *w = arg;
    cpu_pool *p = w->pool;
    cpu_fp_enter();
    uint32_t seen = 0;
    while (!atomic_load(&p->stop)) {
        const int64_t limit = now_ns() + SPIN_NS;
        for (uint32_t i = 0; job_of(p) == seen && !atomic_load(&p->stop); i++) {
            cpu_relax();
            if ((i & 63) == 63 && now_ns() > limit) {
                pthread_mutex_lock(&p->mutex);
                atomic_fetch_add(&p->n_sleeping, 1);
                while (job_of(p) == seen && !atomic_load(&p->stop)) pthread_cond_wait(&p->wake, &p->mutex);
                atomic_fetch_sub(&p->n_sleeping, 1);
                pthread_mutex_unlock(&p->mutex);
            }
        }
        if (!atomic_load(&p->stop)) seen = take_chunks(p, w->index);
    }
    return NULL;
}

void cpu_parallel(kvf_device *dev, uint32_t n_chunk, cpu_fn fn, void *arg) {
    if (n_chunk == 0) return;
    cpu_pool *p = cpu_dev(dev)->pool;
    const uint32_t saved = cpu_fp_enter();
    if (n_chunk == 1 || p->n_worker == 0) {
        for (uint32_t i = 0; i < n_chunk; i++) fn(arg, i, 0);
        cpu_fp_leave(saved);
        return;
    }
    atomic_store_explicit(&p->done, 0, memory_order_relaxed);
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->arg, arg, memory_order_relaxed);
    atomic_store(&p->state, STATE((job_of(p) + 1) & 0xffffu, n_chunk, 0));
    if (atomic_load(&p->n_sleeping) > 0) {
        pthread_mutex_lock(&p->mutex);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->mutex);
    }
    take_chunks(p, 0);
    const int64_t limit = now_ns() + SPIN_NS;
    for (uint32_t i = 0; atomic_load(&p->done) != n_chunk; i++) {
        cpu_relax();
        if ((i & 63) == 63 && now_ns() > limit) {
            pthread_mutex_lock(&p->mutex);
            atomic_store(&p->caller_sleeps, 1);
            while (atomic_load(&p->done) != n_chunk) pthread_cond_wait(&p->idle, &p->mutex);
            atomic_store(&p->caller_sleeps, 0);
            pthread_mutex_unlock(&p->mutex);
        }
    }
    cpu_fp_leave(saved);
}

cpu_pool *cpu_pool_open(uint32_t n_thread) {
    cpu_pool *p = aligned_alloc(64, (sizeof *p + 63) & ~(size_t)63);
    if (p == NULL) return NULL;
    *p = (cpu_pool){0};
    p->worker = calloc(n_thread, sizeof *p->worker);
    if (p->worker == NULL || pthread_mutex_init(&p->mutex, NULL) != 0) {
        free(p->worker);
        free(p);
        return NULL;
    }
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->idle, NULL);
    for (uint32_t i = 1; i < n_thread; i++) {
        worker *w = &p->worker[p->n_worker];
        w->pool = p;
        w->index = i;
        if (pthread_create(&w->thread, NULL, work, w) != 0) {
            cpu_pool_close(p);
            return NULL;
        }
        p->n_worker++;
    }
    return p;
}

void cpu_pool_close(cpu_pool *p) {
    if (p == NULL) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->stop, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->mutex);
    for (uint32_t i = 0; i < p->n_worker; i++) pthread_join(p->worker[i].thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->idle);
    pthread_mutex_destroy(&p->mutex);
    free(p->worker);
    free(p);
}
