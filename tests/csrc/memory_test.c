/*
 * A device without memory, or one that fails: every request for memory is refused once, in every place, and what was there
 * goes on as if nothing had been; little memory changes how a prefill runs and none of its bits; a device that failed says
 * so in every call. What the tests do to the device is in the emulator: on other builds they are skipped, aloud.
 */
#include "test.h"

extern void emulator_limit(size_t total_bytes) __attribute__((weak));
extern size_t emulator_used(void) __attribute__((weak));
extern void emulator_fail_after(uint32_t n) __attribute__((weak));
extern void emulator_lose(bool lost) __attribute__((weak));

#define N_TOKEN 300u
#define VOCAB 600u
#define STEPS 3u
#define PATTERNS 4u

static const kvf_cache_config CACHE = {sizeof(kvf_cache_config), 2, 4, 2, 32, KVF_F32, 0};

typedef struct all {
    kvf_device *dev;
    kvf_model *model;
    kvf_cache *cache;
    uint32_t sequence;
} all;

static const uint32_t *prompt(void) {
    static uint32_t tokens[N_TOKEN];
    for (uint32_t i = 0; i < N_TOKEN; i++) tokens[i] = (i * 7 + i * i) % VOCAB;
    return tokens;
}

/* Arrays of more than 128 KiB, so that many requests reach the driver. */
static kvf_model *model_of(kvf_device *dev) {
    const kvf_model_config config = {.size = sizeof config, .n_layer = CACHE.n_layer, .hidden = 128, .n_head = CACHE.n_head,
                                     .n_kv_head = CACHE.n_kv_head, .head_dim = CACHE.head_dim, .intermediate = 96,
                                     .vocab = VOCAB, .weight_dtype = KVF_F32, .flags = KVF_TIED_EMBEDDING,
                                     .norm_eps = 1e-5f, .rope_scale = 1};
    float inv_freq[16];
    const uint32_t windows[2] = {0};
    for (uint32_t i = 0; i < 16; i++) inv_freq[i] = powf(10000.0f, -(float)i / 16);
    return kvf_model_create(dev, &config, inv_freq, windows, ERR);
}

static int32_t prefill_begin(const all *x) {
    const kvf_observe observe = {.size = sizeof observe, .n_window = 8, .n_mass = 1, .n_range = 1};
    const uint32_t range[3] = {0, 0, N_TOKEN};
    return kvf_prefill_begin(x->model, x->cache, x->sequence, prompt(), N_TOKEN, 0, &observe, range, ERR);
}

/* The rest of a prefill. */
static int32_t prefill_rest(const all *x) {
    int32_t status = kvf_prefill_layers(x->model, x->cache, x->sequence, 0, 2, KVF_PHASE_ALL, NULL, ERR);
    return status == KVF_OK ? kvf_prefill_end(x->model, x->cache, x->sequence, ERR) : status;
}

static int32_t open_all(all *x) {
    memset(x, 0, sizeof *x);
    const kvf_device_options options = {.size = sizeof options, .n_thread = 1};
    if ((x->dev = kvf_device_create(&options, ERR)) == NULL) return KVF_ERR_MEMORY;
    if ((x->model = model_of(x->dev)) == NULL) return KVF_ERR_MEMORY;
    int32_t status = kvf_model_randomize(x->model, 7, ERR);
    if (status != KVF_OK) return status;
    if ((x->cache = kvf_cache_create(x->dev, &CACHE, ERR)) == NULL) return KVF_ERR_MEMORY;
    status = kvf_sequence_create(x->cache, KVF_KV_HEAD, ERR);
    if (status <= 0) return status;
    x->sequence = (uint32_t)status;
    return KVF_OK;
}

static void close_all(all *x) {
    if (x->cache != NULL) kvf_cache_free(x->cache);
    if (x->model != NULL) kvf_model_free(x->model);
    if (x->dev != NULL) kvf_device_free(x->dev);
    CHECK(kvf_live_handles() == 0);
}

