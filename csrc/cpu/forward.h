/* The parts of the forward pass that prefill and decode share. */
#ifndef KVF_CPU_FORWARD_H
#define KVF_CPU_FORWARD_H

#include "weights.h"

/* c[m, padded n] = a[m, k] . matrix, on all threads. ld_c >= padded n. */
int32_t cpu_product(kvf_model *model, float *c, size_t ld_c, const float *a, size_t ld_a, const cpu_matrix *matrix,
                    uint32_t m, kv_err err);
/*
 * Norm, projections, biases, query and key norm, rotation: x [m, hidden] to qkv [m, ld_qkv]. cosine, sine: row i's
 * [head_dim / 2] at i * head_dim / 2. norm: scratch [m, hidden].
 */
int32_t cpu_project(kvf_model *model, const cpu_layer *layer, const float *x, float *qkv, size_t ld_qkv, float *norm,
                    const float *cosine, const float *sine, uint32_t m, kv_err err);
/* Cosine and sine of one position, [head_dim / 2] each. */
void cpu_rotation(const kvf_model *model, uint32_t position, float *cosine, float *sine);
/* x += attention output . o (+ bias), then x += MLP(norm(x)); x [m, hidden], attn [m, n_head * head_dim]. */
int32_t cpu_finish_layer(kvf_model *model, const cpu_layer *layer, float *x, const float *attn, uint32_t m, kv_err err);
/* Takes the scratch that the functions here need for m rows, so that they cannot fail. */
int32_t cpu_reserve_layer(kvf_model *model, uint32_t m, kv_err err);
/* logits [m, padded vocab] of x [m, hidden]; norm: scratch [m, hidden]. */
int32_t cpu_logits(kvf_model *model, const float *x, float *norm, float *logits, uint32_t m, kv_err err);
/* Writes one row of one stored head. */
void cpu_write_row(const kvf_cache *cache, const kv_table *t, uint32_t row, uint32_t position, const float *k,
                   const float *v);

/* Scratch slots of the forward pass. */
enum { SLOT_NORM, SLOT_MLP, SLOT_HIDDEN, SLOT_EXPERT, SLOT_TILE, SLOT_X, SLOT_QKV, SLOT_ATTN, SLOT_PART, SLOT_ROT, SLOT_LOGITS, SLOT_SAMPLE, SLOT_ROUND };

#endif
