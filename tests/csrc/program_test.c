/*
 * Step programs: what is refused, eviction against a simulation in double, order, forks, threads, batches, memory.
 */
#include "test.h"

enum { N_PROMPT = 70, N_STEP = 40 };
static const shape SMALL = {3, 4, 2, 8, KVF_F32};

static uint32_t id_of(int32_t result) {
    CHECK(result > 0);
    return (uint32_t)result;
}

static kvf_op op(uint32_t kind) {
    return (kvf_op){.size = sizeof(kvf_op), .kind = kind, .head = UINT32_MAX};
}

static kvf_op mass(uint32_t from, float decay) {
    kvf_op x = op(KVF_OP_MASS);
    x.from = from, x.decay = decay;
    return x;
}

static kvf_op queries(uint32_t last) {
    kvf_op x = op(KVF_OP_QUERIES);
    x.last = last;
    return x;
}

static kvf_op evict(uint32_t statistic, uint32_t above, uint32_t keep, uint32_t first, uint32_t last) {
    kvf_op x = op(KVF_OP_EVICT);
    x.every = 1, x.above = above, x.keep = keep, x.first = first, x.last = last, x.statistic = statistic;
    return x;
}

static kvf_op pages(uint32_t page_rows, uint32_t keep, uint32_t last, uint32_t cut) {
    kvf_op x = op(KVF_OP_PAGES);
    x.page_rows = page_rows, x.keep = keep, x.last = last, x.cut = cut;
    return x;
}

/* Row counts of many steps at once are those of one step after the other. */
static void row_counts(void) {
    kv_live live = {.evict = op(KVF_OP_EVICT)};
    kvf_op *e = &live.evict;
    for (uint32_t i = 0; i < 5 * 5 * 8 * 14 * 6 * 12; i++) {
        uint32_t x = i;
        const uint32_t every = 1 + x % 5, keep = 1 + (x /= 5) % 5, above = keep + (x /= 5) % 8, first = (x /= 8) % 14;
        const uint32_t seen = (x /= 14) % 6, n = 2 * (x / 6);
        uint32_t rows = first, most = first, at_once = first;
        bool any = false, evicts;
        e->every = every, e->keep = keep, e->above = above;
        for (uint32_t step = 1; step <= n; step++) {
            rows++;
            most = rows > most ? rows : most;
            if (!kv_evicts(&live, rows, seen + step)) continue;
            rows = keep, any = true;
        }
        CHECK(kv_step_rows(&live, &at_once, seen, n, &evicts) == most && at_once == rows && evicts == any);
    }
}

