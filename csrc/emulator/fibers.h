/* Device threads as coroutines, and the barriers between those of one block. */
#ifndef KVF_EMULATOR_FIBERS_H
#define KVF_EMULATOR_FIBERS_H

#include "cuda_runtime.h"

namespace emulator {

/* Runs `body` for every thread of every block, blocks one after the other. Only one caller at a time. */
void run_grid(const work &body, dim3 grid, dim3 block, size_t shared_bytes, uint32_t seed);

}  // namespace emulator

#endif
