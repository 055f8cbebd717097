/*
 * Attention over a part of the rows: what is kept, against the definition in double; patterns that keep everything give
 * the logits of full attention; recent rows alone are a sliding window.
 */
#include "test.h"

#define N_LAYER 2u

typedef struct run {
    kvf_cache *cache;
    uint32_t sequence, n;
} run;

static run begin(kvf_device *dev, kvf_model *model, shape s, uint32_t granularity, uint32_t n) {
    run r = {cache_of_shape(dev, s, 0), 0, n};
    r.sequence = (uint32_t)kvf_sequence_create(r.cache, granularity, ERR);
    uint32_t *tokens = malloc(n * sizeof *tokens);
    for (uint32_t i = 0; i < n; i++) tokens[i] = (i * 7 + i * i) % TEST_VOCAB;
    const kvf_observe observe = {.size = sizeof observe, .n_window = n};
    CHECK(kvf_prefill_begin(model, r.cache, r.sequence, tokens, n, 0, &observe, NULL, ERR) == KVF_OK);
    free(tokens);
    return r;
}

static void layers(kvf_model *model, run r, uint32_t layer, uint32_t phases) {
    CHECK(kvf_prefill_layers(model, r.cache, r.sequence, layer, 1, phases, NULL, ERR) == KVF_OK);
}

static void end(run r) {
    CHECK(kvf_sequence_free(r.cache, r.sequence, ERR) == KVF_OK);
    check_books(r.cache);
    kvf_cache_free(r.cache);
}

/* ---- The definition ---- */

static bool sees(uint32_t token, uint32_t row, uint32_t window) {
    return row <= token && (window == 0 || token - row < window);
}

/* The k highest of n; the lower index among equals. */
static void mark_highest(const double *x, uint32_t n, uint32_t k, bool *mark) {
    memset(mark, 0, n * sizeof *mark);
    for (uint32_t j = 0; j < k && j < n; j++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < n; i++) {
            if (!mark[i] && (best == UINT32_MAX || x[i] > x[best])) best = i;
        }
        mark[best] = true;
    }
}

/* kept [n, n]; p: full attention probabilities [n, n]; q, k: [n, dim]. */
static void keep_rows(bool *kept, const uint32_t pattern[3], const double *p, const float *q, const float *k, uint32_t n,
                      uint32_t dim, uint32_t window) {
    const uint32_t kind = pattern[0], a = pattern[1], b = pattern[2], n_tile = (n + 63) / 64;
    double *x = calloc(2 * (size_t)n + 2 * (size_t)n_tile * dim, sizeof *x), *y = x + n, *mq = y + n, *mk = mq + n_tile * dim;
    bool *column = calloc(n, sizeof *column), *distance = calloc(n, sizeof *distance);
    for (uint32_t i = n < 64 ? 0 : n - 64; i < n; i++) {
        for (uint32_t j = 0; j <= i; j++) x[j] += p[i * n + j], y[i - j] += p[i * n + j];
    }
    for (uint32_t j = 0; j < n && j < 30; j++) x[j] = INFINITY;
    for (uint32_t d = 0; d < n && d < 100; d++) y[d] = INFINITY;
    mark_highest(x, n, a, column);
    mark_highest(y, n, b, distance);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < dim; d++) mq[i / 64 * dim + d] += q[i * dim + d], mk[i / 64 * dim + d] += k[i * dim + d];
    }
    for (uint32_t tile = 0; tile < n_tile; tile++) {
        bool *rows = calloc(n + 256, sizeof *rows), *block = calloc(n_tile, sizeof *block);
        double *fit = calloc(n_tile, sizeof *fit);
        uint32_t from = 0, to = 0; /* the open range of diagonals */
        for (uint32_t d = n; d-- > 0 && kind == KVF_ATTEND_LINES;) {
            if (!distance[d] || d >= tile * 64 + 64) continue;
            const uint32_t last = tile * 64 + 64 - d > 64 ? tile * 64 + 64 - d : 64;
            if (to == 0 || last > to + 64) {
                from = last - 64, to = last;
            } else if (last > to) {
                to += 64;
            }
            for (uint32_t j = from; j < to && j < n; j++) rows[j] = true;
        }
        const uint32_t first = window > 0 && tile * 64 >= window ? (tile * 64 - window + 1) / 64 : 0;
        for (uint32_t j = first; j <= tile; j++) {
            for (uint32_t d = 0; d < dim; d++) fit[j - first] += mq[tile * dim + d] * mk[j * dim + d];
        }
        if (window > 0) fit[tile - first] = INFINITY;
        mark_highest(fit, tile + 1 - first, a < n / 64 + 1 ? a : n / 64 + 1, block);
        for (uint32_t i = tile * 64; i < n && i < tile * 64 + 64; i++) {
            for (uint32_t j = 0; j < n; j++) {
                const bool part = kind == KVF_ATTEND_ALL     ? true
                                  : kind == KVF_ATTEND_LINES ? rows[j] || column[j]
                                  : kind == KVF_ATTEND_ENDS  ? j < a || (j <= i && i - j < b)
                                                             : j / 64 >= first && j / 64 <= tile && block[j / 64 - first];
                kept[i * n + j] = part && sees(i, j, window);
            }
        }
        free(rows);
        free(block);
        free(fit);
    }
    free(x);
    free(column);
    free(distance);
}