/* A prefilled sequence whose layers all have the program. */
static uint32_t start(kvf_model *model, kvf_cache *cache, uint32_t granularity, uint32_t n, const kvf_op *ops, uint32_t n_op) {
    const uint32_t s = id_of(kvf_sequence_create(cache, granularity, ERR));
    uint32_t prompt[N_PROMPT];
    for (uint32_t i = 0; i < n; i++) prompt[i] = (i * 7 + i * i) % TEST_VOCAB;
    const kvf_observe observe = {sizeof observe, 6, 1, 1};
    const uint32_t ranges[3] = {0, 0, n};
    CHECK(kvf_prefill_begin(model, cache, s, prompt, n, 0, &observe, ranges, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, SMALL.n_layer, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    for (uint32_t layer = 0; layer < SMALL.n_layer; layer++) CHECK(kvf_sequence_program(cache, s, layer, ops, n_op, ERR) == KVF_OK);
    return s;
}

static void positions_of(kvf_cache *cache, uint32_t s, uint32_t layer, uint32_t head, uint32_t *positions, uint32_t *n) {
    uint32_t rows[16];
    CHECK(kvf_sequence_rows(cache, s, rows, 16, ERR) == KVF_OK);
    const uint32_t n_head = info_of(cache, s).n_stored_head;
    *n = rows[layer * n_head + head];
    CHECK(kvf_read_positions(cache, s, layer, head, positions, 512, ERR) == KVF_OK);
    for (uint32_t i = 1; i < *n; i++) CHECK(positions[i] > positions[i - 1]);
}

static void refusals(kvf_model *model, kvf_cache *cache) {
    const uint32_t s = start(model, cache, KVF_KV_HEAD, N_PROMPT, NULL, 0);
#define REFUSE(...)                                                                                     \
    do {                                                                                                \
        const kvf_op ops[] = {__VA_ARGS__};                                                             \
        REFUSED(kvf_sequence_program(cache, s, 0, ops, sizeof ops / sizeof *ops, ERR), KVF_ERR_ARG);    \
    } while (0)
    kvf_op x = mass(UINT32_MAX, 1);
    x.size--;
    REFUSE(x);
    x = op(6);
    REFUSE(x);
    REFUSE(mass(1, 1));
    REFUSE(mass(UINT32_MAX, -1));
    REFUSE(mass(UINT32_MAX, INFINITY));
    REFUSE(mass(UINT32_MAX, 1), mass(UINT32_MAX, 1));
    x = mass(UINT32_MAX, 1);
    x.keep = 1; /* a field that masses do not have */
    REFUSE(x);
    x.keep = 0, x.head = 0;
    REFUSE(x);
    REFUSE(queries(0));
    REFUSE(queries(65537));
    REFUSE(evict(KVF_STAT_MASS, 20, 20, 0, 0)); /* no mass */
    REFUSE(evict(KVF_STAT_WINDOW, 20, 20, 0, 0));
    REFUSE(evict(KVF_STAT_POSITION, 20, 21, 0, 0));
    REFUSE(evict(KVF_STAT_POSITION, 20, 0, 0, 0));
    REFUSE(evict(KVF_STAT_POSITION, 20, 20, 15, 6));
    REFUSE(evict(KVF_STAT_POSITION, 20, 20, UINT32_MAX, 2));
    REFUSE(evict(4, 20, 20, 0, 0));
    x = evict(KVF_STAT_POSITION, 20, 20, 0, 0);
    x.every = 0;
    REFUSE(x);
    x.every = 1, x.head = 2;
    REFUSE(x);
    x.head = 1;
    REFUSE(x, evict(KVF_STAT_POSITION, 20, 20, 0, 0));
    REFUSE(pages(0, 20, 0, 0));
    REFUSE(pages(16, 0, 0, 0));
    REFUSE(pages(16, 20, 0, 2));
    REFUSE(pages(16, 20, 0, 0), mass(UINT32_MAX, 1));
    REFUSE(pages(16, 20, 0, 0), evict(KVF_STAT_POSITION, 20, 20, 0, 0));
    REFUSED(kvf_sequence_program(cache, s, SMALL.n_layer, &x, 1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_program(cache, s, 0, NULL, 1, ERR), KVF_ERR_ARG);
    REFUSED(kvf_sequence_program(cache, s, 0, &x, 100, ERR), KVF_ERR_ARG);
    uint32_t rows[N_PROMPT];
    REFUSED(kvf_program_rows(cache, s, 0, 0, rows, N_PROMPT, ERR), KVF_ERR_STATE); /* chooses no pages */
    x = pages(16, 20, 0, 0);
    CHECK(kvf_sequence_program(cache, s, 0, &x, 1, ERR) == KVF_OK);
    REFUSED(kvf_program_rows(cache, s, 0, 0, rows, N_PROMPT - 1, ERR), KVF_ERR_ARG);
    CHECK(kvf_program_rows(cache, s, 0, 0, rows, N_PROMPT, ERR) == 32);
    CHECK(kvf_sequence_forget(cache, s, ERR) == KVF_OK);
    REFUSED(kvf_program_rows(cache, s, 0, 0, rows, N_PROMPT, ERR), KVF_ERR_STATE); /* no query */
    check_books(cache);
    CHECK(kvf_sequence_program(cache, s, 0, NULL, 0, ERR) == KVF_OK);
    check_books(cache);
    CHECK(cache->live_bytes == 0);
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
}

/* The mass after some steps without eviction is the prefill's and each query's probabilities, summed. */
static void masses(kvf_model *model, kvf_cache *cache, float decay) {
    const kvf_op ops[] = {mass(0, decay), queries(1)};
    const uint32_t s = start(model, cache, KVF_KV_HEAD, N_PROMPT, ops, 2);
    float got[2 * 128], want[2 * 128] = {0};
    int32_t id = kvf_scores_mass(cache, s, 1, 0, KVF_SUM, ERR);
    CHECK(kvf_scores_read(cache, id_of(id), want, 2 * N_PROMPT, ERR) == KVF_OK);
    for (uint32_t h = 1; h > 0; h--) memmove(want + 128 * h, want + N_PROMPT * h, N_PROMPT * sizeof *want);
    CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
    memset(want + N_PROMPT, 0, (128 - N_PROMPT) * sizeof *want);
    memset(want + 128 + N_PROMPT, 0, (128 - N_PROMPT) * sizeof *want);
    uint32_t token;
    CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
    CHECK(kvf_sequence_forget(cache, s, ERR) == KVF_OK);
    for (uint32_t step = 1; step < 20; step++) {
        const uint32_t rows = N_PROMPT + step;
        CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
        id = kvf_scores_window(cache, s, 1, 1, KVF_WINDOW_ALL_ROWS, KVF_SUM, ERR); /* the last query's probabilities */
        CHECK(kvf_scores_read(cache, id_of(id), got, 2 * rows, ERR) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
        for (uint32_t h = 0; h < 2; h++) {
            for (uint32_t i = 0; i < rows; i++) want[128 * h + i] = want[128 * h + i] * decay + got[h * rows + i];
        }
        id = kvf_scores_mass(cache, s, 1, 0, KVF_SUM, ERR);
        CHECK(kvf_scores_read(cache, id_of(id), got, 2 * rows, ERR) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
        for (uint32_t h = 0; h < 2; h++) {
            for (uint32_t i = 0; i < rows; i++) CHECK_NEAR(got[h * rows + i], want[128 * h + i], 1e-5);
        }
        check_books(cache);
    }
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
}

/* Budgets, guarded rows and books after every step, for every statistic, one row at a time and many. */
static void budgets(kvf_model *model, kvf_cache *cache, uint32_t statistic, uint32_t granularity, uint32_t above, uint32_t keep,
                    uint32_t draw) {
    kvf_op ops[] = {mass(0, 0.9f), queries(5), evict(statistic, above, keep, 3, 4)};
    ops[2].draw = draw, ops[2].seed = 11, ops[2].temperature = draw ? 0.5f : 0;
    const uint32_t s = start(model, cache, granularity, N_PROMPT, ops, 3);
    CHECK(kvf_sequence_forget(cache, s, ERR) == KVF_OK);
    uint32_t token, positions[512], n;
    CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
    for (uint32_t step = 1; step < N_STEP; step++) {
        CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
        check_books(cache);
        if (step % 3 != 0) continue; /* reading puts rows in order; most steps go on without */
        const uint32_t seen = info_of(cache, s).position;
        CHECK(seen == N_PROMPT + step);
        for (uint32_t h = 0; h < info_of(cache, s).n_stored_head; h++) {
            positions_of(cache, s, 1, h, positions, &n);
            CHECK(n >= keep && n <= above);
            if (above == keep) CHECK(n == keep);
            for (uint32_t i = 0; i < 3; i++) CHECK(positions[i] == i);
            for (uint32_t i = 0; i < 4; i++) CHECK(positions[n - 1 - i] == seen - 1 - i);
            for (uint32_t i = 0; statistic == KVF_STAT_POSITION && !draw && i < n - 3; i++) CHECK(positions[3 + i] == seen - (n - 3) + i);
        }
    }
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
}

/* With equal weights the row with the lowest draw goes: the reference draws one row at a time, without logarithms. */
static void draws(kvf_model *model, kvf_cache *cache) {
    kvf_op ops[] = {evict(KVF_STAT_POSITION, 40, 40, 3, 4)};
    ops[0].draw = 1, ops[0].seed = 99;
    const uint32_t s = start(model, cache, KVF_KV_HEAD, 40, ops, 1);
    uint32_t token, before[512], after[512], n, n_after, met[64] = {0};
    CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
    for (uint32_t step = 1; step < 200; step++) {
        positions_of(cache, s, 1, 1, before, &n);
        CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
        positions_of(cache, s, 1, 1, after, &n_after);
        CHECK(n == 40 && n_after == 40);
        const uint32_t seen = 40 + step;
        uint32_t keys[2], lowest = UINT32_MAX, victim = 0, at = 0;
        kv_draw_keys(99, 1, 1, seen, keys);
        for (uint32_t i = 0; i < n; i++) {
            if (before[i] < 3 || before[i] + 4 >= seen || kv_draw_bits(before[i], keys) > lowest) continue;
            lowest = kv_draw_bits(before[i], keys);
            victim = before[i];
        }
        while (at < n_after && after[at] == before[at]) at++; /* the first that is missing */
        CHECK(before[at] == victim);
        met[at]++;
    }
    uint32_t places = 0; /* no part of the head is spared */
    for (uint32_t i = 3; i < 37; i++) places += met[i] > 0;
    CHECK(places > 28);
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
}

/* One sequence alone, among others, in a fork, and with another number of threads gives the same logits bit for bit. */
static void invariance(kvf_model *model, kvf_cache *cache, kvf_model *other, kvf_cache *other_cache, const kvf_op *ops,
                       uint32_t n_op, uint32_t granularity) {
    static float alone[N_STEP * TEST_VOCAB], again[4 * N_STEP * TEST_VOCAB];
    uint32_t tokens[4 * N_STEP];
    uint32_t s = start(model, cache, granularity, N_PROMPT, ops, n_op);
    CHECK(kvf_decode(model, cache, &s, 1, N_STEP, tokens, alone, sizeof alone, NULL, ERR) == KVF_OK);
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);

    s = start(other, other_cache, granularity, N_PROMPT, ops, n_op);
    CHECK(kvf_decode(other, other_cache, &s, 1, N_STEP, tokens, again, sizeof alone, NULL, ERR) == KVF_OK);
    CHECK(memcmp(alone, again, sizeof alone) == 0);
    CHECK(kvf_sequence_free(other_cache, s, ERR) == KVF_OK);

    const uint32_t half = N_STEP / 2;
    const uint32_t batch[3] = {start(model, cache, granularity, 41, ops, n_op), start(model, cache, granularity, N_PROMPT, ops, n_op),
                               start(model, cache, KVF_KV_HEAD, 9, NULL, 0)};
    CHECK(kvf_decode(model, cache, batch, 3, half, tokens, again, sizeof again, NULL, ERR) == KVF_OK);
    for (uint32_t i = 0; i < half; i++) {
        CHECK(memcmp(alone + i * TEST_VOCAB, again + (3 * i + 1) * TEST_VOCAB, TEST_VOCAB * sizeof *alone) == 0);
    }
    /* Forked in the middle, parent and fork go on alike; what one evicts the other still has. */
    const uint32_t fork = id_of(kvf_sequence_fork(cache, batch[1], granularity, ERR));
    check_books(cache);
    const uint32_t both[2] = {fork, batch[1]};
    for (uint32_t k = 0; k < 2; k++) {
        CHECK(kvf_decode(model, cache, &both[k], 1, N_STEP - half, tokens, again, sizeof again, NULL, ERR) == KVF_OK);
        CHECK(memcmp(alone + half * TEST_VOCAB, again, (N_STEP - half) * TEST_VOCAB * sizeof *alone) == 0);
        check_books(cache);
    }
    for (uint32_t i = 0; i < 3; i++) CHECK(kvf_sequence_free(cache, batch[i], ERR) == KVF_OK);
    CHECK(kvf_sequence_free(cache, fork, ERR) == KVF_OK);
    CHECK(cache->live_bytes == 0 && cache->held_page == 0);
}

/* A fork into query_head granularity takes each query head's own masses along. */
static void finer_fork(kvf_model *model, kvf_cache *cache) {
    const kvf_op ops[] = {mass(0, 1), queries(3)};
    const uint32_t s = start(model, cache, KVF_KV_HEAD, 30, ops, 2);
    uint32_t tokens[4];
    CHECK(kvf_decode(model, cache, &s, 1, 4, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    const uint32_t fork = id_of(kvf_sequence_fork(cache, s, KVF_QUERY_HEAD, ERR));
    check_books(cache);
    float coarse[2 * 33], fine[4 * 33];
    int32_t id = kvf_scores_mass(cache, s, 0, 0, KVF_SUM, ERR);
    CHECK(kvf_scores_read(cache, id_of(id), coarse, 2 * 33, ERR) == KVF_OK);
    id = kvf_scores_mass(cache, fork, 0, 0, KVF_SUM, ERR);
    CHECK(kvf_scores_read(cache, id_of(id), fine, 4 * 33, ERR) == KVF_OK);
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < 33; i++) CHECK_NEAR(fine[2 * h * 33 + i] + fine[(2 * h + 1) * 33 + i], coarse[h * 33 + i], 1e-6);
    }
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK && kvf_sequence_free(cache, fork, ERR) == KVF_OK);
}

/* With room for all rows every program leaves the logits as they are; retaining rows takes what is kept along. */
static void ample(kvf_model *model, kvf_cache *cache) {
    static float plain[N_STEP * TEST_VOCAB], programmed[N_STEP * TEST_VOCAB];
    uint32_t tokens[N_STEP];
    const kvf_op rolling[] = {mass(0, 1), queries(4), evict(KVF_STAT_MASS, 200, 200, 2, 2)};
    const kvf_op relative[] = {op(KVF_OP_RELATIVE), evict(KVF_STAT_POSITION, 200, 200, 2, 2)};
    const kvf_op paged[] = {pages(5, 200, 0, 0)};
    const struct {
        const kvf_op *ops;
        uint32_t n;
    } list[] = {{NULL, 0}, {rolling, 3}, {relative, 2}, {paged, 1}};
    for (uint32_t k = 0; k < 4; k++) {
        const uint32_t s = start(model, cache, KVF_KV_HEAD, 33, list[k].ops, list[k].n);
        CHECK(kvf_retain(cache, s, 0, 0, 9, 11, ERR) == KVF_OK);
        check_books(cache);
        float *logits = k == 0 ? plain : programmed;
        CHECK(kvf_decode(model, cache, &s, 1, N_STEP, tokens, logits, sizeof plain, NULL, ERR) == KVF_OK);
        if (k > 0) CHECK(memcmp(plain, programmed, sizeof plain) == 0 || k == 2);
        CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
    }
}

/* ---- 16-bit rows of 64 channels, which have kernels of their own ---- */

static const shape WIDE = {3, 4, 1, 64, KVF_BF16};

/* Masses of the last layer after every step against the last query's probabilities, summed. */
static void wide_masses(kvf_model *model, kvf_cache *cache, uint32_t bits) {
    static float got[128], want[128];
    const kvf_op ops[] = {mass(UINT32_MAX, 0.9f), queries(1)};
    const uint32_t s = start(model, cache, KVF_KV_HEAD, N_PROMPT, NULL, 0);
    const kvf_format format = {.size = sizeof format, .residual = 8, .key_bits = bits, .value_bits = bits,
                               .value_axis = KVF_PER_TOKEN, .value_group = 32};
    for (uint32_t layer = 0; layer < WIDE.n_layer; layer++) {
        if (bits > 0) CHECK(kvf_pack(cache, s, layer, &format, 0, 0, ERR) == KVF_OK);
        CHECK(kvf_sequence_program(cache, s, layer, ops, 2, ERR) == KVF_OK);
    }
    memset(want, 0, sizeof want);
    uint32_t token;
    CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
    CHECK(kvf_sequence_forget(cache, s, ERR) == KVF_OK);
    for (uint32_t step = 1; step < 30; step++) {
        const uint32_t rows = N_PROMPT + step;
        CHECK(kvf_decode(model, cache, &s, 1, 1, &token, NULL, 0, NULL, ERR) == KVF_OK);
        int32_t id = kvf_scores_window(cache, s, WIDE.n_layer - 1, 1, KVF_WINDOW_ALL_ROWS, KVF_SUM, ERR);
        CHECK(kvf_scores_read(cache, id_of(id), got, rows, ERR) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
        for (uint32_t i = 0; i < rows; i++) want[i] = want[i] * 0.9f + got[i];
        if (step % 5 != 0) continue; /* looking puts rows in order */
        id = kvf_scores_mass(cache, s, WIDE.n_layer - 1, UINT32_MAX, KVF_SUM, ERR);
        CHECK(kvf_scores_read(cache, id_of(id), got, rows, ERR) == KVF_OK);
        CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
        for (uint32_t i = 0; i < rows; i++) CHECK_NEAR(got[i], want[i], bits > 0 ? 2e-3 : 1e-4);
        check_books(cache);
    }
    uint32_t packed[3];
    CHECK(kvf_sequence_packed(cache, s, packed, 3, ERR) == KVF_OK && packed[1] == (bits > 0 ? 64 : 0));
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
}

/* Sequences with and without programs in one batch, and each on its own: the same bits. Room for all rows changes none. */
static void wide_batch(kvf_model *model, kvf_cache *cache) {
    enum { N = 6, STEPS = 24, LOGITS = STEPS * TEST_VOCAB };
    static float together[N * LOGITS], alone[N][LOGITS];
    uint32_t ids[N], tokens[N * STEPS];
    kvf_op relative[] = {op(KVF_OP_RELATIVE), evict(KVF_STAT_POSITION, 40, 40, 4, 4)};
    relative[0].first = 4;
    const kvf_op rolling[] = {mass(UINT32_MAX, 1), evict(KVF_STAT_MASS, 40, 40, 2, 4)};
    const kvf_op drawn[] = {mass(UINT32_MAX, 1), evict(KVF_STAT_MASS, 60, 33, 2, 4)};
    const kvf_op paged[] = {pages(16, 40, 8, 0)}, ample[] = {pages(16, 200, 0, 0)};
    const struct {
        const kvf_op *ops;
        uint32_t n;
    } list[N] = {{NULL, 0}, {rolling, 2}, {relative, 2}, {drawn, 2}, {paged, 1}, {ample, 1}};
    for (uint32_t turn = 0; turn < 2; turn++) {
        for (uint32_t k = 0; k < N; k++) ids[k] = start(model, cache, KVF_KV_HEAD, N_PROMPT, list[k].ops, list[k].n);
        for (uint32_t k = 0; k < N && turn == 0; k++) {
            CHECK(kvf_decode(model, cache, &ids[k], 1, STEPS, tokens, alone[k], sizeof alone[k], NULL, ERR) == KVF_OK);
        }
        if (turn == 1) CHECK(kvf_decode(model, cache, ids, N, STEPS, tokens, together, sizeof together, NULL, ERR) == KVF_OK);
        check_books(cache);
        for (uint32_t k = 0; k < N; k++) CHECK(kvf_sequence_free(cache, ids[k], ERR) == KVF_OK);
    }
    for (uint32_t k = 0; k < N; k++) {
        for (uint32_t i = 0; i < STEPS; i++) {
            CHECK(memcmp(alone[k] + i * TEST_VOCAB, together + (i * N + k) * TEST_VOCAB, TEST_VOCAB * sizeof **alone) == 0);
        }
        CHECK((memcmp(alone[k], alone[0], sizeof alone[k]) == 0) == (k == 0 || k == 5));
    }
}

/* At its limit a step is refused whole, and goes on when there is room. */
static void limits(kvf_device *dev, kvf_model *model) {
    kvf_cache *cache = cache_of_shape(dev, SMALL, 0);
    const kvf_op ops[] = {mass(UINT32_MAX, 1), evict(KVF_STAT_MASS, 40, 40, 0, 4)};
    const uint32_t s = start(model, cache, KVF_KV_HEAD, 40, ops, 2);
    uint32_t tokens[4];
    CHECK(kvf_decode(model, cache, &s, 1, 3, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    const uint32_t fork = id_of(kvf_sequence_fork(cache, s, KVF_KV_HEAD, ERR));
    cache->config.limit_bytes = kv_held_bytes(cache) + cache->page_bytes; /* the fork cannot have pages of its own */
    cache->peak_bytes = kv_held_bytes(cache);
    const kvf_sequence_info before = info_of(cache, fork);
    REFUSED(kvf_decode(model, cache, &fork, 1, 3, tokens, NULL, 0, NULL, ERR), KVF_ERR_MEMORY);
    const kvf_sequence_info after = info_of(cache, fork);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    check_books(cache);
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
    CHECK(kvf_decode(model, cache, &fork, 1, 3, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    check_books(cache);
    kvf_cache_free(cache);
}

/* Of blocks whose bounds are equal the first ones are chosen: without positions, one token gives one key. */
static void equal_blocks(kvf_device *dev) {
    enum { N = 600 };
    const kvf_model_config config = {.size = sizeof config, .n_layer = 1, .hidden = 16, .n_head = SMALL.n_head,
                                     .n_kv_head = SMALL.n_kv_head, .head_dim = SMALL.head_dim, .intermediate = 8,
                                     .vocab = TEST_VOCAB, .weight_dtype = KVF_F32, .norm_eps = 1e-5f, .rope_scale = 1};
    const float inv_freq[4] = {0};
    const uint32_t window = 0;
    uint32_t tokens[N], rows[N];
    float keys[N * 8];
    kvf_model *model = kvf_model_create(dev, &config, inv_freq, &window, ERR);
    CHECK(model != NULL && kvf_model_randomize(model, 5, ERR) == KVF_OK);
    const shape one = {1, SMALL.n_head, SMALL.n_kv_head, SMALL.head_dim, KVF_F32};
    kvf_cache *cache = cache_of_shape(dev, one, 0);
    for (uint32_t i = 0; i < N; i++) tokens[i] = 3;
    const uint32_t s = id_of(kvf_sequence_create(cache, KVF_KV_HEAD, ERR));
    const kvf_observe observe = {sizeof observe, 1, 0, 0};
    CHECK(kvf_prefill_begin(model, cache, s, tokens, N, 0, &observe, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_layers(model, cache, s, 0, 1, KVF_PHASE_ALL, NULL, ERR) == KVF_OK);
    CHECK(kvf_prefill_end(model, cache, s, ERR) == KVF_OK);
    CHECK(kvf_read_rows(cache, s, 0, 0, 0, keys, sizeof keys, ERR) == KVF_OK);
    for (uint32_t row = 1; row < N; row++) CHECK(memcmp(keys, keys + row * 8, 8 * sizeof *keys) == 0);
    const struct {
        uint32_t size, keep, last, cut, chosen;
    } of[] = {{1, 333, 0, 0, 333}, {1, 1, 0, 0, 1}, {1, N - 1, 0, 0, N - 1}, {2, 32, 2, 0, 30}, {16, 100, 0, 0, 112},
              {16, 100, 0, 1, 100}, {7, 100, 40, 0, 63}, {60, 119, 0, 0, 120}};
    for (uint32_t i = 0; i < sizeof of / sizeof *of; i++) {
        const kvf_op choice = pages(of[i].size, of[i].keep, of[i].last, of[i].cut);
        CHECK(kvf_sequence_program(cache, s, 0, &choice, 1, ERR) == KVF_OK);
        for (uint32_t h = 0; h < SMALL.n_kv_head; h++) {
            const uint32_t n = (uint32_t)kvf_program_rows(cache, s, 0, h, rows, N, ERR);
            CHECK(n == of[i].chosen + of[i].last);
            for (uint32_t k = 0; k < n; k++) CHECK(rows[k] == (k < of[i].chosen ? k : N - of[i].last + k - of[i].chosen));
        }
    }
    kvf_cache_free(cache);
    kvf_model_free(model);
}

/* A row goes by its mass and its draw: the same masses are read from a sequence that evicts nothing. */
static void weighted_draws(kvf_model *model, kvf_cache *cache, uint32_t seed, float temperature) {
    kvf_op ops[2] = {mass(0, 1), evict(KVF_STAT_MASS, N_PROMPT, N_PROMPT, 3, 4)};
    ops[1].draw = 1, ops[1].seed = seed, ops[1].temperature = temperature, ops[1].reduce = KVF_SUM;
    const uint32_t ids[2] = {start(model, cache, KVF_KV_HEAD, N_PROMPT, ops, 1), start(model, cache, KVF_KV_HEAD, N_PROMPT, ops, 2)};
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t tokens[2];
        CHECK(kvf_decode(model, cache, &ids[i], 1, 2, tokens, NULL, 0, NULL, ERR) == KVF_OK);
    }
    float x[2 * (N_PROMPT + 1)];
    const int32_t id = kvf_scores_mass(cache, ids[0], 1, 0, KVF_SUM, ERR);
    CHECK(kvf_scores_read(cache, id_of(id), x, 2 * (N_PROMPT + 1), ERR) == KVF_OK);
    CHECK(kvf_object_free(cache, (uint32_t)id, ERR) == KVF_OK);
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t keys[2], positions[N_PROMPT + 1], n, victim = 0;
        positions_of(cache, ids[1], 1, h, positions, &n);
        CHECK(n == N_PROMPT);
        while (victim < n && positions[victim] == victim) victim++;
        kv_draw_keys(seed, 1, h, N_PROMPT + 1, keys);
        double best = -INFINITY, its = -INFINITY;
        for (uint32_t i = 3; i + 4 < N_PROMPT + 1; i++) {
            const double draw = -log(-log((kv_draw_bits(i, keys) + 0.5) * 0x1p-24));
            const double against = -(double)x[h * (N_PROMPT + 1) + i] / temperature - draw;
            best = fmax(best, against);
            if (i == victim) its = against;
        }
        CHECK_NEAR(its / fmax(1, fabs(best)), best / fmax(1, fabs(best)), 1e-5);
    }
    CHECK(kvf_sequence_free(cache, ids[0], ERR) == KVF_OK);
    CHECK(kvf_sequence_free(cache, ids[1], ERR) == KVF_OK);
}

/* The choice among packed and plain rows is the one of the rows that are read back, and attention reads what is chosen. */
static void packed_choice(kvf_model *model, kvf_cache *cache, uint32_t granularity) {
    enum { SIZE = 16, KEEP = 40, LAST = 5 };
    const uint32_t dim = SMALL.head_dim;
    const kvf_format format = {.size = sizeof format, .residual = 4, .key_bits = 4, .key_axis = KVF_PER_CHANNEL, .value_bits = 4,
                               .value_axis = KVF_PER_TOKEN};
    const kvf_op choice = pages(SIZE, KEEP, LAST, 0), all = pages(SIZE, 1000, 0, 0);
    const uint32_t s = start(model, cache, granularity, N_PROMPT, NULL, 0);
    for (uint32_t layer = 0; layer < SMALL.n_layer; layer++) {
        CHECK(kvf_pack(cache, s, layer, &format, 0, 0, ERR) == KVF_OK);
        CHECK(kvf_sequence_program(cache, s, layer, &all, 1, ERR) == KVF_OK);
    }
    const uint32_t plain = id_of(kvf_sequence_fork(cache, s, granularity, ERR));
    for (uint32_t layer = 0; layer < SMALL.n_layer; layer++) CHECK(kvf_sequence_program(cache, plain, layer, NULL, 0, ERR) == KVF_OK);
    /* A choice of everything is attention to everything; and rows are packed on the way. */
    const uint32_t tokens[40] = {3, 1, 4, 1, 5, 9, 2, 6};
    float logits[2][TEST_VOCAB];
    for (uint32_t i = 0; i < 2; i++) {
        CHECK(kvf_extend(model, cache, i == 0 ? s : plain, tokens, 40, ERR) == KVF_OK);
        CHECK(kvf_sequence_logits(cache, i == 0 ? s : plain, logits[i], TEST_VOCAB, ERR) == KVF_OK);
    }
    CHECK(memcmp(logits[0], logits[1], sizeof logits[0]) == 0);
    CHECK(kv_table_of(kv_find_sequence(cache, s, "test", (kv_err){ERR}), 1, 0)->packed == 96);
    const kvf_op with_queries[] = {choice, queries(1)};
    CHECK(kvf_sequence_program(cache, s, 1, with_queries, 2, ERR) == KVF_OK);
    for (uint32_t step = 0; step < 3; step++) {
        CHECK(kvf_extend(model, cache, s, tokens + step, 1, ERR) == KVF_OK);
        check_books(cache);
        const kv_sequence *own = kv_find_sequence(cache, s, "test", (kv_err){ERR});
        const uint32_t rows = N_PROMPT + 41 + step, end = rows - LAST, readers = kv_readers(cache, own);
        float queries[4 * 8];
        CHECK(be_download(cache->dev, queries, own->step[1]->ring, sizeof queries, (kv_err){ERR}) == KVF_OK);
        for (uint32_t h = 0; h < own->n_stored_head; h++) {
            float *keys = malloc(rows * dim * sizeof *keys);
            uint32_t got[256];
            double bound[16];
            CHECK(kvf_read_rows(cache, s, 1, h, 0, keys, (double)rows * dim * sizeof *keys, ERR) == KVF_OK);
            const int32_t n = kvf_program_rows(cache, s, 1, h, got, 256, ERR);
            for (uint32_t b = 0; b * SIZE < end; b++) {
                bound[b] = 0;
                for (uint32_t d = 0; d < dim; d++) {
                    float high = -INFINITY, low = INFINITY;
                    for (uint32_t i = b * SIZE; i < end && i < (b + 1) * SIZE; i++) {
                        high = fmaxf(high, keys[i * dim + d]);
                        low = fminf(low, keys[i * dim + d]);
                    }
                    for (uint32_t r = 0; r < readers; r++) {
                        const double q = queries[(h * readers + r) * dim + d];
                        bound[b] += q >= 0 ? q * high : q * low;
                    }
                }
            }
            /* every chosen block is at least as good as every other one, up to rounding */
            bool taken[16] = {false};
            uint32_t blocks = 0;
            for (int32_t i = 0; i + LAST < n; i++) blocks += !taken[got[i] / SIZE], taken[got[i] / SIZE] = true;
            CHECK(blocks == (KEEP - LAST + SIZE - 1) / SIZE);
            for (uint32_t a = 0; a * SIZE < end; a++) {
                for (uint32_t b = 0; b * SIZE < end; b++) {
                    if (taken[a] && !taken[b]) CHECK(bound[a] > bound[b] - 1e-4);
                }
            }
            for (uint32_t i = 0; i < LAST; i++) CHECK(got[(uint32_t)n - 1 - i] == rows - 1 - i);
            free(keys);
        }
    }
    CHECK(kvf_sequence_free(cache, s, ERR) == KVF_OK);
    CHECK(kvf_sequence_free(cache, plain, ERR) == KVF_OK);
    check_books(cache);
}

/* On every set of instructions. */
static void draws_of_level(uint32_t simd) {
    const kvf_device_options options = {.size = sizeof options, .n_thread = 1, .simd = simd};
    kvf_device *dev = kvf_device_create(&options, ERR);
    CHECK(dev != NULL);
    kvf_model *model = model_of_shape(dev, SMALL);
    kvf_cache *cache = cache_of_shape(dev, SMALL, 0);
    for (uint32_t seed = 0; seed < 40; seed++) weighted_draws(model, cache, seed, (float[]){0.01f, 1, 50}[seed % 3]);
    kvf_model_free(model);
    kvf_cache_free(cache);
    kvf_device_free(dev);
}

int main(void) {
    row_counts();
    for (uint32_t simd = 0; simd <= 2; simd++) draws_of_level(simd);
    kvf_device *dev = device_of_threads(1), *many = device_of_threads(3);
    kvf_model *model = model_of_shape(dev, SMALL), *other = model_of_shape(many, SMALL);
    kvf_cache *cache = cache_of_shape(dev, SMALL, 0), *other_cache = cache_of_shape(many, SMALL, 0);
    refusals(model, cache);
    masses(model, cache, 1);
    masses(model, cache, 0.5f);
    for (uint32_t i = 0; i < 16; i++) {
        const uint32_t granularity = i / 4 % 2;
        budgets(model, cache, i % 4, granularity, 40, 40, 0);
        budgets(model, cache, i % 4, granularity, 37, 20, i / 8);
    }
    draws(model, cache);
    equal_blocks(dev);
    packed_choice(model, cache, KVF_KV_HEAD);
    packed_choice(model, cache, KVF_QUERY_HEAD);
    kvf_op ops[4] = {mass(0, 1), queries(6), evict(KVF_STAT_MASS, 32, 32, 2, 4)};
    for (uint32_t granularity = 0; granularity < 2; granularity++) {
        ops[2] = evict(KVF_STAT_MASS, 32, 32, 2, 4);
        invariance(model, cache, other, other_cache, ops, 3, granularity);
        ops[2] = evict(KVF_STAT_HITS, 32, 16, 0, 4);
        invariance(model, cache, other, other_cache, ops, 3, granularity);
        ops[2].draw = 1, ops[2].temperature = 1, ops[2].statistic = KVF_STAT_MASS, ops[2].seed = 5;
        invariance(model, cache, other, other_cache, ops, 3, granularity);
        kvf_op relative[2] = {op(KVF_OP_RELATIVE), evict(KVF_STAT_POSITION, 30, 30, 4, 0)};
        relative[0].first = 4;
        invariance(model, cache, other, other_cache, relative, 2, granularity);
        const kvf_op paged[] = {pages(7, 21, 0, 0)}, cut[] = {pages(16, 24, 5, 1), queries(2)};
        invariance(model, cache, other, other_cache, paged, 1, granularity);
        invariance(model, cache, other, other_cache, cut, 2, granularity);
    }
    finer_fork(model, cache);
    ample(model, cache);
    limits(dev, model);
    kvf_model *wide = model_of_shape(dev, WIDE);
    kvf_cache *wide_cache = cache_of_shape(dev, WIDE, 0);
    for (uint32_t bits = 0; bits <= 4; bits += 2) wide_masses(wide, wide_cache, bits);
    wide_batch(wide, wide_cache);
    kvf_model_free(wide);
    kvf_cache_free(wide_cache);
    kvf_model_free(model);
    kvf_model_free(other);
    kvf_cache_free(cache);
    kvf_cache_free(other_cache);
    kvf_device_free(dev);
    kvf_device_free(many);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
