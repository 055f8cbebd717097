/* Decode: whole steps of a batch. A sequence's result depends on its own rows only. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "program.h"
#include "tiles.h"

/* Chunk `chunk` of one stored head of batch row b: its rows, or CHUNK_PICKS of the pages that were picked for it. */
typedef struct item {
    uint32_t b, head, chunk;
    bool keeps_prob; /* for the masses of its head's act */
} item;

#define CHUNK_PICKS (CPU_CHUNK_ROWS / KVF_PAGE_ROWS)

/* One stored head whose program has something to do. */
typedef struct act {
    uint32_t b, head;
    uint32_t item;          /* its first one */
    uint32_t left;          /* of its items, how many attention still has to do */
    uint32_t prob;          /* place of its probabilities, from its first item on that attention comes to; KV_NO_TOKEN before */
    uint32_t pick, n_pick;  /* with KVF_OP_PAGES: its place in the picks, and how many there are */
} act;

typedef struct attend_job {
    kvf_cache *cache;
    kv_sequence **s;
    const item *items;
    const float *qkv; /* [batch, ld] */
    size_t ld;
    float *part;      /* [items, part_floats]: per reader head_dim outputs, then maximum and sum */
    size_t part_floats;
    float *scores;    /* [n_thread, n_head, CPU_CHUNK_ROWS] */
    uint32_t layer, window;
    /* Step programs: */
    act *acts;
    uint32_t *act_of;  /* [batch, n_head]: index of the head's act, or KV_NO_TOKEN */
    cpu_pick *picks;
    float *prob;       /* [places, prob_floats]: of one head, [chunks, group, CPU_CHUNK_ROWS] */
    size_t prob_floats;
    uint32_t *free_prob; /* [n_free]: places, the one used last on top, so that few are used and stay near */
    uint32_t *n_free;
    bool *prob_lock;
    float *work;       /* [n_thread, work_floats] */
    size_t work_floats;
    float *shift;      /* [n_thread, n_head * (head_dim + KVF_PAGE_ROWS)] */
    const float *inv_freq;
} attend_job;

static const float *query_of(const attend_job *j, uint32_t b, uint32_t head) {
    return j->qkv + b * j->ld + (size_t)head * kv_readers(j->cache, j->s[b]) * j->cache->config.head_dim;
}

/* The first position that the sliding window shows, 0 without one. */
static uint32_t oldest_of(const attend_job *j, const kv_sequence *s) {
    return j->window > 0 && s->position >= j->window ? s->position - j->window + 1 : 0;
}

/* Scores of one chunk; returns how many columns there are. */
static uint32_t chunk_scores(const attend_job *j, const item *it, const kv_table *t, const float *q, float *scores,
                             uint32_t thread) {
    const kvf_cache *cache = j->cache;
    const kv_sequence *s = j->s[it->b];
    const uint32_t dim = cache->config.head_dim, readers = kv_readers(cache, s);
    const uint32_t oldest = oldest_of(j, s);
    const kv_step *step = kv_step_of(s, j->layer);
    if (step != NULL && step->pages.size != 0) {
        const act *a = &j->acts[j->act_of[it->b * cache->config.n_head + it->head]];
        const uint32_t first = it->chunk * CHUNK_PICKS, n = a->n_pick - first < CHUNK_PICKS ? a->n_pick - first : CHUNK_PICKS;
        cpu_pick_scores(cache, t, j->picks + a->pick + first, n, q, dim, readers, oldest, scores, CPU_CHUNK_ROWS);
        return n * KVF_PAGE_ROWS;
    }
    const cpu_span span = cpu_chunk(t, it->chunk);
    cpu_table_scores(cache, t, span, q, dim, readers, oldest, scores, CPU_CHUNK_ROWS);
    const uint32_t shift = s->position + 1 - t->rows; /* rows that are gone */
    if (step != NULL && step->relative.size != 0 && shift > 0) {
        cpu_shift_scores(cache, t, span.first, span.n, step->relative.first, shift, j->inv_freq, q, dim, readers, oldest, scores,
                         CPU_CHUNK_ROWS, j->shift + (size_t)thread * cache->config.n_head * (dim + KVF_PAGE_ROWS));
    }
    return span.n;
}

