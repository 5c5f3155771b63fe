#pragma once

// The kernels that were built: key -> launcher.

#include <cuda_runtime_api.h>

#include <span>

#include "sm80/append/args.h"
#include "sm80/backward/args.h"
#include "sm80/bias_backward/args.h"
#include "sm80/forward/pieces.h"
#include "sm80/plan.h"
#include "sm80/split/partials.h"

namespace fa2::sm80 {

// Launches a kernel with so many CTAs.
template <class Args>
using Launcher = void (*)(Args const&, int grid, cudaStream_t);

// The forward and the split kernel.
struct FwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  void (*launch)(FwdParams const&, FwdPlan const&, FwdPlan::Launch const&, cudaStream_t);
};

struct CombineInstance {
  DType dtype;
  Launcher<CombineArgs> launch;  // a CTA for each query of each head
  // Under a block mask whose lists may be cut, before and after the forward kernel:
  Launcher<RowPiecesArgs> order_rows;  // a CTA for each unit (lists/pieces.h)
  Launcher<RowPiecesArgs> sum_rows;    // any number of CTAs
};

struct AppendInstance {
  DType dtype;
  Launcher<AppendArgs> launch;  // a CTA for each row of each sequence
};

// The main backward kernel.
struct BwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  Launcher<BwdArgs> launch;  // a CTA for each key block
};

// The backward kernels that go over queries (backward/rows.h).
struct BwdRowsInstance {
  DType dtype;
  Launcher<BwdArgs> row_stats;  // a CTA for each query tile
  Launcher<BwdArgs> grad_q;     // the same
  Launcher<BwdArgs> grad_sink;  // a CTA for each head
  // With a block mask (lists/columns.h), before all others:
  Launcher<BwdArgs> mask_rows;      // a CTA for kMaskRowsPerCta rows of the masks
  Launcher<BwdArgs> count_columns;  // a CTA for each group of key blocks
  Launcher<BwdArgs> fill_columns;   // the same
  // And where lists may be cut, before and after the main kernel:
  Launcher<BwdArgs> order_columns;  // a CTA for each unit (lists/pieces.h)
  Launcher<BwdArgs> sum_columns;    // any number of CTAs
};

// The kernel of the gradient of a bias, which takes any head dim.
struct BiasBwdInstance {
  DType dtype;
  int32_t smem_bytes;
  Launcher<BiasBwdArgs> launch;  // a CTA for each split of each unit
};

// The small kernels around it (bias_backward/rows.h).
struct BiasRowsInstance {
  DType dtype;
  Launcher<BiasBwdArgs> row_stats;  // a CTA for each block of queries
  Launcher<BiasBwdArgs> sum;        // a CTA for each unit or, by diagonals, band and one more
};

// All that were built of one type: specialisations that csrc/instances.cmake generates.
template <class Instance>
std::span<Instance const* const> instances();
template <>
std::span<FwdInstance const* const> instances();
template <>
std::span<CombineInstance const* const> instances();
template <>
std::span<AppendInstance const* const> instances();
template <>
std::span<BwdInstance const* const> instances();
template <>
std::span<BwdRowsInstance const* const> instances();
template <>
std::span<BiasBwdInstance const* const> instances();
template <>
std::span<BiasRowsInstance const* const> instances();

// Throw Error that says what was asked for and what is built.
FwdInstance const& find_forward(KernelKey const& key);
CombineInstance const& find_combine(DType dtype);
AppendInstance const& find_append(DType dtype);
BwdInstance const& find_backward(KernelKey const& key);
BwdRowsInstance const& find_backward_rows(DType dtype);
BiasBwdInstance const& find_bias_backward(DType dtype);
BiasRowsInstance const& find_bias_rows(DType dtype);

}  // namespace fa2::sm80
