/*
 * Live handles, one list for the process, and who has which device.
 *
 * A call looks its handle up here before it reads it, so a pointer that was freed, or never was a handle, is refused. One
 * lock guards the list, the devices' busy flags and their reference counts; it is never held while work is done.
 */
#include <pthread.h>
#include <stdlib.h>

#include "backend.h"

static pthread_mutex_t g_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t g_left = PTHREAD_COND_INITIALIZER; /* some device was given back */
static kv_handle *g_first = NULL;
static uint32_t g_live = 0;

static const char *kind_name(uint32_t kind) {
    switch (kind) {
        case KV_DEVICE: return "device";
        case KV_MODEL: return "model";
        default: return "cache";
    }
}

/* The place on the list that points at the handle, or NULL. The lock is held. */
static kv_handle **find(const void *handle, uint32_t kind) {
    for (kv_handle **at = &g_first; *at != NULL; at = &(*at)->next) {
        if ((const void *)*at == handle) return (*at)->kind == kind ? at : NULL;
    }
    return NULL;
}

static kvf_device *device_of(kv_handle *handle) {
    switch (handle->kind) {
        case KV_DEVICE: return (kvf_device *)(void *)handle;
        case KV_MODEL: return ((kvf_model *)(void *)handle)->dev;
        default: return ((kvf_cache *)(void *)handle)->dev;
    }
}

void kv_handle_add(kv_handle *handle) {
    pthread_mutex_lock(&g_lock);
    handle->next = g_first;
    g_first = handle;
    g_live++;
    pthread_mutex_unlock(&g_lock);
}

int32_t kv_enter(const void *handle, uint32_t kind, const char *action, kv_err err) {
    if (handle == NULL) return kv_fail(err, KVF_ERR_ARG, "Cannot %s as the %s must not be NULL", action, kind_name(kind));
    pthread_mutex_lock(&g_lock);
    kv_handle **at = find(handle, kind);
    kvf_device *dev = at == NULL ? NULL : device_of(*at);
    const bool taken = dev != NULL && dev->busy;
    if (dev != NULL && !taken) dev->busy = true;
    pthread_mutex_unlock(&g_lock);
    if (dev == NULL) {
        return kv_fail(err, KVF_ERR_ARG, "Cannot %s as the %s must be a live handle: %p", action, kind_name(kind), handle);
    }
    if (taken) return kv_fail(err, KVF_ERR_BUSY, "Cannot %s as the device must be free: another call is using it", action);
    const int32_t status = be_device_check(dev, err);
    if (status != KVF_OK) kv_leave(dev);
    return status;
}

bool kv_enter_to_free(const void *handle, uint32_t kind) {
    if (handle == NULL) return false;
    pthread_mutex_lock(&g_lock);
    kv_handle **at;
    while ((at = find(handle, kind)) != NULL && device_of(*at)->busy) pthread_cond_wait(&g_left, &g_lock);
    if (at != NULL) {
        device_of(*at)->busy = true;
        *at = (*at)->next;
        g_live--;
    }
    pthread_mutex_unlock(&g_lock);
    return at != NULL;
}

void kv_leave(kvf_device *dev) {
    pthread_mutex_lock(&g_lock);
    dev->busy = false;
    pthread_cond_broadcast(&g_left);
    pthread_mutex_unlock(&g_lock);
}

bool kv_shares_device(const void *handle, uint32_t kind, const kvf_device *dev) {
    pthread_mutex_lock(&g_lock);
    kv_handle **at = find(handle, kind);
    const bool same = at != NULL && device_of(*at) == dev;
    pthread_mutex_unlock(&g_lock);
    return same;
}

void kv_device_retain(kvf_device *dev) {
    pthread_mutex_lock(&g_lock);
    dev->refs++;
    pthread_mutex_unlock(&g_lock);
}

void kv_device_release(kvf_device *dev) {
    pthread_mutex_lock(&g_lock);
    const bool last = --dev->refs == 0;
    pthread_mutex_unlock(&g_lock);
    if (!last) return;
    be_device_close(dev);
    free(dev);
}

uint32_t kvf_live_handles(void) {
    pthread_mutex_lock(&g_lock);
    const uint32_t n = g_live;
    pthread_mutex_unlock(&g_lock);
    return n;
}
