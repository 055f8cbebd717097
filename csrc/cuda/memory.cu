/*
 * Device memory. Requests up to 128 KiB (pages above all) are slots of 2 MiB slabs that hold one slot size each; slabs are
 * cut from chunks of 64 MiB, and an empty chunk goes back to the driver while another one is free. Larger requests use the
 * driver's stream-ordered pool. All bookkeeping is on the host: a page costs no driver call.
 */
#include "cuda.h"

struct cu_slab {
    char *base;
    uint32_t slot_bytes; /* 0: unused slab */
    uint32_t n_slot;
    uint32_t n_used;   /* slots handed out and not returned */
    uint32_t n_fresh;  /* slots from here on were never handed out */
    uint32_t free_slot; /* head of the returned ones, KV_NO_TOKEN: none */
    uint32_t *next;    /* [n_slot] */
    cu_slab *left;     /* neighbours among slabs with free slots of this size */
    cu_slab *right;
};

struct cu_chunk {
    void *data; /* as the driver gave it */
    char *base; /* first slab */
    uint32_t n_slab;
    uint32_t n_used;
    cu_slab slab[CU_CHUNK_SLABS];
};

int32_t cu_memory_open(kvf_device *dev, kv_err err) {
    cu_device *d = cu_of(dev);
    int pools = 0;
    CU_TRY(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, d->ordinal), "asking for memory pools");
    d->memory.pool = pools != 0;
    if (d->memory.pool) {
        cudaMemPool_t pool;
        uint64_t keep = (uint64_t)1 << 30; /* what the pool holds back for the next prefill's activations */
        CU_TRY(cudaDeviceGetDefaultMemPool(&pool, d->ordinal), "opening the memory pool");
        CU_TRY(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "setting up the memory pool");
    }
    CU_TRY(cudaHostAlloc((void **)&d->stage.host, 2 * CU_STAGE_HALF, cudaHostAllocDefault), "pinning memory");
    CU_TRY(cudaMalloc((void **)&d->stage.device, 2 * CU_STAGE_HALF), "the staging ring");
    for (int i = 0; i < 2; i++) {
        CU_TRY(cudaEventCreateWithFlags(&d->stage.event[i], cudaEventDisableTiming), "creating an event");
    }
    return KVF_OK;
}

void cu_memory_close(kvf_device *dev) {
    cu_device *d = cu_of(dev);
    if (d->scratch != NULL) be_free(dev, d->scratch);
    for (uint32_t i = 0; i < d->memory.n_chunk; i++) {
        cu_chunk *c = d->memory.chunk[i];
        cudaFree(c->data);
        for (uint32_t j = 0; j < c->n_slab; j++) free(c->slab[j].next);
        free(c);
    }
    free(d->memory.chunk);
    if (d->stage.host != NULL) cudaFreeHost(d->stage.host);
    if (d->stage.device != NULL) cudaFree(d->stage.device);
    for (int i = 0; i < 2; i++) {
        if (d->stage.event[i] != NULL) cudaEventDestroy(d->stage.event[i]);
    }
    cudaMemPool_t pool;
    if (d->memory.pool && cudaDeviceGetDefaultMemPool(&pool, d->ordinal) == cudaSuccess) cudaMemPoolTrimTo(pool, 0);
}

/* Gives what the pool holds back to the driver. */
static void trim_pool(cu_device *d) {
    cudaMemPool_t pool;
    cudaStreamSynchronize(d->stream);
    if (d->memory.pool && cudaDeviceGetDefaultMemPool(&pool, d->ordinal) == cudaSuccess) cudaMemPoolTrimTo(pool, 0);
    cudaGetLastError();
}

static double room_now(const cu_device *d) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    double room = (double)free_bytes; /* slabs are not in it: large requests cannot have them */
    cudaMemPool_t pool;
    uint64_t reserved = 0, used = 0;
    if (d->memory.pool && cudaDeviceGetDefaultMemPool(&pool, d->ordinal) == cudaSuccess &&
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved) == cudaSuccess &&
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used) == cudaSuccess && reserved > used) {
        room += (double)(reserved - used);
    }
    cudaGetLastError();
    return room;
}

