/*
 * Device copies of page tables. The host's tables are the truth; before kernels read a sequence's tables, what differs from
 * the last time is sent as a list of changes. During decode the device advances its row counts itself and the host follows.
 */
#include "packed.cuh"
#include "program.h"

enum { CHANGED_PAGE, CHANGED_ROWS, CHANGED_PACKING, PACKING_WORDS = sizeof(cu_packing) / sizeof(uint64_t) };

typedef struct cu_change {
    uint64_t value; /* a page pointer, a number of rows, or a word of a cu_packing */
    uint32_t index;
    uint32_t what;
} cu_change;

/* One change per thread. */
static __global__ void change_kernel(void **pages, uint32_t *rows, uint64_t *packing, const cu_change *change, uint32_t n) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const cu_change c = change[i];
    if (c.what == CHANGED_ROWS) rows[c.index] = (uint32_t)c.value;
    else if (c.what == CHANGED_PAGE) pages[c.index] = (void *)c.value;
    else packing[c.index] = c.value;
}

static void mirror_close(kvf_device *dev, cu_mirror *m) {
    if (m == NULL) return;
    cu_programs_close(dev, m->programs);
    be_free(dev, m->pages);
    be_free(dev, m->rows);
    be_free(dev, m->packing);
    free(m->seen_page);
    free(m->seen_rows);
    free(m->seen_packing);
    free(m);
}

/* A mirror that knows nothing yet. */
static cu_mirror *mirror_open(kvf_device *dev, uint32_t n_table, uint32_t cap) {
    cu_mirror *m = (cu_mirror *)calloc(1, sizeof *m);
    if (m == NULL) return NULL;
    m->n_table = n_table;
    m->cap = cap;
    m->pages = (void **)be_alloc(dev, (size_t)n_table * cap * sizeof(void *));
    m->rows = (uint32_t *)be_alloc(dev, n_table * sizeof(uint32_t));
    m->packing = (cu_packing *)be_alloc(dev, n_table * sizeof(cu_packing));
    m->seen_page = (void **)calloc((size_t)n_table * cap, sizeof(void *));
    m->seen_rows = (uint32_t *)malloc(n_table * sizeof(uint32_t));
    m->seen_packing = (cu_packing *)malloc(n_table * sizeof(cu_packing));
    if (m->pages == NULL || m->rows == NULL || m->packing == NULL || m->seen_page == NULL || m->seen_rows == NULL ||
        m->seen_packing == NULL) {
        mirror_close(dev, m);
        return NULL;
    }
    memset(m->seen_rows, 0xff, n_table * sizeof(uint32_t));
    memset(m->seen_packing, 0xff, n_table * sizeof(cu_packing));
    return m;
}

extern "C" void be_sequence_close(kvf_cache *cache, kv_sequence *s) {
    mirror_close(cache->dev, (cu_mirror *)s->impl);
    s->impl = NULL;
}

extern "C" void be_cache_close(kvf_cache *cache) { (void)cache; }

/* The sequence's mirror with room for its longest table, or NULL. */
static cu_mirror *mirror_of(kvf_cache *cache, kv_sequence *s) {
    const uint32_t n_table = cache->config.n_layer * s->n_stored_head;
    uint32_t longest = 0;
    for (uint32_t i = 0; i < n_table; i++) {
        if (s->table[i].n_page > longest) longest = s->table[i].n_page;
    }
    cu_mirror *m = (cu_mirror *)s->impl;
    if (m == NULL || m->cap < longest) {
        uint32_t cap = 16;
        while (cap < longest) cap *= 2;
        mirror_close(cache->dev, m);
        s->impl = m = mirror_open(cache->dev, n_table, cap);
    }
    return m;
}

static int32_t send_changes(kvf_cache *cache, cu_mirror *m, const cu_change *change, uint32_t n, kv_err err) {
    void *staged;
    if (n == 0) return KVF_OK;
    CU_PASS(cu_push(cache->dev, &staged, change, n * sizeof *change, err));
    change_kernel<<<cu_div_up(n, 256), 256, 0, cu_of(cache->dev)->stream>>>(m->pages, m->rows, (uint64_t *)m->packing,
                                                                          (const cu_change *)staged, n);
    CU_LAUNCHED("updating tables");
    return KVF_OK;
}

/* What the device has to know about the packed or shared rows of a table. */
static cu_packing packing_of(const kvf_cache *cache, const kv_table *t) {
    cu_packing p = {};
    p.own = cu_own_of(cache, t);
    if (t->shared > 0) p.kernel = CU_ATTEND_ANY;
    if (t->packed == 0) return p;
    p.format = cu_format_of(t->format), p.frame = kv_frame_data(cache, t), p.packed = t->packed;
    p.kernel = ((const cu_format_impl *)t->format->impl)->kernel;
    return p;
}