static void chunk_values(const attend_job *j, const item *it, const kv_table *t, uint32_t readers, const float *scores,
                         float *part) {
    const uint32_t dim = j->cache->config.head_dim;
    const kv_step *step = kv_step_of(j->s[it->b], j->layer);
    if (step != NULL && step->pages.size != 0) {
        const act *a = &j->acts[j->act_of[it->b * j->cache->config.n_head + it->head]];
        const uint32_t first = it->chunk * CHUNK_PICKS, n = a->n_pick - first < CHUNK_PICKS ? a->n_pick - first : CHUNK_PICKS;
        cpu_pick_values(j->cache, t, j->picks + a->pick + first, n, scores, CPU_CHUNK_ROWS, readers, part, dim);
    } else {
        cpu_table_values(j->cache, t, cpu_chunk(t, it->chunk), scores, CPU_CHUNK_ROWS, readers, part, dim);
    }
}

/* What the program does with one head, all of whose items are done. */
static void run_act(const attend_job *j, const act *a, uint32_t thread) {
    kv_sequence *s = j->s[a->b];
    if (!cpu_acts_on_head(s, j->layer, a->head)) return;
    const size_t dims = (size_t)kv_readers(j->cache, s) * j->cache->config.head_dim;
    const cpu_attended attended = {
        .prob = a->prob == KV_NO_TOKEN ? NULL : j->prob + a->prob * j->prob_floats,
        .prob_floats = (size_t)j->cache->group * CPU_CHUNK_ROWS,
        .tail = j->part + a->item * j->part_floats + dims,
        .tail_floats = j->part_floats,
        .n_chunk = cpu_n_chunk(kv_table_of(s, j->layer, a->head)),
    };
    cpu_act_on_head(j->cache, s, j->layer, a->head, &attended, j->work + thread * j->work_floats);
}

static void lock_probs(const attend_job *j) {
    while (__atomic_test_and_set(j->prob_lock, __ATOMIC_ACQUIRE)) continue;
}
static void unlock_probs(const attend_job *j) { __atomic_clear(j->prob_lock, __ATOMIC_RELEASE); }

/* Where an item's probabilities go: the place of its head. */
static float *take_probs(const attend_job *j, const item *it) {
    act *a = &j->acts[j->act_of[it->b * j->cache->config.n_head + it->head]];
    lock_probs(j);
    if (a->prob == KV_NO_TOKEN) a->prob = j->free_prob[--*j->n_free];
    const uint32_t place = a->prob;
    unlock_probs(j);
    return j->prob + place * j->prob_floats + (size_t)it->chunk * j->cache->group * CPU_CHUNK_ROWS;
}

static void give_probs(const attend_job *j, act *a) {
    if (a->prob == KV_NO_TOKEN) return;
    lock_probs(j);
    j->free_prob[(*j->n_free)++] = a->prob;
    unlock_probs(j);
    a->prob = KV_NO_TOKEN;
}

static void attend_item(void *arg, uint32_t index, uint32_t thread) {
    const attend_job *j = arg;
    const kvf_cache *cache = j->cache;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const item it = j->items[index];
    kv_sequence *s = j->s[it.b];
    const kv_table *t = kv_table_of(s, j->layer, it.head);
    const uint32_t dim = cache->config.head_dim, readers = kv_readers(cache, s);
    const float scale = 1.0f / sqrtf((float)dim);
    float *scores = it.keeps_prob ? take_probs(j, &it) : j->scores + (size_t)thread * cache->config.n_head * CPU_CHUNK_ROWS;
    float *part = j->part + index * j->part_floats;
    const uint32_t n = chunk_scores(j, &it, t, query_of(j, it.b, it.head), scores, thread);
    memset(part, 0, (size_t)readers * dim * sizeof *part);
    float *max = part + (size_t)readers * dim, *sum = max + readers;
    for (uint32_t r = 0; r < readers; r++) {
        float *row = scores + r * CPU_CHUNK_ROWS;
        max[r] = ops->max(row, n);
        if (max[r] == -INFINITY) {
            memset(row, 0, n * sizeof *row);
            sum[r] = 0;
        } else {
            sum[r] = ops->exp_sum(row, n, scale, max[r] * scale);
        }
    }
    chunk_values(j, &it, t, readers, scores, part);
    const uint32_t of = j->acts == NULL || kv_step_of(s, j->layer) == NULL ? KV_NO_TOKEN : j->act_of[it.b * cache->config.n_head + it.head];
    /* the head's rows, masses and probabilities are near: whoever finishes its last item goes on with it */
    if (of != KV_NO_TOKEN && __atomic_sub_fetch(&j->acts[of].left, 1, __ATOMIC_ACQ_REL) == 0) {
        run_act(j, &j->acts[of], thread);
        give_probs(j, &j->acts[of]);
    }
}

