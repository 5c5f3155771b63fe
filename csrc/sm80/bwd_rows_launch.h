#pragma once

// As bwd_launch.h, of the kernels that go over queries.

#include "sm80/bwd_rows.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    bwd_rows_entry(__grid_constant__ BwdArgs const args) {
  extern __shared__ __align__(128) char smem[];
  Kernel{}(args, smem);
}

template <class Kernel>
void launch_bwd_rows(BwdArgs const& args, int grid, cudaStream_t stream) {
  launch(&bwd_rows_entry<Kernel>, args, grid, Kernel::kThreads, Kernel::kSmemBytes, stream);
}

template <class Element, DType kDType>
constexpr BwdRowsInstance bwd_rows_instance() {
  return {kDType, &launch_bwd_rows<RowStatsKernel<Element>>, &launch_bwd_rows<GradQKernel<Element>>,
          &launch_bwd_rows<GradSinkKernel>};
}

}  // namespace fa2::sm80
