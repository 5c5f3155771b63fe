#pragma once

#include "machine.h"

namespace emu {

// Runs the grid to its end. Returns what CUDA would for an impossible configuration; throws
// emu::Error when the kernel breaks a rule.
cudaError_t launch(cudaLaunchConfig_t const& config, Kernel const& kernel);

}  // namespace emu