double cu_room(kvf_device *dev, double wanted) {
    const kv_err none = {NULL, 0};
    const cu_device *d = cu_of(dev);
    if (cu_enter(dev, none) != KVF_OK) return 0;
    const double room = room_now(d);
    if (room >= wanted) return room;
    if (cudaStreamSynchronize(d->stream) != cudaSuccess) cudaGetLastError();
    return room_now(d);
}

int32_t cu_check_room(kvf_device *dev, double bytes, const char *action, kv_err err) {
    const double room = cu_room(dev, bytes);
    if (bytes <= room) return KVF_OK;
    return kv_fail(err, KVF_ERR_MEMORY, "Cannot %s as %.0f bytes of device memory must be free: %.0f are", action, bytes, room);
}

double cu_chunk_bytes(const kvf_device *dev, double bytes) {
    const cu_memory *m = &cu_of((kvf_device *)dev)->memory;
    const double chunk = (double)CU_CHUNK_SLABS * CU_SLAB_BYTES;
    for (uint32_t i = 0; i < m->n_chunk; i++) bytes -= (double)(m->chunk[i]->n_slab - m->chunk[i]->n_used) * CU_SLAB_BYTES;
    return bytes <= 0 ? 0 : ceil(bytes / chunk) * chunk;
}

static cu_chunk *add_chunk(cu_device *d) {
    cu_memory *m = &d->memory;
    if (m->n_chunk == m->cap_chunk) {
        const uint32_t cap = m->cap_chunk ? 2 * m->cap_chunk : 16;
        cu_chunk **grown = (cu_chunk **)realloc(m->chunk, cap * sizeof *grown);
        if (grown == NULL) return NULL;
        m->chunk = grown;
        m->cap_chunk = cap;
    }
    cu_chunk *c = (cu_chunk *)calloc(1, sizeof *c);
    if (c == NULL) return NULL;
    if (cudaMalloc(&c->data, CU_CHUNK_SLABS * CU_SLAB_BYTES) != cudaSuccess) {
        cudaGetLastError();
        trim_pool(d);
        if (cudaMalloc(&c->data, CU_CHUNK_SLABS * CU_SLAB_BYTES) != cudaSuccess) {
            cudaGetLastError();
            free(c);
            return NULL;
        }
    }
    const size_t skip = (CU_SLAB_BYTES - (size_t)c->data % CU_SLAB_BYTES) % CU_SLAB_BYTES;
    c->base = (char *)c->data + skip;
    c->n_slab = CU_CHUNK_SLABS - (skip > 0);
    for (uint32_t i = 0; i < c->n_slab; i++) c->slab[i].base = c->base + i * CU_SLAB_BYTES;
    uint32_t at = m->n_chunk++;
    for (; at > 0 && m->chunk[at - 1]->base > c->base; at--) m->chunk[at] = m->chunk[at - 1];
    m->chunk[at] = c;
    return c;
}

/* Index of the chunk that holds an address, or KV_NO_TOKEN. */
static uint32_t find_chunk(const cu_memory *m, const char *at) {
    uint32_t low = 0, high = m->n_chunk;
    while (low < high) {
        const uint32_t mid = (low + high) / 2;
        if (m->chunk[mid]->base <= at) low = mid + 1;
        else high = mid;
    }
    if (low == 0 || at >= m->chunk[low - 1]->base + m->chunk[low - 1]->n_slab * CU_SLAB_BYTES) return KV_NO_TOKEN;
    return low - 1;
}

static void link_slab(cu_memory *m, cu_slab *s) {
    cu_slab **head = &m->open[s->slot_bytes / CU_SLOT_ALIGN];
    s->left = NULL;
    s->right = *head;
    if (*head != NULL) (*head)->left = s;
    *head = s;
}

