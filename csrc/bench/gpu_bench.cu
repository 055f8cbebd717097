/*
 * Times the CUDA build on random weights: copy and read bandwidth, the rate of matrix products, attention alone, prefill with
 * and without compression, decode of plain and of packed rows, decode with step programs; and compares the tokens of one
 * sequence alone and among others, and the logits of a prompt with ever less memory. One JSON object per line; tasks/bench_gpu.ts makes the table of it.
 *
 *     gpu_bench layers hidden heads kv_heads head_dim intermediate vocab short long batch rows repeats [sections]
 *
 * sections: any of products, attention, same, scarce, decode, prefill, packed, programs, with commas between; left out: all
 * The status is 1 where something failed or tokens or logits differ.
 */
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <vector>

#include "../cuda/attention_prefill.cuh"

static char message[512];
#define ERR message, (uint32_t)sizeof message

static void must(bool ok, const char *what) {
    if (ok) return;
    printf("{\"what\":\"failed\",\"in\":\"%s\",\"message\":\"%s\"}\n", what, message);
    exit(1);
}

static double now_ms(void) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    return x[x.size() / 2];
}

/* Median device time of `work`, after two runs that do not count. */
template <typename F>
static double device_ms(kvf_device *dev, uint32_t repeats, F work) {
    cudaEvent_t start, end;
    std::vector<double> times;
    must(cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess, "events");
    for (uint32_t i = 0; i < repeats + 2; i++) {
        float ms = 0;
        cudaEventRecord(start, cu_of(dev)->stream);
        work();
        cudaEventRecord(end, cu_of(dev)->stream);
        must(cudaEventSynchronize(end) == cudaSuccess && cudaEventElapsedTime(&ms, start, end) == cudaSuccess, "timing");
        if (i >= 2) times.push_back(ms);
    }
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    return median(times);
}

typedef struct setup {
    kvf_device *dev;
    kvf_model *model;
    kvf_cache *cache;
    kvf_model_config c;
    uint32_t short_n, long_n, batch, rows, repeats;
    uint32_t seed;
    double free_at_start; /* of the device's memory, before weights */
} setup;

static double free_bytes(void) {
    size_t free_now = 0, total = 0;
    cudaMemGetInfo(&free_now, &total);
    return (double)free_now;
}

static void bandwidth(setup *s, size_t bytes) {
    const kv_err err = {ERR};
    void *from, *to;
    must(cu_alloc(s->dev, &from, bytes, "copy", err) == KVF_OK && cu_alloc(s->dev, &to, bytes, "copy", err) == KVF_OK, "copy");
    cudaMemsetAsync(from, 0x3c, bytes, cu_of(s->dev)->stream);
    const double ms = device_ms(s->dev, s->repeats, [&] { be_copy(s->dev, to, from, bytes, err); });
    be_free(s->dev, from);
    be_free(s->dev, to);
    printf("{\"what\":\"copy\",\"bytes_per_s\":%.6g}\n", 2.0 * (double)bytes / ms * 1e3);
    printf("{\"what\":\"read\",\"bytes_per_s\":%.6g}\n", kvf_device_read_bandwidth(s->dev, (double)bytes));
}

