#pragma once

// Launches of kernels that are classes: Kernel{}(args, smem), with Args, kThreads and kSmemBytes.
// A CTA has a multiprocessor to itself.

#include <cuda_runtime.h>

#include "host/shared_memory.h"

namespace fa2::sm90 {

// With FA2_HOST_ONLY kernels have no code: where that is compiled apart, the host's side of many of
// them compiles in no time.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    entry(__grid_constant__ typename Kernel::Args const args) {
#ifndef FA2_HOST_ONLY
  extern __shared__ __align__(1024) char smem[];
  Kernel{}(args, smem);
#endif
}

template <class Kernel>
void launch(typename Kernel::Args const& args, int grid, cudaStream_t stream) {
  static std::atomic<uint64_t> asked = 0;
  auto* const function = &entry<Kernel>;
  allow_smem(function, Kernel::kSmemBytes, asked);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = Kernel::kSmemBytes;
  config.stream = stream;
  FA2_CUDA_CHECK(cudaLaunchKernelEx(&config, function, args));
}

}  // namespace fa2::sm90
