/* Scalar conversions between f32, f16 and bf16, to nearest, ties to even. NaN stays NaN. */
#ifndef KVF_CPU_CONVERT_H
#define KVF_CPU_CONVERT_H

#include <stdint.h>
#include <string.h>

#include "../kvf.h"

static inline uint32_t cpu_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float cpu_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float cpu_from_bf16(uint16_t h) { return cpu_float((uint32_t)h << 16); }

static inline uint16_t cpu_to_bf16(float x) {
    const uint32_t u = cpu_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float cpu_from_f16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u;
    const uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) return cpu_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return cpu_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    /* subnormal: mantissa * 2^-24, exact and normal in f32 */
    const float x = (float)mantissa * 5.9604644775390625e-8f;
    return cpu_float(sign | cpu_bits(x));
}

static inline uint16_t cpu_to_f16(float x) {
    const uint32_t u = cpu_bits(x);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (a >= 0x38800000u) return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
    if (a <= 0x33000000u) return (uint16_t)sign; /* 2^-25 and below round to zero */
    const uint32_t shift = 126u - (a >> 23); /* 14 to 24 */
    const uint32_t m = (a & 0x7fffffu) | 0x800000u;
    const uint32_t half = 1u << (shift - 1);
    return (uint16_t)(sign | ((m + half - 1u + ((m >> shift) & 1u)) >> shift));
}

/* Element i of an array of `dtype`. */
static inline float cpu_get(const void *data, size_t i, uint32_t dtype) {
    if (dtype == KVF_F32) return ((const float *)data)[i];
    const uint16_t h = ((const uint16_t *)data)[i];
    return dtype == KVF_F16 ? cpu_from_f16(h) : cpu_from_bf16(h);
}

static inline void cpu_put(void *data, size_t i, uint32_t dtype, float x) {
    if (dtype == KVF_F32) {
        ((float *)data)[i] = x;
    } else {
        ((uint16_t *)data)[i] = dtype == KVF_F16 ? cpu_to_f16(x) : cpu_to_bf16(x);
    }
}

/* A number that orders as x does: NaN lowest, -0 equal to 0. */
static inline uint32_t cpu_order_key(float x) {
    const uint32_t u = cpu_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0;
    if (u == 0x80000000u) return 0x80000000u;
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

#endif
