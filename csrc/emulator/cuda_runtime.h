/*
 * The part of the CUDA runtime that csrc/cuda uses, carried out on the CPU, one device thread after the other. It lets
 * every kernel and all host code of the CUDA build run where there is no GPU, under the sanitizers too. It is made for
 * finding mistakes, not for speed:
 *   - device memory is filled with NaN patterns when it is handed out; its size is limited
 *   - work of a stream runs as late as the API allows, so a host buffer that is reused too early is seen; in a graph, so does
 *     what was captured on another stream
 *   - the threads of a block take turns at barriers and warp operations only, in an order that can be shuffled
 *   - limits of a launch (threads, shared memory, grid) are those of compute capability 9.0
 * tasks/_emulate.ts rewrites launches and dynamic shared memory into plain C++.
 */
#ifndef KVF_EMULATOR_CUDA_RUNTIME_H
#define KVF_EMULATOR_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

/* ---- Types ---- */

struct dim3 {
    uint32_t x, y, z;
    constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
struct uint2 { uint32_t x, y; } __attribute__((aligned(8)));
struct uint3 { uint32_t x, y, z; };
struct uint4 { uint32_t x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr { cudaDevAttrMemoryPoolsSupported, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaFuncAttributePreferredSharedMemoryCarveout = 9 };
enum cudaSharedCarveout { cudaSharedmemCarveoutMaxShared = 100 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4, cudaMemPoolAttrReservedMemCurrent = 5, cudaMemPoolAttrUsedMemCurrent = 7 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum { cudaEventDisableTiming = 2, cudaStreamNonBlocking = 1, cudaHostAllocDefault = 0, cudaHostAllocMapped = 2, cudaHostRegisterDefault = 0 };

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int multiProcessorCount;
    int major, minor;
};

namespace emulator {
struct stream;
struct event;
struct graph;
struct pool;
}
typedef emulator::stream *cudaStream_t;
typedef emulator::event *cudaEvent_t;
typedef emulator::graph *cudaGraph_t;
typedef emulator::graph *cudaGraphExec_t;
typedef emulator::pool *cudaMemPool_t;

/* ---- Host functions ---- */

const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int ordinal);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int ordinal);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int ordinal);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaDeviceSynchronize(void);

cudaError_t emulator_malloc(void **to, size_t bytes);
template <typename T>
static inline cudaError_t cudaMalloc(T **to, size_t bytes) {
    return emulator_malloc((void **)to, bytes);
}
cudaError_t cudaFree(void *data);
cudaError_t emulator_host_alloc(void **to, size_t bytes);
template <typename T>
static inline cudaError_t cudaHostAlloc(T **to, size_t bytes, unsigned) {
    return emulator_host_alloc((void **)to, bytes);
}
cudaError_t cudaFreeHost(void *data);
cudaError_t cudaHostRegister(void *data, size_t bytes, unsigned);
cudaError_t cudaHostUnregister(void *data);
template <typename T>
static inline cudaError_t cudaHostGetDevicePointer(T **to, void *host, unsigned) {
    *to = (T *)host;
    return cudaSuccess;
}
template <typename T>
static inline cudaError_t cudaMallocAsync(T **to, size_t bytes, cudaStream_t) {
    return emulator_malloc((void **)to, bytes);
}
cudaError_t cudaFreeAsync(void *data, cudaStream_t stream);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int ordinal);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr what, void *value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr what, void *value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t keep);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

/* ---- What tests can do to the device (tests/csrc/memory_test.c) ---- */

/* Sets the device's memory; what is taken stays so. */
extern "C" void emulator_limit(size_t total_bytes);
/* Bytes that are taken. */
extern "C" size_t emulator_used(void);
/* The next n requests for device memory are met, all later ones are not; UINT32_MAX: all are. */
extern "C" void emulator_fail_after(uint32_t n);
/* From now on the device has failed, or works again. */
extern "C" void emulator_lose(bool lost);

/* ---- Launches ---- */

namespace emulator {

typedef std::function<void()> work;

/* Checks the limits, then queues `body` to run once per thread of the grid. */
cudaError_t launch(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, work body);
void allow_shared(const void *kernel, size_t bytes);
/* The block's dynamic shared memory. */
void *dynamic_shared(void);

struct launcher {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
    launcher(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t stream = nullptr)
        : grid(grid), block(block), shared_bytes(shared_bytes), stream(stream) {}
    template <typename... P, typename... A>
    void run(void (*kernel)(P...), A &&...args) const {
        std::tuple<std::remove_const_t<P>...> copy(static_cast<P>(std::forward<A>(args))...);
        launch((const void *)kernel, grid, block, shared_bytes, stream, [kernel, copy] { std::apply(kernel, copy); });
    }
};

}  // namespace emulator

template <typename F>
static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute what, int value) {
    if (what == cudaFuncAttributeMaxDynamicSharedMemorySize) emulator::allow_shared((const void *)kernel, (size_t)value);
    return cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct { int programmaticStreamSerializationAllowed; } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
template <typename... P, typename... A>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...), A &&...args) {
    std::tuple<std::remove_const_t<P>...> copy(static_cast<P>(std::forward<A>(args))...);
    return emulator::launch((const void *)kernel, c->gridDim, c->blockDim, c->dynamicSmemBytes, c->stream,
                            [kernel, copy] { std::apply(kernel, copy); });
}

#include "device.h"

#endif