static int32_t decode(const all *x, uint32_t tokens[STEPS]) {
    return kvf_decode(x->model, x->cache, &x->sequence, 1, STEPS, tokens, NULL, 0, NULL, ERR);
}

/* Everything; an error is one of memory that says how much is free, and undone by memory. */
static bool run(uint32_t tokens[STEPS]) {
    all x;
    int32_t status = open_all(&x);
    if (status == KVF_OK) status = prefill_begin(&x);
    if (status == KVF_OK) status = prefill_rest(&x);
    if (status == KVF_OK) {
        status = decode(&x, tokens);
        if (status != KVF_OK) {
            CHECK(status == KVF_ERR_MEMORY);
            check_books(x.cache);
            emulator_fail_after(UINT32_MAX);
            CHECK(decode(&x, tokens) == KVF_OK);
        }
    }
    CHECK(status == KVF_OK || (status == KVF_ERR_MEMORY && strncmp(test_message, "Cannot ", 7) == 0));
    emulator_fail_after(UINT32_MAX);
    if (x.cache != NULL) check_books(x.cache);
    close_all(&x);
    return status == KVF_OK;
}

static void every_request(void) {
    uint32_t want[STEPS], got[STEPS], n = 0;
    CHECK(run(want));
    const size_t used = emulator_used();
    for (bool done = false; !done; n++) {
        memset(got, 0, sizeof got);
        emulator_fail_after(n);
        done = run(got);
        if (done) CHECK(memcmp(got, want, sizeof got) == 0);
        CHECK(emulator_used() == used);
        CHECK(n < 200);
    }
    CHECK(n >= 6); /* the staging ring, pages and small arrays, weights, activations */
}

