/*
 * Pages against a simple model: sequences are lists of (position, number) per layer and stored head. Random operations,
 * with and without a limit; after each one the books, the rows and the positions must agree.
 */
#include "test.h"

enum { N_LAYER = 2, N_HEAD = 4, N_KV_HEAD = 2, DIM = 4, MAX_ROWS = 400, MAX_SEQUENCE = 8 };

typedef struct model_row {
    uint32_t position;
    int number; /* what the row's value holds in every element; -1: whatever the language model wrote */
} model_row;

typedef struct model_sequence {
    uint32_t id, n_head, position;
    uint32_t n_row[N_LAYER][N_HEAD];
    model_row row[N_LAYER][N_HEAD][MAX_ROWS];
} model_sequence;

static model_sequence *sequences[MAX_SEQUENCE];
static uint32_t n_sequence;

static void check_sequence(kvf_cache *cache, const model_sequence *m) {
    static float values[MAX_ROWS * DIM];
    static uint32_t positions[MAX_ROWS];
    uint32_t rows[N_LAYER * N_HEAD];
    CHECK(kvf_sequence_rows(cache, m->id, rows, N_LAYER * N_HEAD, ERR) == KVF_OK);
    double bytes = 0, own[N_LAYER * N_HEAD];
    CHECK(kvf_sequence_bytes(cache, m->id, own, N_LAYER * N_HEAD, ERR) == KVF_OK);
    REFUSED(kvf_sequence_bytes(cache, m->id, own, N_LAYER * m->n_head - 1, ERR), KVF_ERR_ARG);
    for (uint32_t l = 0; l < N_LAYER; l++) {
        for (uint32_t h = 0; h < m->n_head; h++) {
            const uint32_t n = m->n_row[l][h];
            CHECK(own[l * m->n_head + h] == (double)((n + 31) / 32) * cache->page_bytes);
            bytes += (double)((n + 31) / 32) * cache->page_bytes;
            CHECK(rows[l * m->n_head + h] == n);
            CHECK(kvf_read_positions(cache, m->id, l, h, positions, n, ERR) == KVF_OK);
            CHECK(kvf_read_rows(cache, m->id, l, h, 1, values, (double)n * DIM * 4, ERR) == KVF_OK);
            for (uint32_t i = 0; i < n; i++) {
                CHECK(positions[i] == m->row[l][h][i].position);
                for (uint32_t d = 0; d < DIM && m->row[l][h][i].number >= 0; d++) {
                    CHECK(values[i * DIM + d] == (float)m->row[l][h][i].number);
                }
            }
        }
    }
    const kvf_sequence_info info = info_of(cache, m->id);
    CHECK(info.promised_bytes == bytes && info.owned_bytes == bytes && info.position == m->position);
}

static void check_all(kvf_cache *cache) {
    check_books(cache);
    double promised = 0;
    for (uint32_t i = 0; i < n_sequence; i++) {
        check_sequence(cache, sequences[i]);
        promised += info_of(cache, sequences[i]->id).promised_bytes;
    }
    CHECK(ledger_of(cache).promised_bytes == promised);
    CHECK(ledger_of(cache).n_sequence == n_sequence);
    CHECK(ledger_of(cache).n_object == 0);
}

/* A new sequence, recorded from tensors whose values are a number of the row's own. */
static void record(kvf_cache *cache) {
    if (n_sequence == MAX_SEQUENCE) return;
    model_sequence *m = calloc(1, sizeof *m);
    CHECK(m != NULL);
    const uint32_t granularity = below(2), n = 1 + below(100);
    const int32_t id = kvf_sequence_create(cache, granularity, ERR);
    CHECK(id > 0);
    m->id = (uint32_t)id;
    m->n_head = granularity == KVF_KV_HEAD ? N_KV_HEAD : N_HEAD;
    CHECK(kvf_record_begin(cache, m->id, n, NULL, NULL, ERR) == KVF_OK);
    float *q = normals((size_t)N_HEAD * n * DIM), *k = normals((size_t)N_KV_HEAD * n * DIM);
    float *v = normals((size_t)N_KV_HEAD * n * DIM);
    int32_t status = KVF_OK;
    for (uint32_t i = 0; i < N_LAYER && status == KVF_OK; i++) {
        const uint32_t l = n % 2 ? i : N_LAYER - 1 - i; /* layers come in any order */
        for (uint32_t h = 0; h < N_KV_HEAD; h++) {
            for (uint32_t t = 0; t < n; t++) {
                const int number = (int)below(128);
                for (uint32_t d = 0; d < DIM; d++) v[((size_t)h * n + t) * DIM + d] = (float)number;
                for (uint32_t g = 0; g < m->n_head / N_KV_HEAD; g++) {
                    m->row[l][h * (m->n_head / N_KV_HEAD) + g][t] = (model_row){t, number};
                }
            }
        }
        status = kvf_record_layer(cache, m->id, l, q, k, v, ERR);
        CHECK(status == KVF_OK || status == KVF_ERR_MEMORY);
        if (status == KVF_OK) {
            for (uint32_t h = 0; h < m->n_head; h++) m->n_row[l][h] = n;
        }
        check_books(cache);
    }
    free(q);
    free(k);
    free(v);
    if (status == KVF_OK) {
        m->position = n;
        sequences[n_sequence++] = m;
    } else { /* free it in the middle */
        CHECK(kvf_sequence_free(cache, m->id, ERR) == KVF_OK);
        free(m);
    }
}