/* The four products of a layer, for n tokens, on the model's own weights. */
static void products(setup *s, uint32_t n) {
    const kv_err err = {ERR};
    const cu_layer *l = cu_weights(s->model)->layer;
    const cu_matrix *matrices[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    const uint32_t dtype = s->c.weight_dtype;
    double total_ms = 0, total_flop = 0;
    for (const cu_matrix *m : matrices) {
        void *x, *out;
        must(cu_alloc(s->dev, &x, (size_t)n * m->ld * 2, "x", err) == KVF_OK &&
                 cu_alloc(s->dev, &out, (size_t)n * m->n_row * 4, "out", err) == KVF_OK, "products");
        /* Random input: as many rows of the matrix itself as fit, over and over. */
        const size_t have = (size_t)m->n_row * m->ld * 2, want = (size_t)n * m->ld * 2;
        for (size_t done = 0; done < want; done += have) {
            be_copy(s->dev, (char *)x + done, m->data, want - done < have ? want - done : have, err);
        }
        const double ms = device_ms(s->dev, s->repeats, [&] {
            must(cu_gemm(s->dev, dtype, m, x, m->ld, n, (float *)out, m->n_row, false, err) == KVF_OK, "a product");
        });
        total_ms += ms;
        total_flop += 2.0 * n * m->n_row * m->n_col;
        be_free(s->dev, x);
        be_free(s->dev, out);
    }
    printf("{\"what\":\"products\",\"n\":%u,\"layer_ms\":%.6g,\"flop_per_s\":%.6g,\"blas\":%s}\n", n, total_ms,
           total_flop / total_ms * 1e3, cu_of(s->dev)->blas != NULL ? "true" : "false");
}

static uint32_t draw(setup *s) {
    s->seed = s->seed * 1664525u + 1013904223u;
    return s->seed >> 8;
}

/*
 * Runs a prompt; with rows > 0 each layer is compressed to that many rows by window scores before the next one runs.
 * policy_ms: the device's time between the events before and after each compression
 * refused: NULL: a prompt that does not fit is a failure; otherwise whether it was one, and 0 is returned
 */
static uint32_t prompt(setup *s, uint32_t n, uint32_t rows, double *ms, double *policy_ms, double *least_free,
                       bool *refused = NULL) {
    std::vector<uint32_t> tokens(n), counts(s->c.n_kv_head, rows - std::min(rows, 32u));
    for (uint32_t &t : tokens) t = draw(s) % s->c.vocab;
    const uint32_t window = 32;
    const bool compress = rows > 0 && rows < n;
    kvf_observe observe = {sizeof observe, compress ? window : 0, 0, 0};
    const int32_t id = kvf_sequence_create(s->cache, KVF_KV_HEAD, ERR);
    must(id > 0, "a sequence");
    const uint32_t q = (uint32_t)id;
    must(cu_synchronize(s->dev, (kv_err){ERR}) == KVF_OK, "waiting");
    const double start = now_ms();
    std::vector<cudaEvent_t> marks;
    const auto mark = [&] {
        if (policy_ms == NULL) return;
        marks.push_back(NULL);
        must(cudaEventCreate(&marks.back()) == cudaSuccess, "events");
        cudaEventRecord(marks.back(), cu_of(s->dev)->stream);
    };
    const uint32_t kept = (compress ? rows : n) + KVF_PAGE_ROWS - 1;
    const double bytes = (double)s->c.n_layer * s->c.n_kv_head * (kept / KVF_PAGE_ROWS) * s->cache->page_bytes;
    const int32_t begun = kvf_prefill_begin(s->model, s->cache, q, tokens.data(), n, bytes, &observe, NULL, ERR);
    if (refused != NULL && (*refused = begun == KVF_ERR_MEMORY)) {
        must(kvf_sequence_free(s->cache, q, ERR) == KVF_OK, "prefill");
        return 0;
    }
    must(begun == KVF_OK, "prefill");
    for (uint32_t layer = 0; layer < s->c.n_layer; layer++) {
        must(kvf_prefill_layers(s->model, s->cache, q, layer, 1, KVF_PHASE_ALL, NULL, ERR) == KVF_OK, "prefill");
        if (least_free != NULL) *least_free = std::min(*least_free, free_bytes());
        if (!compress) continue;
        mark();
        const int32_t w = kvf_scores_window(s->cache, q, layer, window, 0, KVF_MEAN, ERR);
        const int32_t p = w > 0 ? kvf_scores_pool(s->cache, (uint32_t)w, 0, 7, ERR) : w;
        const int32_t t = p > 0 ? kvf_select_top(s->cache, (uint32_t)p, counts.data(), s->c.n_kv_head, ERR) : p;
        must(t > 0 && kvf_retain(s->cache, q, layer, (uint32_t)t, 0, window, ERR) == KVF_OK, "compression");
        for (int32_t object : {w, p, t}) kvf_object_free(s->cache, (uint32_t)object, ERR);
        mark();
    }
    must(kvf_prefill_end(s->model, s->cache, q, ERR) == KVF_OK, "prefill");
    if (ms != NULL) *ms = now_ms() - start;
    if (policy_ms != NULL) *policy_ms = 0;
    for (size_t i = 0; i < marks.size(); i += 2) {
        float spent = 0;
        must(cudaEventElapsedTime(&spent, marks[i], marks[i + 1]) == cudaSuccess, "events");
        *policy_ms += spent;
    }
    for (cudaEvent_t event : marks) cudaEventDestroy(event);
    return q;
}

static void prefill(setup *s, uint32_t n) {
    std::vector<double> full, compressed, policy;
    double least = free_bytes();
    for (uint32_t i = 0; i < 4; i++) {
        double ms, share;
        must(kvf_sequence_free(s->cache, prompt(s, n, 0, &ms, NULL, NULL), ERR) == KVF_OK, "prefill");
        if (i > 0) full.push_back(ms);
        must(kvf_sequence_free(s->cache, prompt(s, n, s->rows, &ms, NULL, NULL), ERR) == KVF_OK, "prefill");
        if (i > 0) compressed.push_back(ms);
        must(kvf_sequence_free(s->cache, prompt(s, n, s->rows, NULL, &share, &least), ERR) == KVF_OK, "prefill");
        if (i > 0) policy.push_back(share);
    }
    printf("{\"what\":\"prefill\",\"n\":%u,\"rows\":%u,\"ms\":%.6g,\"compressed_ms\":%.6g,\"policy_ms\":%.6g,"
           "\"peak_bytes\":%.0f}\n", n, s->rows, median(full), median(compressed), median(policy),
           s->free_at_start - least);
}

/* One layer's attention over n tokens, alone, on rows and queries of a real prefill's layout. */
static void attention(setup *s, uint32_t n) {
    const kv_err err = {ERR};
    const uint32_t q = prompt(s, n, 0, NULL, NULL, NULL), dim = s->c.head_dim;
    kv_sequence *sequence = (kv_sequence *)kv_ids_get(&s->cache->sequences, q);
    const size_t count = (size_t)n * s->c.n_head * dim;
    std::vector<float> values(count);
    for (float &x : values) x = (float)(draw(s) % 4096) / 1024.0f - 2.0f;
    void *queries, *out, *lse;
    must(cu_alloc(s->dev, &queries, count * 4, "queries", err) == KVF_OK && cu_alloc(s->dev, &out, count * 2, "out", err) == KVF_OK &&
             cu_alloc(s->dev, &lse, (size_t)n * s->c.n_head * 4, "lse", err) == KVF_OK &&
             be_upload(s->dev, queries, values.data(), count * 4, err) == KVF_OK, "attention");
    cu_view view;
    cu_queries given = {};
    given.q = (const float *)queries, given.head_stride = (size_t)n * dim, given.n = n, given.n_head = s->c.n_head;
    given.whole = true;
    must(cu_layer_view(s->cache, sequence, 0, &view, err) == KVF_OK, "attention");
    const double ms = device_ms(s->dev, s->repeats, [&] {
        must(cu_attention_prefill(s->dev, &view, s->c.weight_dtype, &given, out, s->c.weight_dtype, s->c.n_head * dim,
                                  (float *)lse, err) == KVF_OK, "attention");
    });
    be_free(s->dev, queries);
    be_free(s->dev, out);
    be_free(s->dev, lse);
    kvf_sequence_free(s->cache, q, ERR);
    printf("{\"what\":\"attention\",\"n\":%u,\"ms\":%.6g,\"flop_per_s\":%.6g}\n", n, ms,
           2.0 * n * n * s->c.n_head * dim / ms * 1e3);
}

/* `batch` sequences with prompts of n tokens, kept whole (rows 0) or cut to `rows`. */
static void decode(setup *s, uint32_t batch, uint32_t n, uint32_t rows) {
    enum { STEPS = 64 };
    const double row_bytes = 2.0 * s->c.n_layer * s->c.n_kv_head * s->c.head_dim * 2;
    std::vector<uint32_t> ids, tokens((size_t)STEPS * batch);
    for (uint32_t b = 0; b < batch; b++) ids.push_back(prompt(s, n, rows, NULL, NULL, NULL));
    std::vector<double> times, host[3];
    cu_device *d = cu_of(s->dev);
    uint32_t held = rows > 0 && rows < n ? rows : n;
    double read = 0;
    for (uint32_t i = 0; i < s->repeats + 1; i++) {
        for (double &x : d->host_ms) x = 0;
        const double start = now_ms();
        must(kvf_decode(s->model, s->cache, ids.data(), batch, STEPS, tokens.data(), NULL, 0, NULL, ERR) == KVF_OK, "decode");
        if (i > 0) times.push_back((now_ms() - start) / STEPS);
        for (int part = 0; part < 3 && i > 0; part++) host[part].push_back(d->host_ms[part]);
        if (i == s->repeats / 2) read = ((double)held + STEPS / 2) * row_bytes * batch;
        held += STEPS;
    }
    for (uint32_t id : ids) kvf_sequence_free(s->cache, id, ERR);
    printf("{\"what\":\"decode\",\"batch\":%u,\"n\":%u,\"rows\":%u,\"ms\":%.6g,\"bytes\":%.6g}\n", batch, n, rows,
           median(times), kvf_model_step_bytes(s->model) + read);
    printf("{\"what\":\"host\",\"batch\":%u,\"n\":%u,\"rows\":%u,\"steps\":%d,\"reserve_ms\":%.6g,\"send_ms\":%.6g,"
           "\"follow_ms\":%.6g}\n", batch, n, rows, (int)STEPS, median(host[0]), median(host[1]), median(host[2]));
}

/*
 * The same `batch` prompts of n tokens with plain rows and packed as KIVI packs them, 4 and 2 bits; the three take turns.
 * What comes due is packed within the time that is measured. Packing a prompt is timed apart.
 */
static void packed(setup *s, uint32_t batch, uint32_t n) {
    enum { STEPS = 64, SETS = 3 };
    static const uint32_t BITS[SETS] = {0, 4, 2};
    std::vector<uint32_t> ids[SETS], tokens((size_t)STEPS * batch);
    std::vector<double> times[SETS], packing[SETS];
    double bytes[SETS] = {};
    for (uint32_t b = 0; b < batch; b++) {
        ids[0].push_back(prompt(s, n, 0, NULL, NULL, NULL));
        for (uint32_t set = 1; set < SETS; set++) {
            kvf_format f = {};
            f.size = sizeof f, f.residual = 32, f.key_bits = f.value_bits = BITS[set];
            f.value_axis = KVF_PER_TOKEN, f.value_group = 32;
            const int32_t id = kvf_sequence_fork(s->cache, ids[0][b], KVF_KV_HEAD, ERR);
            must(id > 0 && cu_synchronize(s->dev, (kv_err){ERR}) == KVF_OK, "a fork");
            const double start = now_ms();
            for (uint32_t layer = 0; layer < s->c.n_layer; layer++) {
                must(kvf_pack(s->cache, (uint32_t)id, layer, &f, 0, 0, ERR) == KVF_OK, "packing");
            }
            must(cu_synchronize(s->dev, (kv_err){ERR}) == KVF_OK, "packing");
            packing[set].push_back(now_ms() - start);
            ids[set].push_back((uint32_t)id);
        }
    }
    for (uint32_t set = 1; set < SETS; set++) {
        printf("{\"what\":\"packing\",\"batch\":%u,\"n\":%u,\"bits\":%u,\"ms\":%.6g}\n", batch, n, BITS[set], median(packing[set]));
    }
    const uint32_t repeats = std::max(3u, s->repeats / 4);
    for (uint32_t i = 0; i < repeats + 1; i++) {
        for (uint32_t set = 0; set < SETS; set++) {
            const double start = now_ms();
            must(kvf_decode(s->model, s->cache, ids[set].data(), batch, STEPS, tokens.data(), NULL, 0, NULL, ERR) == KVF_OK,
                 "decode");
            if (i > 0) times[set].push_back((now_ms() - start) / STEPS);
            if (i != repeats / 2) continue;
            for (uint32_t id : ids[set]) {
                bytes[set] += kv_owned_bytes(s->cache, (const kv_sequence *)kv_ids_get(&s->cache->sequences, id));
            }
        }
    }
    for (uint32_t set = 0; set < SETS; set++) {
        for (uint32_t id : ids[set]) kvf_sequence_free(s->cache, id, ERR);
        printf("{\"what\":\"packed\",\"batch\":%u,\"n\":%u,\"bits\":%u,\"ms\":%.6g,\"bytes\":%.6g}\n", batch, n,
               BITS[set], median(times[set]), kvf_model_step_bytes(s->model) + bytes[set]);
    }
}

/* ---- Step programs ---- */

static kvf_op op(uint32_t kind) {
    kvf_op x = {};
    x.size = sizeof x, x.kind = kind, x.head = UINT32_MAX;
    return x;
}

/* The programs of the methods that act in every step, at `rows` rows; what a choice reads. */
static std::vector<kvf_op> program(const std::string &name, uint32_t rows, uint32_t chosen) {
    kvf_op mass = op(KVF_OP_MASS), evict = op(KVF_OP_EVICT), pages = op(KVF_OP_PAGES), relative = op(KVF_OP_RELATIVE);
    mass.from = UINT32_MAX, mass.decay = 1;
    evict.every = 1, evict.above = evict.keep = rows, evict.first = 4, evict.last = 32, evict.reduce = KVF_MEAN;
    pages.page_rows = 16, pages.keep = chosen, pages.reduce = KVF_MAX;
    relative.first = 4;
    evict.statistic = KVF_STAT_MASS;
    if (name == "H2O") return {mass, evict};
    mass.decay = 0.99f;
    if (name == "Scissorhands, decay") return {mass, evict};
    evict.draw = 1, evict.temperature = 1, evict.seed = 3;
    if (name == "Scissorhands, drawn") return {mass, evict};
    if (name == "Quest") return {pages};
    evict.draw = 0, evict.temperature = 0, evict.seed = 0, evict.statistic = KVF_STAT_POSITION;
    if (name == "StreamingLLM") return {evict};
    return {relative, evict};
}

/* Milliseconds of a step of forks of `ids` with the program, after some that do not count. host_ms: of them without any step */
static double program_ms(setup *s, const std::vector<uint32_t> &ids, const std::vector<kvf_op> &ops, double *host_ms) {
    enum { WARM = 8, STEPS = 64 };
    std::vector<uint32_t> forks, tokens((size_t)STEPS * ids.size());
    for (uint32_t id : ids) {
        const int32_t fork = kvf_sequence_fork(s->cache, id, KVF_KV_HEAD, ERR);
        must(fork > 0, "a fork");
        forks.push_back((uint32_t)fork);
        for (uint32_t layer = 0; layer < s->c.n_layer && !ops.empty(); layer++) {
            must(kvf_sequence_program(s->cache, forks.back(), layer, ops.data(), (uint32_t)ops.size(), ERR) == KVF_OK, "a program");
        }
    }
    const uint32_t n = (uint32_t)forks.size();
    must(kvf_decode(s->model, s->cache, forks.data(), n, WARM, tokens.data(), NULL, 0, NULL, ERR) == KVF_OK, "decode");
    double *spent = cu_of(s->dev)->host_ms;
    std::fill(spent, spent + 3, 0.0);
    const double start = now_ms();
    must(kvf_decode(s->model, s->cache, forks.data(), n, STEPS, tokens.data(), NULL, 0, NULL, ERR) == KVF_OK, "decode");
    const double ms = (now_ms() - start) / STEPS;
    *host_ms = (spent[0] + spent[1] + spent[2]) / STEPS;
    for (uint32_t id : forks) kvf_sequence_free(s->cache, id, ERR);
    return ms;
}

/*
 * Steps with a program, at n rows, beside steps that attend to as many rows without one, in turn; for a choice of rows steps
 * with all of them as well. only_choices: of the programs those that choose
 */
static void programs(setup *s, uint32_t batch, uint32_t n, bool only_choices) {
    enum { CHOSEN = 1024 };
    static const char *const names[] = {"H2O", "StreamingLLM", "StreamingLLM, paper", "Scissorhands, decay", "Scissorhands, drawn",
                                        "Quest"};
    std::vector<uint32_t> whole, chosen;
    for (uint32_t b = 0; b < batch; b++) {
        whole.push_back(prompt(s, n, 0, NULL, NULL, NULL));
        chosen.push_back(prompt(s, CHOSEN, 0, NULL, NULL, NULL));
    }
    for (const char *name : names) {
        const bool chooses = std::string(name) == "Quest";
        if (only_choices && !chooses) continue;
        std::vector<double> with, without, all, host;
        for (uint32_t i = 0; i < std::max(s->repeats / 4, 3u); i++) {
            double host_ms, plain_host_ms, any;
            with.push_back(program_ms(s, whole, program(name, n, CHOSEN), &host_ms));
            without.push_back(program_ms(s, chooses ? chosen : whole, {}, &plain_host_ms));
            host.push_back(host_ms - plain_host_ms);
            if (chooses) all.push_back(program_ms(s, whole, {}, &any));
        }
        printf("{\"what\":\"program\",\"name\":\"%s\",\"batch\":%u,\"n\":%u,\"rows\":%u,\"ms\":%.6g,\"plain_ms\":%.6g,"
               "\"host_ms\":%.6g", name, batch, n, chooses ? (uint32_t)CHOSEN : n, median(with), median(without), median(host));
        if (chooses) printf(",\"whole_ms\":%.6g", median(all));
        printf("}\n");
    }
    for (uint32_t id : whole) kvf_sequence_free(s->cache, id, ERR);
    for (uint32_t id : chosen) kvf_sequence_free(s->cache, id, ERR);
}

/* ---- One sequence alone and among others ---- */

/*
 * Greedy tokens of one prompt, in the middle of a batch of others of other lengths, and the logits that the last one was
 * sampled from. With rows > 0 prompts longer than that are cut to it.
 */
static void answer(setup *s, uint32_t batch, uint32_t rows, std::vector<uint32_t> *answered, std::vector<float> *logits) {
    enum { PROMPT = 2048, SEED = 77 };
    const uint32_t place = batch / 2, n_step = (uint32_t)answered->size(), vocab = s->c.vocab;
    std::vector<uint32_t> ids, tokens((size_t)n_step * batch);
    std::vector<float> last((size_t)batch * vocab);
    for (uint32_t b = 0; b < batch; b++) {
        s->seed = SEED + (b == place ? 0 : b + 1); /* of the tokens that `prompt` draws */
        ids.push_back(prompt(s, b == place ? PROMPT : 300 + b * 331 % 1900, rows, NULL, NULL, NULL));
    }
    must(kvf_decode(s->model, s->cache, ids.data(), batch, n_step - 1, tokens.data(), NULL, 0, NULL, ERR) == KVF_OK, "decode");
    must(kvf_decode(s->model, s->cache, ids.data(), batch, 1, &tokens[(size_t)(n_step - 1) * batch], last.data(),
                    (double)last.size() * sizeof(float), NULL, ERR) == KVF_OK, "decode");
    for (uint32_t step = 0; step < n_step; step++) (*answered)[step] = tokens[(size_t)step * batch + place];
    memcpy(logits->data(), &last[(size_t)place * vocab], vocab * sizeof(float));
    for (uint32_t id : ids) kvf_sequence_free(s->cache, id, ERR);
}

/* Whether they are the same, bit for bit, alone and in batches of 8 and 32. */
static bool same(setup *s) {
    enum { STEPS = 64 };
    std::vector<uint32_t> alone(STEPS), among(STEPS);
    std::vector<float> want(s->c.vocab), got(s->c.vocab);
    bool all = true;
    for (uint32_t rows : {0u, s->rows}) {
        answer(s, 1, rows, &alone, &want);
        const size_t distinct = std::set<uint32_t>(alone.begin(), alone.end()).size();
        for (uint32_t batch : {8u, 32u}) {
            answer(s, batch, rows, &among, &got);
            const bool equal = alone == among && memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0;
            const auto at = std::mismatch(alone.begin(), alone.end(), among.begin()).first;
            all = all && equal;
            printf("{\"what\":\"same\",\"batch\":%u,\"rows\":%u,\"steps\":%d,\"distinct\":%zu,\"equal_tokens\":%d,"
                   "\"equal\":%s}\n", batch, rows, (int)STEPS, distinct, (int)(at - alone.begin()), equal ? "true" : "false");
        }
    }
    return all;
}

/* ---- Ever less memory ---- */

/* Whether a prompt that is cut to `rows` gives the same logits, bit for bit, until it is refused before anything is done, and again after that. */
static bool scarce(setup *s, uint32_t n, double most, double step) {
    enum { SEED = 5 };
    std::vector<float> want(s->c.vocab), got(s->c.vocab);
    cudaMemPool_t pool;
    bool all = true;
    must(cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess, "the memory pool");
    /* left: bytes of the device's memory, 0: all that there is; returns whether it was enough */
    const auto once = [&](double left, std::vector<float> *logits) {
        void *filler = NULL;
        double ms = 0;
        bool refused = false;
        must(cu_synchronize(s->dev, (kv_err){ERR}) == KVF_OK && cudaMemPoolTrimTo(pool, 0) == cudaSuccess, "the memory pool");
        if (left > 0) must(cudaMalloc(&filler, (size_t)(free_bytes() - left)) == cudaSuccess, "taking memory");
        const double free_before = free_bytes();
        s->seed = SEED;
        message[0] = '\0';
        const uint32_t q = prompt(s, n, s->rows, &ms, NULL, NULL, &refused);
        bool equal = refused == (message[0] != '\0');
        if (!refused) {
            must(kvf_sequence_logits(s->cache, q, logits->data(), s->c.vocab, ERR) == KVF_OK &&
                     kvf_sequence_free(s->cache, q, ERR) == KVF_OK, "logits");
            equal = equal && (logits == &want || memcmp(want.data(), got.data(), want.size() * sizeof(float)) == 0);
        }
        all = all && equal;
        printf("{\"what\":\"scarce\",\"n\":%u,\"rows\":%u,\"free_bytes\":%.0f,\"ms\":%.6g,\"equal\":%s,\"refused\":\"%s\"}\n", n,
               s->rows, free_before, ms, equal ? "true" : "false", refused ? message : "");
        cudaFree(filler);
        return !refused;
    };
    must(once(0, &want), "a prompt with all memory");
    double left = most;
    while (left > 0 && once(left, &got)) left -= step;
    must(left > 0, "refusing a prompt without memory");
    must(once(0, &got), "a prompt after one that was refused");
    return all;
}

int main(int argc, char **argv) {
    setup s = {};
    bool good = true;
    uint32_t v[12];
    if (argc != 13 && argc != 14) {
        fprintf(stderr, "Cannot run as 12 numbers must be given, and sections if any: %d\n", argc - 1);
        return 2;
    }
    const std::string sections = argc == 14 ? std::string(",") + argv[13] + "," : "";
    const auto wanted = [&](const char *name) {
        return sections.empty() || sections.find(std::string(",") + name + ",") != std::string::npos;
    };
    for (int i = 0; i < 12; i++) v[i] = (uint32_t)strtoul(argv[i + 1], NULL, 10);
    setvbuf(stdout, NULL, _IONBF, 0); /* what was measured is kept when something fails later */
    s.c.size = sizeof s.c, s.c.n_layer = v[0], s.c.hidden = v[1], s.c.n_head = v[2], s.c.n_kv_head = v[3];
    s.c.head_dim = v[4], s.c.intermediate = v[5], s.c.vocab = v[6], s.c.weight_dtype = KVF_BF16;
    s.c.norm_eps = 1e-5f, s.c.rope_scale = 1;
    s.short_n = v[7], s.long_n = v[8], s.batch = v[9], s.rows = v[10], s.repeats = v[11], s.seed = 1;
    kvf_device_options options = {};
    kvf_device_info info = {};
    options.size = sizeof options, info.size = sizeof info;
    s.dev = kvf_device_create(&options, ERR);
    must(s.dev != NULL && kvf_device_describe(s.dev, &info, ERR) == KVF_OK, "the device");
    printf("{\"what\":\"device\",\"name\":\"%s\",\"capability\":%u,\"total_bytes\":%.0f}\n", info.name, info.capability,
           info.total_bytes);
    std::vector<float> inv_freq(s.c.head_dim / 2);
    std::vector<uint32_t> windows(s.c.n_layer, 0);
    for (uint32_t i = 0; i < s.c.head_dim / 2; i++) inv_freq[i] = powf(500000.0f, -2.0f * (float)i / (float)s.c.head_dim);
    s.free_at_start = free_bytes();
    bandwidth(&s, (size_t)(info.total_bytes / 32) / 256 * 256);
    s.model = kvf_model_create(s.dev, &s.c, inv_freq.data(), windows.data(), ERR);
    must(s.model != NULL && kvf_model_randomize(s.model, 1, ERR) == KVF_OK, "the model");
    kvf_cache_config cache = {};
    cache.size = sizeof cache, cache.n_layer = s.c.n_layer, cache.n_head = s.c.n_head, cache.n_kv_head = s.c.n_kv_head;
    cache.head_dim = s.c.head_dim, cache.row_dtype = KVF_BF16;
    s.cache = kvf_cache_create(s.dev, &cache, ERR);
    must(s.cache != NULL, "the cache");
    if (wanted("products")) products(&s, s.short_n);
    if (wanted("attention")) {
        for (uint32_t n : {s.short_n, s.long_n}) attention(&s, n);
    }
    if (wanted("same")) good = same(&s);
    if (wanted("scarce")) good = scarce(&s, s.long_n, 2.4e9, 0.3e9) && good;
    if (wanted("decode")) {
        for (uint32_t n : {s.short_n, s.long_n}) decode(&s, 1, n, 0);
        decode(&s, 1, s.short_n, s.rows);
    }
    if (wanted("prefill")) {
        for (uint32_t n : {s.short_n, s.long_n}) prefill(&s, n);
    }
    if (wanted("decode")) {
        decode(&s, s.batch, s.short_n, 0);
        decode(&s, s.batch, s.short_n, s.rows);
    }
    if (wanted("packed")) {
        for (uint32_t n : {s.short_n, s.long_n}) packed(&s, 1, n);
        for (uint32_t n : {s.short_n / 2, s.short_n}) packed(&s, s.batch, n);
    }
    if (wanted("programs")) {
        for (uint32_t batch : {1u, s.batch}) programs(&s, batch, 4096, false);
        programs(&s, 1, s.long_n, true);
    }
    kvf_cache_free(s.cache);
    kvf_model_free(s.model);
    kvf_device_free(s.dev);
    return good ? 0 : 1;
}
