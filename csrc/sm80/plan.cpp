#include "sm80/plan.h"

#include <algorithm>
#include <limits>

#include "core/append.h"
#include "core/score_mod.h"
#include "host/check_biases.h"
#include "host/check_block_mask.h"
#include "host/check_positions.h"
#include "host/check_quantised.h"
#include "host/error.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {
namespace {

// The narrowest bucket that holds such heads; a width of 0 where there is none.
Bucket bucket_of(int32_t head_dim, int32_t head_dim_v) {
  for (Bucket const& bucket : kBuckets) {
    if (bucket.holds(head_dim, head_dim_v)) return bucket;
  }
  return 0;
}

char const* name(TileKind tile) {
  switch (tile) {
    case TileKind::kRegular: return "";
    case TileKind::kSmall: return " small";
    case TileKind::kFewRows: return " split, few rows";
    case TileKind::kManyRows: return " split, many rows";
    case TileKind::kManyRowsLarge: return " split, many rows, large";
  }
  return "?";
}

char const* name(Variant variant) {
  switch (variant) {
    case Variant::kPlain: return "plain";
    case Variant::kModified: return "modified";
    case Variant::kDropout: return "dropout";
    case Variant::kCodes: return "codes";
    case Variant::kListed: return "listed";
    case Variant::kListedDropout: return "listed dropout";
    case Variant::kLatents: return "latents";
  }
  return "?";
}

Variant variant_of(FwdParams const& p) {
  bool const dropout = p.dropout.drop_prob > 0;
  if (p.block_mask.row_offsets != nullptr) {
    return dropout || has_bias(p.score_mod) ? Variant::kListedDropout : Variant::kListed;
  }
  if (dropout) return Variant::kDropout;
  if (p.quantised.type != CodeType::kNone) return Variant::kCodes;
  return is_modified(p.score_mod) || p.softmax_scale == 0 ? Variant::kModified : Variant::kPlain;
}

void check_cache(FwdParams const& p) {
  check_quantised(p.quantised, p.batch > 0 && p.seqs_k.max_seqlen > 0);
  bool const alone = p.dropout.drop_prob == 0 && p.block_mask.row_offsets == nullptr &&
                     !has_bias(p.score_mod) && !is_part(p) && p.partial_lse == nullptr;
  FA2_CHECK(p.quantised.type == CodeType::kNone || alone,
            "a cache of {} goes without dropout, block masks, biases and parts of sequences",
            to_string(p.quantised.type));
}

}  // namespace

KernelKey kernel_key(FwdParams const& p, DeviceInfo const& device,
                     bool (*has_small_tile)(Bucket, Variant)) {
  FA2_CHECK(device.arch >= 80, "CUDA kernels need compute capability 8.0 or later, got {}.{}",
            device.arch / 10, device.arch % 10);
  FA2_CHECK(p.dtype == DType::kFloat16 || p.dtype == DType::kBFloat16,
            "CUDA kernels take float16 and bfloat16");
  bool const whole =
      p.head_dim > 0 && p.head_dim % 8 == 0 && p.head_dim_v > 0 && p.head_dim_v % 8 == 0;
  Bucket const bucket = bucket_of(p.head_dim, p.head_dim_v);
  FA2_CHECK(
      whole && bucket != Bucket(0),
      "CUDA kernels take head dims that are multiples of 8 up to {}, of values up to {}, got {} "
      "and {}",
      std::end(kBuckets)[-1].head_dim, std::end(kBuckets)[-1].head_dim_v, p.head_dim, p.head_dim_v);
  check_positions(p);
  check_cache(p);
  check_block_mask(p);
  check_biases(p);
  Variant const variant = variant_of(p);
  bool const small = has_small_tile(bucket, variant) && device.smem_per_block < kLargeSmemBytes;
  return {p.dtype, bucket, variant, small ? TileKind::kSmall : TileKind::kRegular};
}

void check_tile_fits(KernelKey const& key, DeviceInfo const& device) {
  bool const fits = key.tile == TileKind::kSmall || device.smem_per_block >= kLargeSmemBytes;
  FA2_CHECK(fits || key.bucket != Bucket(512),
            "block masks of heads of more than 256 columns need {} KiB of shared memory a block; "
            "the device has {}",
            kLargeSmemBytes / 1024, device.smem_per_block / 1024);
}

int32_t section_size(int64_t pairs, int64_t bytes, DeviceInfo const& device) {
  int64_t const fitting = device.l2_bytes / 2 / std::max<int64_t>(1, bytes);
  return int32_t(std::min(pairs, std::max<int64_t>(1, fitting)));
}

int64_t query_tiles_per_head(FwdParams const& p, int32_t block_m) {
  return p.seqs_q.cu_seqlens != nullptr
             ? (p.seqs_q.total + block_m - 1) / block_m + std::max(0, p.batch - 1)
             : int64_t(p.batch) * ceil_div(p.seqs_q.max_seqlen, block_m);
}

int32_t checked_grid(char const* what, int64_t grid) {
  FA2_CHECK(grid <= std::numeric_limits<int32_t>::max(),
            "the problem has {} {}; a launch holds at most 2^31 - 1", grid, what);
  return int32_t(grid);
}

void check_workspace(Workspace const& workspace, int64_t bytes) {
  FA2_CHECK(workspace.holds(bytes), "the plan needs a workspace of {} bytes, got {}", bytes,
            workspace.bytes);
}

void check_smem(KernelKey const& key, int32_t bytes, DeviceInfo const& device) {
  FA2_CHECK(bytes <= device.smem_per_block,
            "{} needs {} bytes of shared memory a block; the device has {}", to_string(key), bytes,
            device.smem_per_block);
}

std::string to_string(KernelKey const& key) {
  auto const [width, width_v] = key.bucket;
  std::string const values = width_v == width ? "" : message(" head_dim_v<={}", width_v);
  return message("{} head_dim<={}{} {}{}", to_string(key.dtype), width, values, name(key.variant),
                 name(key.tile));
}

ListedSchedule ListedPlan::schedule(void* memory) const {
  auto* const begin = static_cast<char*>(memory);
  return {.items = cuts() ? reinterpret_cast<WorkItem*>(begin + items) : nullptr,
          .units = units,
          .lists = lists,
          .capacity = capacity,
          .copies = copies,
          .section = section,
          .order = order};
}

std::string to_string(ListedPlan const& plan) {
  if (!plan.cuts()) return "";
  return message(", up to {} pieces of the lists of {} masks", plan.capacity, plan.units);
}

AppendPlan plan_append(AppendParams const& params) {
  int32_t const rows = append_rows(params);
  return {rows, checked_grid("rows to append or rotate", int64_t(params.batch) * rows)};
}

}  // namespace fa2::sm80
