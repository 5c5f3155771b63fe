#include <cuda_runtime_api.h>

#include "core/dropout.h"
#include "core/score_mod.h"
#include "host/error.h"
#include "sm80/derive_columns.h"
#include "sm80/mask_columns.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"
#include "sm90/family.h"
#include "sm90/registry.h"
#include "sm90/rows.h"
#include "sm90/tensor_map.h"

namespace fa2::sm90 {
namespace {

sm80::BwdWorkspace workspace_of(BwdParams const& p, BwdPlan const& plan) {
  auto at = [&](int64_t offset) { return static_cast<char*>(p.workspace.data) + offset; };
  BwdPlan::Workspace const& w = plan.workspace;
  BwdTile const& tile = plan.tile;
  return {
      .tiles_per_head = w.tiles_per_head,
      .layout = {BwdTile::kBlockM, tile.head_dim, 4 * tile.consumers()},
      .row_stats = reinterpret_cast<float*>(at(w.row_stats)),
      .grad_q = reinterpret_cast<float*>(at(w.grad_q)),
      .semaphores = plan.ordered ? reinterpret_cast<int32_t*>(at(w.semaphores)) : nullptr,
      .ticket = plan.ordered ? reinterpret_cast<int32_t*>(at(w.ticket)) : nullptr,
      .columns = sm80::mask_columns_of(p, plan),
  };
}

sm80::BwdArgs common_args(BwdParams const& params, BwdPlan const& plan) {
  FwdParams const& forward = params.forward;
  double const keep_prob = 1 - forward.dropout.drop_prob;
  sm80::BwdArgs args{
      .problem = params,
      .workspace = workspace_of(params, plan),
      .scales = score_scales<float>(forward.softmax_scale, forward.score_mod.softcap),
      .is_modified = is_modified(forward.score_mod),
      .adds_to_scores = adds_to_scores(forward.score_mod),
      .num_m_blocks = plan.num_m_blocks,
      .num_n_blocks = plan.num_n_blocks,
      .section = plan.section,
      .grad_scale = float(forward.softmax_scale / keep_prob),
      .keep_below = dropout_keep_below(forward.dropout.drop_prob),
      .keep_prob = float(keep_prob),
      .inv_keep_prob = float(1 / keep_prob),
  };
  // Scores are natural ones, then; under a block mask where they become more than scaled ones.
  bool const is_natural =
      plan.key.variant == Variant::kListed ? args.is_modified : plan.key.variant != Variant::kPlain;
  if (is_natural) args.scales.plain = kLog2e;
  return args;
}

BwdArgs args_of(BwdParams const& params, BwdPlan const& plan) {
  FwdParams const& p = params.forward;
  BwdTile const& tile = plan.tile;
  bool const has_boxes = has_rows(p.seqs_q) && has_rows(p.seqs_k);  // or nobody asks for any
  auto const map_of = [&](TensorRef const& t, MappedRows const& rows, int32_t cols, int32_t block) {
    return has_boxes ? make_tensor_map(t, rows, {cols, 1, block}) : TensorMap{};
  };
  auto const queries = [&](int32_t width) {
    return MappedRows{p.dtype, p.batch, p.num_heads, width, p.seqs_q};
  };
  auto const keys = [&](int32_t width) {
    return MappedRows{p.dtype, p.batch, p.num_heads_kv, width, p.seqs_k};
  };
  return {
      .q = map_of(p.q, queries(p.head_dim), tile.box_cols(), BwdTile::kBlockM),
      .k = map_of(p.k, keys(p.head_dim), tile.k_box_cols(), tile.block_n),
      .v = map_of(p.v, keys(p.head_dim_v), tile.box_cols(), tile.block_n),
      .grad_out = map_of(params.grad_out, queries(p.head_dim_v), tile.box_cols(), BwdTile::kBlockM),
      .common = common_args(params, plan),
      .grad_q = tile.grad_q(),
  };
}

}  // namespace

BwdPlan Family::plan(BwdParams const& params, CudaTarget const& target) {
  BwdPlan const plan = plan_backward(params, target.device);
  int32_t const bytes = find_backward(plan.key).smem_bytes;
  FA2_CHECK(bytes <= target.device.smem_per_block,
            "{} needs {} bytes of shared memory a block; the device has {}", to_string(plan.key),
            bytes, target.device.smem_per_block);
  return plan;
}

void Family::run(BwdParams const& problem, BwdPlan const& plan, CudaTarget const& target) {
  BwdParams params = problem;
  params.forward = sm80::runnable(problem.forward);
  sm80::check_workspace(params.workspace, plan.workspace_bytes);
  BwdInstance const& instance = find_backward(plan.key);
  BwdRowsInstance const& rows = find_backward_rows(plan.key.dtype);
  sm80::BwdRowsInstance const& common_rows = sm80::find_backward_rows(plan.key.dtype);
  BwdArgs const args = args_of(params, plan);

  cudaStream_t const stream = target.stream;
  sm80::derive_mask_columns(common_rows, args.common, plan, stream);
  if (plan.rows_grid > 0) common_rows.row_stats(args.common, plan.rows_grid, stream);
  if (plan.grid > 0) instance.launch(args, plan.grid, stream);
  if (plan.rows_grid > 0) rows.grad_q(args, plan.rows_grid, stream);
  if (params.grad_sink != nullptr) {
    common_rows.grad_sink(args.common, params.forward.num_heads, stream);
  }
}

}  // namespace fa2::sm90
