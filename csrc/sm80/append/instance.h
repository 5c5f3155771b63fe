#pragma once

// From the append kernel to an entry of the registry. Included by the generated instances only.

#include <cute/numeric/numeric_types.hpp>

#include "sm80/append/kernel.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr AppendInstance append_instance() {
  return {kDType, &launch<AppendKernel<Element>>};
}

}  // namespace fa2::sm80
