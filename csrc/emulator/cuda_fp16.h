/* Half precision: conversions rounded to nearest even. */
#ifndef KVF_EMULATOR_FP16_H
#define KVF_EMULATOR_FP16_H

#include <stdint.h>
#include <string.h>

#include "cuda_runtime.h"

struct __half {
    uint16_t bits;
};
struct __half2 {
    __half x, y;
};

static inline float __half2float(__half h) {
    const uint32_t sign = (uint32_t)(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
    if (exponent == 0) {
        const float x = (float)mantissa * 0x1p-24f;
        return sign ? -x : x;
    }
    return __uint_as_float(exponent == 31 ? sign | 0x7f800000u | mantissa << 13
                                          : sign | (exponent + 112) << 23 | mantissa << 13);
}
static inline __half __float2half_rn(float x) {
    const uint32_t u = __float_as_uint(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return {0x7fff};
    if (a >= 0x477ff000u) return {(uint16_t)(sign | 0x7c00)};
    if (a < 0x38800000u) { /* subnormal: multiples of 2^-24, rounded by the addition */
        const float shifted = __uint_as_float(a) + 0.5f;
        return {(uint16_t)(sign | (__float_as_uint(shifted) - 0x3f000000u))};
    }
    const uint32_t rounded = a + 0xfff + (a >> 13 & 1);
    return {(uint16_t)(sign | (rounded - 0x38000000u) >> 13)};
}
static inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
static inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

#endif
