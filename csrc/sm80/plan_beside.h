#pragma once

// Plans of calls over pages whose sequences are this family's only in part: where keys are split.
// What the rule of such a plan leaves unsplit, another family has a kernel for.

#include "sm80/plan.h"

namespace fa2::sm80 {

// As plan_forward. A launch without CTAs stands for the sequences of the others, if there may be
// some.
FwdPlan plan_beside(FwdParams const& params, DeviceInfo const& device);

inline bool is_of_others(FwdPlan::Launch const& launch) { return launch.grid == 0; }
bool leaves_sequences(FwdPlan const& plan);

}  // namespace fa2::sm80
