#pragma once

// Launches what derives the lists of a block mask by keys (lists/columns.h), for both families.

#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Plan>
void derive_mask_columns(BwdRowsInstance const& kernels, BwdArgs const& args, Plan const& plan,
                         cudaStream_t stream) {
  if (plan.mask_rows_grid > 0) kernels.mask_rows(args, plan.mask_rows_grid, stream);
  if (plan.mask_columns_grid == 0) return;
  kernels.count_columns(args, plan.mask_columns_grid, stream);
  kernels.fill_columns(args, plan.mask_columns_grid, stream);
}

}  // namespace fa2::sm80
