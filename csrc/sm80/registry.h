#pragma once

// The kernels that were built: key -> launcher.

#include <cuda_runtime_api.h>

#include "host/plan.h"
#include "sm80/bwd_args.h"
#include "sm80/cache_args.h"

namespace fa2::sm80 {

struct FwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  void (*launch)(FwdParams const&, FwdPlan const&, FwdPlan::Launch const&, cudaStream_t);
};

// The small kernels that a KV cache needs.
struct CacheInstance {
  DType dtype;
  void (*combine)(CombineArgs const&, int grid, cudaStream_t);
  void (*append)(AppendArgs const&, int grid, cudaStream_t);
};

// Launches a backward kernel with so many CTAs.
using BwdLaunch = void (*)(BwdArgs const&, int grid, cudaStream_t);

// The main backward kernel.
struct BwdInstance {
  KernelKey key;
  int32_t smem_bytes;
  BwdLaunch launch;  // a CTA for each key block
};

// The backward kernels that go over queries (bwd_rows.h).
struct BwdRowsInstance {
  DType dtype;
  BwdLaunch row_stats;  // a CTA for each query tile
  BwdLaunch grad_q;     // the same
  BwdLaunch grad_sink;  // a CTA for each head
};

// Throw Error that says what was asked for and what is built.
FwdInstance const& find_forward(KernelKey const& key);
CacheInstance const& find_cache(DType dtype);
BwdInstance const& find_backward(KernelKey const& key);
BwdRowsInstance const& find_backward_rows(DType dtype);

}  // namespace fa2::sm80
