/* Errors, the library's counters, and devices. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "entry.h"

static atomic_uint live_handles;

int32_t kv_fail(kv_err err, int32_t status, const char *format, ...) {
    if (err.text != NULL && err.cap > 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(err.text, err.cap, format, args);
        va_end(args);
    }
    return status;
}

uint32_t kvf_abi_version(void) { return KVF_ABI_VERSION; }
uint32_t kvf_live_handles(void) { return atomic_load(&live_handles); }
void kv_handle_made(void) { atomic_fetch_add(&live_handles, 1); }
void kv_handle_gone(void) { atomic_fetch_sub(&live_handles, 1); }

int32_t kv_enter(kvf_device *dev, kv_err err) {
    if (err.text != NULL && err.cap > 0) err.text[0] = '\0';
    if (dev == NULL || dev->magic != KV_DEVICE_MAGIC) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use device as it must be a live handle");
    }
    if (atomic_flag_test_and_set(&dev->busy)) {
        return kv_fail(err, KVF_ERR_BUSY, "Cannot use device as one call at a time is allowed: another one is running");
    }
    return KVF_OK;
}

void kv_leave(kvf_device *dev) { atomic_flag_clear(&dev->busy); }

int32_t kv_enter_model(kvf_model *model, kv_err err) {
    if (model == NULL || model->magic != KV_MODEL_MAGIC) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use model as it must be a live handle");
    }
    return kv_enter(model->dev, err);
}

int32_t kv_enter_cache(kvf_cache *cache, kv_err err) {
    if (cache == NULL || cache->magic != KV_CACHE_MAGIC) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot use cache as it must be a live handle");
    }
    return kv_enter(cache->dev, err);
}

void kv_device_hold(kvf_device *dev) { atomic_fetch_add(&dev->n_holder, 1); }

void kv_device_release(kvf_device *dev) {
    if (atomic_fetch_sub(&dev->n_holder, 1) != 1) return;
    be_device_close(dev);
    dev->magic = 0;
    free(dev);
}

kvf_device *kvf_device_create(const kvf_device_options *options, char *err, uint32_t err_cap) {
    const kv_err e = {err, err_cap};
    if (options == NULL || options->size != sizeof *options) {
        kv_fail(e, KVF_ERR_ARG, "Cannot create device as options.size must be %zu: it is %u", sizeof *options,
                options == NULL ? 0 : options->size);
        return NULL;
    }
    if (options->simd > 4 || options->n_thread > 4096) {
        kv_fail(e, KVF_ERR_ARG, "Cannot create device as simd must be <= 4 and n_thread <= 4096: they are %u and %u",
                options->simd, options->n_thread);
        return NULL;
    }
    kvf_device *dev = calloc(1, sizeof *dev);
    if (dev == NULL) {
        kv_fail(e, KVF_ERR_MEMORY, "Cannot create device as memory ran out");
        return NULL;
    }
    atomic_flag_clear(&dev->busy);
    atomic_init(&dev->n_holder, 1);
    dev->info.size = sizeof dev->info;
    if (be_device_open(dev, options, e) != KVF_OK) {
        free(dev);
        return NULL;
    }
    dev->magic = KV_DEVICE_MAGIC;
    kv_handle_made();
    return dev;
}

void kvf_device_free(kvf_device *dev) {
    if (dev == NULL || dev->magic != KV_DEVICE_MAGIC) return;
    kv_handle_gone();
    kv_device_release(dev);
}

static int32_t describe(kvf_device *dev, kvf_device_info *info, kv_err e) {
    if (info == NULL || info->size != sizeof *info) {
        return kv_fail(e, KVF_ERR_ARG, "Cannot describe device as info.size must be %zu: it is %u", sizeof *info,
                       info == NULL ? 0 : info->size);
    }
    be_device_refresh(dev);
    *info = dev->info;
    info->size = sizeof *info;
    return KVF_OK;
}

int32_t kvf_device_describe(kvf_device *dev, kvf_device_info *info, char *err, uint32_t err_cap) {
    const kv_err e = {err, err_cap};
    const int32_t entered = kv_enter(dev, e);
    if (entered != KVF_OK) return entered;
    const int32_t status = describe(dev, info, e);
    kv_leave(dev);
    return status;
}

double kvf_device_read_bandwidth(kvf_device *dev, double bytes) {
    const kv_err e = {NULL, 0};
    if (!(bytes >= 1) || bytes > 1e12 || kv_enter(dev, e) != KVF_OK) return 0;
    const double speed = be_read_bandwidth(dev, bytes);
    kv_leave(dev);
    return speed;
}
