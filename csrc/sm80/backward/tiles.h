#pragma once

// The tile of every head-dim bucket in the backward pass, as measured in
// docs/notes/sm80_backward.md.

#include "sm80/backward/grad_q.h"
#include "sm80/tiles.h"

namespace fa2::sm80 {

// Scores are held transposed, S' = K Q', keys in rows: P' and dS' are then operands of dV and dK
// as they stand in registers.
struct BwdTile {
  int head_dim;         // of Q and K, rounded up to a bucket
  int block_n;          // keys of a CTA
  int block_m;          // queries of a step
  int key_warps;        // warps that split the keys
  int query_warps;      // warps that split the queries of S' and the head dim of dK and dV; more
                        // than one exchange P' and dS' through shared memory
  int chunk;            // queries whose scores a warp holds at once
  bool k_in_registers;  // or read anew from shared memory in every step
  bool v_in_registers;
  int stages;  // buffers of Q and dO
  int ctas_per_sm;
  int head_dim_v;  // of V and dO
  int twins = 1;   // warps that have the same scores. Where there are more than one, those of the
                   // same keys share the products that scores are (backward/score_parts.h), and all
                   // have dK and dV of all keys, of which they split the columns

  constexpr bool shares_scores() const { return twins > 1; }
  // Whether two warps of 16 queries each share the products of their scores
  // (backward/score_pairs.h). It pays where a warp reads most of what it multiplies but once.
  constexpr bool pairs_scores() const { return head_dim == 256 && query_warps == 4; }
  constexpr int warps() const { return key_warps * query_warps * twins; }
  constexpr int threads() const { return warps() * 32; }
  // Rows that all threads copy at once, 16 bytes each (CopyShape in tile/copy.h).
  constexpr int rows_per_pass() const { return threads() / (head_dim % 64 == 0 ? 8 : 4); }
  constexpr GradQLayout grad_q() const { return {block_m, head_dim, warps()}; }
};

// Wide heads have a second tile for devices with less shared memory (sm_86, sm_89: 99 KiB a block),
// where at 512 half a block of a mask does not fit. At 96 plain kernels alone have a larger one.
constexpr bool has_small_bwd_tile(Bucket bucket, Variant variant) {
  if (bucket == Bucket(512)) return !is_listed(variant);
  return bucket.head_dim > (variant == Variant::kPlain ? 64 : 96);
}

// What needs more registers holds the scores of fewer queries at once, or reads V anew. At 64 the
// listed kernel has twice the queries at once in their place, so that K and V are read half as
// often. At 96 and 192 the plain kernels have 128 and 96 keys: fewer blocks of them add to dQ.
constexpr BwdTile bwd_tile(Bucket bucket, Variant variant, bool small) {
  bool const plain = variant == Variant::kPlain || variant == Variant::kListed;
  if (bucket == Bucket(192, 128)) {
    bool const half = small || is_listed(variant) || has_dropout(variant);
    if (half) return {192, 64, 64, 2, 4, 16, false, false, 1, 1, 128};
    return {192, 64, 128, 2, 4, plain ? 32 : 16, false, false, 1, 1, 128};
  }
  switch (bucket.head_dim) {
    case 32: return {32, 128, 64, 4, 1, 32, true, variant != Variant::kListedDropout, 2, 2, 32};
    case 64:
      if (variant == Variant::kListed) return {64, 128, 64, 4, 1, 32, false, false, 1, 2, 64};
      if (variant != Variant::kPlain) return {64, 128, 64, 4, 1, 16, false, false, 1, 2, 64};
      return {64, 128, 64, 4, 1, 16, false, true, 2, 2, 64};
    case 96:
      if (variant == Variant::kPlain && !small)
        return {96, 128, 64, 4, 2, 32, false, false, 2, 1, 96};
      return {96, 64, 64, 2, 2, 32, false, false, 1, 2, 96};
    case 128:
      if (small) return {128, 64, 64, 2, 2, plain ? 32 : 16, false, false, 1, 1, 128};
      return {128, 128, 64, 4, 2, plain ? 32 : 16, false, false, 2, 1, 128};
    case 192:
      if (small) return {192, 32, 32, 2, 2, 16, false, false, 1, 1, 192};
      return {192, variant == Variant::kPlain ? 96 : 64, 64, 2, 4, 16, false, false, 1, 1, 192};
    case 256:
      if (small) return {256, 32, 32, 2, 2, 16, false, false, 1, 1, 256};
      return {256, 64, 64, 2, 4, 16, false, false, 1, 1, 256};
    default:
      if (small) return {512, 16, 16, 1, 1, 16, false, false, 1, 1, 512, 4};
      return {512, 32, 32, 2, 2, 16, false, false, 1, 1, 512, 2};
  }
}

}  // namespace fa2::sm80