/* Chunks of one stored head, merged in order, into out [readers, head_dim]. */
static void merge(const attend_job *j, uint32_t index, uint32_t n_chunk, uint32_t readers, float *out) {
    const uint32_t dim = j->cache->config.head_dim;
    const float scale = 1.0f / sqrtf((float)dim);
    for (uint32_t r = 0; r < readers; r++) {
        float max = -INFINITY, sum = 0;
        for (uint32_t c = 0; c < n_chunk; c++) {
            const float m = j->part[(index + c) * j->part_floats + (size_t)readers * dim + r];
            max = m > max ? m : max;
        }
        memset(out + r * dim, 0, dim * sizeof *out);
        for (uint32_t c = 0; c < n_chunk; c++) {
            const float *part = j->part + (index + c) * j->part_floats, *tail = part + (size_t)readers * dim;
            if (tail[r] == -INFINITY) continue;
            const float factor = expf((tail[r] - max) * scale);
            sum += factor * tail[readers + r];
            for (uint32_t d = 0; d < dim; d++) out[r * dim + d] += factor * part[r * dim + d];
        }
        for (uint32_t d = 0; d < dim; d++) out[r * dim + d] /= sum;
    }
}

static int32_t no_memory(kv_err err) { return kv_fail(err, KVF_ERR_MEMORY, "Cannot decode as memory ran out"); }

/* Returns what rows do not need. */
static void trim_layer(kvf_cache *cache, kv_sequence *s, uint32_t layer) {
    for (uint32_t h = 0; h < s->n_stored_head; h++) kv_table_trim(cache, kv_table_of(s, layer, h));
    kv_step_trim(cache, s, layer);
}

static void trim_all(kvf_cache *cache, kv_sequence **s, uint32_t n) {
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) trim_layer(cache, s[b], layer);
    }
}

/* Room for one more row in every table of every sequence, and in what programs keep, or nothing. */
static int32_t reserve(kvf_cache *cache, kv_sequence **s, uint32_t n, kv_err err) {
    const uint32_t n_layer = cache->config.n_layer;
    int32_t status = KVF_OK;
    for (uint32_t b = 0; b < n && status == KVF_OK; b++) {
        for (uint32_t i = 0; i < n_layer * s[b]->n_stored_head && status == KVF_OK; i++) {
            status = kv_table_reserve(cache, &s[b]->table[i], 1, err);
        }
        for (uint32_t layer = 0; layer < n_layer && status == KVF_OK; layer++) {
            status = kv_step_reserve(cache, s[b], layer, 1, err);
        }
    }
    if (status != KVF_OK) trim_all(cache, s, n);
    return status;
}

/* ---- Step programs ---- */