static void unlink_slab(cu_memory *m, cu_slab *s) {
    if (s->left != NULL) s->left->right = s->right;
    else m->open[s->slot_bytes / CU_SLOT_ALIGN] = s->right;
    if (s->right != NULL) s->right->left = s->left;
    s->left = s->right = NULL;
}

static cu_slab *open_slab(cu_device *d, uint32_t slot_bytes) {
    cu_chunk *c = NULL;
    for (uint32_t i = 0; i < d->memory.n_chunk && c == NULL; i++) {
        if (d->memory.chunk[i]->n_used < d->memory.chunk[i]->n_slab) c = d->memory.chunk[i];
    }
    if (c == NULL) c = add_chunk(d);
    if (c == NULL) return NULL;
    uint32_t i = 0;
    while (c->slab[i].slot_bytes != 0) i++;
    cu_slab *s = &c->slab[i];
    s->n_slot = (uint32_t)(CU_SLAB_BYTES / slot_bytes);
    s->next = (uint32_t *)malloc(s->n_slot * sizeof *s->next);
    if (s->next == NULL) return NULL;
    s->slot_bytes = slot_bytes;
    s->n_used = s->n_fresh = 0;
    s->free_slot = KV_NO_TOKEN;
    c->n_used++;
    link_slab(&d->memory, s);
    return s;
}

static void *alloc_slot(cu_device *d, uint32_t slot_bytes) {
    cu_slab *s = d->memory.open[slot_bytes / CU_SLOT_ALIGN];
    if (s == NULL) s = open_slab(d, slot_bytes);
    if (s == NULL) return NULL;
    uint32_t slot = s->free_slot;
    if (slot != KV_NO_TOKEN) s->free_slot = s->next[slot];
    else slot = s->n_fresh++;
    if (++s->n_used == s->n_slot) unlink_slab(&d->memory, s);
    return s->base + (size_t)slot * slot_bytes;
}

static void free_slot(cu_device *d, uint32_t chunk, char *data) {
    cu_memory *m = &d->memory;
    cu_chunk *c = m->chunk[chunk];
    cu_slab *s = &c->slab[(data - c->base) / CU_SLAB_BYTES];
    const uint32_t slot = (uint32_t)((data - s->base) / s->slot_bytes);
    if (s->n_used == s->n_slot) link_slab(m, s);
    s->next[slot] = s->free_slot;
    s->free_slot = slot;
    if (--s->n_used > 0) return;
    unlink_slab(m, s);
    free(s->next);
    s->next = NULL;
    s->slot_bytes = 0;
    if (--c->n_used > 0) return;
    bool spare = false;
    for (uint32_t i = 0; i < m->n_chunk; i++) spare |= i != chunk && m->chunk[i]->n_used == 0;
    if (!spare) return;
    cudaFree(c->data); /* waits for the device */
    free(c);
    memmove(m->chunk + chunk, m->chunk + chunk + 1, (m->n_chunk - chunk - 1) * sizeof *m->chunk);
    m->n_chunk--;
}

static void *alloc_large(cu_device *d, size_t bytes) {
    for (int attempt = 0; attempt < 2; attempt++) {
        void *data = NULL;
        const cudaError_t e = d->memory.pool ? cudaMallocAsync(&data, bytes, d->stream) : cudaMalloc(&data, bytes);
        if (e == cudaSuccess) return data;
        cudaGetLastError();
        if (attempt == 0) trim_pool(d);
    }
    return NULL;
}

extern "C" void *be_alloc(kvf_device *dev, size_t bytes) {
    const kv_err none = {NULL, 0};
    if (cu_enter(dev, none) != KVF_OK) return NULL;
    if (bytes == 0) bytes = 1;
    if (bytes > CU_SLOT_LIMIT) return alloc_large(cu_of(dev), bytes);
    return alloc_slot(cu_of(dev), cu_round_up((uint32_t)bytes, CU_SLOT_ALIGN));
}