static void fork_one(kvf_cache *cache) {
    if (n_sequence == 0 || n_sequence == MAX_SEQUENCE) return;
    const model_sequence *parent = sequences[below(n_sequence)];
    model_sequence *m = malloc(sizeof *m);
    CHECK(m != NULL);
    *m = *parent;
    const bool finer = parent->n_head == N_KV_HEAD && below(2);
    const double resident = ledger_of(cache).resident_bytes;
    const uint32_t granularity = finer || parent->n_head == N_HEAD ? KVF_QUERY_HEAD : KVF_KV_HEAD;
    const int32_t id = kvf_sequence_fork(cache, parent->id, granularity, ERR);
    CHECK(id > 0);
    CHECK(ledger_of(cache).resident_bytes == resident);
    m->id = (uint32_t)id;
    if (finer) {
        m->n_head = N_HEAD;
        for (uint32_t l = 0; l < N_LAYER; l++) {
            for (uint32_t h = 0; h < N_HEAD; h++) {
                m->n_row[l][h] = parent->n_row[l][h / 2];
                memcpy(m->row[l][h], parent->row[l][h / 2], sizeof m->row[l][h]);
            }
        }
    }
    sequences[n_sequence++] = m;
}

static void retain_some(kvf_cache *cache) {
    if (n_sequence == 0) return;
    model_sequence *m = sequences[below(n_sequence)];
    const uint32_t l = below(N_LAYER), one = below(3) == 0, n_list = one ? 1 : m->n_head;
    const uint32_t first = below(3) ? below(6) : below(60), last = below(3) ? below(6) : below(60), share = below(5);
    uint32_t counts[N_HEAD], least = UINT32_MAX;
    static uint32_t rows[N_HEAD * MAX_ROWS];
    static bool keep[N_HEAD][MAX_ROWS];
    memset(keep, 0, sizeof keep);
    for (uint32_t h = 0; h < m->n_head; h++) least = m->n_row[l][h] < least ? m->n_row[l][h] : least;
    uint32_t n = 0;
    for (uint32_t h = 0; h < n_list; h++) {
        counts[h] = 0;
        for (uint32_t i = 0; i < (one ? least : m->n_row[l][h]); i++) {
            if (below(4) >= share) continue;
            rows[n++] = i;
            counts[h]++;
            for (uint32_t g = 0; g < m->n_head; g++) {
                if (one || g == h) keep[g][i] = true;
            }
        }
    }
    const int32_t sel = kvf_selection_create(cache, n_list, counts, rows, ERR);
    CHECK(sel > 0);
    const int32_t status = kvf_retain(cache, m->id, l, (uint32_t)sel, first, last, ERR);
    CHECK(status == KVF_OK || status == KVF_ERR_MEMORY);
    CHECK(kvf_object_free(cache, (uint32_t)sel, ERR) == KVF_OK);
    if (status != KVF_OK) return;
    for (uint32_t h = 0; h < m->n_head; h++) {
        uint32_t to = 0;
        const uint32_t had = m->n_row[l][h];
        for (uint32_t i = 0; i < had; i++) {
            if (keep[h][i] || i < first || i + last >= had) m->row[l][h][to++] = m->row[l][h][i];
        }
        m->n_row[l][h] = to;
    }
}

static void extend_one(kvf_model *lm, kvf_cache *cache) {
    if (n_sequence == 0) return;
    model_sequence *m = sequences[below(n_sequence)];
    if (m->position > MAX_ROWS - 5) return;
    const uint32_t n = 1 + below(5);
    uint32_t tokens[5];
    for (uint32_t i = 0; i < n; i++) tokens[i] = below(TEST_VOCAB);
    const int32_t status = kvf_extend(lm, cache, m->id, tokens, n, ERR);
    CHECK(status == KVF_OK || status == KVF_ERR_MEMORY);
    const uint32_t ran = info_of(cache, m->id).position - m->position; /* a limit may stop it in the middle */
    CHECK(status == KVF_OK ? ran == n : ran < n);
    for (uint32_t l = 0; l < N_LAYER; l++) {
        for (uint32_t h = 0; h < m->n_head; h++) {
            for (uint32_t i = 0; i < ran; i++) m->row[l][h][m->n_row[l][h]++] = (model_row){m->position + i, -1};
        }
    }
    m->position += ran;
}

