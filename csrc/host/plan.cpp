#include "host/plan.h"

#include <algorithm>
#include <limits>

#include "host/error.h"

namespace fa2 {
namespace {

constexpr int32_t kBuckets[] = {32, 64, 96, 128, 192, 256};

FwdKey forward_key(FwdParams const& p, DeviceInfo const& device) {
  FA2_CHECK(device.arch >= 80, "CUDA kernels need compute capability 8.0 or later, got {}.{}",
            device.arch / 10, device.arch % 10);
  FA2_CHECK(p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16,
            "CUDA kernels take float16 and bfloat16");
  FA2_CHECK(p.head_dim > 0 && p.head_dim % 8 == 0 && p.head_dim <= std::end(kBuckets)[-1],
            "CUDA kernels take head dims that are multiples of 8 up to {}, got {}",
            std::end(kBuckets)[-1], p.head_dim);
  FwdVariant variant = FwdVariant::kPlain;
  if (p.score_mod.softcap > 0.f || p.score_mod.alibi_slopes != nullptr) {
    variant = FwdVariant::kModified;
  }
  if (p.dropout.drop_prob > 0.f) variant = FwdVariant::kDropout;
  int32_t const bucket = *std::lower_bound(std::begin(kBuckets), std::end(kBuckets), p.head_dim);
  bool const small = sm80::has_small_tile(bucket) && device.smem_per_block < sm80::kLargeSmemBytes;
  return {p.dtype, bucket, variant, small};
}

// As many pairs as have their keys and values in half of the L2 cache, in whole groups: the heads
// of a group read the same ones.
int32_t section_size(FwdParams const& p, DeviceInfo const& device) {
  int64_t const group_bytes = int64_t(p.seqs_k.max_seqlen) * p.head_dim * 2 * sizeof(uint16_t);
  int64_t const groups =
      std::max<int64_t>(1, device.l2_bytes / 2 / std::max<int64_t>(1, group_bytes));
  int64_t const pairs = int64_t(p.batch) * p.num_heads;
  return int32_t(std::min(pairs, groups * p.group()));
}

char const* name(FwdVariant variant) {
  switch (variant) {
    case FwdVariant::kPlain: return "plain";
    case FwdVariant::kModified: return "modified";
    case FwdVariant::kDropout: return "dropout";
  }
  return "?";
}

}  // namespace

FwdPlan plan_forward(FwdParams const& p, DeviceInfo const& device) {
  FwdKey const key = forward_key(p, device);
  sm80::FwdTile const tile = sm80::fwd_tile(key.bucket, key.variant, key.small);
  int32_t const num_m_blocks = (p.seqs_q.max_seqlen + tile.block_m - 1) / tile.block_m;
  int64_t const grid = int64_t(num_m_blocks) * p.batch * p.num_heads;
  FA2_CHECK(grid <= std::numeric_limits<int32_t>::max(),
            "the problem has {} query tiles; a launch holds at most 2^31 - 1", grid);
  return {key, tile, num_m_blocks, section_size(p, device), int32_t(grid)};
}

std::string to_string(FwdKey const& key) {
  return message("{} head_dim<={} {}{}", key.dtype == DType::kFloat16 ? "float16" : "bfloat16",
                 key.bucket, name(key.variant), key.small ? " small" : "");
}

std::string to_string(FwdPlan const& plan) {
  sm80::FwdTile const& t = plan.tile;
  return message("{}: tile {}x{}, warps {}x{}, {} query blocks, section {}, grid {}",
                 to_string(plan.key), t.block_m, t.block_n, t.row_warps, t.column_warps,
                 plan.num_m_blocks, plan.section, plan.grid);
}

}  // namespace fa2
