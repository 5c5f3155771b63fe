#pragma once

// The kernels that were built: key -> launcher.

#include <cuda_runtime_api.h>

#include <span>

#include "sm90/backward/args.h"
#include "sm90/forward/args.h"
#include "sm90/plan.h"

namespace fa2::sm90 {

struct FwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  void (*launch)(FwdArgs const&, int grid, cudaStream_t);
};

// The main backward kernel.
struct BwdInstance {
  BwdKey key;
  int32_t smem_bytes;
  void (*launch)(BwdArgs const&, int grid, cudaStream_t);  // a CTA for each key block
};

// The end of dQ (backward/rows.h).
struct BwdRowsInstance {
  DType dtype;
  void (*grad_q)(BwdArgs const&, int grid, cudaStream_t);  // a CTA for each query tile
};

// All that were built of one type: specialisations that csrc/instances.cmake generates.
template <class Instance>
std::span<Instance const* const> instances();
template <>
std::span<FwdInstance const* const> instances();
template <>
std::span<BwdInstance const* const> instances();
template <>
std::span<BwdRowsInstance const* const> instances();

// Throw Error that says what was asked for and what is built.
FwdInstance const& find_forward(KernelKey const& key);
BwdInstance const& find_backward(BwdKey const& key);
BwdRowsInstance const& find_backward_rows(DType dtype);

}  // namespace fa2::sm90