static void probabilities(double *p, const float *q, const float *k, uint32_t n, uint32_t dim, uint32_t window) {
    for (uint32_t i = 0; i < n; i++) {
        double max = -INFINITY, sum = 0;
        for (uint32_t j = 0; j < n; j++) {
            double dot = 0;
            for (uint32_t d = 0; d < dim; d++) dot += (double)q[i * dim + d] * k[j * dim + d];
            p[i * n + j] = sees(i, j, window) ? dot / sqrt(dim) : -INFINITY;
            max = fmax(max, p[i * n + j]);
        }
        for (uint32_t j = 0; j < n; j++) sum += p[i * n + j] = exp(p[i * n + j] - max);
        for (uint32_t j = 0; j < n; j++) p[i * n + j] /= sum;
    }
}

static void recall(kvf_device *dev, shape s, uint32_t granularity, uint32_t n, uint32_t window) {
    kvf_model *model = model_of_shape(dev, s);
    for (uint32_t layer = 0; layer < s.n_layer; layer++) model->layer_window[layer] = window;
    run r = begin(dev, model, s, granularity, n);
    uint32_t patterns[3 * 8];
    for (uint32_t h = 0; h < s.n_head; h++) {
        patterns[3 * h] = (h + n) % 4;
        patterns[3 * h + 1] = patterns[3 * h] == KVF_ATTEND_BLOCKS ? 1 + below(3) : 30 + below(40);
        patterns[3 * h + 2] = 50 + below(80);
    }
    float shares[2 * 8];
    REFUSED(kvf_prefill_recall(r.cache, r.sequence, patterns, s.n_head, shares, ERR), KVF_ERR_STATE);
    layers(model, r, 0, KVF_PHASE_PROJECT);
    REFUSED(kvf_prefill_recall(r.cache, r.sequence, patterns, s.n_head + 1, shares, ERR), KVF_ERR_ARG);
    REFUSED(kvf_prefill_recall(r.cache, r.sequence, patterns, 0, shares, ERR), KVF_ERR_ARG);
    uint32_t twice[6 * 8]; /* all heads dense, then the patterns */
    float both[4 * 8];
    memset(twice, 0, sizeof twice);
    memcpy(twice + 3 * s.n_head, patterns, 3 * s.n_head * sizeof *patterns);
    CHECK(kvf_prefill_recall(r.cache, r.sequence, twice, 2 * s.n_head, both, ERR) == KVF_OK);
    for (uint32_t i = 0; i < 2 * s.n_head; i++) CHECK_NEAR(both[i], 1, 1e-5);
    memcpy(shares, both + 2 * s.n_head, 2 * s.n_head * sizeof *shares);
    const uint32_t dim = s.head_dim;
    float *k = malloc((size_t)n * dim * sizeof *k), *q = malloc((size_t)n * dim * sizeof *q);
    double *p = malloc((size_t)n * n * sizeof *p);
    bool *kept = malloc((size_t)n * n * sizeof *kept);
    const kv_sequence *sequence = kv_ids_get(&r.cache->sequences, r.sequence);
    for (uint32_t h = 0; h < s.n_head; h++) {
        const float *window_q = sequence->observe->window_q[0] + (size_t)h * n * dim;
        CHECK(be_download(dev, q, window_q, (size_t)n * dim * sizeof *q, (kv_err){ERR}) == KVF_OK);
        const uint32_t stored = granularity == KVF_QUERY_HEAD ? h : h / (s.n_head / s.n_kv_head);
        CHECK(kvf_read_rows(r.cache, r.sequence, 0, stored, 0, k, (double)n * dim * sizeof *k, ERR) == KVF_OK);
        probabilities(p, q, k, n, dim, window);
        keep_rows(kept, patterns + 3 * h, p, q, k, n, dim, window);
        double mass = 0, pairs = 0, all = 0;
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j <= i; j++) {
                mass += kept[i * n + j] ? p[i * n + j] : 0;
                pairs += kept[i * n + j];
                all += sees(i, j, window);
            }
        }
        CHECK_NEAR(shares[2 * h], mass / n, 1e-4);
        CHECK_NEAR(shares[2 * h + 1], pairs / all, 1e-6);
    }
    /* The patterns run, in every layer, and the sequence lives on. */
    for (uint32_t layer = 0; layer < s.n_layer; layer++) {
        if (layer > 0) layers(model, r, layer, KVF_PHASE_PROJECT);
        CHECK(kvf_prefill_sparse(r.cache, r.sequence, patterns, s.n_head, ERR) == KVF_OK);
        layers(model, r, layer, KVF_PHASE_ATTEND);
    }
    CHECK(kvf_prefill_end(model, r.cache, r.sequence, ERR) == KVF_OK);
    end(r);
    kvf_model_free(model);
    free(k);
    free(q);
    free(p);
    free(kept);
}

