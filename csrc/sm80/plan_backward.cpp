#include <algorithm>

#include "host/error.h"
#include "sm80/lists/column_lists.h"
#include "sm80/mask_columns.h"
#include "sm80/plan_listed.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {
namespace {

// Of a block mask: pieces of long lists come first, unless key blocks wait for each other.
void plan_columns(FwdParams const& p, BwdPlan& plan, DeviceInfo const& device,
                  WorkspaceLayout& workspace) {
  MaskColumns const columns = MaskColumns::of(p, plan.tile.block_n);
  ColumnLists const lists(p, columns, plan.tile.block_n);
  PieceOrder const order = plan.ordered ? PieceOrder::kBesideTheList : PieceOrder::kFirst;
  plan.listed = plan_listed(lists, order, int64_t(p.batch) * p.num_heads_kv, plan.section);
  plan.grid = listed_grid(plan.listed, "key blocks and pieces");
  // Of a mask for each query head some lists of a key block may be cut, and others not.
  int64_t const bytes =
      int64_t(plan.tile.block_n) * (p.head_dim + p.head_dim_v) * int64_t(sizeof(float));
  take_pieces(plan.listed, lists.masks > 1 ? 2 * bytes : bytes, device, workspace);
}

void take_workspace(FwdParams const& p, BwdPlan& plan, DeviceInfo const& device) {
  BwdTile const& tile = plan.tile;
  int64_t const tiles_per_head = query_tiles_per_head(p, tile.block_m);
  int64_t const tiles = checked_grid("query tiles", tiles_per_head * p.num_heads);
  BwdPlan::Workspace& w = plan.workspace;
  w.tiles_per_head = int32_t(tiles_per_head);
  WorkspaceLayout workspace;
  w.row_stats = workspace.take(tiles * 2 * tile.block_m * int64_t(sizeof(float)));
  w.grad_q = workspace.take(tiles * tile.grad_q().size() * int64_t(sizeof(float)));
  w.semaphores = workspace.take(plan.ordered ? tiles * int64_t(sizeof(int32_t)) : 0);
  w.ticket = workspace.take(plan.ordered ? sizeof(int32_t) : 0);
  take_mask_columns(MaskColumns::of(p, tile.block_n), plan, workspace);
  if (is_listed(plan.key.variant)) plan_columns(p, plan, device, workspace);
  plan.workspace_bytes = workspace.bytes;
}

// Keys in sight of a query, at most. Lengths that only the device knows do not bound them.
int64_t keys_in_sight(FwdParams const& p) {
  SeqLens const& k = p.seqs_k;
  int64_t const window = int64_t(p.window.left) + p.window.right + 1;
  bool const dense = k.cu_seqlens == nullptr && k.seqused == nullptr && k.leftpad == nullptr;
  return dense ? std::min<int64_t>(window, k.max_seqlen) : window;
}

// A block of keys is multiplied by all tiles of queries that see any of it, so larger blocks throw
// more away along the edges of a window. Where queries see few keys, the smaller tile of 96, which
// runs two CTAs on an SM, takes less time (docs/notes/timing.md).
KernelKey backward_key(FwdParams const& p, DeviceInfo const& device) {
  constexpr int64_t kFewKeys = 512;
  KernelKey key = kernel_key(p, device, has_small_bwd_tile);
  FA2_CHECK(!is_split_only(key.bucket), "backward kernels take head dims of up to 512, got {}",
            p.head_dim);
  bool const has_edges =
      p.window.left != Window::kUnlimited || p.window.right != Window::kUnlimited;
  if (key.bucket == Bucket(96) && has_small_bwd_tile(key.bucket, key.variant) && has_edges &&
      keys_in_sight(p) <= kFewKeys) {
    key.tile = TileKind::kSmall;
  }
  return key;
}

}  // namespace

BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device) {
  FwdParams const& p = params.forward;
  KernelKey const key = backward_key(p, device);
  check_tile_fits(key, device);
  BwdTile const tile = bwd_tile(key.bucket, key.variant, key.tile == TileKind::kSmall);
  BwdPlan plan{.key = key, .tile = tile};
  plan.num_m_blocks = ceil_div(p.seqs_q.max_seqlen, tile.block_m);
  plan.num_n_blocks = ceil_div(p.seqs_k.max_seqlen, tile.block_n);
  // Q and dO at two bytes and the sums of dQ at four, of all heads of a group.
  int64_t const query_bytes =
      int64_t(p.seqs_q.max_seqlen) * p.group() *
      (p.head_dim * (sizeof(uint16_t) + sizeof(float)) + p.head_dim_v * sizeof(uint16_t));
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  plan.section = section_size(pairs, query_bytes, device);
  plan.grid = checked_grid("key blocks", plan.num_n_blocks * pairs);
  plan.rows_grid = checked_grid("query tiles", int64_t(plan.num_m_blocks) * p.batch * p.num_heads);
  plan.ordered = params.deterministic && plan.rows_grid > 0;
  take_workspace(p, plan, device);
  return plan;
}

std::string to_string(BwdPlan const& plan) {
  BwdTile const& t = plan.tile;
  return message(
      "backward {}: tile {} keys x {} queries, warps {}x{}, {} key blocks, {} query tiles, section "
      "{}, grid {}, {}{}, workspace {} bytes",
      to_string(plan.key), t.block_n, t.block_m, t.key_warps, t.query_warps, plan.num_n_blocks,
      plan.num_m_blocks, plan.section, plan.grid, plan.ordered ? "ordered" : "unordered",
      to_string(plan.listed), plan.workspace_bytes);
}

}  // namespace fa2::sm80
