/*
 * Handles under threads: a device serves one call at a time and says so, and a handle that another thread frees is refused,
 * not read. Meant for ThreadSanitizer as much as for AddressSanitizer.
 */
#include <pthread.h>

#include "test.h"

static const shape SHAPE = {1, 2, 1, 4, KVF_F32};
static kvf_device *device;
static kvf_cache *cache;

/* Calls until the handle is gone; counts what the calls returned. */
static void *caller(void *arg) {
    uint32_t *count = arg; /* [3]: OK, BUSY, gone */
    char message[200];
    while (count[2] == 0) {
        const int32_t id = kvf_sequence_create(cache, KVF_KV_HEAD, message, sizeof message);
        if (id > 0) {
            count[0]++;
            int32_t status;
            do { /* a busy device has not freed it */
                status = kvf_sequence_free(cache, (uint32_t)id, message, sizeof message);
                count[1] += status == KVF_ERR_BUSY;
            } while (status == KVF_ERR_BUSY);
            count[2] += status == KVF_ERR_ARG;
        } else {
            CHECK(id == KVF_ERR_BUSY || id == KVF_ERR_ARG);
            count[id == KVF_ERR_BUSY ? 1 : 2]++;
        }
    }
    return NULL;
}

typedef struct long_call {
    float *q, *k;
    uint32_t n, sequence;
    int32_t status;
} long_call;

/* Some milliseconds of work on the device. */
static void *record(void *arg) {
    long_call *c = arg;
    char message[200];
    do {
        c->status = kvf_record_layer(cache, c->sequence, 0, c->q, c->k, c->k, message, sizeof message);
    } while (c->status == KVF_ERR_BUSY);
    return NULL;
}

int main(void) {
    for (uint32_t round = 0; round < 5; round++) {
        device = device_of_threads(2);
        cache = cache_of_shape(device, SHAPE, 0);
        pthread_t threads[3];
        uint32_t count[3][3] = {{0}};
        for (uint32_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, caller, count[i]) == 0);
        kvf_ledger ledger = {.size = sizeof ledger};
        for (uint32_t i = 0; i < 200; i++) {
            const int32_t status = kvf_cache_ledger(cache, &ledger, NULL, 0);
            CHECK(status == KVF_OK || status == KVF_ERR_BUSY);
        }
        kvf_device_free(device); /* waits for whoever has it; lives on until the cache goes */
        kvf_cache_free(cache);
        for (uint32_t i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0 && count[i][2] == 1);
        CHECK(kvf_live_handles() == 0);
    }

    /* A cache that is freed while a call runs on it goes when the call is done. */
    device = device_of_threads(2);
    cache = cache_of_shape(device, SHAPE, 0);
    const kvf_observe observe = {sizeof observe, 1, 1, 1};
    long_call call = {.n = 1500};
    const uint32_t range[3] = {0, 0, call.n};
    call.q = normals(2 * (size_t)call.n * 4);
    call.k = normals((size_t)call.n * 4);
    call.sequence = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    CHECK(kvf_record_begin(cache, call.sequence, call.n, &observe, range, ERR) == KVF_OK);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, record, &call) == 0);
    kvf_ledger ledger = {.size = sizeof ledger};
    int32_t status = KVF_OK;
    for (uint32_t i = 0; i < 1000000 && status == KVF_OK; i++) {
        status = kvf_cache_ledger(cache, &ledger, ERR);
        if (status == KVF_OK && ledger.n_page > 0) break; /* it was faster */
    }
    kvf_cache_free(cache);
    CHECK(pthread_join(thread, NULL) == 0 && (call.status == KVF_OK || call.status == KVF_ERR_ARG));
    free(call.q);
    free(call.k);
    kvf_device_free(device);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
