#pragma once

// The kernels that were built: key -> launcher.

#include <cuda_runtime_api.h>

#include "host/plan.h"

namespace fa2::sm80 {

struct FwdInstance {
  FwdKey key;
  int32_t smem_bytes;
  void (*launch)(FwdParams const&, FwdPlan const&, cudaStream_t);
};

// Throws Error that says what was asked for and what is built.
FwdInstance const& find(FwdKey const& key);

}  // namespace fa2::sm80
