/* Algebra of scores on the CPU: elementwise, and each row against its neighbours. */
#include <math.h>

#include "cpu.h"

/* Rows of one chunk of an elementwise job. */
#define ROW_CHUNK 4096u

/* ---- Elementwise ---- */

typedef struct element_job {
    const float *x;
    const float *y; /* NULL: a * x + b */
    float *out;
    size_t n;
    float a, b;
    uint32_t what;
} element_job;

static void element_chunk(void *arg, uint32_t chunk, uint32_t thread) {
    (void)thread;
    const element_job *j = arg;
    const size_t first = (size_t)chunk * ROW_CHUNK, n = j->n - first < ROW_CHUNK ? j->n - first : ROW_CHUNK;
    const float *x = j->x + first, *y = j->y == NULL ? NULL : j->y + first;
    float *out = j->out + first;
    if (y == NULL) {
        for (size_t i = 0; i < n; i++) out[i] = j->a * x[i] + j->b;
    } else if (j->what == 0) {
        for (size_t i = 0; i < n; i++) out[i] = x[i] + y[i];
    } else if (j->what == 1) {
        for (size_t i = 0; i < n; i++) out[i] = x[i] * y[i];
    } else {
        for (size_t i = 0; i < n; i++) out[i] = x[i] < y[i] ? 1.0f : 0.0f;
    }
}

static void run_elements(kvf_device *dev, element_job *j) {
    cpu_parallel(dev, (uint32_t)((j->n + ROW_CHUNK - 1) / ROW_CHUNK), element_chunk, j);
}

int32_t be_scores_affine(kvf_device *dev, const float *in, float *out, size_t n, float a, float b, kv_err err) {
    (void)err;
    run_elements(dev, &(element_job){.x = in, .out = out, .n = n, .a = a, .b = b});
    return KVF_OK;
}

int32_t be_scores_combine(kvf_device *dev, const float *x, const float *y, float *out, size_t n, uint32_t what,
                          kv_err err) {
    (void)err;
    run_elements(dev, &(element_job){.x = x, .y = y, .out = out, .n = n, .what = what});
    return KVF_OK;
}

int32_t be_scores_fill(kvf_device *dev, float *inout, uint32_t n_head, uint32_t n_row, uint32_t first, uint32_t end,
                       float value, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t h = 0; h < n_head; h++) {
        for (uint32_t i = first; i < end; i++) inout[(size_t)h * n_row + i] = value;
    }
    return KVF_OK;
}

int32_t be_scores_log(kvf_device *dev, const float *in, float *out, size_t n, kv_err err) {
    (void)dev;
    (void)err;
    for (size_t i = 0; i < n; i++) out[i] = logf(in[i]);
    return KVF_OK;
}

int32_t be_scores_fill_selected(kvf_device *dev, float *inout, const uint32_t *rows, uint32_t n, float value, kv_err err) {
    (void)dev;
    (void)err;
    for (uint32_t i = 0; i < n; i++) inout[rows[i]] = value;
    return KVF_OK;
}

/* ---- Against neighbours ---- */

typedef struct relative_job {
    const float *in;
    float *out;
    uint32_t n_row, lead, span;
} relative_job;

static void relative_head(void *arg, uint32_t head, uint32_t thread) {
    (void)thread;
    const relative_job *j = arg;
    const float *x = j->in + (size_t)head * j->n_row;
    float *out = j->out + (size_t)head * j->n_row;
    float lead = -INFINITY;
    for (uint32_t i = 0; i < j->lead; i++) lead = x[i] > lead ? x[i] : lead;
    for (uint32_t i = 0; i < j->n_row; i++) {
        const uint32_t end = j->span < j->n_row - i ? i + j->span : j->n_row;
        float most = lead;
        for (uint32_t k = i; k < end; k++) most = x[k] > most ? x[k] : most;
        const float share = x[i] / most;
        out[i] = share > 0 ? (share < 1 ? share : 1.0f) : 0.0f; /* NaN is 0 */
    }
}

int32_t be_scores_relative(kvf_device *dev, const float *in, float *out, uint32_t n_head, uint32_t n_row, uint32_t lead,
                           uint32_t span, kv_err err) {
    (void)err;
    relative_job j = {in, out, n_row, lead, span};
    cpu_parallel(dev, n_head, relative_head, &j);
    return KVF_OK;
}
