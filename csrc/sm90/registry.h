#pragma once

// The kernels that were built: key -> launcher.

#include <cuda_runtime_api.h>

#include <span>

#include "sm90/forward/args.h"
#include "sm90/plan.h"

namespace fa2::sm90 {

struct FwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  void (*launch)(FwdArgs const&, int grid, cudaStream_t);
};

// All that were built of one type: specialisations that csrc/instances.cmake generates.
template <class Instance>
std::span<Instance const* const> instances();
template <>
std::span<FwdInstance const* const> instances();

// Throws Error that says what was asked for and what is built.
FwdInstance const& find_forward(KernelKey const& key);

}  // namespace fa2::sm90
