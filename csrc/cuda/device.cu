/* The GPU: opening it, asking it, and turning its errors into messages. */
#include "cuda.h"

#include <stdio.h>

#include <initializer_list>

int32_t cu_check(cudaError_t e, const char *what, kv_err err) {
    if (e == cudaSuccess) return KVF_OK;
    cudaGetLastError(); /* one that does not stick must not be reported twice */
    if (e == cudaErrorMemoryAllocation) return cu_no_memory(0, what, err);
    return kv_fail(err, KVF_ERR_DEVICE, "Cannot complete %s as CUDA failed: %s", what, cudaGetErrorString(e));
}

int32_t cu_no_memory(size_t bytes, const char *what, kv_err err) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) cudaGetLastError();
    if (bytes == 0) return kv_fail(err, KVF_ERR_MEMORY, "Cannot allocate %s as device memory ran out: %zu bytes are free", what, free_bytes);
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot allocate %s as device memory ran out: %zu bytes are needed, %zu are free", what, bytes,
                   free_bytes);
}

int32_t cu_enter(kvf_device *dev, kv_err err) {
    CU_TRY(cudaSetDevice(cu_of(dev)->ordinal), "choosing the device");
    return KVF_OK;
}

int32_t cu_synchronize(kvf_device *dev, kv_err err) {
    CU_TRY(cudaStreamSynchronize(cu_of(dev)->stream), "waiting for the device");
    return KVF_OK;
}

static int32_t open_parts(kvf_device *dev, cu_device *d, kv_err err) {
    int shared = 0;
    CU_TRY(cudaSetDevice(d->ordinal), "choosing the device");
    CU_TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, d->ordinal), "asking for shared memory");
    d->shared_bytes = (uint32_t)shared - 2048; /* less what kernels hold statically */
    CU_TRY(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "creating a stream");
    CU_TRY(cudaStreamCreateWithFlags(&d->side, cudaStreamNonBlocking), "creating a stream");
    for (cudaEvent_t *event : {&d->fork, &d->join[0], &d->join[1]}) {
        CU_TRY(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "creating an event");
    }
    for (int i = 0; i < CU_IN_FLIGHT; i++) {
        CU_TRY(cudaEventCreateWithFlags(&d->step[i], cudaEventDisableTiming), "creating an event");
    }
    CU_TRY(cudaHostAlloc((void **)&d->word, sizeof(uint32_t), cudaHostAllocMapped), "pinning memory");
    CU_TRY(cudaHostGetDevicePointer((void **)&d->word_device, (void *)d->word, 0), "mapping memory");
    return cu_memory_open(dev, err);
}

extern "C" int32_t be_device_open(kvf_device *dev, const kvf_device_options *options, kv_err err) {
    int count = 0;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return kv_fail(err, KVF_ERR_DEVICE, "Cannot open a CUDA device as none was found: %s", cudaGetErrorString(e));
    }
    if (count == 0) return kv_fail(err, KVF_ERR_DEVICE, "Cannot open a CUDA device as the driver lists none");
    if (options->ordinal >= (uint32_t)count) {
        return kv_fail(err, KVF_ERR_DEVICE, "Cannot open CUDA device %u as there are %d, counted from 0", options->ordinal, count);
    }
    cudaDeviceProp prop;
    CU_TRY(cudaGetDeviceProperties(&prop, (int)options->ordinal), "asking for the device's properties");
    if (prop.major < 8) {
        return kv_fail(err, KVF_ERR_DEVICE, "Cannot open CUDA device %u (%s) as its compute capability must be at least 8.0: it is %d.%d",
                       options->ordinal, prop.name, prop.major, prop.minor);
    }
    cu_device *d = (cu_device *)calloc(1, sizeof *d);
    if (d == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot open a CUDA device as memory ran out");
    d->ordinal = (int)options->ordinal;
    d->n_sm = (uint32_t)prop.multiProcessorCount;
    d->dependent = prop.major >= 9;
#ifdef KVF_WARPGROUPS
    d->warpgroups = prop.major == 9 && prop.minor == 0;
#endif
    dev->impl = d;
    const int32_t status = open_parts(dev, d, err);
    if (status != KVF_OK) {
        be_device_close(dev);
        return status;
    }
    d->blas = cu_blas_open();
    dev->info.size = sizeof dev->info;
    dev->info.kind = 1;
    dev->info.n_thread = 1;
    dev->info.simd = 1;
    dev->info.capability = (uint32_t)(10 * prop.major + prop.minor);
    dev->info.blas = d->blas != NULL;
    dev->info.total_bytes = (double)prop.totalGlobalMem;
    strncpy(dev->info.name, prop.name, sizeof dev->info.name - 1);
    dev->info.name[sizeof dev->info.name - 1] = 0;
    be_device_refresh(dev);
    return KVF_OK;
}

