/*
 * Every entry point with arguments out of a hat: live, dead and invented handles and ids, numbers at the edges, buffers that
 * are too small or missing. Nothing may crash, no result may be an undocumented status, the books must balance, and in the
 * end everything still works. The stream is the same in every run.
 */
#include "test.h"

enum { N_CALL = 300000, N_DEVICE = 2, N_MODEL = 3, N_CACHE = 3, N_ID = 24, ROOM = 1 << 16 };

static kvf_device *devices[N_DEVICE];
static kvf_model *models[N_MODEL];
static kvf_cache *caches[N_CACHE];
static uint32_t sequence_ids[N_ID], object_ids[N_ID];

/* Buffers that are larger than anything a valid call can ask for here. */
static float floats[ROOM], output[ROOM];
static uint32_t words[ROOM], counts[8192];
static uint32_t garbage[64];

/* Shapes of caches; models have the first. */
static const shape SHAPES[3] = {{2, 4, 2, 8, KVF_F32}, {1, 3, 1, 6, KVF_F16}, {2, 4, 2, 8, KVF_BF16}};

const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }

static void *invented(void) {
    switch (below(4)) {
        case 0: return NULL;
        case 1: return garbage;
        case 2: return (void *)(uintptr_t)(8 + 8 * (uintptr_t)below(1000000));
        default: return below(2) ? (void *)models[below(N_MODEL)] : (void *)caches[below(N_CACHE)];
    }
}

static kvf_device *any_device(void) { return below(30) == 0 ? invented() : devices[below(N_DEVICE)]; }
static kvf_model *any_model(void) { return below(30) == 0 ? invented() : models[below(N_MODEL)]; }
static kvf_cache *any_cache(void) { return below(30) == 0 ? invented() : caches[below(8) == 0 ? below(N_CACHE) : 0]; }
static uint32_t any_id(const uint32_t *ids) { return below(20) == 0 ? below(2) ? rnd() : below(70000) : ids[below(N_ID)]; }

/* Mostly below n. */
static uint32_t number(uint32_t n) {
    switch (below(16)) {
        case 0: return 0;
        case 1: return n;
        case 2: return n + 1;
        case 3: return UINT32_MAX - below(2);
        case 4: return 1u << below(32);
        default: return n == 0 ? 0 : below(n);
    }
}

/* Sizes that allocate memory are never of a size that would take seconds to fill. */
static uint32_t small(uint32_t n) { return below(16) == 0 ? below(2) ? 0 : UINT32_MAX - below(3) : below(n); }

static float any_float(void) {
    static const float odd[] = {0, -0.0f, INFINITY, -INFINITY, NAN, 1e-45f, 3.4e38f};
    return below(3) == 0 ? odd[below(7)] : normal();
}

static double any_bytes(double right) {
    switch (below(10)) {
        case 0: return 0;
        case 1: return right - 1;
        case 2: return NAN;
        case 3: return -1;
        case 4: return -INFINITY;
        default: return right;
    }
}

static void remember(uint32_t *ids, int32_t result) {
    if (result > 0) ids[below(N_ID)] = (uint32_t)result;
}

static int32_t check(int32_t result) {
    CHECK(result >= KVF_ERR_BUSY);
    CHECK(result != KVF_ERR_BUSY && result != KVF_ERR_DEVICE);
    if (result < 0) CHECK(memchr(test_message, '\0', sizeof test_message) != NULL && strncmp(test_message, "Cannot ", 7) == 0);
    return result;
}

static void *maybe(void *p) { return below(25) == 0 ? NULL : p; }

static void make_model(uint32_t i) {
    kvf_model_config c = {.size = below(20) ? sizeof c : rnd(), .n_layer = 2, .hidden = 16, .n_head = 4, .n_kv_head = 2,
                          .head_dim = 8, .intermediate = 24, .vocab = 40, .weight_dtype = number(3), .flags = number(32),
                          .n_expert = below(4) == 0 ? 3 : 0, .norm_eps = below(9) ? 1e-5f : any_float(),
                          .rope_scale = below(9) ? 1 : any_float()};
    c.n_expert_used = c.n_expert == 0 ? 0 : number(3);
    /* A huge size only next to one that is refused, lest it is really allocated. */
    if (below(10) == 0) ((uint32_t *)&c)[1 + below(7)] = UINT32_MAX - below(2);
    memset(words, 0, 64 * sizeof *words);
    for (uint32_t k = 0; k < 4; k++) floats[k] = 1.0f / (float)(1 + k);
    kvf_model *model = kvf_model_create(any_device(), &c, maybe(floats), maybe(words), ERR);
    if (model == NULL) return;
    kvf_model_free(models[i]);
    models[i] = model;
    if (below(4) == 0) return; /* stays without weights */
    check(kvf_model_randomize(model, rnd(), ERR));
}

