#pragma once

// From the kernels that add up results to an entry of the registry. Included by the generated
// instances only.

#include "sm80/forward/sum_pieces.h"
#include "sm80/launch.h"
#include "sm80/lists/order.h"
#include "sm80/registry.h"
#include "sm80/split/combine.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr CombineInstance combine_instance() {
  return {kDType, &launch<CombineKernel<Element>>, &launch<WorkOrderKernel<RowPiecesArgs>>,
          &launch<SumPiecesKernel<Element>>};
}

}  // namespace fa2::sm80
