/* Kernels for AVX-512 (F, BW, VL, DQ). */
#if defined(__x86_64__)
#include <immintrin.h>
#define OPS_LANES 16
#define OPS_LEVEL 3
#define OPS_NAME cpu_ops_avx512
#define OPS_FROM_F16 _cvtsh_ss
#define OPS_LOAD_U8(p) _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define OPS_LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#include "ops_impl.h"
#endif