static void make_cache(uint32_t i) {
    const shape s = SHAPES[i];
    kvf_cache_config c = {sizeof c, s.n_layer, s.n_head, s.n_kv_head, s.head_dim, s.dtype, below(2) ? 0 : 200000.0 * below(8)};
    if (below(10) == 0) ((uint32_t *)&c)[below(6)] = number(300);
    if (below(10) == 0) c.limit_bytes = any_float();
    kvf_cache *cache = kvf_cache_create(any_device(), &c, ERR);
    if (cache == NULL) return;
    if (memcmp(&c.n_layer, &s.n_layer, 5 * sizeof(uint32_t)) != 0) { /* buffers are sized for the usual shapes */
        kvf_cache_free(cache);
        return;
    }
    kvf_cache_free(caches[i]);
    caches[i] = cache;
}

static void lives(void) {
    const uint32_t i = below(3);
    switch (below(9)) {
        case 0: kvf_model_free(any_model()); break;
        case 1: make_model(i); break;
        case 2:
        case 3: make_cache(i); break;
        case 4: kvf_device_free(below(2) ? invented() : NULL); break;
        case 5: { /* a device goes while its models and caches live */
            kvf_device_free(devices[1]);
            devices[1] = device_of_threads(1 + below(2));
            break;
        }
        case 6: kvf_cache_free(below(3) ? invented() : any_cache()); break;
        case 7: {
            kvf_device_info info = {.size = below(4) ? sizeof info : rnd()};
            check(kvf_device_describe(any_device(), maybe(&info), ERR));
            break;
        }
        default: {
            kvf_ledger ledger = {.size = below(9) ? sizeof ledger : rnd()};
            if (check(kvf_cache_ledger(any_cache(), maybe(&ledger), ERR)) == KVF_OK) {
                CHECK(ledger.promised_bytes == ledger.owned_bytes && ledger.resident_bytes <= ledger.peak_bytes);
            }
            check(kvf_cache_reset_peak(any_cache(), ERR));
        }
    }
}

static void weights(void) {
    kvf_model *m = any_model();
    static const uint32_t cols[19] = {16, 16, 16, 16, 16, 16, 16, 16, 32, 32, 16, 16, 16, 8, 8, 16, 16, 24, 16};
    const uint32_t tensor = number(19), rows = cols[tensor % 19] < 16 ? 1 : 1 + below(16), dtype = number(3);
    switch (below(4)) {
        case 0: check(kvf_model_ready(m, ERR)); break;
        case 1: CHECK(kvf_model_bytes(m) >= 0 && kvf_model_step_bytes(m) >= 0); break;
        default:
            check(kvf_model_load(m, tensor, below(2), below(5) ? 0 : number(3), dtype, below(2) ? 0 : number(40), below(9) ? rows : small(rows),
                                 maybe(floats), any_bytes((double)rows * cols[tensor % 19] * (dtype == 0 ? 4 : 2)), ERR));
    }
}

static void sequences(void) {
    kvf_cache *c = any_cache();
    const uint32_t s = any_id(sequence_ids);
    switch (below(8)) {
        case 0:
        case 1: remember(sequence_ids, check(kvf_sequence_create(c, number(2), ERR))); break;
        case 2: remember(sequence_ids, check(kvf_sequence_fork(c, s, number(2), ERR))); break;
        case 3: check(kvf_sequence_free(c, s, ERR)); break;
        case 4: {
            kvf_sequence_info info = {.size = below(9) ? sizeof info : rnd()};
            if (check(kvf_sequence_describe(c, s, maybe(&info), ERR)) == KVF_OK) CHECK(info.promised_bytes == info.owned_bytes);
            break;
        }
        case 5: check(kvf_sequence_rows(c, s, maybe(words), number(64), ERR)); break;
        case 6: {
            const kvf_sampling p = {below(9) ? sizeof p : rnd(), fabsf(any_float()), number(50), below(2) ? 1 : any_float(), rnd(), rnd(),
                                    number(4)};
            for (uint32_t i = 0; i < 64; i++) words[i] = number(40);
            check(kvf_sequence_sampling(c, s, maybe((void *)&p), maybe(words), number(64), ERR));
            break;
        }
        default: check(below(3) ? kvf_sequence_logits(c, s, maybe(output), number(50), ERR) : kvf_sequence_forget(c, s, ERR));
    }
}

