#pragma once

// As instance.h, of the small kernels.

#include "sm80/bias_backward/rows.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr BiasRowsInstance bias_rows_instance() {
  return {kDType, &launch<BiasRowStatsKernel<Element>>, &launch<BiasSumKernel>};
}

}  // namespace fa2::sm80
