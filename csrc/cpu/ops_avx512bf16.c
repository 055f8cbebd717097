/*
 * Products of BF16 weights with VDPBF16PS: rows are rounded to BF16 once, and each instruction adds two products to each
 * of sixteen sums. Everything else is AVX-512's.
 */
#if defined(__x86_64__)
#include <immintrin.h>

#include "convert.h"
#include "cpu.h"

/* Rows of a register tile: 12 * 2 panels of sums, two of weights, one pair of factors. */
#define TILE_ROWS 12
#define TILE_PANELS 2
/* Pairs of columns k whose panels stay in the first-level cache. */
#define BLOCK_PAIRS 128

/* out[m, ceil(k / 2)] pairs of BF16, in words, the first of each pair in the low half; an odd k is padded with 0. */
static void round_rows(uint32_t *out, size_t ld_out, const float *a, size_t ld_a, uint32_t m, uint32_t k) {
    for (uint32_t i = 0; i < m; i++, out += ld_out, a += ld_a) {
        uint32_t j = 0;
        for (; j + 32 <= k; j += 32) {
            const __m512bh pair = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(a + j + 16), _mm512_loadu_ps(a + j));
            _mm512_storeu_si512(out + j / 2, (__m512i)pair);
        }
        for (; j < k; j += 2) {
            const uint32_t high = j + 1 < k ? cpu_to_bf16(a[j + 1]) : 0;
            out[j / 2] = high << 16 | cpu_to_bf16(a[j]);
        }
    }
}

/* c[m, 16 * n] += a[m, 2 * pairs] . w; m and n are constants at each call, so the tile lives in registers. */
static inline __attribute__((always_inline)) void tile(float *c, size_t ld_c, const uint32_t *a, size_t ld_a,
                                                       const uint32_t *w, size_t next, const uint32_t m,
                                                       const uint32_t n, uint32_t pairs) {
    __m512 acc[TILE_ROWS][TILE_PANELS];
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t p = 0; p < n; p++) acc[i][p] = _mm512_loadu_ps(c + i * ld_c + p * CPU_PANEL);
    }
    for (uint32_t j = 0; j < pairs; j++) {
        __m512bh b[TILE_PANELS];
        for (uint32_t p = 0; p < n; p++) {
            const uint32_t *at = w + p * next + (size_t)j * CPU_PANEL;
            if (m == 1) _mm_prefetch((const char *)(at + 32 * CPU_PANEL), _MM_HINT_T0);
            b[p] = (__m512bh)_mm512_loadu_si512(at);
        }
        for (uint32_t i = 0; i < m; i++) {
            const __m512bh x = (__m512bh)_mm512_set1_epi32((int)a[i * ld_a + j]);
            for (uint32_t p = 0; p < n; p++) acc[i][p] = _mm512_dpbf16_ps(acc[i][p], x, b[p]);
        }
    }
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t p = 0; p < n; p++) _mm512_storeu_ps(c + i * ld_c + p * CPU_PANEL, acc[i][p]);
    }
}

static inline __attribute__((always_inline)) void tiles(float *c, size_t ld_c, const uint32_t *a, size_t ld_a,
                                                        const uint32_t *w, size_t next, uint32_t m, const uint32_t n,
                                                        uint32_t pairs) {
    for (; m >= TILE_ROWS; m -= TILE_ROWS, c += TILE_ROWS * ld_c, a += TILE_ROWS * ld_a) {
        tile(c, ld_c, a, ld_a, w, next, TILE_ROWS, n, pairs);
    }
    for (; m >= 4; m -= 4, c += 4 * ld_c, a += 4 * ld_a) tile(c, ld_c, a, ld_a, w, next, 4, n, pairs);
    for (; m > 0; m--, c += ld_c, a += ld_a) tile(c, ld_c, a, ld_a, w, next, 1, n, pairs);
}

/* The weights are read as they are packed, nothing is unpacked. */
static void product_bf16(float *c, size_t ld_c, const void *rows, size_t ld_a, const void *w, size_t panel_bytes,
                         uint32_t m, uint32_t n_panel, uint32_t k) {
    const uint32_t *a = rows;
    const uint32_t all = (k + 1) / 2;
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t j = 0; j < n_panel; j++) _mm512_storeu_ps(c + i * ld_c + j * CPU_PANEL, _mm512_setzero_ps());
    }
    for (uint32_t p = 0; p < n_panel; p += TILE_PANELS) {
        const size_t next = panel_bytes / sizeof(uint32_t);
        const uint32_t *panel = (const uint32_t *)w + p * next;
        float *out = c + (size_t)p * CPU_PANEL;
        for (uint32_t j = 0; j < all; j += BLOCK_PAIRS) {
            const uint32_t pairs = m == 1 ? all : all - j < BLOCK_PAIRS ? all - j : BLOCK_PAIRS;
            const uint32_t *b = panel + (size_t)j * CPU_PANEL;
            if (n_panel - p >= TILE_PANELS) {
                tiles(out, ld_c, a + j, ld_a, b, next, m, TILE_PANELS, pairs);
            } else {
                tiles(out, ld_c, a + j, ld_a, b, next, m, 1, pairs);
            }
            if (m == 1) break;
        }
    }
}

cpu_ops cpu_ops_avx512bf16(void) {
    cpu_ops ops = *cpu_ops_avx512();
    ops.level = 4;
    ops.panel_product[KVF_BF16] = product_bf16;
    ops.round_rows = round_rows;
    return ops;
}
#endif
