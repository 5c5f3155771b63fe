#pragma once

#include "core/params.h"

namespace fa2 {

// A forward problem as it was called. What is said of the call beside the problem chooses between
// families: kernels know nothing of it.
struct FwdCall : FwdParams {
  bool over_cache = false;  // by an entry point for KV caches: not that for packed sequences, whose
                            // keys may lie in pages, too
};

}  // namespace fa2