/* Scratch of all layers' programs; the sequences have their rows of the step still to come. */
static int32_t reserve_programs(attend_job *j, uint32_t n, kv_err err) {
    const kvf_cache *cache = j->cache;
    kvf_device *dev = cache->dev;
    const uint32_t n_head = cache->config.n_head, dim = cache->config.head_dim;
    uint64_t n_pick = 0, n_prob = 0;
    uint32_t most_chunks = 0;
    size_t work = 0;
    bool any = false, relative = false;
    for (uint32_t layer = 0; layer < cache->config.n_layer; layer++) {
        uint64_t picks = 0, probs = 0;
        for (uint32_t b = 0; b < n; b++) {
            const kv_step *step = kv_step_of(j->s[b], layer);
            if (step == NULL) continue;
            any = true;
            relative |= step->relative.size != 0;
            for (uint32_t h = 0; h < j->s[b]->n_stored_head; h++) {
                const kv_table *t = kv_table_of(j->s[b], layer, h);
                if (step->pages.size != 0) picks += t->n_page;
                if (step->mass.size != 0) {
                    probs++;
                    most_chunks = cpu_n_chunk(t) + 1 > most_chunks ? cpu_n_chunk(t) + 1 : most_chunks;
                }
                const size_t floats = cpu_program_floats(cache, j->s[b], layer, t->rows + 1);
                work = floats > work ? floats : work;
            }
        }
        n_pick = picks > n_pick ? picks : n_pick;
        n_prob = probs > n_prob ? probs : n_prob;
    }
    j->acts = NULL;
    if (!any) return KVF_OK;
    j->work_floats = (work + 15) / 16 * 16;
    const size_t act_bytes = (size_t)n * n_head * (sizeof(act) + sizeof(uint32_t));
    j->prob_floats = (size_t)most_chunks * cache->group * CPU_CHUNK_ROWS;
    uint8_t *list = cpu_scratch(dev, SLOT_PICK, act_bytes + n_pick * sizeof(cpu_pick) + n_prob * sizeof(uint32_t));
    j->prob = n_prob == 0 ? NULL : cpu_scratch(dev, SLOT_PROB, n_prob * j->prob_floats * sizeof(float));
    j->work = cpu_scratch(dev, SLOT_WORK, dev->info.n_thread * j->work_floats * sizeof(float));
    j->shift = !relative ? NULL : cpu_scratch(dev, SLOT_SHIFT, dev->info.n_thread * (size_t)n_head * (dim + KVF_PAGE_ROWS) * sizeof(float));
    if (list == NULL || j->work == NULL || (n_prob > 0 && j->prob == NULL) || (relative && j->shift == NULL)) return no_memory(err);
    j->acts = (act *)(void *)list;
    j->act_of = (uint32_t *)(void *)(list + (size_t)n * n_head * sizeof(act));
    j->picks = (cpu_pick *)(void *)(list + act_bytes);
    j->free_prob = (uint32_t *)(void *)(j->picks + n_pick);
    for (uint32_t i = 0; i < n_prob; i++) j->free_prob[i] = (uint32_t)n_prob - 1 - i;
    *j->n_free = (uint32_t)n_prob;
    return KVF_OK;
}

static void pick_act(void *arg, uint32_t index, uint32_t thread) {
    const attend_job *j = arg;
    act *a = &j->acts[index];
    kv_sequence *s = j->s[a->b];
    if (a->n_pick == 0) return;
    cpu_bound_row(j->cache, s, j->layer, a->head, kv_table_of(s, j->layer, a->head)->rows - 1);
    a->n_pick = cpu_pick_pages(j->cache, s, j->layer, a->head, query_of(j, a->b, a->head), j->cache->config.head_dim,
                               oldest_of(j, s), j->picks + a->pick, j->work + thread * j->work_floats);
}

/* Lists the layer's heads with programs, keeps queries and picks pages; rows are written. Returns how many heads. */
static uint32_t begin_programs(attend_job *j, uint32_t n) {
    if (j->acts == NULL) return 0;
    const uint32_t n_head = j->cache->config.n_head;
    uint32_t n_act = 0, n_pick = 0;
    for (uint32_t b = 0; b < n; b++) {
        kv_sequence *s = j->s[b];
        kv_step *step = kv_step_of(s, j->layer);
        if (step == NULL) continue;
        if (step->queries.size != 0) cpu_keep_queries(j->cache, step, j->qkv + b * j->ld, s->position);
        for (uint32_t h = 0; h < s->n_stored_head; h++) {
            j->act_of[b * n_head + h] = KV_NO_TOKEN;
            const uint32_t n_page = step->pages.size != 0 ? kv_table_of(s, j->layer, h)->n_page : 0;
            if (n_page == 0 && !cpu_acts_on_head(s, j->layer, h)) continue;
            j->act_of[b * n_head + h] = n_act;
            j->acts[n_act++] = (act){.b = b, .head = h, .pick = n_pick, .n_pick = n_page, .prob = KV_NO_TOKEN};
            n_pick += n_page;
        }
    }
    if (n_pick > 0) cpu_parallel(j->cache->dev, n_act, pick_act, j);
    return n_act;
}

/* Gives back the memory that evicted rows needed. */
static void end_programs(attend_job *j, uint32_t n, uint32_t n_act) {
    if (n_act == 0) return;
    for (uint32_t b = 0; b < n; b++) {
        const kv_step *step = kv_step_of(j->s[b], j->layer);
        if (step != NULL && step->evicts) trim_layer(j->cache, j->s[b], j->layer);
    }
}