static void free_one(kvf_cache *cache) {
    if (n_sequence == 0) return;
    const uint32_t i = below(n_sequence);
    CHECK(kvf_sequence_free(cache, sequences[i]->id, ERR) == KVF_OK);
    REFUSED(kvf_sequence_free(cache, sequences[i]->id, ERR), KVF_ERR_ARG);
    free(sequences[i]);
    sequences[i] = sequences[--n_sequence];
}

static void run(kvf_device *dev, uint32_t dtype, double limit_pages, uint32_t n_step) {
    const shape s = {N_LAYER, N_HEAD, N_KV_HEAD, DIM, dtype};
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    cache->config.limit_bytes = limit_pages * cache->page_bytes;
    kvf_model *lm = model_of_shape(dev, s);
    for (uint32_t step = 0; step < n_step; step++) {
        switch (below(8)) {
            case 0: record(cache); break;
            case 1: fork_one(cache); break;
            case 2:
            case 3: retain_some(cache); break;
            case 4: free_one(cache); break;
            default:
                extend_one(lm, cache);
        }
        check_all(cache);
    }
    while (n_sequence > 0) free_one(cache);
    check_all(cache);
    CHECK(ledger_of(cache).resident_bytes == 0);
    kvf_cache_free(cache);
    kvf_model_free(lm);
}

/* A head that alone owns its pages loses rows without needing any: at the limit, and without raising the peak. */
static void in_place(kvf_device *dev) {
    const shape s = {1, 2, 2, DIM, KVF_F32};
    kvf_cache *cache = cache_of_shape(dev, s, 0);
    const uint32_t n = 100;
    cache->config.limit_bytes = 8.0 * cache->page_bytes;
    float *x = normals(2 * n * DIM);
    const int32_t id = kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    CHECK(kvf_record_begin(cache, (uint32_t)id, n, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, (uint32_t)id, 0, x, x, x, ERR) == KVF_OK);
    CHECK(ledger_of(cache).resident_bytes == cache->config.limit_bytes);

    /* The fork shares all pages, so its rows would have to go elsewhere: refused, and nothing has changed. */
    const int32_t fork = kvf_sequence_fork(cache, (uint32_t)id, KVF_KV_HEAD, ERR);
    REFUSED(kvf_retain(cache, (uint32_t)fork, 0, 0, 10, 40, ERR), KVF_ERR_MEMORY);
    CHECK(strstr(test_message, "needed") != NULL && strstr(test_message, "free") != NULL);
    check_books(cache);
    CHECK(info_of(cache, (uint32_t)fork).promised_bytes == 8.0 * cache->page_bytes);
    CHECK(kvf_sequence_free(cache, (uint32_t)fork, ERR) == KVF_OK);

    CHECK(kvf_retain(cache, (uint32_t)id, 0, 0, 10, 40, ERR) == KVF_OK);
    check_books(cache);
    CHECK(ledger_of(cache).resident_bytes == 4.0 * cache->page_bytes);
    CHECK(ledger_of(cache).peak_bytes == 8.0 * cache->page_bytes);
    CHECK(kvf_cache_reset_peak(cache, ERR) == KVF_OK);
    CHECK(ledger_of(cache).peak_bytes == 4.0 * cache->page_bytes);
    float *got = malloc(50 * DIM * sizeof *got);
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t what = 0; what < 2; what++) {
            CHECK(kvf_read_rows(cache, (uint32_t)id, 0, h, what, got, 50 * DIM * 4, ERR) == KVF_OK);
            CHECK(memcmp(got, x + h * n * DIM, 10 * DIM * sizeof *x) == 0);
            CHECK(memcmp(got + 10 * DIM, x + (h * n + 60) * DIM, 40 * DIM * sizeof *x) == 0);
        }
    }
    /* Everything kept: not even the pages change. Nothing kept: an empty head. */
    CHECK(kvf_retain(cache, (uint32_t)id, 0, 0, 25, 25, ERR) == KVF_OK);
    CHECK(ledger_of(cache).resident_bytes == 4.0 * cache->page_bytes);
    CHECK(kvf_retain(cache, (uint32_t)id, 0, 0, 0, 0, ERR) == KVF_OK);
    CHECK(ledger_of(cache).resident_bytes == 0);
    check_books(cache);
    free(got);
    free(x);
    kvf_cache_free(cache);
}

int main(void) {
    kvf_device *dev = device_of_threads(2);
    for (uint32_t dtype = KVF_F32; dtype <= KVF_BF16; dtype++) {
        run(dev, dtype, 0, 400);
        run(dev, dtype, 60, 400);
    }
    in_place(dev);
    kvf_device_free(dev);
    CHECK(kvf_live_handles() == 0);
    return 0;
}
