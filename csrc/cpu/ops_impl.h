/*
 * The kernels, written once with vectors of OPS_LANES floats. Each instruction set includes this file with its own flags
 * and OPS_NAME. A sum over k runs over k in ascending order with one fused multiply-add per element, whatever the tile.
 */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "convert.h"
#include "cpu.h"

#define L OPS_LANES
typedef float vf __attribute__((vector_size(4 * L)));
typedef int32_t vi __attribute__((vector_size(4 * L)));
typedef uint32_t vu __attribute__((vector_size(4 * L)));
/* Vectors of a 16-column panel. */
#define PV (CPU_PANEL / L)
/*
 * Rows and 16-column panels of a register tile, so that sums, weights and one factor fill the registers: 12 x 32 for
 * AVX-512, 6 x 16 for AVX2, 2 x 16 for SSE.
 */
#define TILE_ROWS (L == 16 ? 12 : L == 8 ? 6 : 2)
#define TILE_PANELS (L == 16 ? 2 : 1)
/* Columns k that stay in the first-level cache as unpacked panels. */
#define BLOCK_K 128
/* Rows of a that stay in the second-level cache while panels pass by. */
#define BLOCK_M 252

static inline vf load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf splat(float x) { return x - (vf){0}; }
static inline vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

/* A block of panels: row j of panel p at data + j * ld + p * next. */
typedef struct panels {
    const float *data;
    size_t ld, next;
} panels;

/*
 * c[m, 16 * n] = a[m, k] . b[k, 16 * n], or += where it is not `fresh`. m and n are constants at each call, so the tile
 * lives in registers.
 */
static inline __attribute__((always_inline)) void tile(float *c, size_t ld_c, const float *a, size_t ld_a, panels b,
                                                       const uint32_t m, const uint32_t n, uint32_t k, bool fresh) {
    vf acc[TILE_ROWS][TILE_PANELS * PV];
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t v = 0; v < n * PV; v++) acc[i][v] = fresh ? splat(0) : load(c + i * ld_c + v * L);
    }
    for (uint32_t j = 0; j < k; j++) {
        vf w[TILE_PANELS * PV];
        for (uint32_t v = 0; v < n * PV; v++) w[v] = load(b.data + v / PV * b.next + j * b.ld + v % PV * L);
        for (uint32_t i = 0; i < m; i++) {
            const vf x = splat(a[i * ld_a + j]);
            for (uint32_t v = 0; v < n * PV; v++) acc[i][v] += x * w[v];
        }
    }
    for (uint32_t i = 0; i < m; i++) {
        for (uint32_t v = 0; v < n * PV; v++) store(c + i * ld_c + v * L, acc[i][v]);
    }
}

static inline __attribute__((always_inline)) void tiles(float *c, size_t ld_c, const float *a, size_t ld_a, panels b,
                                                        uint32_t m, const uint32_t n, uint32_t k, bool fresh) {
    for (; m >= TILE_ROWS; m -= TILE_ROWS, c += TILE_ROWS * ld_c, a += TILE_ROWS * ld_a) {
        tile(c, ld_c, a, ld_a, b, TILE_ROWS, n, k, fresh);
    }
    for (; TILE_ROWS > 4 && m >= 4; m -= 4, c += 4 * ld_c, a += 4 * ld_a) tile(c, ld_c, a, ld_a, b, 4, n, k, fresh);
    if (TILE_ROWS > 2 && m >= 2) {
        tile(c, ld_c, a, ld_a, b, 2, n, k, fresh);
        m -= 2, c += 2 * ld_c, a += 2 * ld_a;
    }
    if (m == 1) tile(c, ld_c, a, ld_a, b, 1, n, k, fresh);
}

