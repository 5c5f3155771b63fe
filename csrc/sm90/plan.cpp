#include "sm90/plan.h"

#include <algorithm>
#include <limits>

#include "core/positions.h"
#include "core/score_mod.h"
#include "host/check_biases.h"
#include "host/check_block_mask.h"
#include "host/check_positions.h"
#include "host/error.h"
#include "sm90/plan_parts.h"
#include "sm90/rows.h"

namespace fa2::sm90 {

Bucket bucket_of(int32_t head_dim, int32_t head_dim_v) {
  bool const whole = head_dim > 0 && head_dim % 8 == 0 && head_dim_v > 0 && head_dim_v % 8 == 0;
  if (!whole || std::max(head_dim, head_dim_v) <= kNarrow) return 0;
  for (Bucket const& bucket : kBuckets) {
    if (bucket.holds(head_dim, head_dim_v)) return bucket;
  }
  return 0;
}

char const* name_of(Variant variant) {
  switch (variant) {
    case Variant::kPlain: return "plain";
    case Variant::kModified: return "modified";
    case Variant::kListed: return "listed";
  }
  return "?";
}

namespace {

bool is_unlimited(Window const& window) {
  return window.left == Window::kUnlimited && window.right == Window::kUnlimited;
}

// Strides that copies of boxes can take: whole units of 16 bytes, below 2^40 bytes.
bool is_stride(int64_t elements) {
  constexpr int64_t kUnit = 8, kLimit = int64_t(1) << 39;
  return elements > 0 && elements % kUnit == 0 && elements < kLimit;
}

}  // namespace

bool has_strides(TensorRef const& t, SeqLens const& seqs, int32_t heads) {
  // Maps of ragged sequences step over rows, however short the longest one is.
  bool const rows = (!is_ragged(seqs) && seqs.max_seqlen <= 1) || is_stride(t.row_stride);
  return rows && (heads <= 1 || is_stride(t.head_stride)) &&
         (t.batch_stride == 0 || is_stride(t.batch_stride));
}

namespace {

bool has_pages(FwdParams const& p) { return p.pages.block_table != nullptr; }

// Whether k and v are the cache of the entry points that have one, as far as its form tells.
bool is_cache(FwdParams const& p) {
  SeqLens const& k = p.seqs_k;
  bool const used = k.seqused != nullptr && k.cu_seqlens == nullptr;  // so varlen calls have pages
  return used != has_pages(p) || p.num_splits > 1 || k.leftpad != nullptr ||
         k.cu_appended != nullptr || k.appended > 0 || p.quantised.type != CodeType::kNone;
}

bool has_block_mask(FwdParams const& p) { return p.block_mask.row_offsets != nullptr; }

// Boxes of rows that lie on one page begin with multiples of 8 rows, which is also where patterns
// of swizzles do. What else does not go with pages is for sm80 to refuse.
bool serves_pages(FwdParams const& p) {
  return p.pages.page_size % 8 == 0 && p.dropout.drop_prob == 0 && !has_bias(p.score_mod) &&
         !has_block_mask(p) && !is_part(p);
}

}  // namespace

Variant variant_of(FwdParams const& p) {
  if (has_block_mask(p)) return Variant::kListed;
  bool const plain = !is_modified(p.score_mod) && p.softmax_scale != 0 && p.dropout.drop_prob == 0;
  return plain ? Variant::kPlain : Variant::kModified;
}

namespace {

KernelKey kernel_key(FwdParams const& p) {
  Bucket const bucket = bucket_of(p.head_dim, p.head_dim_v);
  Variant const variant = variant_of(p);
  bool const is_short = has_short_steps(bucket, variant) && !is_unlimited(p.window);
  return {p.dtype, bucket, variant, is_short ? StepKind::kShort : StepKind::kLong};
}

// Whether the heads of a group may share a tile. Biases and dropout are found by rows that follow
// each other, of one head, and a tile has one list, or one for each 64 queries of a head.
bool packs_heads(FwdParams const& p) {
  bool const one_list = !has_block_mask(p) || p.block_mask.heads <= p.num_heads_kv;
  return one_list && !has_bias(p.score_mod) && p.dropout.drop_prob == 0;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Pairs to schedule together: as many as have their keys and values in half of the L2 cache.
int32_t section_of(FwdParams const& p, int32_t pack, DeviceInfo const& device) {
  int64_t const kv_bytes =
      int64_t(p.seqs_k.max_seqlen) * (p.head_dim + p.head_dim_v) * sizeof(uint16_t);
  int64_t const fitting =
      std::max<int64_t>(1, device.l2_bytes / 2 / std::max<int64_t>(1, kv_bytes));
  int64_t const pairs = int64_t(p.batch) * p.num_heads_kv;
  return int32_t(std::min(pairs, fitting)) * (p.group() / pack);
}

// Whether tiles of work may take different times.
bool is_uneven(FwdParams const& p) {
  return !is_unlimited(p.window) || is_ragged(p.seqs_q) || is_ragged(p.seqs_k) || has_block_mask(p);
}

}  // namespace

char const* not_served(FwdParams const& p) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) return "its dtype";
  if (bucket_of(p.head_dim, p.head_dim_v) == Bucket(0)) return "heads of that width";
  if (p.partial_lse != nullptr) return "results that are merged";
  if (is_cache(p)) return "KV caches";
  if (has_pages(p) && !serves_pages(p)) return "such pages";
  bool const strides = has_strides(p.q, p.seqs_q, p.num_heads) &&
                       has_strides(p.k, p.seqs_k, p.num_heads_kv) &&
                       has_strides(p.v, p.seqs_k, p.num_heads_kv);
  return strides ? nullptr : "rows or heads that lie so";
}

