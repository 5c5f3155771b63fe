#include <algorithm>

#include "host/error.h"
#include "sm80/bias_backward/args.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {
namespace {

// Tiles of a walk that are worth a CTA of their own.
constexpr int64_t kLeastSteps = 4;

void check_sums(char const* name, Bias const& sums, FwdParams const& p) {
  if (sums.data == nullptr) return;
  bool const dense = p.seqs_q.cu_seqlens == nullptr && p.seqs_k.cu_seqlens == nullptr;
  FA2_CHECK(dense && p.pages.block_table == nullptr, "{} is of dense queries and keys", name);
  FA2_CHECK(sums.dtype == DType::kFloat32, "{} is summed in float32, got {}", name,
            to_string(sums.dtype));
}

// Steps of the longest walk of a pass.
int64_t longest_walk(BiasPass const& pass) {
  int64_t const outer = int64_t(pass.sums.batch_stride != 0 ? 1 : pass.batch) *
                        (pass.sums.head_stride != 0 ? 1 : pass.num_heads);
  if (pass.by_diagonals) return outer * std::min(pass.row_blocks(), pass.col_blocks());
  return outer * (pass.has_rows() ? 1 : pass.row_blocks()) *
         (pass.has_cols() ? 1 : pass.col_blocks());
}

// Walks of few units are split, so that there are CTAs for all of the device.
BiasBwdPlan::Launch plan_pass(FwdParams const& p, Bias const& sums, bool by_diagonals,
                              DeviceInfo const& device) {
  BiasBwdPlan::Launch launch;
  int32_t const seqlen_q = p.seqs_q.max_seqlen, seqlen_k = p.seqs_k.max_seqlen;
  bool const empty = std::min({p.batch, p.num_heads, seqlen_q, seqlen_k}) == 0;
  if (sums.data == nullptr || empty) return launch;
  launch.pass = {.sums = sums,
                 .by_diagonals = by_diagonals,
                 .batch = p.batch,
                 .num_heads = p.num_heads,
                 .seqlen_q = seqlen_q,
                 .seqlen_k = seqlen_k};
  int64_t const units = launch.pass.units();
  int64_t const slots = int64_t(device.sm_count) * kBiasBwdCtasPerSm;
  int64_t const most = std::max<int64_t>(1, longest_walk(launch.pass) / kLeastSteps);
  launch.pass.splits = int32_t(std::clamp<int64_t>((slots + units - 1) / units, 1, most));
  launch.grid = checked_grid("tiles of a bias and splits", units * launch.pass.splits);
  if (by_diagonals) {
    launch.sum_grid = checked_grid("diagonals of a bias",
                                   units / launch.pass.bands() * (launch.pass.bands() + 1));
  } else if (launch.pass.splits > 1) {
    launch.sum_grid = int32_t(units);
  }
  return launch;
}

}  // namespace

BiasBwdPlan plan_bias_backward(BiasBwdParams const& params, DeviceInfo const& device) {
  FwdParams const& p = params.forward;
  BiasBwdPlan plan{.dtype = kernel_key(p, device, has_small_bwd_tile).dtype};
  check_sums("the gradient of bias", params.grad_bias, p);
  check_sums("the gradient of relative_bias", params.grad_relative_bias, p);
  plan.launches = {plan_pass(p, params.grad_bias, false, device),
                   plan_pass(p, params.grad_relative_bias, true, device)};
  int64_t partials = 0;
  for (BiasBwdPlan::Launch const& launch : plan.launches) {
    if (launch.sum_grid == 0) continue;
    partials = std::max(partials, launch.grid * int64_t(launch.pass.entries()));
  }
  if (plan.launches[0].grid == 0 && plan.launches[1].grid == 0) return plan;
  int64_t const rows = int64_t(p.batch) * p.num_heads;
  plan.rows_grid = checked_grid("query tiles", rows * BiasPass::blocks(p.seqs_q.max_seqlen));
  WorkspaceLayout workspace;
  int64_t const row_bytes = rows * p.seqs_q.max_seqlen * int64_t(sizeof(float));
  plan.workspace = {.row_lse = workspace.take(row_bytes),
                    .row_minus_delta = workspace.take(row_bytes),
                    .partials = workspace.take(partials * int64_t(sizeof(float)))};
  plan.workspace_bytes = workspace.bytes;
  return plan;
}

std::string to_string(BiasBwdPlan const& plan) {
  auto const text = [](char const* name, BiasBwdPlan::Launch const& launch) {
    if (launch.grid == 0) return message("no {}", name);
    return message("{}: {} units, {} splits, grid {}", name, launch.pass.units(),
                   launch.pass.splits, launch.grid);
  };
  return message("gradients of biases {}: {}; {}; workspace {} bytes", to_string(plan.dtype),
                 text("bias", plan.launches[0]), text("relative_bias", plan.launches[1]),
                 plan.workspace_bytes);
}

}  // namespace fa2::sm80