/* Changes that are waiting to be sent. */
typedef struct batch {
    kvf_cache *cache;
    cu_mirror *mirror;
    cu_change change[4096];
    uint32_t n;
} batch;

static int32_t note(batch *b, uint32_t what, uint32_t index, uint64_t value, kv_err err) {
    if (b->n == sizeof b->change / sizeof *b->change) {
        CU_PASS(send_changes(b->cache, b->mirror, b->change, b->n, err));
        b->n = 0;
    }
    cu_change *c = &b->change[b->n++];
    c->value = value, c->index = index, c->what = what;
    return KVF_OK;
}

/* known: pages that are as they were */
static int32_t note_table(batch *b, const kv_sequence *s, uint32_t t, uint32_t known, kv_err err) {
    cu_mirror *m = b->mirror;
    const kv_table *table = &s->table[t];
    const uint32_t rows = kv_packed_pages(table) * KVF_PAGE_ROWS + table->rows - table->packed;
    const cu_packing packing = packing_of(b->cache, table);
    void **seen = m->seen_page + (size_t)t * m->cap;
    for (uint32_t i = known; i < table->n_page; i++) {
        void *data = b->cache->page[table->page[i]].data;
        if (seen[i] == data) continue;
        seen[i] = data;
        CU_PASS(note(b, CHANGED_PAGE, t * m->cap + i, (uint64_t)(uintptr_t)data, err));
    }
    if (memcmp(&m->seen_packing[t], &packing, sizeof packing) != 0) {
        uint64_t word[PACKING_WORDS];
        memcpy(word, &packing, sizeof word);
        m->seen_packing[t] = packing;
        for (uint32_t i = 0; i < PACKING_WORDS; i++) CU_PASS(note(b, CHANGED_PACKING, t * PACKING_WORDS + i, word[i], err));
    }
    if (m->seen_rows[t] == rows) return KVF_OK;
    m->seen_rows[t] = rows;
    return note(b, CHANGED_ROWS, t, rows, err);
}

int32_t cu_mirror_sync(kvf_cache *cache, kv_sequence *s, uint32_t first, uint32_t n, cu_mirror **mirror,
                       kv_err err) {
    batch b;
    b.cache = cache, b.mirror = mirror_of(cache, s), b.n = 0;
    if (b.mirror == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot send page tables as memory ran out");
    *mirror = b.mirror;
    for (uint32_t t = first; t < first + n; t++) CU_PASS(note_table(&b, s, t, 0, err));
    return send_changes(cache, b.mirror, b.change, b.n, err);
}

int32_t cu_mirror_follow(kvf_cache *cache, kv_sequence *s, bool own, cu_mirror **mirror, kv_err err) {
    const uint32_t n_table = cache->config.n_layer * s->n_stored_head;
    const uint32_t cap = s->impl == NULL ? 0 : ((const cu_mirror *)s->impl)->cap;
    batch b;
    b.cache = cache, b.mirror = mirror_of(cache, s), b.n = 0;
    if (b.mirror == NULL || b.mirror->cap != cap) return cu_mirror_sync(cache, s, 0, n_table, mirror, err);
    *mirror = b.mirror;
    for (uint32_t t = 0; t < n_table; t++) {
        const kv_table *table = &s->table[t];
        const kv_step *step = kv_step_of(s, t / s->n_stored_head);
        const bool stays = table->format == NULL && (own || step == NULL || !step->evicts);
        CU_PASS(note_table(&b, s, t, stays ? table->rows / KVF_PAGE_ROWS : 0, err));
    }
    return send_changes(cache, b.mirror, b.change, b.n, err);
}

int32_t cu_layer_view(kvf_cache *cache, kv_sequence *s, uint32_t layer, cu_view *view, kv_err err) {
    cu_mirror *m;
    const uint32_t first = layer * s->n_stored_head;
    CU_PASS(cu_mirror_sync(cache, s, first, s->n_stored_head, &m, err));
    view->pages = m->pages + (size_t)first * m->cap;
    view->rows = m->rows + first;
    view->packing = m->packing + first;
    view->cap = m->cap;
    view->readers = kv_readers(cache, s);
    view->head_dim = cache->config.head_dim;
    return KVF_OK;
}

int32_t cu_table_push(kvf_cache *cache, const kv_table *t, void ***pages, kv_err err) {
    const size_t bytes = t->n_page * sizeof(void *);
    void **list = (void **)malloc(bytes > 0 ? bytes : 1);
    if (list == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot send a page list as memory ran out");
    for (uint32_t i = 0; i < t->n_page; i++) list[i] = cache->page[t->page[i]].data;
    const int32_t status = bytes > CU_STAGE_HALF ? kv_fail(err, KVF_ERR_ARG, "Cannot send a page list as it is too long: %u pages", t->n_page)
                                                 : cu_push(cache->dev, (void **)pages, list, bytes, err);
    free(list);
    return status;
}
