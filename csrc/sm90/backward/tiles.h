#pragma once

// The tile of every head-dim bucket in the backward pass.

#include "sm90/backward/grad_q.h"
#include "sm90/tiles.h"

namespace fa2::sm90 {

// Scores are held transposed, S' = K Q', keys in rows: P' and dS' are then operands of dV and dK as
// they stand in registers. A step takes 64 queries.
struct BwdTile {
  int head_dim;    // of Q and K, rounded up to a bucket
  int head_dim_v;  // of V and dO
  int block_n;     // keys of a CTA, 64 for each of its consumer warpgroups, or for both
  int stages;      // of the rings of Q and dO

  static constexpr int kBlockM = GradQLayout::kRows;

  // Of a copy of its rows, as products read them (tile/wgmma.h).
  constexpr int box_cols() const { return head_dim % 64 == 0 && head_dim_v % 64 == 0 ? 64 : 32; }
  // Of K each of two warpgroups multiplies dS by half of the columns: boxes have so many of these
  // as are used, 32 or 48 or 64.
  constexpr int k_used_cols() const {
    int const half = head_dim / 2;
    return half % 64 == 0 ? 64 : half % 32 == 0 ? 32 : half;
  }
  constexpr int k_box_cols() const { return k_used_cols() == 32 ? 32 : 64; }

  // Whether the two warpgroups share the keys (backward/pair_mainloop.h).
  constexpr bool shares_keys() const { return block_n == 64; }
  constexpr int consumers() const { return shares_keys() ? 2 : block_n / 64; }
  constexpr int threads() const { return (consumers() + 1) * 128; }
  // Of 64 K, of which the producer needs few.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

  // Whether dQ of a step goes through shared memory, where there is room for it.
  constexpr bool copies_grad_q() const { return head_dim < 256; }
  constexpr GradQLayout grad_q() const { return {head_dim, consumers(), !copies_grad_q()}; }
};

constexpr BwdTile bwd_tile(Bucket bucket) {
  if (bucket == Bucket(192, 128)) return {192, 128, 64, 2};
  switch (bucket.head_dim) {
    case 64: return {64, 64, 128, 2};
    case 96: return {96, 96, 128, 2};
    case 192: return {192, 192, 64, 2};
    case 128: return {128, 128, 128, 2};
    default: return {256, 256, 64, 2};
  }
}

// Heads of 256 have kernels for plain scores alone: those of modified ones, and of block masks with
// them, would spill (docs/notes/sm90.md).
constexpr bool has_modified_backward(Bucket bucket) { return bucket.head_dim < 256; }

}  // namespace fa2::sm90
