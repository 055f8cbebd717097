/* Choosing a token from logits: greedy or drawn, with draws that depend on the seed and the token's number only. */
#include <math.h>
#include <stdlib.h>

#include "core.h"

void kv_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xd2511f53u * c[0], b = (uint64_t)0xcd9e8d57u * c[2];
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k[1],
                                  (uint32_t)a};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        k[0] += 0x9e3779b9u;
        k[1] += 0xbb67ae85u;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

static bool is_stop(const kv_sequence *s, uint32_t token) {
    for (uint32_t i = 0; i < s->n_stop; i++) {
        if (s->stop[i] == token) return true;
    }
    return false;
}

typedef struct candidate {
    float logit;
    uint32_t id;
} candidate;

/* Highest logit first, then the lowest id. */
static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

uint32_t kv_sample(const kv_sequence *s, const float *logits, uint32_t vocab, void *scratch) {
    const bool no_stop = s->n_generated < s->sampling.min_new_token;
    candidate *c = scratch;
    uint32_t n = 0, best = KV_NO_TOKEN, first_allowed = KV_NO_TOKEN;
    for (uint32_t id = 0; id < vocab; id++) {
        if (no_stop && is_stop(s, id)) continue;
        if (first_allowed == KV_NO_TOKEN) first_allowed = id;
        if (isnan(logits[id]) || logits[id] == -INFINITY) continue;
        if (best == KV_NO_TOKEN || logits[id] > logits[best]) best = id;
        c[n++] = (candidate){logits[id], id};
    }
    if (best == KV_NO_TOKEN) return first_allowed == KV_NO_TOKEN ? 0 : first_allowed;
    if (!(s->sampling.temperature > 0)) return best;
    qsort(c, n, sizeof *c, by_logit);
    if (s->sampling.top_k > 0 && s->sampling.top_k < n) n = s->sampling.top_k;
    const double temperature = s->sampling.temperature;
    double total = 0;
    for (uint32_t i = 0; i < n; i++) total += exp(((double)c[i].logit - c[0].logit) / temperature);
    if (s->sampling.top_p < 1) {
        double sum = 0;
        uint32_t kept = 0;
        while (kept < n && (kept == 0 || sum < s->sampling.top_p * total)) {
            sum += exp(((double)c[kept++].logit - c[0].logit) / temperature);
        }
        n = kept;
        total = sum;
    }
    const uint32_t key[2] = {s->sampling.seed_low, s->sampling.seed_high};
    const uint32_t counter[4] = {s->n_generated, 0, 0, 0x746f6b65u};
    uint32_t words[4];
    kv_philox(counter, key, words);
    const double draw = ((double)words[0] * 0x1p-32 + (double)words[1] * 0x1p-64) * total;
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += exp(((double)c[i].logit - c[0].logit) / temperature);
        if (draw < sum) return c[i].id;
    }
    return c[n - 1].id;
}

void kv_note_token(kv_sequence *s, uint32_t token) {
    s->n_generated++;
    s->finished = is_stop(s, token);
    s->pending = s->finished ? KV_NO_TOKEN : token;
}

void kv_draw_keys(uint32_t seed, uint32_t layer, uint32_t head, uint32_t seen, uint32_t keys[2]) {
    const uint32_t key[2] = {seed, 0x65766963u}; /* "evic": apart from other draws */
    const uint32_t counter[4] = {seen, head, layer, 0};
    uint32_t words[4];
    kv_philox(counter, key, words);
    keys[0] = words[0];
    keys[1] = words[1];
}
