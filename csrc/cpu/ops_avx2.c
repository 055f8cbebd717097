/* Kernels for AVX2 with FMA and F16C. */
#if defined(__x86_64__)
#include <immintrin.h>
#define OPS_LANES 8
#define OPS_LEVEL 2
#define OPS_NAME cpu_ops_avx2
#define OPS_FROM_F16 _cvtsh_ss
#define OPS_LOAD_U8(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p)))
#define OPS_LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#include "ops_impl.h"
#endif
