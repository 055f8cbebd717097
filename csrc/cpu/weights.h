/* Weights as the forward pass reads them: packed panels (see cpu_ops.panel_product) and f32 vectors. */
#ifndef KVF_CPU_WEIGHTS_H
#define KVF_CPU_WEIGHTS_H

#include "cpu.h"

/* Output o of the matrix is column o % 16 of panel o / 16. */
typedef struct cpu_matrix {
    uint32_t n, k;
    uint32_t n_panel;
    size_t panel_bytes;
    uint8_t *data;
} cpu_matrix;

typedef struct cpu_layer {
    cpu_matrix qkv;      /* outputs: query heads, key heads, value heads */
    cpu_matrix o;
    cpu_matrix *gate_up; /* [experts or 1], outputs: gate, then up */
    cpu_matrix *down;    /* [experts or 1] */
    cpu_matrix router;
    float *attn_norm, *mlp_norm, *qkv_bias, *o_bias, *q_norm, *k_norm; /* NULL where the model has none */
} cpu_layer;

typedef struct cpu_weights {
    cpu_matrix embed;  /* outputs: vocabulary; rows are read one by one as embeddings, and as the output when tied */
    cpu_matrix output; /* data NULL when tied */
    float *final_norm;
    cpu_layer *layer;
    double bytes;
} cpu_weights;

static inline const cpu_matrix *cpu_output_matrix(const cpu_weights *w) {
    return w->output.data != NULL ? &w->output : &w->embed;
}

static inline uint32_t cpu_padded(uint32_t n) { return (n + CPU_PANEL - 1) / CPU_PANEL * CPU_PANEL; }

/* Row `row` of a packed matrix as f32 [k]. */
void cpu_matrix_row(const cpu_matrix *m, uint32_t dtype, uint32_t row, float *out);

#endif
