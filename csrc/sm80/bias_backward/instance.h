#pragma once

// From the main kernel to an entry of the registry. Included by the generated instances only.

#include "sm80/bias_backward/kernel.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr BiasBwdInstance bias_bwd_instance() {
  using Kernel = BiasBwdKernel<Element>;
  return {kDType, Kernel::kSmemBytes, &launch<Kernel>};
}

}  // namespace fa2::sm80