/* The MLPs add nothing. */
static void attention_alone(kvf_model *model) {
    const kvf_model_config *c = &model->config;
    float *zeros = calloc((size_t)c->hidden * c->intermediate, sizeof *zeros);
    for (uint32_t layer = 0; layer < c->n_layer; layer++) {
        CHECK(be_model_load(model, KVF_T_DOWN, layer, 0, KVF_F32, 0, c->hidden, zeros, (kv_err){ERR}) == KVF_OK);
    }
    CHECK(be_model_finish(model, (kv_err){ERR}) == KVF_OK);
    free(zeros);
}

/* Logits of all tokens with the same pattern for all heads; NULL: full attention. */
static float *logits(kvf_device *dev, shape s, uint32_t n, uint32_t window, const uint32_t *pattern) {
    kvf_model *model = model_of_dtype(dev, s, s.dtype);
    if (s.dtype != KVF_F32) attention_alone(model);
    for (uint32_t layer = 0; layer < s.n_layer; layer++) model->layer_window[layer] = window;
    run r = begin(dev, model, s, KVF_KV_HEAD, n);
    uint32_t patterns[3 * 8];
    for (uint32_t i = 0; i < 3 * s.n_head && pattern != NULL; i++) patterns[i] = pattern[i % 3];
    for (uint32_t layer = 0; layer < s.n_layer; layer++) {
        layers(model, r, layer, KVF_PHASE_PROJECT);
        if (pattern != NULL) CHECK(kvf_prefill_sparse(r.cache, r.sequence, patterns, s.n_head, ERR) == KVF_OK);
        layers(model, r, layer, KVF_PHASE_ATTEND);
    }
    float *out = malloc((size_t)n * TEST_VOCAB * sizeof *out);
    CHECK(kvf_prefill_logits(model, r.cache, r.sequence, out, (double)n * TEST_VOCAB * sizeof *out, ERR) == KVF_OK);
    end(r);
    kvf_model_free(model);
    return out;
}