/* Items of one head. */
static uint32_t list_items(attend_job *j, item *items, uint32_t n_item, uint32_t b, uint32_t head) {
    const kv_step *step = kv_step_of(j->s[b], j->layer);
    uint32_t n_chunk = cpu_n_chunk(kv_table_of(j->s[b], j->layer, head));
    if (step != NULL && j->act_of[b * j->cache->config.n_head + head] != KV_NO_TOKEN) {
        act *a = &j->acts[j->act_of[b * j->cache->config.n_head + head]];
        a->item = n_item;
        if (step->pages.size != 0) n_chunk = (a->n_pick + CHUNK_PICKS - 1) / CHUNK_PICKS;
        a->left = n_chunk;
    }
    for (uint32_t i = 0; i < n_chunk; i++) {
        items[n_item++] = (item){b, head, i, step != NULL && step->mass.size != 0};
    }
    return n_item;
}

/* Runs one token of each sequence through the model: rows appended, logits replaced, position advanced. */
static int32_t forward(kvf_model *model, kvf_cache *cache, kv_sequence **s, const uint32_t *tokens, uint32_t n,
                       kv_err err) {
    const kvf_model_config *c = &model->config;
    const cpu_weights *w = model->impl;
    kvf_device *dev = model->dev;
    const size_t width = (size_t)c->n_head * c->head_dim, half = c->head_dim / 2;
    const size_t ld = cpu_padded((c->n_head + 2 * c->n_kv_head) * c->head_dim), ld_logits = cpu_padded(c->vocab);
    int32_t status = KVF_OK;
    for (uint32_t b = 0; b < n && status == KVF_OK; b++) status = kv_pack_due(cache, s[b], err);
    if (status == KVF_OK) status = reserve(cache, s, n, err);
    if (status != KVF_OK) return status;
    uint32_t most = 0; /* items of any layer */
    for (uint32_t layer = 0; layer < c->n_layer; layer++) {
        uint32_t items = 0;
        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t h = 0; h < s[b]->n_stored_head; h++) items += cpu_n_chunk(kv_table_of(s[b], layer, h)) + 1;
        }
        most = items > most ? items : most;
    }
    uint32_t n_free = 0;
    bool prob_lock = false;
    attend_job j = {.n_free = &n_free, .prob_lock = &prob_lock, .cache = cache, .s = s, .ld = ld, .part_floats = (size_t)cache->group * (c->head_dim + 2),
                    .inv_freq = model->inv_freq};
    status = cpu_reserve_layer(model, n, err);
    if (status == KVF_OK) status = reserve_programs(&j, n, err);
    float *x = cpu_scratch(dev, SLOT_X, ((size_t)n * c->hidden + 2) * sizeof *x);
    float *norm = cpu_scratch(dev, SLOT_NORM, ((size_t)n * c->hidden + 2) * sizeof *norm);
    float *qkv = cpu_scratch(dev, SLOT_QKV, n * ld * sizeof *qkv);
    float *attn = cpu_scratch(dev, SLOT_ATTN, (n * width + 2) * sizeof *attn);
    float *rotation = cpu_scratch(dev, SLOT_ROT, 2 * n * half * sizeof *rotation);
    float *logits = cpu_scratch(dev, SLOT_LOGITS, n * ld_logits * sizeof *logits);
    j.part = cpu_scratch(dev, SLOT_PART, most * (j.part_floats * sizeof *j.part + sizeof(item)));
    j.scores = cpu_scratch(dev, SLOT_TILE, (size_t)dev->info.n_thread * c->n_head * CPU_CHUNK_ROWS * sizeof *j.scores);
    if (x == NULL || norm == NULL || qkv == NULL || attn == NULL || rotation == NULL || logits == NULL || j.part == NULL ||
        j.scores == NULL) {
        status = no_memory(err);
    }
    if (status != KVF_OK) {
        trim_all(cache, s, n);
        return status;
    }
    item *items = (item *)(void *)(j.part + most * j.part_floats);
    j.items = items;
    j.qkv = qkv;
    for (uint32_t b = 0; b < n; b++) {
        cpu_matrix_row(&w->embed, c->weight_dtype, tokens[b], x + (size_t)b * c->hidden);
        cpu_rotation(model, s[b]->position, rotation + b * half, rotation + (n + b) * half);
    }
    for (uint32_t layer = 0; layer < c->n_layer && status == KVF_OK; layer++) {
        status = cpu_project(model, &w->layer[layer], x, qkv, ld, norm, rotation, rotation + n * half, n, err);
        if (status != KVF_OK) break;
        for (uint32_t b = 0; b < n; b++) {
            const uint32_t copies = s[b]->n_stored_head / c->n_kv_head;
            for (uint32_t h = 0; h < s[b]->n_stored_head; h++) {
                kv_table *t = kv_table_of(s[b], layer, h);
                const float *k = qkv + b * ld + (size_t)(c->n_head + h / copies) * c->head_dim;
                cpu_write_row(cache, t, t->rows, s[b]->position, k, k + (size_t)c->n_kv_head * c->head_dim);
                t->rows++;
            }
        }
        j.layer = layer;
        j.window = model->layer_window[layer];
        const uint32_t n_act = begin_programs(&j, n);
        uint32_t n_item = 0;
        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t h = 0; h < s[b]->n_stored_head; h++) n_item = list_items(&j, items, n_item, b, h);
        }
        cpu_parallel(dev, n_item, attend_item, &j);
        for (uint32_t i = 0; i < n_item;) {
            const kv_sequence *one = s[items[i].b];
            const uint32_t readers = kv_readers(cache, one);
            uint32_t n_chunk = 1;
            while (i + n_chunk < n_item && items[i + n_chunk].chunk > 0) n_chunk++;
            merge(&j, i, n_chunk, readers, attn + items[i].b * width + (size_t)items[i].head * readers * c->head_dim);
            i += n_chunk;
        }
        end_programs(&j, n, n_act);
        status = cpu_finish_layer(model, &w->layer[layer], x, attn, n, err);
    }
    if (status == KVF_OK) status = cpu_logits(model, x, norm, logits, n, err);
    if (status != KVF_OK) return status; /* cannot be: cpu_reserve_layer has taken what they need */
    for (uint32_t b = 0; b < n; b++) {
        memcpy(s[b]->logits, logits + b * ld_logits, c->vocab * sizeof *logits);
        s[b]->position++;
        s[b]->pending = KV_NO_TOKEN;
    }
    return KVF_OK;
}