static void runs(void) {
    kvf_model *m = below(4) ? models[0] : any_model();
    kvf_cache *c = below(4) ? caches[0] : any_cache();
    uint32_t s = any_id(sequence_ids);
    uint32_t control[2] = {below(20) == 0, 0};
    const kvf_observe observe = {below(20) ? sizeof observe : rnd(), number(12), number(4), below(3) ? 0 : number(6)};
    switch (below(10)) {
        case 0:
        case 1: {
            for (uint32_t i = 0; i < 128; i++) words[i] = below(600) ? below(40) : rnd();
            uint32_t ranges[3 * 64];
            for (uint32_t i = 0; i < 3 * 64; i += 3) {
                ranges[i] = below(20) ? 0 : number(2);
                ranges[i + 1] = below(20) ? below(3) : number(20);
                ranges[i + 2] = ranges[i + 1] + 1 + (below(20) ? 0 : number(20));
            }
            if (below(4)) {
                s = (uint32_t)check(kvf_sequence_create(c, below(2), ERR));
                remember(sequence_ids, (int32_t)s);
            }
            const uint32_t n = small(80);
            if (below(2)) check(kvf_prefill_begin(m, c, s, maybe(words), n, below(2) ? 0 : any_float(), maybe((void *)&observe),
                                                maybe(ranges), ERR));
            else check(kvf_record_begin(c, s, n, maybe((void *)&observe), maybe(ranges), ERR));
            break;
        }
        case 2:
        case 3:
            for (uint32_t i = 0; i < N_ID; i++) { /* whichever of them is at that layer */
                const uint32_t first = below(2);
                check(kvf_prefill_layers(m, c, sequence_ids[i], below(9) ? first : number(2), below(9) ? 2 - first : number(2),
                                         below(3) ? KVF_PHASE_ALL : number(4), maybe(control), ERR));
            }
            break;
        case 4:
            for (uint32_t i = 0; i < N_ID; i += 1 + below(3)) check(kvf_prefill_end(m, c, sequence_ids[i], ERR));
            break;
        case 5: check(kvf_prefill_logits(m, c, s, maybe(output), any_bytes(80.0 * 40 * 4), ERR)); break;
        case 6:
            for (uint32_t i = 0; i < N_ID; i += 1 + below(3)) {
                check(kvf_record_layer(c, sequence_ids[i], number(2), maybe(floats), maybe(floats), maybe(floats), ERR));
            }
            break;
        case 7: {
            for (uint32_t i = 0; i < 16; i++) words[i] = below(60) ? below(40) : rnd();
            check(kvf_extend(m, c, s, maybe(words), small(8), ERR));
            break;
        }
        default: {
            uint32_t ids[4], tokens[16];
            const uint32_t start = below(N_ID);
            for (uint32_t i = 0; i < 4; i++) ids[i] = below(9) ? sequence_ids[(start + i) % N_ID] : any_id(sequence_ids);
            float *logits = below(2) ? output : NULL;
            check(kvf_decode(m, c, maybe(ids), below(3) ? 1 : small(5), small(5), maybe(tokens), logits, any_bytes(16.0 * 40 * 4), maybe(control), ERR));
        }
    }
}

