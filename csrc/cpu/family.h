#pragma once

// The family for processors, as native modules take it (bindings/module.h). Takes float16,
// bfloat16, float32 and float64, any widths up to
// kMaxHeadDim and kMaxHeadDimV and any strides with a unit last stride.
// May be called from several threads at once.

#include "core/params.h"
#include "cpu/bias_plan.h"
#include "cpu/plan.h"

namespace fa2::cpu {

struct Family {
  struct Target {
    int num_threads;  // of OpenMP, at most
  };

  // All throw Error for a problem that nobody could mean.
  static FwdPlan plan(FwdParams const& params, Target const& target) {
    return plan_forward(params, target.num_threads);
  }
  static BwdPlan plan(BwdParams const& params, Target const& target) {
    return plan_backward(params, target.num_threads);
  }
  static BiasBwdPlan plan(BiasBwdParams const& params, Target const& target) {
    return plan_bias_backward(params, target.num_threads);
  }
  static AppendPlan plan(AppendParams const& params, Target const& target) {
    return plan_append(params, target.num_threads);
  }

  // Exact attention and its gradient, with a workspace of the plan's size.
  static void run(FwdParams const& params, FwdPlan const& plan, Target const& target);
  static void run(BwdParams const& params, BwdPlan const& plan, Target const& target);
  static void run(BiasBwdParams const& params, BiasBwdPlan const& plan, Target const& target);
  // Writes new keys and values into a cache, and rotates them and queries.
  static void run(AppendParams const& params, AppendPlan const& plan, Target const& target);
};

}  // namespace fa2::cpu
