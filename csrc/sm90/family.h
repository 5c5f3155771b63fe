#pragma once

// The family for compute capability 9.0. It has a part of what sm80 has, which serves the rest
// (cuda/family.h).

#include "core/params.h"
#include "host/target.h"
#include "sm90/plan.h"

namespace fa2::sm90 {

struct Family {
  // Why the family can run nothing on a device, in words; null where it can.
  static char const* unavailable(DeviceInfo const& device);

  // Throws Error for what the family cannot run on the target.
  static FwdPlan plan(FwdParams const& params, CudaTarget const& target);
  static BwdPlan plan(BwdParams const& params, CudaTarget const& target);

  // Exact attention (FlashAttention-3, algorithm 2) and its gradient, with a workspace of the
  // plan's size.
  static void run(FwdParams const& params, FwdPlan const& plan, CudaTarget const& target);
  static void run(BwdParams const& params, BwdPlan const& plan, CudaTarget const& target);
};

}  // namespace fa2::sm90