extern "C" void be_device_close(kvf_device *dev) {
    cu_device *d = cu_of(dev);
    if (d == NULL) return;
    /* After an error that sticks everything below fails, harmlessly. */
    cudaSetDevice(d->ordinal);
    if (d->stream != NULL) cudaStreamSynchronize(d->stream);
    cu_blas_close(d->blas);
    cu_memory_close(dev);
    if (d->word != NULL) cudaFreeHost((void *)d->word);
    for (int i = 0; i < CU_IN_FLIGHT; i++) {
        if (d->step[i] != NULL) cudaEventDestroy(d->step[i]);
    }
    for (cudaEvent_t event : {d->fork, d->join[0], d->join[1]}) {
        if (event != NULL) cudaEventDestroy(event);
    }
    if (d->side != NULL) cudaStreamDestroy(d->side);
    if (d->stream != NULL) cudaStreamDestroy(d->stream);
    cudaGetLastError();
    free(d);
    dev->impl = NULL;
}

extern "C" void be_device_refresh(kvf_device *dev) { dev->info.free_bytes = cu_room(dev, INFINITY); }

extern "C" int32_t be_device_check(kvf_device *dev, kv_err err) {
    cu_device *d = cu_of(dev);
    if (d->lost[0] == 0) {
        cudaError_t e = cudaSetDevice(d->ordinal);
        if (e == cudaSuccess) e = cudaStreamQuery(d->stream);
        if (e == cudaErrorNotReady) e = cudaSuccess;
        cudaGetLastError();
        if (e == cudaSuccess) return KVF_OK;
        snprintf(d->lost, sizeof d->lost, "Cannot use CUDA device %d as it must not have failed: %s; only a new process can use it again",
                 d->ordinal, cudaGetErrorString(e));
    }
    return kv_fail(err, KVF_ERR_DEVICE, "%s", d->lost);
}

/* Every thread reads 16 bytes at a time, eight loads in flight; the sum keeps the loads alive. */
static __global__ void __launch_bounds__(512) read_kernel(const uint4 *from, size_t n, uint32_t *sink) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 7 * stride < n; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += stride) sum += from[i].x;
    if (sum == 0x12345678u) *sink = sum;
}

extern "C" double be_read_bandwidth(kvf_device *dev, double bytes) {
    const kv_err none = {NULL, 0};
    cu_device *d = cu_of(dev);
    const size_t n = (size_t)bytes / 16;
    if (n == 0 || cu_enter(dev, none) != KVF_OK) return 0;
    char *data = (char *)be_alloc(dev, n * 16 + 256);
    cudaEvent_t start = NULL, end = NULL;
    double best = 0;
    if (data != NULL && cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess &&
        cudaMemsetAsync(data, 0x5a, n * 16 + 256, d->stream) == cudaSuccess) {
        for (int i = 0; i < 6; i++) {
            float ms = 0;
            cudaEventRecord(start, d->stream);
            read_kernel<<<2 * d->n_sm, 512, 0, d->stream>>>((const uint4 *)data, n, (uint32_t *)(data + n * 16));
            cudaEventRecord(end, d->stream);
            if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, start, end) != cudaSuccess) {
                best = 0;
                break;
            }
            const double rate = ms > 0 ? (double)n * 16 / ms * 1e3 : 0;
            if (i > 0 && rate > best) best = rate;
        }
    }
    if (start != NULL) cudaEventDestroy(start);
    if (end != NULL) cudaEventDestroy(end);
    be_free(dev, data);
    cudaGetLastError();
    return best;
}
