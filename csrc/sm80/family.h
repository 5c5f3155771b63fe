#pragma once

// The family for Ampere and later GPUs, as native modules take it (bindings/module.h). Tensors are
// float16 or bfloat16 with rows aligned to 16 bytes.

#include "core/params.h"
#include "host/target.h"
#include "sm80/plan_beside.h"

namespace fa2::sm80 {

struct Family {
  using Target = CudaTarget;

  // All throw Error for what the family cannot run on the target.
  static FwdPlan plan(FwdParams const& params, Target const& target);
  static BwdPlan plan(BwdParams const& params, Target const& target);
  static BiasBwdPlan plan(BiasBwdParams const& params, Target const& target);
  static AppendPlan plan(AppendParams const& params, Target const& target);
  // For some of the sequences of a call over pages, see sm80/plan_beside.h.
  static FwdPlan plan_beside(FwdParams const& params, Target const& target);

  // Exact attention (FlashAttention-2, algorithm 1) and its gradient (algorithm 2), with a
  // workspace of the plan's size.
  static void run(FwdParams const& params, FwdPlan const& plan, Target const& target);
  static void run(BwdParams const& params, BwdPlan const& plan, Target const& target);
  static void run(BiasBwdParams const& params, BiasBwdPlan const& plan, Target const& target);
  // Writes new keys and values into a cache, and rotates them and queries.
  static void run(AppendParams const& params, AppendPlan const& plan, Target const& target);
};

}  // namespace fa2::sm80
