/* Decode: whole steps of a batch. A sequence's result depends on its own rows only. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward.h"
#include "tiles.h"

/* Chunk `chunk` of one stored head of batch row b. */
typedef struct item {
    uint32_t b, head, chunk;
} item;

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
} attend_job;

static void attend_item(void *arg, uint32_t index, uint32_t thread) {
    const attend_job *j = arg;
    const kvf_cache *cache = j->cache;
    const cpu_ops *ops = cpu_ops_of(cache->dev);
    const item it = j->items[index];
    kv_sequence *s = j->s[it.b];
    const kv_table *t = kv_table_of(s, j->layer, it.head);
    const uint32_t dim = cache->config.head_dim, readers = kv_readers(cache, s);
    const cpu_span span = cpu_chunk(t, it.chunk);
    const float *q = j->qkv + it.b * j->ld + (size_t)it.head * readers * dim;
    const float scale = 1.0f / sqrtf((float)dim);
    float *scores = j->scores + (size_t)thread * cache->config.n_head * CPU_CHUNK_ROWS;
    float *part = j->part + index * j->part_floats;
    const uint32_t oldest = j->window > 0 && s->position >= j->window ? s->position - j->window + 1 : 0;
    cpu_table_scores(cache, t, span, q, dim, readers, oldest, scores, CPU_CHUNK_ROWS);
    memset(part, 0, (size_t)readers * dim * sizeof *part);
    float *max = part + (size_t)readers * dim, *sum = max + readers;
    for (uint32_t r = 0; r < readers; r++) {
        float *row = scores + r * CPU_CHUNK_ROWS;
        max[r] = ops->max(row, span.n);
        if (max[r] == -INFINITY) {
            memset(row, 0, span.n * sizeof *row);
            sum[r] = 0;
        } else {
            sum[r] = ops->exp_sum(row, span.n, scale, max[r] * scale);
        }
    }
    cpu_table_values(cache, t, span, scores, CPU_CHUNK_ROWS, readers, part, dim);
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

/* Room for one more row in every table of every sequence, or nothing. */
static int32_t reserve(kvf_cache *cache, kv_sequence **s, uint32_t n, kv_err err) {
    const uint32_t n_layer = cache->config.n_layer;
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t i = 0; i < n_layer * s[b]->n_stored_head; i++) {
            const int32_t status = kv_table_reserve(cache, &s[b]->table[i], 1, err);
            if (status == KVF_OK) continue;
            for (uint32_t u = 0; u <= b; u++) {
                for (uint32_t k = 0; k < n_layer * s[u]->n_stored_head; k++) kv_table_trim(cache, &s[u]->table[k]);
            }
            return status;
        }
    }
    return KVF_OK;
}

/* Runs one token of each sequence through the model: rows appended, logits replaced, position advanced. */
static int32_t forward(kvf_model *model, kvf_cache *cache, kv_sequence **s, const uint32_t *tokens, uint32_t n,
                       kv_err err) {
    const kvf_model_config *c = &model->config;
    const cpu_weights *w = model->impl;
    kvf_device *dev = model->dev;
    const size_t width = (size_t)c->n_head * c->head_dim, half = c->head_dim / 2;
    const size_t ld = cpu_padded((c->n_head + 2 * c->n_kv_head) * c->head_dim), ld_logits = cpu_padded(c->vocab);
    int32_t status = reserve(cache, s, n, err);
    if (status != KVF_OK) return status;
    uint32_t most = 0; /* items of any layer */
    for (uint32_t layer = 0; layer < c->n_layer; layer++) {
        uint32_t items = 0;
        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t h = 0; h < s[b]->n_stored_head; h++) items += cpu_n_chunk(kv_table_of(s[b], layer, h)) + 1;
        }
        most = items > most ? items : most;
    }
    attend_job j = {.cache = cache, .s = s, .ld = ld, .part_floats = (size_t)cache->group * (c->head_dim + 2)};
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
    item *items = status == KVF_OK ? (item *)(void *)(j.part + most * j.part_floats) : NULL;
    j.items = items;
    j.qkv = qkv;
    for (uint32_t b = 0; b < n && status == KVF_OK; b++) {
        cpu_matrix_row(&w->embed, c->weight_dtype, tokens[b], x + (size_t)b * c->hidden);
        cpu_rotation(model, s[b]->position, rotation + b * half, rotation + (n + b) * half);
    }
    uint32_t written = 0; /* layers that have the new rows */
    for (uint32_t layer = 0; layer < c->n_layer && status == KVF_OK; layer++) {
        /* the MLP of the layer before may have grown the scratch that holds norm */
        norm = cpu_scratch(dev, SLOT_NORM, ((size_t)n * c->hidden + 2) * sizeof *norm);
        status = cpu_project(model, &w->layer[layer], x, qkv, ld, norm, rotation, rotation + n * half, n, err);
        if (status != KVF_OK) break;
        uint32_t n_item = 0;
        for (uint32_t b = 0; b < n; b++) {
            const uint32_t copies = s[b]->n_stored_head / c->n_kv_head;
            for (uint32_t h = 0; h < s[b]->n_stored_head; h++) {
                kv_table *t = kv_table_of(s[b], layer, h);
                const float *k = qkv + b * ld + (size_t)(c->n_head + h / copies) * c->head_dim;
                cpu_write_row(cache, t, t->rows, s[b]->position, k, k + (size_t)c->n_kv_head * c->head_dim);
                t->rows++;
                for (uint32_t i = 0, n_chunk = cpu_n_chunk(t); i < n_chunk; i++) items[n_item++] = (item){b, h, i};
            }
        }
        written = layer + 1;
        j.layer = layer;
        j.window = model->layer_window[layer];
        cpu_parallel(dev, n_item, attend_item, &j);
        for (uint32_t i = 0; i < n_item;) {
            const kv_sequence *one = s[items[i].b];
            const uint32_t readers = kv_readers(cache, one);
            const uint32_t n_chunk = cpu_n_chunk(kv_table_of(one, layer, items[i].head));
            merge(&j, i, n_chunk, readers, attn + items[i].b * width + (size_t)items[i].head * readers * c->head_dim);
            i += n_chunk;
        }
        status = cpu_finish_layer(model, &w->layer[layer], x, attn, n, err);
    }
    if (status == KVF_OK) {
        norm = cpu_scratch(dev, SLOT_NORM, ((size_t)n * c->hidden + 2) * sizeof *norm);
        status = cpu_logits(model, x, norm, logits, n, err);
    }
    if (status != KVF_OK) { /* rows written so far are dropped: the step did not happen */
        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t i = 0; i < written * s[b]->n_stored_head; i++) s[b]->table[i].rows--;
            for (uint32_t k = 0; k < c->n_layer * s[b]->n_stored_head; k++) kv_table_trim(cache, &s[b]->table[k]);
        }
        return status;
    }
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