/* c[m, 16 * n] = or += a[m, k] . b[k, 16 * n] for any m and n up to TILE_PANELS. */
static void add_product(float *c, size_t ld_c, const float *a, size_t ld_a, panels b, uint32_t m, uint32_t n, uint32_t k,
                        bool fresh) {
    if (n == TILE_PANELS) {
        tiles(c, ld_c, a, ld_a, b, m, TILE_PANELS, k, fresh);
    } else {
        tiles(c, ld_c, a, ld_a, b, m, 1, k, fresh);
    }
}

/* Columns [j, j + n) of one panel of 16 as f32 [n][16]; j and n are even for bf16. */
static inline void unpack(float *out, const void *panel, uint32_t dtype, uint32_t j, uint32_t n) {
    if (dtype == KVF_BF16) {
        const uint32_t *pair = (const uint32_t *)panel + (size_t)j / 2 * CPU_PANEL;
        for (uint32_t i = 0; i < n / 2; i++) {
            for (uint32_t v = 0; v < PV; v++) {
                vu x;
                memcpy(&x, pair + i * CPU_PANEL + v * L, sizeof x);
                store(out + (2 * i) * CPU_PANEL + v * L, (vf)(x << 16));
                store(out + (2 * i + 1) * CPU_PANEL + v * L, (vf)(x & 0xffff0000u));
            }
        }
    } else {
        const uint16_t *h = (const uint16_t *)panel + (size_t)j * CPU_PANEL;
        for (uint32_t i = 0; i < n * CPU_PANEL; i++) out[i] = OPS_FROM_F16(h[i]);
    }
}

static inline void product(float *c, size_t ld_c, const float *a, size_t ld_a, const void *w, size_t panel_bytes,
                           uint32_t m, uint32_t n_panel, uint32_t k, uint32_t dtype) {
    float block[TILE_PANELS][BLOCK_K * CPU_PANEL] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < m; i += BLOCK_M) {
        const uint32_t rows = m - i < BLOCK_M ? m - i : BLOCK_M;
        for (uint32_t j = 0; j < k; j += BLOCK_K) {
            const uint32_t depth = k - j < BLOCK_K ? k - j : BLOCK_K;
            for (uint32_t p = 0; p < n_panel; p += TILE_PANELS) {
                const uint32_t n = n_panel - p < TILE_PANELS ? n_panel - p : TILE_PANELS;
                const uint8_t *panel = (const uint8_t *)w + p * panel_bytes;
                panels b = {(const float *)(const void *)panel + (size_t)j * CPU_PANEL, CPU_PANEL, panel_bytes / sizeof(float)};
                if (dtype != KVF_F32) {
                    for (uint32_t t = 0; t < n; t++) unpack(block[t], panel + t * panel_bytes, dtype, j, depth);
                    b = (panels){block[0], CPU_PANEL, BLOCK_K * CPU_PANEL};
                }
                add_product(c + i * ld_c + (size_t)p * CPU_PANEL, ld_c, a + i * ld_a + j, ld_a, b, rows, n, depth, j == 0);
            }
        }
    }
}

/* One row against bf16 panels without a detour through memory: two panels at once, the same sums as product(). */
static void row_bf16(float *c, const float *a, const void *w, size_t panel_bytes, uint32_t n_panel, uint32_t k) {
    for (uint32_t p = 0; p < n_panel; p += 2) {
        const uint32_t two = n_panel - p > 1;
        const uint32_t *w0 = (const uint32_t *)(const void *)((const uint8_t *)w + p * panel_bytes);
        const uint32_t *w1 = two ? (const uint32_t *)(const void *)((const uint8_t *)w + (p + 1) * panel_bytes) : w0;
        vf acc[2 * PV];
        for (uint32_t v = 0; v < 2 * PV; v++) acc[v] = splat(0);
        for (uint32_t j = 0; j < k / 2; j++) {
            const vf x = splat(a[2 * j]), y = splat(a[2 * j + 1]);
            __builtin_prefetch(w0 + (j + 32) * CPU_PANEL);
            __builtin_prefetch(w1 + (j + 32) * CPU_PANEL);
            for (uint32_t v = 0; v < PV; v++) {
                vu u0, u1;
                memcpy(&u0, w0 + j * CPU_PANEL + v * L, sizeof u0);
                memcpy(&u1, w1 + j * CPU_PANEL + v * L, sizeof u1);
                acc[v] += x * (vf)(u0 << 16);
                acc[PV + v] += x * (vf)(u1 << 16);
                acc[v] += y * (vf)(u0 & 0xffff0000u);
                acc[PV + v] += y * (vf)(u1 & 0xffff0000u);
            }
        }
        for (uint32_t v = 0; v < (two ? 2 * PV : PV); v++) store(c + (size_t)p * CPU_PANEL + v * L, acc[v]);
    }
}

