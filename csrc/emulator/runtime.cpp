/*
 * Devices, memory, streams, events and graphs of the emulated runtime: one GPU of 1 GiB, or as tests say. KVF_EMULATOR_ORDER, a number in the
 * environment, shuffles the order in which threads run; odd ones run the blocks from the last to the first.
 * KVF_EMULATOR_CAPABILITY is the compute capability, 80, 86 or 90, and with it the shared memory of a block.
 */
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <mutex>
#include <vector>

#include "fibers.h"

namespace emulator {

struct graph {
    std::vector<work> nodes;
};
struct stream {
    std::vector<work> queue;
    size_t first = 0;    /* number of queue[0], counted from the stream's beginning */
    size_t done = 0;     /* so many have run, or are running */
    graph *capture = nullptr;
    stream *origin = nullptr;   /* while it is part of another stream's capture: that one */
    std::vector<work> captured; /* then: what nobody has waited for yet */
};
struct event {
    stream *on = nullptr;
    size_t after = 0; /* work of the stream that comes before it */
    bool captured = false;
};
struct pool {};

static std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> guard;

static size_t total_bytes = (size_t)1 << 30;
static uint32_t requests_left = UINT32_MAX;
static cudaError_t lost = cudaSuccess; /* what every call returns once the device has failed */
static size_t used_bytes;
static const int n_device = 1;
static uint32_t launches;
static const uint32_t seed = getenv("KVF_EMULATOR_ORDER") == nullptr ? 0 : (uint32_t)atoi(getenv("KVF_EMULATOR_ORDER"));
static const int capability = getenv("KVF_EMULATOR_CAPABILITY") == nullptr ? 90 : atoi(getenv("KVF_EMULATOR_CAPABILITY"));
static const size_t most_shared = (size_t)(capability == 90 ? 227 : capability == 80 ? 163 : 99) << 10;
static std::map<char *, size_t> device_memory;
static std::map<char *, size_t> pinned;
static std::map<const void *, size_t> shared_limit;
static std::vector<stream *> streams;
static pool the_pool;
static thread_local cudaError_t last_error;

static cudaError_t fail(cudaError_t e) {
    if (e != cudaSuccess) last_error = e;
    return e;
}

/* Runs the stream's work before number `end`. Work may not queue more work, but may wait for other streams. */
static void drain(stream *s, size_t end = SIZE_MAX) {
    while (s->done < end && s->done - s->first < s->queue.size()) {
        work one = std::move(s->queue[s->done++ - s->first]);
        one();
    }
    if (s->done - s->first != s->queue.size()) return;
    s->first = s->done;
    s->queue.clear();
}

static void drain_all(void) {
    for (stream *s : streams) drain(s);
}

static cudaError_t enqueue(stream *s, work one) {
    if (s == nullptr) {
        drain_all();
        one();
        return cudaSuccess;
    }
    (s->capture != nullptr ? s->capture->nodes : s->origin != nullptr ? s->captured : s->queue).push_back(std::move(one));
    return cudaSuccess;
}

/* Whether [at, at + bytes) lies within one allocation of `of`. */
static bool within(const std::map<char *, size_t> &of, const void *at, size_t bytes) {
    auto it = of.upper_bound((char *)at);
    if (it == of.begin()) return false;
    --it;
    return (const char *)at + bytes <= it->first + it->second;
}

cudaError_t launch(const void *kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, work body) {
    guard g(lock);
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    auto limit = shared_limit.find(kernel);
    const size_t most = limit == shared_limit.end() ? 48 << 10 : limit->second;
    if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
        grid.z > 65535 || grid.x > 0x7fffffffu || shared_bytes > most || shared_bytes > most_shared) {
        return fail(cudaErrorInvalidConfiguration);
    }
    if (lost != cudaSuccess) return lost;
    return fail(enqueue(stream, [=] {
        launches++;
        run_grid(body, grid, block, shared_bytes, seed == 0 ? 0 : seed + 2 * launches);
    }));
}

void allow_shared(const void *kernel, size_t bytes) {
    guard g(lock);
    size_t &limit = shared_limit[kernel];
    if (bytes > limit) limit = bytes > (48 << 10) ? bytes : 48 << 10;
}

}  // namespace emulator

using namespace emulator;