/* Less and less memory, until a prefill is refused: logits, masses and window queries have the same bits all along. */
static void little_memory(void) {
    all x;
    CHECK(open_all(&x) == KVF_OK);
    float *want = NULL, *got = malloc((size_t)N_TOKEN * VOCAB * sizeof *got), *masses[2] = {NULL, NULL};
    size_t last = SIZE_MAX;
    uint32_t n_way = 0;
    for (size_t more = 1u << 20;; more -= 24u << 10) {
        const size_t before = emulator_used();
        emulator_limit(before + more);
        const int32_t status = prefill_begin(&x);
        if (status != KVF_OK) {
            CHECK(status == KVF_ERR_MEMORY && strstr(test_message, "must be free") != NULL);
            break;
        }
        const size_t taken = emulator_used() - before; /* large arrays */
        emulator_limit((size_t)1 << 30);
        if (taken != last) { /* another way */
            n_way++;
            last = taken;
            CHECK(kvf_prefill_layers(x.model, x.cache, x.sequence, 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
            CHECK(kvf_prefill_logits(x.model, x.cache, x.sequence, got, (double)N_TOKEN * VOCAB * sizeof *got, ERR) == KVF_OK);
            const kv_sequence *s = kv_ids_get(&x.cache->sequences, x.sequence);
            const size_t bytes = (size_t)CACHE.n_head * N_TOKEN * sizeof(float), n_q = 4 * 8 * 32 * sizeof(float);
            float *mass = malloc(bytes + n_q);
            CHECK(be_download(x.dev, mass, s->observe->mass[1], bytes, (kv_err){ERR}) == KVF_OK);
            CHECK(be_download(x.dev, mass + bytes / sizeof *mass, s->observe->window_q[1], n_q, (kv_err){ERR}) == KVF_OK);
            if (want == NULL) {
                want = got, masses[0] = mass;
                got = malloc((size_t)N_TOKEN * VOCAB * sizeof *got);
            } else {
                CHECK(memcmp(want, got, (size_t)N_TOKEN * VOCAB * sizeof *got) == 0);
                CHECK(memcmp(masses[0], mass, bytes + n_q) == 0);
                free(mass);
            }
        }
        CHECK(kvf_sequence_free(x.cache, x.sequence, ERR) == KVF_OK);
        x.sequence = (uint32_t)kvf_sequence_create(x.cache, KVF_KV_HEAD, ERR);
        CHECK(more > 24u << 10);
    }
    emulator_limit((size_t)1 << 30);
    if (n_way != 3) fprintf(stderr, "%u ways\n", n_way);
    CHECK(n_way == 3); /* everything kept, the stream kept, nothing kept */
    /* the sequence that was refused may begin again */
    CHECK(prefill_begin(&x) == KVF_OK && prefill_rest(&x) == KVF_OK);
    free(want);
    free(got);
    free(masses[0]);
    /* a model that does not fit is refused before anything is taken */
    const size_t used = emulator_used();
    emulator_limit(used + (64u << 10));
    CHECK(model_of(x.dev) == NULL && strstr(test_message, "must be free") != NULL);
    CHECK(emulator_used() == used);
    emulator_limit((size_t)1 << 30);
    close_all(&x);
}

/* What a begun prefill takes of `more` bytes; the sequence starts anew afterwards. */
static size_t taken_of(all *x, size_t before, size_t more) {
    emulator_limit(before + more);
    const int32_t status = prefill_begin(x);
    const size_t taken = status == KVF_OK ? emulator_used() - before : 0;
    CHECK(kvf_sequence_free(x->cache, x->sequence, ERR) == KVF_OK);
    x->sequence = (uint32_t)kvf_sequence_create(x->cache, KVF_KV_HEAD, ERR);
    return taken;
}

/* What a prefill gave back is room for the next one, though the device has not come so far; and for a model. */
static void memory_on_its_way(void) {
    all x;
    CHECK(open_all(&x) == KVF_OK);
    size_t more = 1u << 20;
    const size_t before = emulator_used(), most = taken_of(&x, before, more);
    CHECK(most > 0);
    while (emulator_used() == before && taken_of(&x, before, more - (24u << 10)) == most) more -= 24u << 10;
    CHECK(emulator_used() == before);
    emulator_limit(before + more);
    CHECK(prefill_begin(&x) == KVF_OK);
    CHECK(kvf_sequence_free(x.cache, x.sequence, ERR) == KVF_OK);
    x.sequence = (uint32_t)kvf_sequence_create(x.cache, KVF_KV_HEAD, ERR);
    CHECK(taken_of(&x, before, more) == most); /* as if nothing had been */
    emulator_limit((size_t)1 << 30);
    kvf_model *first = model_of(x.dev);
    CHECK(first != NULL);
    emulator_limit(emulator_used() + (850u << 10)); /* too little by less than the embedding, which goes back */
    CHECK(model_of(x.dev) == NULL && strstr(test_message, "must be free") != NULL);
    kvf_model_free(first);
    kvf_model *second = model_of(x.dev);
    CHECK(second != NULL);
    kvf_model_free(second);
    emulator_limit((size_t)1 << 30);
    close_all(&x);
}

/* Sparse attention and its shares, in every way of running a prefill. */
static void sparse(void) {
    float want[2 * PATTERNS], got[2 * PATTERNS];
    float logits[2][VOCAB];
    const uint32_t patterns[3 * PATTERNS] = {KVF_ATTEND_LINES, 40, 60, KVF_ATTEND_ENDS, 5, 30,
                                             KVF_ATTEND_BLOCKS, 2, 0, KVF_ATTEND_ALL, 0, 0};
    all x;
    CHECK(open_all(&x) == KVF_OK);
    uint32_t n_way = 0;
    size_t last = SIZE_MAX;
    for (size_t more = 1u << 20; more > 24u << 10; more -= 24u << 10) {
        const kvf_observe observe = {.size = sizeof observe, .n_window = 80};
        const size_t before = emulator_used();
        emulator_limit(before + more);
        if (kvf_prefill_begin(x.model, x.cache, x.sequence, prompt(), N_TOKEN, 0, &observe, NULL, ERR) != KVF_OK) break;
        emulator_limit((size_t)1 << 30);
        if (emulator_used() - before != last) {
            last = emulator_used() - before;
            for (uint32_t layer = 0; layer < 2; layer++) {
                CHECK(kvf_prefill_layers(x.model, x.cache, x.sequence, layer, 1, KVF_PHASE_PROJECT, NULL, ERR) == KVF_OK);
                CHECK(kvf_prefill_recall(x.cache, x.sequence, patterns, PATTERNS, got, ERR) == KVF_OK);
                CHECK(kvf_prefill_sparse(x.cache, x.sequence, patterns, PATTERNS, ERR) == KVF_OK);
                CHECK(kvf_prefill_layers(x.model, x.cache, x.sequence, layer, 1, KVF_PHASE_ATTEND, NULL, ERR) == KVF_OK);
            }
            CHECK(kvf_prefill_end(x.model, x.cache, x.sequence, ERR) == KVF_OK);
            CHECK(kvf_sequence_logits(x.cache, x.sequence, logits[n_way > 0], VOCAB, ERR) == KVF_OK);
            if (n_way++ == 0) memcpy(want, got, sizeof want);
            CHECK(memcmp(want, got, sizeof want) == 0);
            if (n_way > 1) CHECK(memcmp(logits[0], logits[1], sizeof logits[0]) == 0);
        }
        CHECK(kvf_sequence_free(x.cache, x.sequence, ERR) == KVF_OK);
        x.sequence = (uint32_t)kvf_sequence_create(x.cache, KVF_KV_HEAD, ERR);
    }
    emulator_limit((size_t)1 << 30);
    CHECK(n_way == 3);
    close_all(&x);
}

/* Rows that the caller will keep are counted before anything is done. */
static void kept_rows(void) {
    const kvf_observe observe = {.size = sizeof observe, .n_window = 8};
    const double gib = 1u << 30;
    all x;
    CHECK(open_all(&x) == KVF_OK);
    const size_t used = emulator_used();
    REFUSED(kvf_prefill_begin(x.model, x.cache, x.sequence, prompt(), N_TOKEN, gib, &observe, NULL, ERR), KVF_ERR_MEMORY);
    CHECK(strstr(test_message, "bytes of device memory must be free") != NULL);
    CHECK(emulator_used() == used);
    check_books(x.cache);
    CHECK(kvf_prefill_begin(x.model, x.cache, x.sequence, prompt(), N_TOKEN, gib / 2, &observe, NULL, ERR) == KVF_OK);
    CHECK(prefill_rest(&x) == KVF_OK);
    close_all(&x);
}

static void lost_device(void) {
    all x;
    uint32_t tokens[STEPS];
    char first[sizeof test_message];
    CHECK(open_all(&x) == KVF_OK && prefill_begin(&x) == KVF_OK);
    emulator_lose(true);
    REFUSED(kvf_prefill_layers(x.model, x.cache, x.sequence, 0, 2, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_DEVICE);
    CHECK(strstr(test_message, "unspecified launch failure") != NULL);
    memcpy(first, test_message, sizeof first);
    REFUSED(decode(&x, tokens), KVF_ERR_DEVICE);
    CHECK(strcmp(first, test_message) == 0);
    CHECK(model_of(x.dev) == NULL && strcmp(first, test_message) == 0);
    emulator_lose(false); /* once lost, always lost */
    REFUSED(kvf_prefill_layers(x.model, x.cache, x.sequence, 0, 2, KVF_PHASE_ALL, NULL, ERR), KVF_ERR_DEVICE);
    CHECK(strcmp(first, test_message) == 0);
    close_all(&x);
}

int main(void) {
    if (emulator_limit == NULL) {
        fprintf(stderr, "skipped: memory that runs out and devices that fail need the emulator\n");
        return 0;
    }
    every_request();
    little_memory();
    memory_on_its_way();
    sparse();
    kept_rows();
    lost_device();
    return 0;
}
