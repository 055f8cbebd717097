/* Devices. A device lives until its handle and all its models and caches are freed, in whatever order. */
#include <math.h>
#include <stdlib.h>

#include "backend.h"

_Static_assert(sizeof(kvf_device_options) == 16, "layout of the ABI");
_Static_assert(sizeof(kvf_device_info) == 168, "layout of the ABI");

#define KV_MAX_READ_BYTES 4294967296.0 /* of the bandwidth test */

kvf_device *kvf_device_create(const kvf_device_options *options, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    if (options == NULL) {
        kv_fail(err, KVF_ERR_ARG, "Cannot create a device as the options must not be NULL");
        return NULL;
    }
    if (options->size != sizeof *options) {
        kv_fail(err, KVF_ERR_ARG, "Cannot create a device as kvf_device_options must have %zu bytes: size is %u",
                sizeof *options, options->size);
        return NULL;
    }
    if (options->simd > 4) {
        kv_fail(err, KVF_ERR_ARG, "Cannot create a device as simd must be at most 4: %u", options->simd);
        return NULL;
    }
    kvf_device *dev = calloc(1, sizeof *dev);
    if (dev == NULL) {
        kv_fail(err, KVF_ERR_MEMORY, "Cannot create a device as %zu bytes must be available", sizeof *dev);
        return NULL;
    }
    dev->handle.kind = KV_DEVICE;
    dev->refs = 1;
    if (be_device_open(dev, options, err) != KVF_OK) {
        free(dev);
        return NULL;
    }
    dev->info.size = sizeof dev->info;
    kv_handle_add(&dev->handle);
    return dev;
}

void kvf_device_free(kvf_device *dev) {
    if (!kv_enter_to_free(dev, KV_DEVICE)) return;
    kv_leave(dev);
    kv_device_release(dev);
}

int32_t kvf_device_describe(kvf_device *dev, kvf_device_info *info, char *text, uint32_t cap) {
    const kv_err err = {text, cap};
    const int32_t status = kv_enter(dev, KV_DEVICE, "describe the device", err);
    if (status != KVF_OK) return status;
    int32_t result = KVF_OK;
    if (info == NULL) {
        result = kv_fail(err, KVF_ERR_ARG, "Cannot describe the device as info must not be NULL");
    } else if (info->size != sizeof *info) {
        result = kv_fail(err, KVF_ERR_ARG, "Cannot describe the device as kvf_device_info must have %zu bytes: size is %u",
                         sizeof *info, info->size);
    } else {
        be_device_refresh(dev);
        *info = dev->info;
        info->size = sizeof *info;
    }
    kv_leave(dev);
    return result;
}

double kvf_device_read_bandwidth(kvf_device *dev, double bytes) {
    const kv_err err = {NULL, 0};
    if (!isfinite(bytes) || bytes < 1) return 0;
    if (kv_enter(dev, KV_DEVICE, "measure", err) != KVF_OK) return 0;
    /* A size near the machine's memory would not measure anything but swapping. */
    double most = KV_MAX_READ_BYTES;
    if (dev->info.total_bytes > 0 && dev->info.total_bytes / 4 < most) most = dev->info.total_bytes / 4;
    const double result = be_read_bandwidth(dev, bytes < most ? bytes : most);
    kv_leave(dev);
    return result;
}