static void scores(void) {
    kvf_cache *c = any_cache();
    const uint32_t s = any_id(sequence_ids), a = any_id(object_ids), b = any_id(object_ids), layer = number(2);
    uint32_t dims[3] = {0};
    switch (below(19)) {
        case 0: remember(object_ids, check(kvf_scores_create(c, small(6), small(80), maybe(floats), ERR))); break;
        case 1:
        case 2: remember(object_ids, check(kvf_scores_window(c, s, layer, number(12), number(8), number(3), ERR))); break;
        case 3: remember(object_ids, check(kvf_scores_mass(c, s, layer, number(4), number(3), ERR))); break;
        case 4: remember(object_ids, check(kvf_scores_norm(c, s, layer, number(2), ERR))); break;
        case 5: remember(object_ids, check(kvf_scores_pool(c, a, number(2), number(9), ERR))); break;
        case 6: remember(object_ids, check(kvf_scores_affine(c, a, any_float(), any_float(), ERR))); break;
        case 7: remember(object_ids, check(kvf_scores_combine(c, a, b, number(2), ERR))); break;
        case 8: remember(object_ids, check(kvf_scores_fill(c, a, number(40), number(80), any_float(), ERR))); break;
        case 18: remember(object_ids, check(kvf_scores_fill_last(c, a, number(40), any_float(), ERR))); break;
        case 9: remember(object_ids, check(kvf_scores_random(c, small(6), small(80), rnd(), rnd(), ERR))); break;
        case 10: {
            uint32_t at = 0;
            for (uint32_t h = 0; h < 8; h++) {
                counts[h] = below(8);
                uint32_t row = below(3);
                for (uint32_t i = 0; i < counts[h]; i++) {
                    words[at++] = row;
                    row += below(30) ? 1 + below(10) : number(5);
                }
            }
            for (uint32_t h = 8; h < 8192; h++) counts[h] = 0;
            remember(object_ids, check(kvf_selection_create(c, small(6), maybe(counts), maybe(words), ERR)));
            break;
        }
        case 11:
        case 12: {
            if (kvf_object_shape(c, a, dims, ERR) != KVF_OK) dims[1] = 4;
            for (uint32_t h = 0; h < 8192; h++) counts[h] = h < 16 ? number(dims[2]) % (dims[2] + 2) : 0;
            remember(object_ids, check(kvf_select_top(c, a, maybe(counts), below(9) ? dims[1] : number(6), ERR)));
            break;
        }
        case 13:
            if (kvf_object_shape(c, a, dims, ERR) == KVF_OK && check(kvf_scores_share(c, a, number(dims[1] * dims[2]), maybe(words), dims[1], ERR)) == KVF_OK) {
                for (uint32_t h = 0; h < dims[1]; h++) CHECK(words[h] <= dims[2]);
            }
            break;
        case 14: check(kvf_object_free(c, a, ERR)); break;
        case 15: check(kvf_object_shape(c, a, maybe(dims), ERR)); break;
        case 16: check(kvf_scores_read(c, a, maybe(output), number(600), ERR)); break;
        default: check(kvf_selection_read(c, a, maybe(counts), number(8), maybe(words), number(300), ERR));
    }
}

/* A program that is often right, so that steps carry out all kinds of them. */
static void programs(kvf_cache *c, uint32_t s, uint32_t layer) {
    kvf_op ops[12] = {{0}};
    const uint32_t n = below(20) == 0 ? below(12) : 1 + below(3);
    for (uint32_t i = 0; i < n; i++) {
        kvf_op *op = &ops[i];
        *op = (kvf_op){.size = below(200) ? sizeof *op : rnd(), .kind = below(100) ? 1 + below(5) : rnd(), .head = UINT32_MAX};
        if (i == 0 && below(3) == 0) op->kind = KVF_OP_PAGES;
        if (i == 0 && below(3) == 0) op->kind = KVF_OP_MASS;
        switch (op->kind) {
            case KVF_OP_MASS: op->from = below(2) ? UINT32_MAX : number(3), op->decay = below(9) ? 1 : any_float(); break;
            case KVF_OP_QUERIES: op->last = 1 + number(6); break;
            case KVF_OP_EVICT:
                op->head = below(3) ? UINT32_MAX : number(4);
                op->every = below(3) ? 1 : number(5), op->above = 4 + number(30), op->keep = below(2) ? op->above : number(30);
                op->first = number(3), op->last = number(4), op->statistic = number(4), op->reduce = number(3);
                op->draw = below(3) == 0, op->seed = rnd(), op->temperature = op->draw ? any_float() : 0;
                break;
            case KVF_OP_PAGES:
                op->keep = 1 + number(40), op->last = number(10), op->page_rows = 1 + number(20), op->reduce = number(3);
                op->cut = below(2);
                break;
            default: op->first = number(4);
        }
        if (below(60) == 0) ((uint32_t *)op)[below(17)] = number(40);
    }
    check(kvf_sequence_program(c, s, layer, below(30) ? ops : NULL, below(50) ? n : rnd(), ERR));
}

/* Calls of kvf_pack that were right. */
static uint32_t n_packed;

