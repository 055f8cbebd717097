/* Kernels for packed pages; a part of ops_impl.h, included by it. The layout is that of core/packed.h. */

typedef uint64_t vq __attribute__((vector_size(4 * L)));

/* The lanes of a run as vectors: shift counts by bits, for code i at lane i. */
static const uint32_t SHIFT_1[KV_RUN] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint32_t SHIFT_2[KV_RUN] = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
static const uint32_t SHIFT_4[KV_RUN] = {0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28};

static inline vu load_u(const uint32_t *p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Codes of one run, as integers. bits is a constant at each call. */
static inline __attribute__((always_inline)) void run_codes(vu *out, const uint8_t *p, const uint32_t bits) {
    if (bits == 8) {
        for (uint32_t v = 0; v < PV; v++) {
#ifdef OPS_LOAD_U8
            out[v] = (vu)OPS_LOAD_U8(p + v * L);
#else
            uint32_t x[L];
            for (uint32_t i = 0; i < L; i++) x[i] = p[v * L + i];
            out[v] = load_u(x);
#endif
        }
        return;
    }
    if (bits == 4) { /* two words side by side in every pair of lanes */
        uint64_t w;
        memcpy(&w, p, sizeof w);
        const vq both = w - (vq){0};
        for (uint32_t v = 0; v < PV; v++) out[v] = ((vu)both >> load_u(SHIFT_4 + v * L)) & 15u;
        return;
    }
    uint32_t w;
    memcpy(&w, p, sizeof w);
    for (uint32_t v = 0; v < PV; v++) out[v] = ((w - (vu){0}) >> load_u(SHIFT_2 + v * L)) & 3u;
    if (bits == 2) return;
    uint16_t h;
    memcpy(&h, p + 4, sizeof h);
    for (uint32_t v = 0; v < PV; v++) out[v] |= ((((uint32_t)h - (vu){0}) >> load_u(SHIFT_1 + v * L)) & 1u) << 2;
}

/* Up to 16 levels, looked up by code. */
static inline vf look_up(const float *levels, vu code) {
#if OPS_LANES == 16 && !defined(__clang__)
    return __builtin_shuffle(load(levels), (vi)code);
#elif OPS_LANES == 8 && !defined(__clang__)
    return __builtin_shuffle(load(levels), load(levels + L), (vi)code);
#else
    vf x;
    for (uint32_t i = 0; i < L; i++) x[i] = levels[code[i]];
    return x;
#endif
}

static inline void half_to_f32(float *out, const uint8_t *data, uint32_t n) {
    uint32_t i = 0;
#ifdef OPS_LOAD_F16
    for (; i + L <= n; i += L) store(out + i, (vf)OPS_LOAD_F16(data + 2 * i));
#endif
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, data + 2 * i, sizeof h);
        out[i] = OPS_FROM_F16(h);
    }
}

/* offset + scale * level of a run. */
static inline __attribute__((always_inline)) void run_values(float *out, const uint8_t *codes, const float *levels, vf *offset,
                                                             vf *scale, const uint32_t bits, const bool fitted) {
    vu code[PV];
    run_codes(code, codes, bits);
    for (uint32_t v = 0; v < PV; v++) {
        const vf level = fitted ? look_up(levels, code[v]) : __builtin_convertvector((vi)code[v], vf);
        store(out + v * L, offset[v] + scale[v] * level);
    }
}

/* Scales of a part: 512 where they belong to lines, 16 groups of 32 or 256 where they belong to lanes. */
#define PARAM_CAP 512

static inline __attribute__((always_inline)) void unpack_part(float *tile, const kv_part *p, const uint8_t *page,
                                                              const float *levels, const uint32_t bits, const bool fitted) {
    float offsets[PARAM_CAP], scales[PARAM_CAP];
    half_to_f32(offsets, page + p->offsets, p->n_param);
    half_to_f32(scales, page + p->scales, p->n_param);
    const uint8_t *codes = page + p->codes;
    const uint32_t n_run = p->ld / KV_RUN, group_runs = p->by_line ? (p->group + KV_RUN - 1) / KV_RUN : n_run;
    const float *o = offsets, *s = scales;
    uint32_t left = p->group; /* lines until the next group of lines */
    for (uint32_t line = 0; line < p->n_line; line++) {
        if (p->by_line) {
            for (uint32_t first = 0; first < n_run; first += group_runs, o++, s++) {
                vf offset[PV], scale[PV];
                for (uint32_t v = 0; v < PV; v++) offset[v] = splat(*o), scale[v] = splat(*s);
                const uint32_t end = n_run - first < group_runs ? n_run : first + group_runs;
                for (uint32_t r = first; r < end; r++, codes += 2 * bits, tile += KV_RUN) {
                    run_values(tile, codes, levels, offset, scale, bits, fitted);
                }
            }
            continue;
        }
        for (uint32_t r = 0; r < n_run; r++, codes += 2 * bits, tile += KV_RUN) {
            vf offset[PV], scale[PV];
            for (uint32_t v = 0; v < PV; v++) {
                offset[v] = load(o + r * KV_RUN + v * L);
                scale[v] = load(s + r * KV_RUN + v * L);
            }
            run_values(tile, codes, levels, offset, scale, bits, fitted);
        }
        if (--left == 0) {
            left = p->group;
            o += p->ld;
            s += p->ld;
        }
    }
}

