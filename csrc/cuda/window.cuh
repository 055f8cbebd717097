/* Window scores on tensor cores. */
#ifndef KVF_CUDA_WINDOW_H
#define KVF_CUDA_WINDOW_H

#include "cuda.h"

/* Bytes of `partial` for a layer of n_rows rows. */
size_t cu_window_bytes(uint32_t n_head, uint32_t window, uint32_t n_rows);
/*
 * Probabilities that the queries give to each row, summed over the queries: out [n_head, n_row], or with `maxima` the
 * highest of the readers' summed and divided: out [n_stored, n_row]. For 16-bit rows of 32, 64 or 128 columns; false
 * otherwise.
 * n_rows: rows of the longest head   lse: [n_head, n], written
 */
bool cu_window_scores(kvf_device *dev, const cu_view *view, uint32_t row_dtype, const cu_queries *queries, bool maxima,
                      float divide, uint32_t n_rows, void *partial, float *lse, float *out, uint32_t n_row,
                      cudaError_t *status);

#endif
