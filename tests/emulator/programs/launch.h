#pragma once

// Launches of the tests' kernels, and the schedules that they are run under.

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "test_frame.h"

namespace selftest {

inline constexpr emu::AsyncMode kAsyncModes[] = {emu::AsyncMode::kLate, emu::AsyncMode::kEarly,
                                                 emu::AsyncMode::kRandom};

inline emu::Options schedule(uint64_t seed, int ctas_in_flight, emu::AsyncMode async,
                             emu::Device device = emu::Device::kSm80) {
  return {.seed = seed, .async = async, .ctas_in_flight = ctas_in_flight, .device = device};
}

// Launches; the report of the emulator, or "" where all went well.
template <class... Params, class... Args>
std::string launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Params...),
                   Args&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  try {
    cudaError_t const status = cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
    return status == cudaSuccess ? "" : cudaGetErrorString(status);
  } catch (emu::Error const& error) {
    return error.what();
  }
}

}  // namespace selftest