/* tile += a . b: the low-rank correction. a: [rank][n_line], b: [rank][ld], both f32. Two ranks at a time. */
static void add_low_rank(float *tile, const kv_part *p, const float *a, const float *b) {
    for (uint32_t r = 0; r < p->rank; r += 2) {
        const float *a0 = a + (size_t)r * p->n_line, *b0 = b + (size_t)r * p->ld;
        const bool two = r + 1 < p->rank;
        const float *a1 = two ? a0 + p->n_line : a0, *b1 = two ? b0 + p->ld : b0;
        for (uint32_t line = 0; line < p->n_line; line++) {
            const vf x = splat(a0[line]), y = splat(two ? a1[line] : 0);
            float *to = tile + (size_t)line * p->ld;
            for (uint32_t j = 0; j < p->ld; j += L) store(to + j, load(to + j) + x * load(b0 + j) + y * load(b1 + j));
        }
    }
}

static void unpack_tile(float *tile, const kv_part *p, const uint8_t *page, const uint8_t *frame) {
    float levels[16] = {0};
    if (p->fitted) {
        memcpy(levels, frame + p->levels, (1u << p->bits) * sizeof *levels);
        if (p->bits == 2) unpack_part(tile, p, page, levels, 2, true);
        if (p->bits == 3) unpack_part(tile, p, page, levels, 3, true);
        if (p->bits == 4) unpack_part(tile, p, page, levels, 4, true);
    } else {
        if (p->bits == 2) unpack_part(tile, p, page, levels, 2, false);
        if (p->bits == 3) unpack_part(tile, p, page, levels, 3, false);
        if (p->bits == 4) unpack_part(tile, p, page, levels, 4, false);
        if (p->bits == 8) unpack_part(tile, p, page, levels, 8, false);
    }
    if (p->rank == 0) return;
    /* left is [rank][slot]; the channels' side is the frame's basis */
    float left[32 * KVF_PAGE_ROWS], padded[32 * 256];
    const float *basis = (const float *)(const void *)(frame + p->basis);
    half_to_f32(left, page + p->left, p->rank * KVF_PAGE_ROWS);
    if (p->keys) {
        add_low_rank(tile, p, basis, left);
        return;
    }
    if (p->ld != p->n_lane) {
        memset(padded, 0, (size_t)p->rank * p->ld * sizeof *padded);
        for (uint32_t r = 0; r < p->rank; r++) memcpy(padded + r * p->ld, basis + r * p->n_lane, p->n_lane * sizeof *padded);
        basis = padded;
    }
    add_low_rank(tile, p, left, basis);
}

/*
 * Rotates the keys of a tile [head_dim][KVF_PAGE_ROWS] by their positions, or back. The angle of position 32 h + l is
 * that of 32 h plus that of l, so that two small tables do for all: low [2][half][32], high [h][2][half], cosines first.
 */
static void turn_tile(float *tile, const uint32_t *position, uint32_t half, const float *low, const float *high, bool back) {
    const uint32_t n = KVF_PAGE_ROWS;
    const float sign = back ? -1.0f : 1.0f;
    bool aligned = position[0] % n == 0;
    for (uint32_t j = 1; j < n; j++) aligned = aligned && position[j] == position[0] + j;
    for (uint32_t i = 0; i < half; i++) {
        float c[KVF_PAGE_ROWS], s[KVF_PAGE_ROWS];
        const float *low_c = low + (size_t)i * n, *low_s = low_c + (size_t)half * n;
        if (aligned) {
            const float *h = high + (size_t)(position[0] / n) * 2 * half;
            for (uint32_t j = 0; j < n; j++) {
                c[j] = h[i] * low_c[j] - h[half + i] * low_s[j];
                s[j] = h[half + i] * low_c[j] + h[i] * low_s[j];
            }
        } else {
            for (uint32_t j = 0; j < n; j++) {
                const float *h = high + (size_t)(position[j] / n) * 2 * half;
                const uint32_t l = position[j] % n;
                c[j] = h[i] * low_c[l] - h[half + i] * low_s[l];
                s[j] = h[half + i] * low_c[l] + h[i] * low_s[l];
            }
        }
        float *x = tile + (size_t)i * n, *y = tile + (size_t)(i + half) * n;
        for (uint32_t j = 0; j < n; j++) {
            const float a = x[j], b = y[j], t = sign * s[j];
            x[j] = a * c[j] - b * t;
            y[j] = b * c[j] + a * t;
        }
    }
}
