#include "host/plan.h"

#include <algorithm>
#include <limits>

#include "host/error.h"

namespace fa2 {
namespace {

constexpr int32_t kBuckets[] = {32, 64, 96, 128, 192, 256};

// `has_small_tile` says for which buckets there is a tile for less shared memory.
KernelKey kernel_key(FwdParams const& p, DeviceInfo const& device, bool (*has_small_tile)(int)) {
  FA2_CHECK(device.arch >= 80, "CUDA kernels need compute capability 8.0 or later, got {}.{}",
            device.arch / 10, device.arch % 10);
  FA2_CHECK(p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16,
            "CUDA kernels take float16 and bfloat16");
  FA2_CHECK(p.head_dim > 0 && p.head_dim % 8 == 0 && p.head_dim <= std::end(kBuckets)[-1],
            "CUDA kernels take head dims that are multiples of 8 up to {}, got {}",
            std::end(kBuckets)[-1], p.head_dim);
  Variant variant = Variant::kPlain;
  if (p.score_mod.softcap > 0.f || p.score_mod.alibi_slopes != nullptr) {
    variant = Variant::kModified;
  }
  if (p.dropout.drop_prob > 0.f) variant = Variant::kDropout;
  int32_t const bucket = *std::lower_bound(std::begin(kBuckets), std::end(kBuckets), p.head_dim);
  bool const small = has_small_tile(bucket) && device.smem_per_block < sm80::kLargeSmemBytes;
  return {p.dtype, bucket, variant, small};
}

// Pairs of (batch, head) to schedule together: as many as have what their CTAs share in half of the
// L2 cache, and at least one. `bytes` is what one of them takes.
int32_t section_size(int64_t pairs, int64_t bytes, DeviceInfo const& device) {
  int64_t const fitting = device.l2_bytes / 2 / std::max<int64_t>(1, bytes);
  return int32_t(std::min(pairs, std::max<int64_t>(1, fitting)));
}

int32_t blocks_of(int32_t rows, int32_t block) { return (rows + block - 1) / block; }

int32_t checked_grid(char const* what, int64_t grid) {
  FA2_CHECK(grid <= std::numeric_limits<int32_t>::max(),
            "the problem has {} {}; a launch holds at most 2^31 - 1", grid, what);
  return int32_t(grid);
}

BwdPlan::Workspace backward_workspace(FwdParams const& p, sm80::BwdTile const& tile, bool ordered) {
  int64_t const tiles_per_head =
      p.seqs_q.cu_seqlens != nullptr
          ? (p.seqs_q.total + tile.block_m - 1) / tile.block_m + std::max(0, p.batch - 1)
          : int64_t(p.batch) * blocks_of(p.seqs_q.max_seqlen, tile.block_m);
  int64_t const tiles = checked_grid("query tiles", tiles_per_head * p.num_heads);
  BwdPlan::Workspace w{.tiles_per_head = int32_t(tiles_per_head)};
  auto take = [&](int64_t size) {
    constexpr int64_t kAlignment = 256;
    int64_t const offset = w.bytes;
    w.bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  };
  w.row_stats = take(tiles * 2 * tile.block_m * int64_t(sizeof(float)));
  w.grad_q = take(tiles * tile.grad_q().size() * int64_t(sizeof(float)));
  w.semaphores = take(ordered ? tiles * int64_t(sizeof(int32_t)) : 0);
  w.ticket = take(ordered ? sizeof(int32_t) : 0);
  return w;
}

char const* name(Variant variant) {
  switch (variant) {
    case Variant::kPlain: return "plain";
    case Variant::kModified: return "modified";
    case Variant::kDropout: return "dropout";
  }
  return "?";
}

}  // namespace

FwdPlan plan_forward(FwdParams const& p, DeviceInfo const& device) {
  KernelKey const key = kernel_key(p, device, sm80::has_small_tile);
  sm80::FwdTile const tile = sm80::fwd_tile(key.bucket, key.variant, key.small);
  int32_t const num_m_blocks = blocks_of(p.seqs_q.max_seqlen, tile.block_m);
  // The heads of a group share keys and values.
  int64_t const kv_bytes = int64_t(p.seqs_k.max_seqlen) * p.head_dim * 2 * sizeof(uint16_t);
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  int32_t const section = section_size(pairs, kv_bytes, device) * p.group();
  int64_t const grid = int64_t(num_m_blocks) * p.batch * p.num_heads;
  return {key, tile, num_m_blocks, section, checked_grid("query tiles", grid)};
}

BwdPlan plan_backward(BwdParams const& params, DeviceInfo const& device) {
  FwdParams const& p = params.forward;
  KernelKey const key = kernel_key(p, device, sm80::has_small_bwd_tile);
  sm80::BwdTile const tile = sm80::bwd_tile(key.bucket, key.variant, key.small);
  BwdPlan plan{.key = key, .tile = tile};
  plan.num_m_blocks = blocks_of(p.seqs_q.max_seqlen, tile.block_m);
  plan.num_n_blocks = blocks_of(p.seqs_k.max_seqlen, tile.block_n);
  // Q and dO at two bytes and the sums of dQ at four, of all heads of a group.
  int64_t const query_bytes = int64_t(p.seqs_q.max_seqlen) * p.group() * p.head_dim *
                              (2 * sizeof(uint16_t) + sizeof(float));
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  plan.section = section_size(pairs, query_bytes, device);
  plan.grid = checked_grid("key blocks", plan.num_n_blocks * pairs);
  plan.rows_grid = checked_grid("query tiles", int64_t(plan.num_m_blocks) * p.batch * p.num_heads);
  plan.ordered = params.deterministic && plan.rows_grid > 0;
  plan.workspace = backward_workspace(p, tile, plan.ordered);
  return plan;
}

std::string to_string(KernelKey const& key) {
  return message("{} head_dim<={} {}{}", key.dtype == DType::kFloat16 ? "float16" : "bfloat16",
                 key.bucket, name(key.variant), key.small ? " small" : "");
}

std::string to_string(FwdPlan const& plan) {
  sm80::FwdTile const& t = plan.tile;
  return message("{}: tile {}x{}, warps {}x{}, {} query blocks, section {}, grid {}",
                 to_string(plan.key), t.block_m, t.block_n, t.row_warps, t.column_warps,
                 plan.num_m_blocks, plan.section, plan.grid);
}

std::string to_string(BwdPlan const& plan) {
  sm80::BwdTile const& t = plan.tile;
  return message(
      "backward {}: tile {} keys x {} queries, warps {}x{}, {} key blocks, {} query tiles, section "
      "{}, grid {}, {}, workspace {} bytes",
      to_string(plan.key), t.block_n, t.block_m, t.key_warps, t.query_warps, plan.num_n_blocks,
      plan.num_m_blocks, plan.section, plan.grid, plan.ordered ? "ordered" : "unordered",
      plan.workspace.bytes);
}

}  // namespace fa2
