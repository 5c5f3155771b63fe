#pragma once

// Launches of translated kernels by name.

#include <cstdint>
#include <string>
#include <vector>

#include "../test_frame.h"
#include "emu/launch.h"

namespace selftest {

// The report of the emulator, or "" where all went well.
template <class... A>
std::string launch_kernel(char const* name, dim3 grid, dim3 block, size_t shared_bytes,
                          A... arguments) {
  void* addresses[] = {&arguments..., nullptr};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  try {
    cudaError_t const status = emu::launch(config, name, addresses);
    return status == cudaSuccess ? "" : cudaGetErrorString(status);
  } catch (emu::Error const& error) {
    return error.what();
  }
}

template <class T>
emu::ScopedBuffers writable(std::vector<T>& data, char const* name = "out") {
  return emu::ScopedBuffers{{data.data(), data.size() * sizeof(T), name, true}};
}

}  // namespace selftest
