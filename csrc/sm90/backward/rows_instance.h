#pragma once

// As instance.h, of the kernel that goes over queries.

#include "sm90/backward/rows.h"
#include "sm90/launch.h"
#include "sm90/registry.h"

namespace fa2::sm90 {

template <class Element, DType kDType>
constexpr BwdRowsInstance bwd_rows_instance() {
  return {kDType, &launch<GradQKernel<Element>>};
}

}  // namespace fa2::sm90
