/* Selection by score and sharing of a budget, against sorting; unions with ranges; lists from the caller. */
#include "test.h"

typedef struct entry {
    float score;
    uint32_t head, row;
} entry;

/* NaN is the lowest, -0 equals 0, and among equals the lower head, then the lower row comes first. */
static int by_score(const void *a, const void *b) {
    const entry *x = a, *y = b;
    const bool nx = isnan(x->score), ny = isnan(y->score);
    if (nx != ny) return nx ? 1 : -1;
    if (!nx && x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->head != y->head) return x->head < y->head ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static float draw(uint32_t kind) {
    static const float odd[] = {0.0f, -0.0f, 1.0f, -1.0f, 1e-40f, -1e-40f, 3e38f, -3e38f, 1.0000001f};
    switch (kind) {
        case 0: return normal();
        case 1: return (float)below(4); /* many ties */
        case 2: return 0.5f;
        case 3: return below(5) == 0 ? NAN : below(7) == 0 ? INFINITY : below(7) == 0 ? -INFINITY : normal();
        case 4: return uniform() * 1e-6f;
        default: return odd[below(9)];
    }
}

static void compare(kvf_cache *cache, uint32_t n_head, uint32_t n_row, uint32_t kind) {
    const uint32_t n = n_head * n_row;
    float *values = malloc((n + 1) * sizeof *values);
    entry *order = malloc((n + 1) * sizeof *order);
    uint32_t *counts = malloc(n_head * sizeof *counts), *want = calloc(n_head, sizeof *want);
    uint32_t *rows = malloc((n + 1) * sizeof *rows), *got = malloc((n + 1) * sizeof *got);
    bool *chosen = calloc(n + 1, sizeof *chosen);
    uint32_t total = 0;
    for (uint32_t i = 0; i < n; i++) values[i] = draw(kind);
    for (uint32_t h = 0; h < n_head; h++) {
        counts[h] = below(4) == 0 ? below(2) * n_row : below(n_row + 1);
        total += counts[h];
    }
    const int32_t scores = kvf_scores_create(cache, n_head, n_row, values, ERR);
    CHECK(scores > 0);

    const int32_t sel = kvf_select_top(cache, (uint32_t)scores, counts, n_head, ERR);
    CHECK(sel > 0);
    uint32_t dims[3];
    CHECK(kvf_object_shape(cache, (uint32_t)sel, dims, ERR) == KVF_OK);
    CHECK(dims[0] == 1 && dims[1] == n_head && dims[2] == total);
    for (uint32_t h = 0; h < n_head; h++) {
        for (uint32_t i = 0; i < n_row; i++) order[i] = (entry){values[h * n_row + i], h, i};
        qsort(order, n_row, sizeof *order, by_score);
        for (uint32_t i = 0; i < counts[h]; i++) chosen[h * n_row + order[i].row] = true;
    }
    CHECK(kvf_selection_read(cache, (uint32_t)sel, want, n_head, rows, total, ERR) == KVF_OK);
    uint32_t at = 0;
    for (uint32_t h = 0; h < n_head; h++) {
        CHECK(want[h] == counts[h]);
        for (uint32_t i = 0; i < n_row; i++) {
            if (chosen[h * n_row + i]) CHECK(rows[at++] == i);
        }
    }
    CHECK(at == total);

    const uint32_t budget = below(3) == 0 ? below(2) * n : below(n + 1);
    memset(want, 0, n_head * sizeof *want);
    for (uint32_t i = 0; i < n; i++) order[i] = (entry){values[i], i / n_row, i % n_row};
    qsort(order, n, sizeof *order, by_score);
    for (uint32_t i = 0; i < budget; i++) want[order[i].head]++;
    CHECK(kvf_scores_share(cache, (uint32_t)scores, budget, got, n_head, ERR) == KVF_OK);
    CHECK(memcmp(got, want, n_head * sizeof *want) == 0);

    CHECK(kvf_object_free(cache, (uint32_t)sel, ERR) == KVF_OK);
    CHECK(kvf_object_free(cache, (uint32_t)scores, ERR) == KVF_OK);
    free(values);
    free(order);
    free(counts);
    free(want);
    free(rows);
    free(got);
    free(chosen);
}

/* What was written comes back; what is not a list of ascending rows is refused. */
static void lists(kvf_cache *cache) {
    const uint32_t counts[3] = {2, 0, 3}, rows[5] = {0, 7, 1, 2, 9};
    const int32_t sel = kvf_selection_create(cache, 3, counts, rows, ERR);
    CHECK(sel > 0);
    uint32_t got_counts[3], got[5];
    CHECK(kvf_selection_read(cache, (uint32_t)sel, got_counts, 3, got, 5, ERR) == KVF_OK);
    CHECK(memcmp(got_counts, counts, sizeof counts) == 0 && memcmp(got, rows, sizeof rows) == 0);
    REFUSED(kvf_selection_read(cache, (uint32_t)sel, got_counts, 2, got, 5, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_read(cache, (uint32_t)sel, got_counts, 3, got, 4, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_read(cache, (uint32_t)sel, (float[5]){0}, 5, ERR), KVF_ERR_ARG);
    CHECK(kvf_object_free(cache, (uint32_t)sel, ERR) == KVF_OK);
    REFUSED(kvf_object_free(cache, (uint32_t)sel, ERR), KVF_ERR_ARG);

    const uint32_t twice[2] = {3, 3}, down[2] = {4, 3}, far[2] = {1, 0xffffffffu}, two = 2, huge[2] = {0xffffffffu, 2};
    REFUSED(kvf_selection_create(cache, 1, &two, twice, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 1, &two, down, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 1, &two, far, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 1, &two, NULL, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 2, huge, twice, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 0, &two, twice, ERR), KVF_ERR_ARG);
    REFUSED(kvf_selection_create(cache, 0xffffffffu, &two, twice, ERR), KVF_ERR_ARG);
    CHECK(ledger_of(cache).n_object == 0);

    /* An empty selection needs no list. */
    const uint32_t none = 0;
    const int32_t empty = kvf_selection_create(cache, 1, &none, NULL, ERR);
    CHECK(empty > 0 && kvf_selection_read(cache, (uint32_t)empty, got_counts, 1, NULL, 0, ERR) == KVF_OK);
    CHECK(kvf_object_free(cache, (uint32_t)empty, ERR) == KVF_OK);
}

/* What a layer must hold for a selection to be carried out. */
static void refusals(kvf_cache *cache) {
    const int32_t id = kvf_sequence_create(cache, KVF_KV_HEAD, ERR);
    float *x = normals(40 * 4 * 2);
    CHECK(kvf_record_begin(cache, (uint32_t)id, 10, NULL, NULL, ERR) == KVF_OK);
    CHECK(kvf_record_layer(cache, (uint32_t)id, 0, x, x, x, ERR) == KVF_OK);
    const uint32_t counts[3] = {1, 1, 1}, rows[3] = {9, 10, 3};
    const int32_t high = kvf_selection_create(cache, 2, counts, rows, ERR);
    const int32_t three = kvf_selection_create(cache, 3, counts, rows, ERR);
    const int32_t scores = kvf_scores_create(cache, 2, 10, NULL, ERR);
    REFUSED(kvf_retain(cache, (uint32_t)id, 0, (uint32_t)high, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_retain(cache, (uint32_t)id, 0, (uint32_t)three, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_retain(cache, (uint32_t)id, 0, (uint32_t)scores, 0, 0, ERR), KVF_ERR_ARG);
    REFUSED(kvf_retain(cache, (uint32_t)id, 1, 0, 0, 0, ERR), KVF_ERR_ARG);
    uint32_t n[2];
    CHECK(kvf_sequence_rows(cache, (uint32_t)id, n, 2, ERR) == KVF_OK && n[0] == 10 && n[1] == 10);
    const uint32_t too_many[2] = {11, 0};
    REFUSED(kvf_select_top(cache, (uint32_t)scores, too_many, 2, ERR), KVF_ERR_ARG);
    REFUSED(kvf_select_top(cache, (uint32_t)scores, counts, 3, ERR), KVF_ERR_ARG);
    REFUSED(kvf_scores_share(cache, (uint32_t)scores, 21, n, 2, ERR), KVF_ERR_ARG);
    CHECK(kvf_retain(cache, (uint32_t)id, 0, 0, 0xffffffffu, 0xffffffffu, ERR) == KVF_OK);
    CHECK(kvf_sequence_rows(cache, (uint32_t)id, n, 2, ERR) == KVF_OK && n[0] == 10);
    free(x);
}

int main(void) {
    for (uint32_t n_thread = 1; n_thread <= 2; n_thread++) {
        kvf_device *dev = device_of_threads(n_thread);
        kvf_cache *cache = cache_of_shape(dev, (shape){1, 4, 2, 4, KVF_F32}, 0);
        for (uint32_t i = 0; i < 300; i++) compare(cache, 1 + below(9), 1 + below(i % 10 == 0 ? 3000 : 70), below(6));
        lists(cache);
        refusals(cache);
        kvf_cache_free(cache);
        kvf_device_free(dev);
    }
    CHECK(kvf_live_handles() == 0);
    return 0;
}