static void same(const float *a, const float *b, uint32_t n, double tolerance) {
    for (uint32_t i = 0; i < n * TEST_VOCAB; i++) CHECK_NEAR(a[i], b[i], tolerance);
}

static void everything(kvf_device *dev, shape s, uint32_t n) {
    const uint32_t all = n < 50 ? 50 : n;
    const uint32_t patterns[][3] = {{KVF_ATTEND_ALL, 0, 0},   {KVF_ATTEND_LINES, all, all}, {KVF_ATTEND_LINES, all, 50},
                                    {KVF_ATTEND_ENDS, 0, n}, {KVF_ATTEND_ENDS, n, 1},      {KVF_ATTEND_BLOCKS, 1000, 0}};
    float *full = logits(dev, s, n, 0, NULL);
    for (uint32_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        float *got = logits(dev, s, n, 0, patterns[i]);
        same(got, full, n, 1e-4);
        free(got);
    }
    free(full);
}

/*
 * Patterns that hold all rows of a sliding window and more give its logits; recent rows alone are one. In 16 bits the two
 * ways of attention round differently (they add probabilities in other tiles), and a layer's MLP makes two to three times as
 * much of that: with it, BF16 came to 0.015 to 0.037 over eight seeds, whatever gate and up are rounded to. So the MLPs are
 * left out there; that leaves 0.009 to 0.014, and 0.001 to 0.0017 in F16.
 */
static void windows(kvf_device *dev, shape s, uint32_t n, double tolerance) {
    const uint32_t patterns[][3] = {{KVF_ATTEND_ENDS, 0, 33}, {KVF_ATTEND_ENDS, 9, 40}, {KVF_ATTEND_LINES, 30, 100}, {KVF_ATTEND_BLOCKS, 2, 0}};
    float *window = logits(dev, s, n, 33, NULL);
    for (uint32_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        float *got = logits(dev, s, n, i == 0 ? 0 : 33, patterns[i]);
        same(got, window, n, tolerance);
        free(got);
    }
    free(window);
}

static void refusals(kvf_device *dev, shape s) {
    kvf_model *model = model_of_shape(dev, s);
    run r = begin(dev, model, s, KVF_KV_HEAD, 80);
    const uint32_t wrong[][3] = {{4, 100, 100}, {KVF_ATTEND_LINES, 29, 100}, {KVF_ATTEND_LINES, 30, 49}, {KVF_ATTEND_ENDS, 4, 0},
                                 {KVF_ATTEND_BLOCKS, 0, 0}};
    layers(model, r, 0, KVF_PHASE_PROJECT);
    for (uint32_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        uint32_t patterns[3 * 8] = {0};
        memcpy(patterns + 3, wrong[i], sizeof wrong[i]);
        REFUSED(kvf_prefill_sparse(r.cache, r.sequence, patterns, s.n_head, ERR), KVF_ERR_ARG);
    }
    REFUSED(kvf_prefill_sparse(r.cache, r.sequence, NULL, s.n_head, ERR), KVF_ERR_ARG);
    end(r);
    kvf_model_free(model);
}

int main(void) {
    kvf_device *dev = device_of_threads(3);
    const shape shapes[] = {{N_LAYER, 4, 2, 16, KVF_F32}, {N_LAYER, 8, 1, 32, KVF_F32}, {N_LAYER, 3, 3, 8, KVF_F32}};
    const uint32_t lengths[] = {1, 40, 64, 65, 200, 330};
    for (uint32_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (uint32_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            recall(dev, shapes[i], l % 2, lengths[l], l % 3 == 0 ? 0 : 90);
            recall(dev, shapes[i], l % 2, lengths[l] + 1, l % 3 == 0 ? 90 : 0);
            if (i == 0) everything(dev, shapes[i], lengths[l]);
            if (i == 0) windows(dev, shapes[i], lengths[l], 1e-4);
        }
    }
    windows(dev, (shape){N_LAYER, 4, 2, 32, KVF_BF16}, 330, 2e-2);
    windows(dev, (shape){N_LAYER, 4, 1, 64, KVF_F16}, 200, 2.5e-3);
    refusals(dev, shapes[0]);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