/* Mostly a format that is allowed. */
static kvf_format any_format(void) {
    static const uint32_t BITS[] = {2, 3, 4, 8, 0};
    kvf_format f = {.size = sizeof f, .flags = below(3) ? 0 : number(4), .residual = below(3) ? below(40) : number(100),
                    .key_bits = BITS[below(5)], .value_bits = BITS[below(5)]};
    if (f.key_bits > 0) {
        f.key_axis = below(2);
        f.key_levels = f.key_bits < 8 && below(3) == 0;
        f.key_outliers = below(3) ? 0 : number(40);
        f.key_rank = below(3) ? 0 : number(6);
    }
    if (f.value_bits > 0) {
        f.value_axis = below(2);
        f.value_group = f.value_axis == KVF_PER_TOKEN ? 16 * below(3) : 0;
        f.value_outliers = below(3) ? 0 : number(40);
        f.value_rank = below(3) ? 0 : number(6);
    }
    if (below(6) == 0) f.key_channels = number(8), f.flags |= KVF_PACK_ONCE;
    if (below(10) == 0) ((uint32_t *)&f)[below(16)] = rnd() >> below(32);
    return f;
}

static void packs(void) {
    kvf_cache *c = below(4) ? caches[0] : any_cache();
    const uint32_t s = any_id(sequence_ids), layer = number(2);
    const kvf_format f = any_format();
    double bytes[2];
    switch (below(7)) {
        case 0: check(kvf_format_bytes(c, below(20) ? &f : NULL, maybe(bytes), ERR)); break;
        case 1: check(kvf_sequence_packed(c, s, maybe(words), number(300), ERR)); break;
        case 3: check(kvf_record_rotation(c, s, below(20) ? floats : NULL, below(4) ? c == caches[1] ? 3 : 4 : number(9), ERR)); break;
        case 2: remember(object_ids, check(kvf_scores_channels(c, s, layer, number(9), number(3), ERR))); break;
        default:
            n_packed += check(kvf_pack(c, s, layer, below(20) ? &f : NULL, below(4) ? 0 : any_id(object_ids),
                                       f.key_channels > 0 || below(9) == 0 ? any_id(object_ids) : 0, ERR)) == KVF_OK;
    }
}

/* Calls that were right, of each kind that changes rows in place. */
static uint32_t n_merged, n_spread, n_shared, n_sparse;

/* Rows that take others in, that layers share, and attention over a part of them. */
static void merges(void) {
    kvf_cache *c = below(4) ? caches[0] : any_cache();
    const uint32_t s = any_id(sequence_ids), layer = number(2), a = any_id(object_ids);
    switch (below(9)) {
        case 0:
        case 1:
            n_merged += check(kvf_retain_merged(c, s, layer, below(3) ? a : 0, number(9), number(9), number(2), ERR)) == KVF_OK;
            break;
        case 2: {
            uint32_t rows[16] = {0};
            const int32_t got = kvf_sequence_rows(c, s, rows, 16, ERR);
            const uint32_t heads = got == KVF_OK && c != caches[1] ? 2 + 2 * below(2) : number(4);
            const int32_t id = check(kvf_scores_create(c, heads, rows[0], floats, ERR));
            remember(object_ids, id);
            n_spread += check(kvf_spread_values(c, s, layer, id > 0 ? (uint32_t)id : a, number(9), number(6), ERR)) == KVF_OK;
            break;
        }
        case 3:
        case 4:
            for (uint32_t i = 0; i < N_ID; i += 1 + below(3)) {
                n_shared += check(kvf_share_directions(c, sequence_ids[i], below(9) ? 1 : number(2),
                                                       below(9) ? uniform() : any_float(), number(4),
                                                       below(3) ? -1 : below(9) ? uniform() : any_float(), ERR)) == KVF_OK;
            }
            break;
        case 5:
        case 6: {
            uint32_t patterns[3 * 8];
            for (uint32_t i = 0; i < 24; i += 3) {
                patterns[i] = number(4);
                patterns[i + 1] = below(4) ? 30 + below(60) : number(99);
                patterns[i + 2] = below(4) ? 50 + below(60) : number(99);
            }
            float shares[2 * 8];
            const uint32_t n = below(4) ? 4 + 4 * below(2) : number(8);
            for (uint32_t i = 0; i < N_ID; i++) {
                kvf_model *m = models[0];
                check(kvf_prefill_layers(m, c, sequence_ids[i], below(2), 1, KVF_PHASE_PROJECT, NULL, ERR));
                if (below(2)) n_sparse += check(kvf_prefill_recall(c, sequence_ids[i], patterns, n <= 8 ? n : 8, shares, ERR)) == KVF_OK;
                n_sparse += check(kvf_prefill_sparse(c, sequence_ids[i], below(20) ? patterns : NULL, n <= 8 ? n : UINT32_MAX, ERR)) == KVF_OK;
                check(kvf_prefill_layers(m, c, sequence_ids[i], below(2), 1, KVF_PHASE_ATTEND, NULL, ERR));
            }
            break;
        }
        case 7: remember(object_ids, check(below(2) ? kvf_scores_log(c, a, ERR)
                                                    : kvf_scores_relative(c, a, number(20), number(9), ERR))); break;
        default: remember(object_ids, check(kvf_scores_fill_selected(c, a, any_id(object_ids), any_float(), ERR)));
    }
}

