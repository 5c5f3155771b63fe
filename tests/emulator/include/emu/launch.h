#pragma once

// Launches without host code of nvcc's.

#include <cuda_runtime.h>

#include <string>

namespace emu {

// Runs the grid of an entry of translated PTX, by its mangled name, to its end; `arguments` are the
// addresses of what the entry takes. Returns what CUDA would for an impossible configuration;
// throws emu::Error when the kernel breaks a rule.
cudaError_t launch(cudaLaunchConfig_t const& config, std::string const& entry, void** arguments);

}  // namespace emu
