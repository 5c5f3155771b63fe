#pragma once

// Launches of kernels that are classes: Kernel{}(args, smem), with Args, kThreads, kCtasPerSm and
// kSmemBytes.

#include <cuda_runtime.h>

#include "host/shared_memory.h"

namespace fa2::sm80 {

// With FA2_HOST_ONLY kernels have no code: where that is compiled apart, the host's side of many of
// them compiles in no time.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kCtasPerSm)
    entry(__grid_constant__ typename Kernel::Args const args) {
#ifndef FA2_HOST_ONLY
  extern __shared__ __align__(128) char smem[];
  Kernel{}(args, smem);
#endif
}

template <class Kernel>
void launch(typename Kernel::Args const& args, int grid, cudaStream_t stream) {
  constexpr int kSmemBytes = Kernel::kSmemBytes;
  auto* const function = &entry<Kernel>;
  if constexpr (kSmemBytes > kSmemWithoutAsking) {
    static std::atomic<uint64_t> asked = 0;
    allow_smem(function, kSmemBytes, asked);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = kSmemBytes;
  config.stream = stream;
  FA2_CUDA_CHECK(cudaLaunchKernelEx(&config, function, args));
}

}  // namespace fa2::sm80