static void actions(void) {
    kvf_cache *c = any_cache();
    const uint32_t s = any_id(sequence_ids), layer = number(2), head = number(4);
    switch (below(7)) {
        case 4:
        case 5: programs(c, s, layer); break;
        case 6: {
            const int32_t n = check(kvf_program_rows(c, s, layer, head, maybe(words), number(300), ERR));
            for (int32_t i = 1; i < n; i++) CHECK(words[i] > words[i - 1]);
            break;
        }
        case 0:
        case 1: check(kvf_retain(c, s, layer, below(3) ? any_id(object_ids) : 0, number(9), number(9), ERR)); break;
        case 2: check(kvf_read_rows(c, s, layer, head, number(2), maybe(output), any_bytes(ROOM * 4.0), ERR)); break;
        default: check(kvf_read_positions(c, s, layer, head, maybe(words), number(300), ERR));
    }
}

int main(void) {
    for (uint32_t i = 0; i < ROOM; i++) floats[i] = below(200) ? normal() : any_float();
    for (uint32_t i = 0; i < N_DEVICE; i++) devices[i] = device_of_threads(1 + i);
    for (uint32_t i = 0; i < 64; i++) garbage[i] = below(4);
    for (uint32_t i = 0; i < N_MODEL; i++) models[i] = model_of_shape(devices[0], SHAPES[0]);
    for (uint32_t i = 0; i < N_CACHE; i++) caches[i] = cache_of_shape(devices[i == 2], SHAPES[i], 0);
    for (uint32_t i = 0; i < N_CALL; i++) {
        switch (i % 1000 == 0 ? 0 : 1 + below(40)) {
            case 0: lives(); break;
            case 1: weights(); break;
            default:
                switch (below(10)) {
                    case 8: packs(); break;
                    case 9: merges(); break;
                    case 0: sequences(); break;
                    case 1:
                    case 2:
                    case 3:
                    case 4: runs(); break;
                    case 5:
                    case 6: scores(); break;
                    default: actions();
                }
        }
        if (i % 500 != 0) continue;
        for (uint32_t k = 0; k < N_CACHE; k++) {
            kvf_ledger ledger = {.size = sizeof ledger};
            if (kvf_cache_ledger(caches[k], &ledger, ERR) == KVF_OK) check_books(caches[k]);
        }
    }

    /* Usable to the end. */
    for (uint32_t i = 0; i < N_MODEL; i++) kvf_model_free(models[i]);
    for (uint32_t i = 0; i < N_CACHE; i++) kvf_cache_free(caches[i]);
    CHECK(kvf_live_handles() == N_DEVICE);
    kvf_model *model = model_of_shape(devices[0], SHAPES[0]);
    kvf_cache *cache = cache_of_shape(devices[0], SHAPES[0], 0);
    const uint32_t s = (uint32_t)kvf_sequence_create(cache, KVF_KV_HEAD, ERR), prompt[3] = {1, 2, 3};
    uint32_t tokens[4];
    CHECK(kvf_prefill_begin(model, cache, s, prompt, 3, 0, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 2, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, &s, 1, 4, tokens, NULL, 0, NULL, ERR) == KVF_OK && tokens[3] < 40);
    kvf_model_free(model);
    kvf_cache_free(cache);
    for (uint32_t i = 0; i < N_DEVICE; i++) kvf_device_free(devices[i]);
    CHECK(kvf_live_handles() == 0);
    CHECK(n_packed > 100);
    CHECK(n_merged > 100 && n_spread > 20 && n_shared > 100 && n_sparse > 100);
    return 0;
}
