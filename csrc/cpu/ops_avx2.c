/* Kernels for AVX2 with FMA and F16C. */
#if defined(__x86_64__)
#include <immintrin.h>
#define OPS_LANES 8
#define OPS_LEVEL 2
#define OPS_NAME cpu_ops_avx2
#define OPS_FROM_F16 _cvtsh_ss
#include "ops_impl.h"
#endif