static void product_f32(float *c, size_t ld_c, const void *a, size_t ld_a, const void *w, size_t panel_bytes,
                        uint32_t m, uint32_t n_panel, uint32_t k) {
    product(c, ld_c, a, ld_a, w, panel_bytes, m, n_panel, k, KVF_F32);
}
static void product_f16(float *c, size_t ld_c, const void *a, size_t ld_a, const void *w, size_t panel_bytes,
                        uint32_t m, uint32_t n_panel, uint32_t k) {
    product(c, ld_c, a, ld_a, w, panel_bytes, m, n_panel, k, KVF_F16);
}
static void product_bf16(float *c, size_t ld_c, const void *a, size_t ld_a, const void *w, size_t panel_bytes,
                         uint32_t m, uint32_t n_panel, uint32_t k) {
    if (m <= 2) {
        for (uint32_t i = 0; i < m; i++) row_bf16(c + i * ld_c, (const float *)a + i * ld_a, w, panel_bytes, n_panel, k);
    } else {
        product(c, ld_c, a, ld_a, w, panel_bytes, m, n_panel, k, KVF_BF16);
    }
}

/* ---- Pages ---- */

/* n elements of a page as f32; the page itself where it is f32. */
static inline const float *page_f32(float *buffer, const void *data, size_t n, uint32_t dtype) {
    if (dtype == KVF_F32) return data;
    const uint16_t *h = data;
    if (dtype == KVF_BF16) {
        for (size_t i = 0; i < n; i++) buffer[i] = cpu_from_bf16(h[i]);
    } else {
        for (size_t i = 0; i < n; i++) buffer[i] = OPS_FROM_F16(h[i]);
    }
    return buffer;
}

static void tile_scores(float *s, size_t ld_s, const float *q, size_t ld_q, const float *keys, uint32_t m, uint32_t n_line) {
    for (uint32_t at = 0; at < KVF_PAGE_ROWS; at += TILE_PANELS * CPU_PANEL) {
        add_product(s + at, ld_s, q, ld_q, (panels){keys + at, KVF_PAGE_ROWS, CPU_PANEL}, m, TILE_PANELS, n_line, true);
    }
}

static inline void scores_of(float *s, size_t ld_s, const float *q, size_t ld_q, const void *page, uint32_t m,
                             uint32_t head_dim, uint32_t dtype) {
    float buffer[256 * KVF_PAGE_ROWS] __attribute__((aligned(64)));
    tile_scores(s, ld_s, q, ld_q, page_f32(buffer, page, (size_t)head_dim * KVF_PAGE_ROWS, dtype), m, head_dim);
}

static void tile_values(float *out, size_t ld_out, const float *p, size_t ld_p, const float *values, size_t ld, uint32_t m,
                        uint32_t n_row, uint32_t head_dim) {
    uint32_t d = 0;
    for (uint32_t n = TILE_PANELS; n > 0; n /= 2) {
        for (; d + n * CPU_PANEL <= head_dim; d += n * CPU_PANEL) {
            add_product(out + d, ld_out, p, ld_p, (panels){values + d, ld, CPU_PANEL}, m, n, n_row, false);
        }
    }
    for (; d < head_dim; d++) {
        for (uint32_t i = 0; i < m; i++) {
            float sum = out[i * ld_out + d];
            for (uint32_t j = 0; j < n_row; j++) sum += p[i * ld_p + j] * values[j * ld + d];
            out[i * ld_out + d] = sum;
        }
    }
}

