#pragma once

// As bwd_launch.h, of the kernels that go over queries.

#include "sm80/backward/rows.h"
#include "sm80/backward/sum_pieces.h"
#include "sm80/launch.h"
#include "sm80/lists/columns.h"
#include "sm80/lists/order.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Element, DType kDType>
constexpr BwdRowsInstance bwd_rows_instance() {
  return {kDType,
          &launch<RowStatsKernel<Element>>,
          &launch<GradQKernel<Element>>,
          &launch<GradSinkKernel>,
          &launch<MaskRowsKernel>,
          &launch<MaskColumnsKernel<false>>,
          &launch<MaskColumnsKernel<true>>,
          &launch<WorkOrderKernel<BwdArgs>>,
          &launch<SumColumnsKernel<Element>>};
}

}  // namespace fa2::sm80