extern "C" void be_free(kvf_device *dev, void *data) {
    const kv_err none = {NULL, 0};
    if (data == NULL) return;
    cu_device *d = cu_of(dev);
    const uint32_t chunk = find_chunk(&d->memory, (const char *)data);
    cu_enter(dev, none);
    if (chunk != KV_NO_TOKEN) {
        free_slot(d, chunk, (char *)data);
    } else {
        const cudaError_t e = d->memory.pool ? cudaFreeAsync(data, d->stream) : cudaFree(data);
        if (e != cudaSuccess) cudaGetLastError();
    }
}

int32_t cu_alloc(kvf_device *dev, void **to, size_t bytes, const char *what, kv_err err) {
    *to = be_alloc(dev, bytes);
    return *to != NULL ? KVF_OK : cu_no_memory(bytes, what, err);
}

int32_t cu_scratch(kvf_device *dev, void **to, size_t bytes, kv_err err) {
    cu_device *d = cu_of(dev);
    if (bytes > d->scratch_bytes) {
        be_free(dev, d->scratch);
        d->scratch = NULL;
        d->scratch_bytes = 0;
        CU_PASS(cu_alloc(dev, &d->scratch, bytes, "scratch", err));
        d->scratch_bytes = bytes;
    }
    *to = d->scratch;
    return KVF_OK;
}

/* Room in the ring: the other half once its last copy is done. */
static int32_t stage_room(cu_device *d, size_t bytes, size_t *at, kv_err err) {
    cu_stage *r = &d->stage;
    bytes = (bytes + 255) / 256 * 256;
    if (r->used + bytes > CU_STAGE_HALF) {
        CU_TRY(cudaEventRecord(r->event[r->half], d->stream), "the staging ring");
        r->half ^= 1;
        r->used = 0;
        CU_TRY(cudaEventSynchronize(r->event[r->half]), "the staging ring");
    }
    *at = (size_t)r->half * CU_STAGE_HALF + r->used;
    r->used += (uint32_t)bytes;
    return KVF_OK;
}

int32_t cu_push(kvf_device *dev, void **to, const void *from_host, size_t bytes, kv_err err) {
    cu_device *d = cu_of(dev);
    size_t at;
    CU_PASS(stage_room(d, bytes, &at, err));
    memcpy(d->stage.host + at, from_host, bytes);
    CU_TRY(cudaMemcpyAsync(d->stage.device + at, d->stage.host + at, bytes, cudaMemcpyHostToDevice, d->stream),
           "copying to the device");
    *to = d->stage.device + at;
    return KVF_OK;
}

extern "C" int32_t be_upload(kvf_device *dev, void *to, const void *from_host, size_t bytes, kv_err err) {
    cu_device *d = cu_of(dev);
    CU_PASS(cu_enter(dev, err));
    for (size_t done = 0; done < bytes;) {
        /* pieces small enough that the copy of one hides the next one's way into pinned memory */
        const size_t piece = bytes - done < (2u << 20) ? bytes - done : (2u << 20);
        size_t at;
        CU_PASS(stage_room(d, piece, &at, err));
        memcpy(d->stage.host + at, (const char *)from_host + done, piece);
        CU_TRY(cudaMemcpyAsync((char *)to + done, d->stage.host + at, piece, cudaMemcpyHostToDevice, d->stream),
               "copying to the device");
        done += piece;
    }
    return KVF_OK;
}

extern "C" int32_t be_download(kvf_device *dev, void *to_host, const void *from, size_t bytes, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (bytes == 0) return KVF_OK;
    CU_TRY(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, cu_of(dev)->stream),
           "copying from the device");
    return cu_synchronize(dev, err);
}

extern "C" int32_t be_copy(kvf_device *dev, void *to, const void *from, size_t bytes, kv_err err) {
    CU_PASS(cu_enter(dev, err));
    if (bytes == 0) return KVF_OK;
    CU_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cu_of(dev)->stream), "copying on the device");
    return KVF_OK;
}