static inline void values_of(float *out, size_t ld_out, const float *p, size_t ld_p, const void *page, uint32_t m,
                             uint32_t n_row, uint32_t head_dim, uint32_t dtype) {
    float buffer[256 * KVF_PAGE_ROWS] __attribute__((aligned(64)));
    const uint8_t *at = (const uint8_t *)page + cpu_page_values_offset(head_dim, dtype);
    const float *values = page_f32(buffer, at, (size_t)n_row * head_dim, dtype);
    tile_values(out, ld_out, p, ld_p, values, head_dim, m, n_row, head_dim);
}

static inline void read_values(float *out, const void *page, uint32_t n_row, uint32_t head_dim, uint32_t dtype) {
    const size_t n = (size_t)n_row * head_dim;
    const float *values = page_f32(out, (const uint8_t *)page + cpu_page_values_offset(head_dim, dtype), n, dtype);
    if (values != out) memcpy(out, values, n * sizeof *out);
}

#define PAGE_KERNELS(suffix, dtype)                                                                                     \
    static void scores_##suffix(float *s, size_t ld_s, const float *q, size_t ld_q, const void *page, uint32_t m,       \
                                uint32_t head_dim) {                                                                    \
        scores_of(s, ld_s, q, ld_q, page, m, head_dim, dtype);                                                          \
    }                                                                                                                   \
    static void values_##suffix(float *out, size_t ld_out, const float *p, size_t ld_p, const void *page, uint32_t m,   \
                                uint32_t n_row, uint32_t head_dim) {                                                    \
        values_of(out, ld_out, p, ld_p, page, m, n_row, head_dim, dtype);                                               \
    }                                                                                                                   \
    static void read_##suffix(float *out, const void *page, uint32_t n_row, uint32_t head_dim) {                        \
        read_values(out, page, n_row, head_dim, dtype);                                                                 \
    }
PAGE_KERNELS(f32, KVF_F32)
PAGE_KERNELS(f16, KVF_F16)
PAGE_KERNELS(bf16, KVF_BF16)

#include "packed_impl.h"

/* ---- Elementwise ---- */

/* The greater of two; b where one is NaN. */
static inline vf max_v(vf a, vf b) {
#if OPS_LANES == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif OPS_LANES == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return select(a > b, a, b);
#endif
}

/* The lesser of two; b where one is NaN. */
static inline vf min_v(vf a, vf b) {
#if OPS_LANES == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif OPS_LANES == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return select(a < b, a, b);
#endif
}

/* exp(r) for |r| <= ln(2) / 2. */
static inline vf exp_rest(vf r) {
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}

/* exp(x) to about 1e-7 relative; 0 below -87.3, where f32 leaves its normal range, and for -inf. NaN stays NaN. */
static inline vf exp_v(vf x) {
    const vf low = splat(-87.3f), high = splat(88.0f);
#if OPS_LANES == 16
    const __mmask16 live = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
    x = (vf)_mm512_min_ps((__m512)high, (__m512)x);
    const vf n = (vf)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    return (vf)_mm512_maskz_scalef_ps(live, (__m512)exp_rest(r), (__m512)n);
#else
    const vi under = x < low;
    x = select(x > high, high, x);
    x = select(under, low, x);
    const vf magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf n = (x * 1.44269504f + magic) - magic;
    const vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    return select(under, splat(0), exp_rest(r) * (vf)bits);
#endif
}

static float sum_lanes(vf v) {
    float s = 0;
    for (uint32_t i = 0; i < L; i++) s += v[i];
    return s;
}

