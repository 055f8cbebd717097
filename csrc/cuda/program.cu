/* Step programs: their descriptions on the device, and what the host knows of a step without asking. */
#include "program.h"

#ifndef CU_LINES_BYTES
#define CU_LINES_BYTES ((size_t)64 << 20) /* of lines that wait for what follows attention, unless two layers take more */
#endif

/* Device descriptions of one sequence's programs, and host copies of what the device has. */
struct cu_programs {
    uint32_t n_table;
    uint32_t cap;           /* segments per table */
    cu_program *program;    /* device [n_table] */
    float **segment;        /* device [n_table, cap] */
    cu_program *seen;
    float **seen_segment;
};

void cu_programs_close(kvf_device *dev, cu_programs *p) {
    if (p == NULL) return;
    be_free(dev, p->program);
    be_free(dev, p->segment);
    free(p->seen);
    free(p->seen_segment);
    free(p);
}

static cu_programs *open_programs(kvf_device *dev, uint32_t n_table, uint32_t cap) {
    cu_programs *p = (cu_programs *)calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->n_table = n_table;
    p->cap = cap;
    p->program = (cu_program *)be_alloc(dev, n_table * sizeof *p->program);
    p->segment = (float **)be_alloc(dev, (size_t)n_table * cap * sizeof *p->segment);
    p->seen = (cu_program *)calloc(n_table, sizeof *p->seen);
    p->seen_segment = (float **)calloc((size_t)n_table * cap, sizeof *p->seen_segment);
    if (p->program != NULL && p->segment != NULL && p->seen != NULL && p->seen_segment != NULL) {
        p->seen[0].evict.size = KV_NO_TOKEN; /* unlike any: the first comparison sends everything */
        return p;
    }
    cu_programs_close(dev, p);
    return NULL;
}

static float **segments_of(const kv_live *live, uint32_t *n) {
    *n = live->n_mass > 0 ? live->n_mass : live->n_bounds;
    return live->n_mass > 0 ? live->mass : live->bounds;
}

static cu_programs *programs_of(kvf_cache *cache, kv_sequence *s) {
    cu_mirror *m = (cu_mirror *)s->impl;
    uint32_t longest = 1, n;
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        const kv_step *step = kv_step_of(s, layer);
        for (uint32_t h = 0; step != NULL && h < s->n_stored_head; h++) {
            segments_of(&step->head[h], &n);
            longest = n > longest ? n : longest;
        }
    }
    if (m->programs == NULL || m->programs->cap < longest) {
        uint32_t cap = 4;
        while (cap < longest) cap *= 2;
        cu_programs_close(cache->dev, m->programs);
        m->programs = open_programs(cache->dev, cache->config.n_layer * s->n_stored_head, cap);
    }
    return m->programs;
}

static cu_program describe(const kvf_cache *cache, const kv_sequence *s, const kv_step *step, uint32_t head,
                           float *const *segment) {
    cu_program p;
    memset(&p, 0, sizeof p); /* descriptions are compared byte for byte */
    if (step == NULL) return p;
    p.evict = step->head[head].evict;
    p.pages = step->pages;
    p.segment = segment;
    p.relative = step->relative.size != 0 ? step->relative.first : 0;
    p.has_mass = step->mass.size != 0;
    p.decay = step->mass.decay;
    if (step->ring == NULL) return p;
    p.ring_size = step->queries.last;
    p.ring = step->ring + (size_t)head * kv_readers(cache, s) * p.ring_size * cache->config.head_dim;
    p.ring_first = step->n_ring == p.ring_size ? 0 : s->position - step->n_ring;
    return p;
}

int32_t cu_program_sync(kvf_cache *cache, kv_sequence *s, uint32_t first, uint32_t n, const cu_program **program,
                        kv_err err) {
    *program = NULL;
    if (s->step == NULL) return KVF_OK;
    cu_programs *p = programs_of(cache, s);
    if (p == NULL) return kv_fail(err, KVF_ERR_MEMORY, "Cannot send step programs as memory ran out");
    const bool fresh = p->seen[0].evict.size == KV_NO_TOKEN;
    bool changed = fresh, moved = fresh;
    if (fresh) first = 0, n = p->n_table;
    for (uint32_t t = first; t < first + n; t++) {
        const uint32_t layer = t / s->n_stored_head, head = t % s->n_stored_head;
        const kv_step *step = kv_step_of(s, layer);
        const cu_program now = describe(cache, s, step, head, p->segment + (size_t)t * p->cap);
        uint32_t count = 0;
        float **list = step == NULL ? NULL : segments_of(&step->head[head], &count);
        if (memcmp(&now, &p->seen[t], sizeof now) != 0) p->seen[t] = now, changed = true;
        float **seen = p->seen_segment + (size_t)t * p->cap;
        if (count == 0 || memcmp(seen, list, count * sizeof *seen) == 0) continue;
        memcpy(seen, list, count * sizeof *seen);
        moved = true;
    }
    *program = p->program;
    if (changed) CU_PASS(be_upload(cache->dev, p->program + first, p->seen + first, n * sizeof *p->seen, err));
    const size_t at = (size_t)first * p->cap;
    if (moved) CU_PASS(be_upload(cache->dev, p->segment + at, p->seen_segment + at, (size_t)n * p->cap * sizeof *p->segment, err));
    return KVF_OK;
}

