#include "core/dropout.h"
#include "sm80/family.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {
namespace {

BiasBwdArgs args_of(BiasBwdParams const& p, BiasBwdPlan const& plan, BiasPass const& pass) {
  auto at = [&](int64_t offset) {
    return reinterpret_cast<float*>(static_cast<char*>(p.workspace.data) + offset);
  };
  FwdParams const& forward = p.forward;
  double const keep_prob = 1 - forward.dropout.drop_prob;
  return {
      .problem = p,
      .pass = pass,
      .scales = kernel_scales(forward),
      .row_lse = at(plan.workspace.row_lse),
      .row_minus_delta = at(plan.workspace.row_minus_delta),
      .partials = at(plan.workspace.partials),
      .keep_below = dropout_keep_below(forward.dropout.drop_prob),
      .keep_prob = float(keep_prob),
      .inv_keep_prob = float(1 / keep_prob),
  };
}

}  // namespace

BiasBwdPlan Family::plan(BiasBwdParams const& params, Target const& target) {
  BiasBwdPlan const plan = plan_bias_backward(params, target.device);
  find_bias_backward(plan.dtype);  // or say so before anything is written
  return plan;
}

void Family::run(BiasBwdParams const& problem, BiasBwdPlan const& plan, Target const& target) {
  BiasBwdParams params = problem;
  params.forward = runnable(problem.forward);
  check_workspace(params.workspace, plan.workspace_bytes);
  BiasBwdInstance const& instance = find_bias_backward(plan.dtype);
  BiasRowsInstance const& rows = find_bias_rows(plan.dtype);
  bool has_stats = false;
  for (BiasBwdPlan::Launch const& launch : plan.launches) {
    if (launch.grid == 0) continue;
    BiasBwdArgs const args = args_of(params, plan, launch.pass);
    if (!has_stats) rows.row_stats(args, plan.rows_grid, target.stream);
    has_stats = true;
    instance.launch(args, launch.grid, target.stream);
    if (launch.sum_grid > 0) rows.sum(args, launch.sum_grid, target.stream);
  }
}

}  // namespace fa2::sm80