static float exp_sum(float *x, size_t n, float scale, float shift) {
    vf total = splat(0);
    size_t i = 0;
    for (; i + L <= n; i += L) {
        const vf e = exp_v(load(x + i) * scale - shift);
        store(x + i, e);
        total += e;
    }
    if (i < n) {
        float rest[L];
        for (uint32_t k = 0; k < L; k++) rest[k] = i + k < n ? x[i + k] : -INFINITY;
        vf e = exp_v(load(rest) * splat(scale) - shift);
        for (uint32_t k = 0; k < L; k++) e[k] = i + k < n ? e[k] : 0;
        for (uint32_t k = 0; i + k < n; k++) x[i + k] = e[k];
        total += e;
    }
    return sum_lanes(total);
}

static float max_of(const float *x, size_t n) {
    float max = -INFINITY;
    vf m = splat(-INFINITY);
    size_t i = 0;
    for (; i + L <= n; i += L) {
        m = max_v(load(x + i), m);
    }
    for (uint32_t k = 0; k < L; k++) max = m[k] > max ? m[k] : max;
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static void axpy(float *y, float a, const float *x, size_t n) {
    size_t i = 0;
    for (; i + L <= n; i += L) store(y + i, load(y + i) + load(x + i) * a);
    for (; i < n; i++) y[i] += x[i] * a;
}

static void blend(float *y, float a, const float *x, float b, size_t n) {
    size_t i = 0;
    for (; i + L <= n; i += L) store(y + i, load(y + i) * a + load(x + i) * b);
    for (; i < n; i++) y[i] = y[i] * a + x[i] * b;
}

static void times(float *out, size_t ld_out, const float *x, size_t ld_x, const float *by, uint32_t m, size_t n) {
    size_t i = 0;
    for (; i + L <= n; i += L) {
        const vf factor = load(by + i);
        for (uint32_t r = 0; r < m; r++) store(out + r * ld_out + i, load(x + r * ld_x + i) * factor);
    }
    for (; i < n; i++) {
        for (uint32_t r = 0; r < m; r++) out[r * ld_out + i] = x[r * ld_x + i] * by[i];
    }
}

static void negate_reduced(float *out, const float *x, size_t ld, uint32_t m, uint32_t reduce, size_t n) {
    size_t i = 0;
    for (; i + L <= n; i += L) {
        vf v = load(x + i);
        for (uint32_t r = 1; r < m; r++) {
            const vf u = load(x + r * ld + i);
            v = reduce == KVF_MAX ? select(u > v, u, v) : v + u;
        }
        if (reduce == KVF_MEAN) v = v / splat((float)m);
        store(out + i, select(v == v, -v, splat(INFINITY)));
    }
    for (; i < n; i++) {
        float v = x[i];
        for (uint32_t r = 1; r < m; r++) {
            const float u = x[r * ld + i];
            v = reduce == KVF_MAX ? (u > v ? u : v) : v + u;
        }
        if (reduce == KVF_MEAN) v = v / (float)m;
        out[i] = v == v ? -v : INFINITY;
    }
}

/* log(x) to about 1e-7 relative, for positive normal x. */
static inline vf log_v(vf x) {
    vu bits;
    memcpy(&bits, &x, sizeof bits);
    const vu above = bits - 0x3f3504f3u; /* sqrt(1/2): the mantissa lies between it and sqrt(2) */
    const vf e = __builtin_convertvector((vi)above >> 23, vf);
    const vu mantissa = (above & 0x007fffffu) + 0x3f3504f3u;
    vf m;
    memcpy(&m, &mantissa, sizeof m);
    m = m - 1.0f;
    vf p = splat(7.0376836292e-2f);
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const vf square = m * m;
    vf y = m * square * p + e * -2.12194440e-4f;
    y = y - square * 0.5f;
    return m + y + e * 0.693359375f;
}

/* kv_draw_bits' bits as a number of at most 1. */
static inline vf uniform_v(vu position, const uint32_t keys[2]) {
    vu h = position * 0x9e3779b9u + keys[0];
    for (uint32_t i = 0; i < 2; i++) {
        h = (h ^ (h >> 16)) * 0x85ebca6bu;
        h = (h ^ (h >> 13)) * 0xc2b2ae35u;
        h = (h ^ (h >> 16)) ^ keys[1];
    }
    /* bits + 0.5 needs 25 bits, so that the highest ones round to 1 */
    return (__builtin_convertvector((vi)(h >> 8), vf) + 0.5f) * 0x1p-24f;
}

/* What the draw speaks for eviction. */
static inline vf drawn_v(vf uniform) {
    const vf limit = splat(1.0f - 0x1p-24f);
    return log_v(-log_v(select(uniform > limit, limit, uniform)));
}

/* No less than drawn_v, and not much more: log2 lies above the chord between two powers of 2, log below its tangents. */
static inline vf drawn_most_v(vf uniform) {
    vu bits;
    memcpy(&bits, &uniform, sizeof bits);
    /* -log(uniform) is at most 127 log(2) - slope * x */
    const vf x = __builtin_convertvector((vi)bits, vf);
    const float slope = 8.2629583e-8f, most = 88.02969f, room = 1e-4f;
    const vf a = x * -slope + (most - 1.0f + room);
    const vf b = x * (-slope / 3) + (most / 3 + 0.0986123f + room);
    const vf c = x * (-slope / 8) + (most / 8 + 1.0794416f + room);
    return min_v(min_v(a, b), c);
}

/* What speaks for evicting rows, but for draws: minus the reduced statistic, or the position. */
static inline vf against_v(const float *stat, size_t ld, uint32_t m, vu position, const cpu_weighing *how) {
    if (stat == NULL) return -__builtin_convertvector((vi)position, vf);
    vf v = load(stat);
    for (uint32_t r = 1; r < m; r++) {
        const vf u = load(stat + r * ld);
        v = how->reduce == KVF_MAX ? select(u > v, u, v) : v + u;
    }
    if (how->reduce == KVF_MEAN) v = v / splat((float)m);
    return select(v == v, -v, splat(INFINITY));
}

static inline vf warmed_v(vf v, const cpu_weighing *how) { return how->inverse > 0 ? v * how->inverse : splat(0); }

static inline vi stays_v(vu position, uint32_t slot, uint32_t n, const cpu_weighing *how) {
    vi lane;
    for (uint32_t k = 0; k < L; k++) lane[k] = (int32_t)k;
    return (vi)(position < how->first) | (vi)(position >= how->end) | (lane + (int32_t)slot >= (int32_t)n);
}

static void weigh_page(float *x, const float *stat, size_t ld, uint32_t m, const uint32_t *position, uint32_t n,
                       const cpu_weighing *how) {
    for (uint32_t i = 0; i < KVF_PAGE_ROWS; i += L) {
        vu p;
        memcpy(&p, position + i, sizeof p);
        vf v = against_v(stat == NULL ? NULL : stat + i, ld, m, p, how);
        if (how->draw) v = warmed_v(v, how) + drawn_v(uniform_v(p, how->keys));
        store(x + i, select(stays_v(p, i, n, how), splat(-INFINITY), v));
    }
}

static inline bool any_v(vi mask) {
#if OPS_LANES == 16
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif OPS_LANES == 8
    return _mm256_movemask_ps((__m256)mask) != 0;
#else
    int32_t any = 0;
    for (uint32_t k = 0; k < L; k++) any |= mask[k];
    return any != 0;
#endif
}

static inline float highest_lane(vf v) {
    float max = v[0];
    for (uint32_t k = 1; k < L; k++) max = v[k] > max ? v[k] : max;
    return max;
}

static void weigh_first(cpu_first *first, float *stat, size_t ld, uint32_t m, const cpu_added *added,
                        const uint32_t *const *position, uint32_t row, uint32_t n, const cpu_weighing *weighing) {
    /* copies, as stores might change what pointers lead to */
    const cpu_weighing copy = *weighing, *how = &copy;
    const cpu_added add = added != NULL ? *added : (cpu_added){0};
    float factor[8];
    for (uint32_t r = 0; added != NULL && r < m && r < 8; r++) factor[r] = add.factor[r];
    vf best = load(first->x);
    vi best_position, best_row, lane;
    memcpy(&best_position, first->position, sizeof best_position);
    memcpy(&best_row, first->row, sizeof best_row);
    for (uint32_t k = 0; k < L; k++) lane[k] = (int32_t)(row + k);
    float bound = highest_lane(best);
    for (uint32_t i = 0; i < n; i += L) {
        vu p;
        memcpy(&p, position[i / KVF_PAGE_ROWS] + i % KVF_PAGE_ROWS, sizeof p);
        for (uint32_t r = 0; added != NULL && r < m; r++) {
            float *to = stat + r * ld + i;
            if (add.ahead != NULL) __builtin_prefetch(add.ahead + r * ld + i, 1);
            store(to, load(to) * add.decay + load(add.prob + r * add.ld + i) * (r < 8 ? factor[r] : add.factor[r]));
        }
        vf v = against_v(stat == NULL ? NULL : stat + i, ld, m, p, how);
        const vi stays = stays_v(p, i, n, how);
        if (how->draw) { /* logarithms only where the draw may decide */
            v = warmed_v(v, how);
            const vf u = uniform_v(p, how->keys);
            const vi below = (vi)(v * (1 - 1e-6f) + drawn_most_v(u) < bound); /* v is never above 0, but for infinity */
            if (!any_v(~(below | stays))) continue;
            v = v + drawn_v(u);
        }
        const vi better = ((vi)(v > best) | ((vi)(v == best) & ((vi)p > best_position))) & ~stays;
        best = select(better, v, best);
        best_position = (better & (vi)p) | (~better & best_position);
        best_row = (better & (lane + (int32_t)i)) | (~better & best_row);
        if (how->draw) bound = highest_lane(best);
    }
    store(first->x, best);
    memcpy(first->position, &best_position, sizeof best_position);
    memcpy(first->row, &best_row, sizeof best_row);
}

static void rms_norm(float *out, const float *x, const float *weight, uint32_t n, float eps) {
    vf sum = splat(0);
    uint32_t i = 0;
    for (; i + L <= n; i += L) sum += load(x + i) * load(x + i);
    float total = sum_lanes(sum);
    for (; i < n; i++) total += x[i] * x[i];
    const float scale = 1.0f / sqrtf(total / (float)n + eps);
    for (i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

static void swiglu(float *out, const float *gate, const float *up, uint32_t n) {
    uint32_t i = 0;
    for (; i + L <= n; i += L) {
        const vf g = load(gate + i);
        store(out + i, g / (exp_v(-g) + 1.0f) * load(up + i));
    }
    for (; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

const cpu_ops *OPS_NAME(void) {
    static const cpu_ops ops = {
        .level = OPS_LEVEL,
        .panel_product = {product_f32, product_f16, product_bf16},
        .page_scores = {scores_f32, scores_f16, scores_bf16},
        .page_values = {values_f32, values_f16, values_bf16},
        .tile_scores = tile_scores,
        .tile_values = tile_values,
        .unpack_tile = unpack_tile,
        .turn_tile = turn_tile,
        .read_values = {read_f32, read_f16, read_bf16},
        .rms_norm = rms_norm,
        .swiglu = swiglu,
        .axpy = axpy,
        .max = max_of,
        .blend = blend,
        .times = times,
        .negate_reduced = negate_reduced,
        .weigh_page = weigh_page,
        .weigh_first = weigh_first,
        .exp_sum = exp_sum,
    };
    return &ops;
}
