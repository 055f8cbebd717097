/* The CPU as a device: threads, instruction set, memory. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <time.h>

#include "cpu.h"

/*
 * The best kernels up to a level; 0 stands for the fastest. Intel's cores without matrix units do a BF16 dot product at a
 * quarter of the rate of fused multiply-adds, so there AVX-512-BF16 is slower and has to be asked for.
 */
static cpu_ops choose_ops(uint32_t highest) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool best = highest == 0;
    if (best) highest = 4;
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (highest >= 3 && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        const bool bf16 = __builtin_cpu_supports("avx512bf16") && !(best && __builtin_cpu_is("intel"));
        return highest >= 4 && bf16 ? cpu_ops_avx512bf16() : *cpu_ops_avx512();
    }
    if (highest >= 2 && avx2) return *cpu_ops_avx2();
#else
    (void)highest;
#endif
    return *cpu_ops_generic();
}

int32_t be_device_open(kvf_device *dev, const kvf_device_options *options, kv_err err) {
    if (options->ordinal != 0) {
        return kv_fail(err, KVF_ERR_DEVICE, "Cannot open CPU as its ordinal must be 0: it is %u", options->ordinal);
    }
    cpu_set_t set;
    uint32_t allowed = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) allowed = (uint32_t)CPU_COUNT(&set);
    const uint32_t n_thread = options->n_thread == 0 || options->n_thread > allowed ? allowed : options->n_thread;
    cpu_device *cpu = calloc(1, sizeof *cpu);
    if (cpu != NULL) cpu->pool = cpu_pool_open(n_thread);
    if (cpu == NULL || cpu->pool == NULL) {
        free(cpu);
        return kv_fail(err, KVF_ERR_MEMORY, "Cannot open CPU as %u threads could not be started", n_thread);
    }
    cpu->ops = choose_ops(options->simd);
    dev->impl = cpu;
    dev->info.n_thread = n_thread;
    dev->info.simd = cpu->ops.level;
    static const char *const LEVEL[] = {"", "generic", "AVX2", "AVX-512", "AVX-512-BF16"};
    snprintf(dev->info.name, sizeof dev->info.name, "CPU, %u threads, %s", n_thread, LEVEL[cpu->ops.level]);
    be_device_refresh(dev);
    return KVF_OK;
}

void be_device_close(kvf_device *dev) {
    cpu_device *cpu = cpu_dev(dev);
    cpu_pool_close(cpu->pool);
    for (uint32_t i = 0; i < CPU_N_SCRATCH; i++) free(cpu->scratch[i].data);
    free(cpu);
    dev->impl = NULL;
}

int32_t be_device_check(kvf_device *dev, kv_err err) {
    (void)dev, (void)err;
    return KVF_OK;
}

void be_device_refresh(kvf_device *dev) {
    struct sysinfo info;
    if (sysinfo(&info) != 0) return;
    dev->info.total_bytes = (double)info.totalram * info.mem_unit;
    dev->info.free_bytes = (double)info.freeram * info.mem_unit;
}

void *be_alloc(kvf_device *dev, size_t bytes) {
    (void)dev;
    if (bytes > SIZE_MAX - 64) return NULL;
    return aligned_alloc(64, (bytes + 63) & ~(size_t)63);
}

#define HUGE_PAGE ((size_t)2 << 20)

void *cpu_alloc_huge(size_t bytes) {
    if (bytes < HUGE_PAGE) return be_alloc(NULL, bytes);
    void *data;
    if (posix_memalign(&data, HUGE_PAGE, bytes) != 0) return NULL;
    madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* whole pages only: none is half empty */
    return data;
}

void be_free(kvf_device *dev, void *data) {
    (void)dev;
    free(data);
}

int32_t be_upload(kvf_device *dev, void *to, const void *from_host, size_t bytes, kv_err err) {
    return be_copy(dev, to, from_host, bytes, err);
}

int32_t be_download(kvf_device *dev, void *to_host, const void *from, size_t bytes, kv_err err) {
    return be_copy(dev, to_host, from, bytes, err);
}

int32_t be_copy(kvf_device *dev, void *to, const void *from, size_t bytes, kv_err err) {
    (void)dev;
    (void)err;
    memcpy(to, from, bytes);
    return KVF_OK;
}

void *cpu_scratch(kvf_device *dev, uint32_t slot, size_t bytes) {
    cpu_device *cpu = cpu_dev(dev);
    if (cpu->scratch[slot].bytes < bytes) {
        free(cpu->scratch[slot].data);
        cpu->scratch[slot].data = cpu_alloc_huge(bytes);
        cpu->scratch[slot].bytes = cpu->scratch[slot].data == NULL ? 0 : bytes;
    }
    return cpu->scratch[slot].data;
}

/* ---- Bandwidth ---- */

typedef struct read_job {
    const uint64_t *data;
    size_t words, per_chunk;
    uint64_t *sums; /* [chunks], so that no read is left out */
} read_job;

static void read_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const read_job *j = arg;
    const size_t first = chunk * j->per_chunk, end = first + j->per_chunk < j->words ? first + j->per_chunk : j->words;
    uint64_t sum[8] = {0};
    size_t i = first;
    for (; i + 8 <= end; i += 8) {
        for (uint32_t k = 0; k < 8; k++) sum[k] += j->data[i + k];
    }
    for (uint32_t k = 1; k < 8; k++) sum[0] += sum[k];
    j->sums[chunk] = sum[0];
}

double be_read_bandwidth(kvf_device *dev, double bytes) {
    const size_t size = (size_t)bytes / 64 * 64, per_chunk = 1u << 15;
    if (size == 0) return 0;
    const uint32_t n_chunk = (uint32_t)((size / 8 + per_chunk - 1) / per_chunk);
    uint64_t *data = be_alloc(dev, size), *sums = calloc(n_chunk, sizeof *sums);
    double best = 0;
    if (data != NULL && sums != NULL) {
        memset(data, 1, size);
        read_job job = {data, size / 8, per_chunk, sums};
        for (int i = 0; i < 3; i++) {
            struct timespec a, b;
            clock_gettime(CLOCK_MONOTONIC, &a);
            cpu_parallel(dev, n_chunk, read_chunk, &job);
            clock_gettime(CLOCK_MONOTONIC, &b);
            const double seconds = (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
            const double speed = (double)size / (seconds > 1e-9 ? seconds : 1e-9);
            if (speed > best) best = speed;
        }
        if (sums[0] == 0) best = 0;
    }
    be_free(dev, data);
    free(sums);
    return best;
}
