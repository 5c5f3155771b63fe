#pragma once

// The tile of every head-dim bucket, as measured in docs/notes/sm80_forward.md.

#include <cstdint>

namespace fa2::sm80 {

// Widths that kernels are built for, which narrower heads are rounded up to. A number stands for
// values as wide as keys.
struct Bucket {
  int32_t head_dim;
  int32_t head_dim_v;

  constexpr Bucket(int32_t both = 0) : Bucket(both, both) {}  // NOLINT(google-explicit-constructor)
  constexpr Bucket(int32_t head_dim, int32_t head_dim_v)
      : head_dim(head_dim), head_dim_v(head_dim_v) {}

  constexpr bool operator==(Bucket const&) const = default;
  constexpr bool holds(int32_t width, int32_t width_v) const {
    return width <= head_dim && width_v <= head_dim_v;
  }
};

// The narrowest ones first.
inline constexpr Bucket kBuckets[] = {32, 64, 96, 128, {192, 128}, 192, 256, 512, {576, 512}};

// Heads that the split kernels alone are built for: latents of a KV cache.
constexpr bool is_split_only(Bucket bucket) { return bucket.head_dim > 512; }

enum class Variant : int32_t {
  kPlain,          // scale only
  kModified,       // softcap, ALiBi and biases
  kDropout,        // kModified with dropout
  kCodes,          // kModified over a cache of 8 bits, in the split kernel only
  kListed,         // with a block mask; softcap and ALiBi too
  kListedDropout,  // kListed with dropout or biases
  kLatents,        // kModified over keys that hold the values, in the split kernel only
};

constexpr bool is_listed(Variant variant) {
  return variant == Variant::kListed || variant == Variant::kListedDropout;
}
constexpr bool has_dropout(Variant variant) {
  return variant == Variant::kDropout || variant == Variant::kListedDropout;
}
// At 128, kListed has no register left for them; its twin with dropout has smaller tiles.
constexpr bool has_biases(Variant variant) {
  return variant != Variant::kPlain && variant != Variant::kListed;
}

enum class TileKind : int32_t {
  kRegular,
  kSmall,          // for devices with less shared memory
  kFewRows,        // of the split kernel, for up to kFewRows rows,
  kManyRows,       // for more,
  kManyRowsLarge,  // and for more where there is more shared memory
};

struct FwdTile {
  int head_dim;         // of Q and K, rounded up to a bucket
  int head_dim_v;       // of V and the output
  int block_m;          // queries of a CTA
  int block_n;          // keys of a step
  int row_warps;        // warps that split the queries
  int column_warps;     // 1, or 2: a pair of warps shares its rows, splits S and O by columns and
                        // exchanges P through shared memory; fewer ldmatrix for wide heads. Or any
                        // number with whole_scores
  bool q_in_registers;  // or read anew from shared memory in every step
  int ctas_per_sm;
  int key_warps = 1;          // warps that split the keys of a step, each with a softmax of its own
  bool whole_scores = false;  // column warps split O alone: each has all scores of its rows, which
                              // are multiplied anew instead of exchanged

  constexpr int warps() const { return row_warps * column_warps * key_warps; }
  constexpr int threads() const { return warps() * 32; }
};

// Wide heads have a second tile for devices with less shared memory (sm_86, sm_89: 99 KiB a block).
inline constexpr int kLargeSmemBytes = 160 * 1024;

constexpr bool has_small_tile(Bucket bucket) {
  return bucket.head_dim > 128 && bucket != Bucket(192, 128);
}

// At 512 the rows of a mask's block do not fit there.
constexpr bool has_small_tile(Bucket bucket, Variant variant) {
  return has_small_tile(bucket) && !(bucket == Bucket(512) && is_listed(variant));
}

// What needs more registers takes fewer keys a step, or does not keep the queries. A Philox call
// spans 32 keys, so with dropout each warp takes a multiple of them. Under a block mask tiles
// consist of its blocks, or blocks of steps.
constexpr FwdTile fwd_tile(Bucket bucket, Variant variant, bool small) {
  bool const plain = variant == Variant::kPlain, dropout = has_dropout(variant);
  bool const listed = is_listed(variant);
  if (bucket == Bucket(192, 128)) {
    if (listed && dropout) return {192, 128, 64, 64, 4, 1, false, 2};
    return {192, 128, 128, plain ? 48 : 32, 4, 1, false, 2};
  }
  switch (bucket.head_dim) {
    case 32: return {32, 32, 128, 64, 4, 1, true, plain ? 3 : 2};
    case 64: return {64, 64, 128, dropout && listed ? 32 : 64, 4, 1, !dropout, 2};
    case 96: return {96, 96, 128, dropout ? 32 : 64, 4, 1, false, 2};
    case 128:
      if (listed && dropout) return {128, 128, 64, 64, 4, 1, false, 2};
      return {128, 128, 128, plain || dropout ? 32 : (listed ? 64 : 48), 4, 1, false, 2};
    case 192:
      if (small) return {192, 192, 64, 64, 4, 1, false, 1};
      return {192, 192, 128, dropout || listed ? 64 : 96, 4, 2, false, 1};
    case 256:
      if (small) return {256, 256, 64, 32, 4, 1, false, 1};
      if (listed && dropout) return {256, 256, 64, 64, 4, 2, false, 1};
      return {256, 256, 128, 64, 4, 2, false, 1};
    default:
      if (small) return {512, 512, 32, 32, 2, 2, false, 1, 1, true};
      return {512, 512, 64, 32, 4, 2, false, 1, 1, dropout};
  }
}

// Of the split kernel, whose rows are the heads of a group side by side. Up to kFewRows of them,
// as in decoding, fill one row of tensor-core tiles: there the warps split the keys, and each key
// is read from shared memory once. From 512 on a warp has no registers for all columns: they split
// these.
inline constexpr int kFewRows = 16;

// Whose tile for many rows has a larger one beside it.
constexpr bool has_large_tile(Variant variant) { return variant == Variant::kLatents; }

constexpr FwdTile split_tile(Bucket bucket, Variant variant, TileKind kind) {
  bool const plain = variant == Variant::kPlain;
  if (kind == TileKind::kFewRows) {
    auto const [width, width_v] = bucket;
    if (width >= 512) return {width, 512, kFewRows, 32, 1, 4, false, 1, 1, true};
    int const block_n = width > 128 ? 64 : 128, ctas = width_v > 128 ? 1 : 2;
    return {width, width_v, kFewRows, block_n, 1, 1, width <= 128, ctas, 4};
  }
  if (bucket == Bucket(192, 128)) return {192, 128, 128, plain ? 48 : 32, 4, 1, false, 2};
  switch (bucket.head_dim) {
    case 32: return {32, 32, 128, 64, 4, 1, true, 2};
    case 64: return {64, 64, 128, 64, 4, 1, plain, 2};
    case 96: return {96, 96, 128, plain ? 64 : 32, 4, 1, false, 2};
    case 128: return {128, 128, 128, plain ? 48 : 32, 4, 1, false, 2};
    case 192: return {192, 192, 64, 64, 4, 1, false, 1};
    case 256: return {256, 256, 64, 32, 4, 1, false, 1};
    case 512: return {512, 512, 32, 32, 2, 2, false, 1, 1, true};
    default:
      if (kind == TileKind::kManyRowsLarge) return {576, 512, 64, 32, 4, 2, false, 1};
      return {576, 512, 32, 16, 2, 2, false, 1, 1, true};
  }
}

}  // namespace fa2::sm80