const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "invalid argument";
    }
}
cudaError_t cudaGetLastError(void) {
    if (lost != cudaSuccess) return lost;
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
void emulator_limit(size_t bytes) {
    guard g(lock);
    total_bytes = bytes;
}
size_t emulator_used(void) {
    guard g(lock);
    drain_all();
    return used_bytes;
}
void emulator_fail_after(uint32_t n) {
    guard g(lock);
    requests_left = n;
}
void emulator_lose(bool is_lost) {
    guard g(lock);
    lost = is_lost ? cudaErrorLaunchFailure : cudaSuccess;
    for (stream *s : streams) s->queue.clear(), s->first = s->done;
}
cudaError_t cudaGetDeviceCount(int *n) {
    *n = n_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int ordinal) { return ordinal >= 0 && ordinal < n_device ? cudaSuccess : fail(cudaErrorInvalidDevice); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int ordinal) {
    if (ordinal < 0 || ordinal >= n_device) return fail(cudaErrorInvalidDevice);
    memset(prop, 0, sizeof *prop);
    strcpy(prop->name, "emulated GPU");
    prop->totalGlobalMem = total_bytes;
    prop->multiProcessorCount = 4;
    prop->major = capability / 10;
    prop->minor = capability % 10;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr what, int) {
    *value = what == cudaDevAttrMemoryPoolsSupported ? 1 : (int)most_shared;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    guard g(lock);
    *total = total_bytes;
    *free_bytes = total_bytes > used_bytes ? total_bytes - used_bytes : 0;
    return lost;
}
cudaError_t cudaDeviceSynchronize(void) {
    guard g(lock);
    drain_all();
    return cudaSuccess;
}

cudaError_t emulator_malloc(void **to, size_t bytes) {
    guard g(lock);
    *to = nullptr;
    const size_t round = (bytes + 255) / 256 * 256;
    if (lost != cudaSuccess) return lost;
    if (used_bytes + round > total_bytes || requests_left == 0) return fail(cudaErrorMemoryAllocation);
    if (requests_left != UINT32_MAX) requests_left--;
    *to = aligned_alloc(256, round);
    if (*to == nullptr) return fail(cudaErrorMemoryAllocation);
    memset(*to, 0xff, round);
    used_bytes += round;
    device_memory[(char *)*to] = round;
    return cudaSuccess;
}
static void release(void *data) {
    auto it = device_memory.find((char *)data);
    if (it == device_memory.end()) {
        fprintf(stderr, "emulator: freed device memory that is not allocated\n");
        abort();
    }
    used_bytes -= it->second;
    device_memory.erase(it);
    free(data);
}
cudaError_t cudaFree(void *data) {
    guard g(lock);
    if (data == nullptr) return cudaSuccess;
    drain_all();
    release(data);
    return cudaSuccess;
}
cudaError_t cudaFreeAsync(void *data, cudaStream_t s) {
    guard g(lock);
    if (s->capture != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
    return enqueue(s, [data] { release(data); });
}
cudaError_t emulator_host_alloc(void **to, size_t bytes) {
    guard g(lock);
    const size_t round = (bytes + 255) / 256 * 256;
    *to = aligned_alloc(256, round);
    if (*to == nullptr) return fail(cudaErrorMemoryAllocation);
    pinned[(char *)*to] = round;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) {
    guard g(lock);
    drain_all();
    pinned.erase((char *)data);
    free(data);
    return cudaSuccess;
}
cudaError_t cudaHostRegister(void *data, size_t bytes, unsigned) {
    guard g(lock);
    pinned[(char *)data] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *data) {
    guard g(lock);
    drain_all();
    return pinned.erase((char *)data) == 1 ? cudaSuccess : fail(cudaErrorInvalidValue);
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int) {
    *p = &the_pool;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value) {
    *(uint64_t *)value = 0;
    return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    guard g(lock);
    *s = new stream();
    streams.push_back(*s);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    guard g(lock);
    drain(s);
    for (size_t i = 0; i < streams.size(); i++) {
        if (streams[i] == s) streams.erase(streams.begin() + (long)i--);
    }
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    if (s->capture != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
    drain(s);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, s);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t s) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    const size_t to_bytes = height == 0 ? 0 : to_pitch * (height - 1) + width;
    const size_t from_bytes = height == 0 ? 0 : from_pitch * (height - 1) + width;
    if ((kind != cudaMemcpyDeviceToHost && !within(device_memory, to, to_bytes)) ||
        (kind != cudaMemcpyHostToDevice && !within(device_memory, from, from_bytes)) || to_pitch < width ||
        from_pitch < width) {
        return fail(cudaErrorInvalidValue);
    }
    const char *source = (const char *)from;
    std::vector<char> copy;
    /* Memory that is not pinned is read before the call returns; writing to it waits for the stream. */
    if (kind == cudaMemcpyHostToDevice && !within(pinned, from, from_bytes)) {
        copy.assign(source, source + from_bytes);
    }
    const bool staged = !copy.empty();
    enqueue(s, [=, copy = std::move(copy)] {
        const char *at = staged ? copy.data() : source;
        for (size_t i = 0; i < height; i++) memmove((char *)to + i * to_pitch, at + i * from_pitch, width);
    });
    if (kind == cudaMemcpyDeviceToHost && !within(pinned, to, to_bytes)) drain(s);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    if (!within(device_memory, to, bytes)) return fail(cudaErrorInvalidValue);
    return enqueue(s, [=] { memset(to, value, bytes); });
}

cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = new event();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    guard g(lock);
    e->on = s;
    e->after = s->first + s->queue.size();
    e->captured = s->capture != nullptr || s->origin != nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    if (e->on == nullptr) return cudaSuccess;
    if (!e->captured) return enqueue(s, [on = e->on, after = e->after] { drain(on, after); });
    if (e->on->capture != nullptr) { /* s belongs to the capture from now on */
        s->origin = e->on;
    } else if (e->on->origin == s) {
        for (work &one : e->on->captured) s->capture->nodes.push_back(std::move(one));
        e->on->captured.clear();
    } else {
        return fail(cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    guard g(lock);
    if (lost != cudaSuccess) return lost;
    if (e->on != nullptr) drain(e->on);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
    *ms = 1;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    guard g(lock);
    if (s->capture != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
    s->capture = new graph();
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) {
    guard g(lock);
    *out = s->capture;
    s->capture = nullptr;
    for (stream *other : streams) {
        if (other->origin != s) continue;
        other->origin = nullptr;
        if (other->captured.empty()) continue;
        other->captured.clear(); /* nobody waited for it */
        delete *out;
        *out = nullptr;
    }
    return *out != nullptr ? cudaSuccess : fail(cudaErrorInvalidValue);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t from, unsigned long long) {
    *exec = new graph(*from);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    guard g(lock);
    for (work &one : exec->nodes) enqueue(s, one);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
