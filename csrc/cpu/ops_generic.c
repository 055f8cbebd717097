/* Kernels for any processor; the compiler turns the vectors into what there is. */
#define OPS_LANES 4
#define OPS_LEVEL 1
#define OPS_NAME cpu_ops_generic
#define OPS_FROM_F16 cpu_from_f16
#include "ops_impl.h"