int32_t be_decode(kvf_model *model, kvf_cache *cache, kv_sequence **s, uint32_t n_sequence, uint32_t n_step,
                  const uint32_t *forced, uint32_t *tokens, float *logits, uint32_t *control, kv_err err) {
    const uint32_t vocab = model->config.vocab;
    volatile uint32_t *poll = control;
    kv_sequence **run = malloc(n_sequence * sizeof *run);
    uint32_t *next = malloc(n_sequence * sizeof *next);
    void *scratch = cpu_scratch(model->dev, SLOT_SAMPLE, (size_t)vocab * 8);
    int32_t status = run == NULL || next == NULL || scratch == NULL ? no_memory(err) : KVF_OK;
    if (status == KVF_OK && forced != NULL && s[0]->pending != KV_NO_TOKEN) {
        status = forward(model, cache, s, &s[0]->pending, 1, err);
    }
    for (uint32_t step = 0; step < n_step && status == KVF_OK; step++) {
        if (poll != NULL && poll[0] != 0) {
            status = kv_fail(err, KVF_ERR_CANCELLED, "Cannot go on as the caller cancelled");
            break;
        }
        if (forced != NULL) {
            status = forward(model, cache, s, forced + step, 1, err);
            continue;
        }
        uint32_t n = 0, alive = 0;
        for (uint32_t i = 0; i < n_sequence; i++) {
            if (s[i]->finished) continue;
            alive++;
            if (s[i]->pending == KV_NO_TOKEN) continue;
            run[n] = s[i];
            next[n++] = s[i]->pending;
        }
        if (alive == 0) break;
        if (n > 0) status = forward(model, cache, run, next, n, err);
        for (uint32_t i = 0; i < n_sequence && status == KVF_OK; i++) {
            if (s[i]->finished) continue;
            const size_t at = (size_t)step * n_sequence + i;
            if (logits != NULL) memcpy(logits + at * vocab, s[i]->logits, vocab * sizeof *logits);
            tokens[at] = kv_sample(s[i], s[i]->logits, vocab, scratch);
            kv_note_token(s[i], tokens[at]);
        }
        if (poll != NULL) poll[1] = poll[1] + 1;
    }
    free(run);
    free(next);
    return status;
}
