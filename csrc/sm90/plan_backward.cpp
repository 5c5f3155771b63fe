#include "host/check_biases.h"
#include "host/check_block_mask.h"
#include "host/check_positions.h"
#include "host/error.h"
#include "sm80/mask_columns.h"
#include "sm80/plan_parts.h"
#include "sm90/plan.h"
#include "sm90/plan_parts.h"

namespace fa2::sm90 {
namespace {

void take_workspace(FwdParams const& p, BwdPlan& plan) {
  constexpr int32_t kBlockM = BwdTile::kBlockM;
  int64_t const tiles_per_head = sm80::query_tiles_per_head(p, kBlockM);
  int64_t const tiles = sm80::checked_grid("query tiles", tiles_per_head * p.num_heads);
  BwdPlan::Workspace& w = plan.workspace;
  w.tiles_per_head = int32_t(tiles_per_head);
  sm80::WorkspaceLayout workspace;
  w.row_stats = workspace.take(tiles * 2 * kBlockM * int64_t(sizeof(float)));
  w.grad_q = workspace.take(tiles * plan.tile.grad_q().size() * int64_t(sizeof(float)));
  w.semaphores = workspace.take(plan.ordered ? tiles * int64_t(sizeof(int32_t)) : 0);
  w.ticket = workspace.take(plan.ordered ? sizeof(int32_t) : 0);
  sm80::take_mask_columns(sm80::MaskColumns::of(p, plan.tile.block_n), plan, workspace);
  plan.workspace_bytes = workspace.bytes;
}

}  // namespace

char const* not_served(BwdParams const& params) {
  FwdParams p = params.forward;
  p.partial_lse = nullptr;  // in the place of lse, and nothing is merged
  if (char const* const reason = not_served(p); reason != nullptr) return reason;
  Bucket const bucket = bucket_of(p.head_dim, p.head_dim_v);
  if (variant_of(p) != Variant::kPlain && !has_modified_backward(bucket)) {
    return "scores of such heads that are modified, or a block mask for them";
  }
  return has_strides(params.grad_out, p.seqs_q, p.num_heads) ? nullptr
                                                             : "rows or heads that lie so";
}

BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device) {
  char const* const reason = not_served(params);
  FA2_CHECK(reason == nullptr, "backward kernels for compute capability 9.0 do not serve {}",
            reason);
  FwdParams const& p = params.forward;
  check_positions(p);
  check_biases(p);
  check_block_mask(p);
  Bucket const bucket = bucket_of(p.head_dim, p.head_dim_v);
  BwdPlan plan{.key = {p.dtype, bucket, variant_of(p)}, .tile = bwd_tile(bucket)};
  plan.num_m_blocks = sm80::ceil_div(p.seqs_q.max_seqlen, BwdTile::kBlockM);
  plan.num_n_blocks = sm80::ceil_div(p.seqs_k.max_seqlen, plan.tile.block_n);
  // Q and dO at two bytes and the sums of dQ at four, of all heads of a group.
  int64_t const query_bytes =
      int64_t(p.seqs_q.max_seqlen) * p.group() *
      (p.head_dim * (sizeof(uint16_t) + sizeof(float)) + p.head_dim_v * sizeof(uint16_t));
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  plan.section = sm80::section_size(pairs, query_bytes, device);
  plan.grid = sm80::checked_grid("key blocks", plan.num_n_blocks * pairs);
  plan.rows_grid =
      sm80::checked_grid("query tiles", int64_t(plan.num_m_blocks) * p.batch * p.num_heads);
  plan.ordered = params.deterministic && plan.rows_grid > 0;
  take_workspace(p, plan);
  return plan;
}

std::string to_string(BwdKey const& key) {
  return message("sm90 {} {} {}", to_string(key.dtype), to_string(key.bucket),
                 name_of(key.variant));
}

std::string to_string(BwdPlan const& plan) {
  BwdTile const& t = plan.tile;
  return message(
      "backward {}: tile {} keys x {} queries, {} key blocks, {} query tiles, section {}, grid {}, "
      "{}, workspace {} bytes",
      to_string(plan.key), t.block_n, BwdTile::kBlockM, plan.num_n_blocks, plan.num_m_blocks,
      plan.section, plan.grid, plan.ordered ? "ordered" : "unordered", plan.workspace_bytes);
}

}  // namespace fa2::sm90
