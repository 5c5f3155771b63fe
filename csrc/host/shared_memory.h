#pragma once

// What a kernel may take of shared memory.

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "host/error.h"

namespace fa2 {

inline constexpr int kSmemWithoutAsking = 48 * 1024;

// Lets a kernel take more, once for each device: to ask costs more than to launch. `asked`, a bit
// for each device, is the kernel's own.
template <class Function>
void allow_smem(Function* kernel, int bytes, std::atomic<uint64_t>& asked) {
  int device = 0;
  FA2_CUDA_CHECK(cudaGetDevice(&device));
  uint64_t const bit = device < 64 ? uint64_t{1} << device : 0;  // beyond, always anew
  if (asked.load(std::memory_order_relaxed) & bit) return;
  FA2_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  asked.fetch_or(bit, std::memory_order_relaxed);  // two threads may both have asked
}

}  // namespace fa2
