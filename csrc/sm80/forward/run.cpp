#include "sm80/family.h"
#include "sm80/plan_beside.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {
namespace {

// Under a block mask some of whose lists may be cut.
void run_cut(FwdParams const& params, FwdPlan const& plan, FwdPlan::Launch const& launch,
             cudaStream_t stream) {
  void* const memory = params.workspace.data;
  CombineInstance const& kernels = find_combine(launch.key.dtype);
  RowPiecesArgs const args{.problem = params,
                           .listed = launch.listed.schedule(memory),
                           .pieces = launch.pieces(memory),
                           .block_m = launch.tile.block_m,
                           .inv_keep_prob = float(1 / (1 - params.dropout.drop_prob))};
  kernels.order_rows(args, launch.listed.units, stream);
  find_forward(launch.key).launch(params, plan, launch, stream);
  kernels.sum_rows(args, launch.listed.sum_grid, stream);
}

FwdPlan runnable_plan(FwdPlan const& plan, CudaTarget const& target) {
  for (FwdPlan::Launch const& launch : plan.launches()) {
    if (is_of_others(launch)) continue;
    check_smem(launch.key, find_forward(launch.key).smem_bytes, target.device);
  }
  return plan;
}

}  // namespace

FwdPlan Family::plan(FwdParams const& params, Target const& target) {
  return runnable_plan(plan_forward(params, target.device), target);
}

FwdPlan Family::plan_beside(FwdParams const& params, Target const& target) {
  return runnable_plan(sm80::plan_beside(params, target.device), target);
}

void Family::run(FwdParams const& problem, FwdPlan const& plan, Target const& target) {
  FwdParams const params = runnable(problem);
  check_workspace(params.workspace, plan.workspace_bytes);
  for (FwdPlan::Launch const& launch : plan.launches()) {
    if (is_of_others(launch)) continue;
    if (launch.listed.cuts()) {
      run_cut(params, plan, launch, target.stream);
      continue;
    }
    find_forward(launch.key).launch(params, plan, launch, target.stream);
    if (launch.combine_grid == 0) continue;
    CombineArgs const args{params, plan.schedule(launch), launch.partials(params.workspace.data),
                           launch.combine_queries};
    find_combine(launch.key.dtype).launch(args, launch.combine_grid, target.stream);
  }
}

}  // namespace fa2::sm80
