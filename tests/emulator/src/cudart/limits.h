#pragma once

// What the runtime API checks before a launch, and knows of the device.

#include <cuda_runtime.h>

#include "ptx/module.h"

namespace emu {

inline constexpr unsigned kMaxThreads = 1024;  // of a CTA

cudaError_t check_launch(cudaLaunchConfig_t const& config, ptx::Entry const& entry);

// Dynamic shared memory that a launch may ask for.
int dynamic_shared_limit(void const* kernel, uint32_t static_bytes);

int multiprocessors();
size_t shared_bytes_of_multiprocessor();

// Keeps a status other than success for cudaGetLastError; returns it.
cudaError_t remember_error(cudaError_t status);

}  // namespace emu
