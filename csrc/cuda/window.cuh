/* Window scores on tensor cores. */
#ifndef KVF_CUDA_WINDOW_H
#define KVF_CUDA_WINDOW_H

#include "cuda.h"

typedef struct cu_window {
    const float *known; /* log-sum-exp of the queries: [n_head] of [n], known_stride apart; NULL: it is found here */
    size_t known_stride;
    void *partial;      /* cu_window_bytes, where it is not known */
    float *lse;         /* [n_head, n], written where it is not known */
    uint32_t reduce;
    float divide;
    bool maxima;
} cu_window;

/* Bytes of `partial` for a layer of n_rows rows. */
size_t cu_window_bytes(uint32_t n_head, uint32_t window, uint32_t n_rows);
/*
 * Probabilities that the queries give to each row, summed over the queries, divided, and reduced over the readers, or with
 * `maxima` the readers' highest, summed and divided: out [n_stored, n_row]. For 16-bit rows of 32, 64 or 128 columns; false
 * otherwise.
 * n_rows: rows of the longest head
 */
bool cu_window_scores(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries,
                      const cu_window *window, uint32_t n_rows, float *out, uint32_t n_row, cudaError_t *status);

#endif
