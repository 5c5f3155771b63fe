#pragma once

// Force-included (-include) before a CUDA source that the host compiler builds for the emulator.
// The source itself knows nothing of it.

#ifdef __CUDACC__
#error "the emulator is for the plain host compiler"
#endif

// The runtime's own template packs type-erased pointers; the emulator needs the types.
#define cudaLaunchKernelEx cudaLaunchKernelEx_of_the_runtime
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx

#include "emu/cuda_api.h"
#include "emu/cuda_builtins.h"
#include "emu/cute_ops.h"
#include "emu/dynamic_shared.h"
