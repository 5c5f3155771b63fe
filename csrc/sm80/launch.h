#pragma once

// Launches of kernels that are classes: Kernel{}(args, smem).

#include <cuda_runtime.h>

#include "host/error.h"

namespace fa2::sm80 {

template <class Args>
void launch(void (*entry)(Args), Args const& args, int grid, int threads, int smem_bytes,
            cudaStream_t stream) {
  if (smem_bytes > 48 * 1024) {  // what a kernel may have without asking
    FA2_CUDA_CHECK(
        cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = smem_bytes;
  config.stream = stream;
  FA2_CUDA_CHECK(cudaLaunchKernelEx(&config, entry, args));
}

}  // namespace fa2::sm80
