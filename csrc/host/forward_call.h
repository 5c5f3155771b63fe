#pragma once

#include "core/params.h"

namespace fa2 {

// A forward problem as it was called. What is said of the call beside the problem chooses between
// families: kernels know nothing of it.
struct FwdCall : FwdParams {
  bool over_cache = false;  // by an entry point that takes a KV cache
};

}  // namespace fa2