FwdPlan plan_forward(FwdParams const& p, DeviceInfo const& device) {
  char const* const reason = not_served(p);
  FA2_CHECK(reason == nullptr, "kernels for compute capability 9.0 do not serve {}", reason);
  check_positions(p);
  check_biases(p);
  check_block_mask(p);
  if (p.batch == 0 || p.num_heads == 0 || !has_rows(p.seqs_q)) return {};

  KernelKey const key = kernel_key(p);
  FwdPlan plan{.key = key, .tile = fwd_tile(key.bucket, key.variant, key.steps)};
  if (packs_heads(p) && plan.tile.block_m % p.group() == 0) plan.pack = p.group();
  plan.num_m_blocks = int32_t(ceil_div(p.seqs_q.max_seqlen, plan.queries()));
  plan.section = section_of(p, plan.pack, device);
  int64_t const tiles = int64_t(plan.num_m_blocks) * (p.num_heads / plan.pack) * p.batch;
  FA2_CHECK(tiles <= std::numeric_limits<int32_t>::max() - device.sm_count,
            "the problem has {} query tiles; a launch counts at most 2^31 - 1", tiles);
  plan.num_tiles = int32_t(tiles);
  plan.grid = std::min(plan.num_tiles, device.sm_count);
  plan.counts_tiles = plan.num_tiles > plan.grid && is_uneven(p);
  plan.workspace_bytes = plan.counts_tiles ? int64_t(sizeof(int32_t)) : 0;
  return plan;
}

std::string to_string(Bucket const& bucket) {
  auto const [width, width_v] = bucket;
  std::string const values = width_v == width ? "" : message(" head_dim_v<={}", width_v);
  return message("head_dim<={}{}", width, values);
}

std::string to_string(KernelKey const& key) {
  return message("sm90 {} {} {}{}", to_string(key.dtype), to_string(key.bucket),
                 name_of(key.variant), key.steps == StepKind::kShort ? " short steps" : "");
}

std::string to_string(FwdPlan const& plan) {
  if (plan.grid == 0) return "";
  FwdTile const& t = plan.tile;
  std::string const pack = plan.pack == 1 ? "" : message(" of {} heads", plan.pack);
  return message("{}: tile {}x{}, {} query blocks{}, section {}, {} tiles{}, grid {}{}",
                 to_string(plan.key), t.block_m, t.block_n, plan.num_m_blocks, pack, plan.section,
                 plan.num_tiles, plan.counts_tiles ? " counted" : "", plan.grid,
                 plan.beside ? ", of unsplit sequences" : "");
}

}  // namespace fa2::sm90
