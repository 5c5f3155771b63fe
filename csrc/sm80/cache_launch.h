#pragma once

// As fwd_launch.h, of the small kernels that a KV cache needs.

#include "sm80/append_kernel.h"
#include "sm80/combine.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr CacheInstance cache_instance() {
  return {kDType, &launch<CombineKernel<Element>>, &launch<AppendKernel<Element>>};
}

}  // namespace fa2::sm80
