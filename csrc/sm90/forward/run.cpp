#include <cuda_runtime_api.h>

#include <numeric>

#include "core/dropout.h"
#include "core/score_mod.h"
#include "host/error.h"
#include "sm90/family.h"
#include "sm90/registry.h"
#include "sm90/rows.h"
#include "sm90/tensor_map.h"

namespace fa2::sm90 {
namespace {

FwdArgs fwd_args(FwdParams const& p, FwdPlan const& plan) {
  FwdTile const& tile = plan.tile;
  int32_t const cols = tile.box_cols();
  // Kernels multiply masked scores, -inf, so a scale of 0 is for the softcap to apply: it comes
  // before the mask, and any does.
  double const softcap = p.softmax_scale == 0 && p.score_mod.softcap == 0 ? 1 : p.score_mod.softcap;
  bool const modifies = is_modified(p.score_mod) || softcap > 0, drops = p.dropout.drop_prob > 0;
  FwdArgs args{
      .problem = p,
      .scales = score_scales<float>(p.softmax_scale, softcap),
      .adds_to_scores = adds_to_scores(p.score_mod),
      .modifies_scores = modifies,
      .adjusts_scores = modifies || drops,
      .keep_below = dropout_keep_below(p.dropout.drop_prob),
      .inv_keep_prob = float(1 / (1 - p.dropout.drop_prob)),
      .pack = HeadPack::of(plan.pack),
      .queries = plan.queries(),
      .num_m_blocks = plan.num_m_blocks,
      .section = plan.section,
      .num_tiles = plan.num_tiles,
      .next_tile = plan.counts_tiles ? static_cast<int32_t*>(p.workspace.data) : nullptr,
  };
  // Scores are natural ones, then.
  if (plan.key.variant == Variant::kModified || modifies) args.scales.plain = kLog2e;
  args.q = make_tensor_map(p.q, {p.dtype, p.batch, p.num_heads, p.head_dim, p.seqs_q},
                           {cols, plan.pack, plan.queries()});
  args.k = args.v = args.q;  // without keys nobody asks
  if (has_rows(p.seqs_k)) {
    bool const listed = plan.key.variant == Variant::kListed;
    Box box{cols, 1, listed ? BlockMask::kBlock : tile.block_n};
    MappedRows rows{p.dtype, p.batch, p.num_heads_kv, p.head_dim, p.seqs_k};
    if (p.pages.block_table != nullptr) {
      box.rows = args.page_box = std::gcd(p.pages.page_size, tile.block_n);
      rows.batch = p.pages.num_pages;
      rows.seqs.max_seqlen = p.pages.page_size;
    }
    args.k = make_tensor_map(p.k, rows, box);
    rows.head_dim = p.head_dim_v;
    args.v = make_tensor_map(p.v, rows, box);
  }
  if (plan.beside) {
    args.selects = true;
    args.rule = *plan.beside;
  }
  return args;
}

}  // namespace

char const* Family::unavailable(DeviceInfo const& device) {
  if (device.arch != 90) return "the device is not of compute capability 9.0";
  if (instances<FwdInstance>().empty()) return "they were not built";
  return makes_tensor_maps() ? nullptr : "the driver is older than CUDA 12";
}

FwdPlan Family::plan(FwdParams const& params, CudaTarget const& target) {
  FwdPlan const plan = plan_forward(params, target.device);
  if (plan.grid > 0) {
    int32_t const bytes = find_forward(plan.key).smem_bytes;
    FA2_CHECK(bytes <= target.device.smem_per_block,
              "{} needs {} bytes of shared memory a block; the device has {}", to_string(plan.key),
              bytes, target.device.smem_per_block);
  }
  return plan;
}

void Family::run(FwdParams const& params, FwdPlan const& plan, CudaTarget const& target) {
  if (plan.grid == 0) return;
  FA2_CHECK(params.workspace.holds(plan.workspace_bytes),
            "the plan needs a workspace of {} bytes, got {}", plan.workspace_bytes,
            params.workspace.bytes);
  FwdArgs const args = fwd_args(params, plan);
  if (plan.counts_tiles) {
    FA2_CUDA_CHECK(cudaMemsetAsync(args.next_tile, 0, sizeof(int32_t), target.stream));
  }
  find_forward(plan.key).launch(args, plan.grid, target.stream);
}

}  // namespace fa2::sm90
