#include "core/dropout.h"
#include "sm80/derive_columns.h"
#include "sm80/family.h"
#include "sm80/mask_columns.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {
namespace {

BwdWorkspace workspace_of(BwdParams const& p, BwdPlan const& plan) {
  auto at = [&](int64_t offset) { return static_cast<char*>(p.workspace.data) + offset; };
  BwdPlan::Workspace const& w = plan.workspace;
  return {
      .tiles_per_head = w.tiles_per_head,
      .layout = plan.tile.grad_q(),
      .row_stats = reinterpret_cast<float*>(at(w.row_stats)),
      .grad_q = reinterpret_cast<float*>(at(w.grad_q)),
      .semaphores = plan.ordered ? reinterpret_cast<int32_t*>(at(w.semaphores)) : nullptr,
      .ticket = plan.ordered ? reinterpret_cast<int32_t*>(at(w.ticket)) : nullptr,
      .columns = mask_columns_of(p, plan),
  };
}

ColumnPieces column_pieces(BwdParams const& p, BwdPlan const& plan) {
  char* const grads = static_cast<char*>(p.workspace.data) + plan.listed.slots;
  return {.grads = reinterpret_cast<float*>(grads), .block_n = plan.tile.block_n};
}

BwdArgs args_of(BwdParams const& p, BwdPlan const& plan) {
  constexpr int64_t kElementBytes = 2;  // float16 and bfloat16
  FwdParams const& forward = p.forward;
  double const keep_prob = 1 - forward.dropout.drop_prob;
  int64_t const tile_bytes = plan.tile.block_m * kElementBytes;
  int64_t const pass_bytes = plan.tile.rows_per_pass() * kElementBytes;
  return {
      .problem = p,
      .workspace = workspace_of(p, plan),
      .scales = kernel_scales(forward),
      .is_modified = is_modified(forward.score_mod),
      .adds_to_scores = adds_to_scores(forward.score_mod),
      .q_tile_bytes = forward.q.row_stride * tile_bytes,
      .q_pass_bytes = forward.q.row_stride * pass_bytes,
      .grad_out_tile_bytes = p.grad_out.row_stride * tile_bytes,
      .grad_out_pass_bytes = p.grad_out.row_stride * pass_bytes,
      .num_m_blocks = plan.num_m_blocks,
      .num_n_blocks = plan.num_n_blocks,
      .section = plan.section,
      .grad_scale = float(forward.softmax_scale / keep_prob),
      .keep_below = dropout_keep_below(forward.dropout.drop_prob),
      .keep_prob = float(keep_prob),
      .inv_keep_prob = float(1 / keep_prob),
      .listed = plan.listed.schedule(p.workspace.data),
      .pieces = column_pieces(p, plan),
  };
}

}  // namespace

BwdPlan Family::plan(BwdParams const& params, Target const& target) {
  BwdPlan const plan = plan_backward(params, target.device);
  check_smem(plan.key, find_backward(plan.key).smem_bytes, target.device);
  return plan;
}

void Family::run(BwdParams const& problem, BwdPlan const& plan, Target const& target) {
  BwdParams params = problem;
  params.forward = runnable(problem.forward);
  check_workspace(params.workspace, plan.workspace_bytes);
  BwdInstance const& instance = find_backward(plan.key);
  BwdRowsInstance const& rows = find_backward_rows(plan.key.dtype);
  BwdArgs const args = args_of(params, plan);

  cudaStream_t const stream = target.stream;
  derive_mask_columns(rows, args, plan, stream);
  if (plan.listed.cuts()) rows.order_columns(args, plan.listed.units, stream);
  if (plan.rows_grid > 0) rows.row_stats(args, plan.rows_grid, stream);
  if (plan.grid > 0) instance.launch(args, plan.grid, stream);
  if (plan.listed.cuts()) rows.sum_columns(args, plan.listed.sum_grid, stream);
  if (plan.rows_grid > 0) rows.grad_q(args, plan.rows_grid, stream);
  if (params.grad_sink != nullptr) rows.grad_sink(args, params.forward.num_heads, stream);
}

}  // namespace fa2::sm80
