#include "sm80/family.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

FwdPlan Family::plan(FwdParams const& params, Target const& target) {
  FwdPlan const plan = plan_forward(params, target.device);
  for (FwdPlan::Launch const& launch : plan.launches()) {
    check_smem(launch.key, find_forward(launch.key).smem_bytes, target.device);
  }
  return plan;
}

void Family::run(FwdParams const& problem, FwdPlan const& plan, Target const& target) {
  FwdParams const params = runnable(problem);
  check_workspace(params.workspace, plan.workspace_bytes);
  for (FwdPlan::Launch const& launch : plan.launches()) {
    find_forward(launch.key).launch(params, plan, launch, target.stream);
    if (launch.combine_grid == 0) continue;
    CombineArgs const args{params, plan.schedule(launch), launch.partials(params.workspace.data),
                           launch.combine_queries};
    find_combine(launch.key.dtype).launch(args, launch.combine_grid, target.stream);
  }
}

}  // namespace fa2::sm80