int32_t cu_layer_program(kvf_cache *cache, kv_sequence *s, uint32_t layer, const cu_program **program, kv_err err) {
    const uint32_t first = layer * s->n_stored_head;
    CU_PASS(cu_program_sync(cache, s, first, s->n_stored_head, program, err));
    *program += first;
    return KVF_OK;
}

/* ---- A step ---- */

uint32_t cu_acts_of(const kvf_cache *cache, const kv_sequence *s, uint32_t *n_query) {
    uint32_t acts = 0;
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        const kv_step *step = kv_step_of(s, layer);
        if (step == NULL) continue;
        if (step->queries.size != 0) acts |= CU_BEFORE;
        if (step->pages.size != 0) acts |= CU_CHOOSES | CU_WATCHES;
        if (step->relative.size != 0) acts |= CU_BEFORE | CU_WATCHES;
        if (step->mass.size != 0) acts |= CU_WATCHES | CU_AFTER;
        if (step->evicts) acts |= CU_AFTER;
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            if (step->head[h].evict.size == 0 || step->head[h].evict.statistic < KVF_STAT_WINDOW) continue;
            acts |= CU_WEIGHS;
            if (step->queries.last > *n_query) *n_query = step->queries.last;
        }
    }
    return acts;
}

/* A part of `bytes` bytes at *at. */
static char *part(char *data, size_t *at, size_t bytes) {
    char *to = (char *)((uintptr_t)data + *at); /* from NULL where bytes are only counted */
    *at += (bytes + 255) / 256 * 256;
    return to;
}

/* Floats of one layer's lines. */
static size_t line_floats(const cu_program_work *w) { return (size_t)w->n * (w->n_head + w->max_stored) * w->ld; }

size_t cu_program_layout(cu_program_work *w, uint32_t n_layer, char *data) {
    size_t at = 0;
    if (w->acts == 0) return 0;
    const size_t fit = CU_LINES_BYTES / (line_floats(w) * sizeof *w->line);
    w->depth = fit >= n_layer ? n_layer : fit < 2 ? 2 : (uint32_t)fit / 2 * 2;
    w->line = (float *)part(data, &at, w->depth * line_floats(w) * sizeof *w->line);
    w->norm = (float2 *)part(data, &at, (size_t)w->depth * w->n * w->n_head * sizeof *w->norm);
    if (w->acts & CU_CHOOSES) {
        w->pick = (uint2 *)part(data, &at, (size_t)w->n * w->max_stored * (w->ld / KVF_PAGE_ROWS) * sizeof *w->pick);
        w->n_pick = (uint32_t *)part(data, &at, (size_t)w->n * w->max_stored * sizeof *w->n_pick);
    }
    if (w->acts & CU_WEIGHS) {
        w->stat = (cu_query_stat *)part(data, &at, (size_t)w->n * w->n_head * w->n_query * sizeof *w->stat);
    }
    return at;
}

cu_program_work cu_program_layer(const cu_program_work *work, uint32_t layer) {
    cu_program_work w = *work;
    if (w.acts == 0) return w;
    w.line += layer % w.depth * line_floats(&w);
    w.norm += (size_t)(layer % w.depth) * w.n * w.n_head;
    return w;
}

void cu_programs_follow(kvf_cache *cache, kv_sequence *s, uint32_t n, uint32_t *seen) {
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        kv_step *step = kv_step_of(s, layer);
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            kv_live *live = step == NULL ? NULL : &step->head[h];
            kv_table *t = kv_table_of(s, layer, h);
            const uint32_t before = t->rows;
            bool evicts;
            kv_step_rows(live, &t->rows, s->position, n, &evicts);
            seen[layer * s->n_stored_head + h] += t->rows - before; /* which may be less than nothing */
            if (evicts) live->shuffled = true; /* or the row that left was the newest: the host need not know */
        }
        if (step != NULL) step->n_ring = n < step->queries.last - step->n_ring ? step->n_ring + n : step->queries.last;
    }
}

extern "C" int32_t be_program_check(const kvf_cache *cache, const kv_sequence *s, const kv_step *step, kv_err err) {
    (void)cache, (void)s, (void)step, (void)err;
    return KVF_OK;
}
