#pragma once

// The tile of every head-dim bucket in the backward pass.

#include "sm90/backward/grad_q.h"
#include "sm90/tiles.h"

namespace fa2::sm90 {

// Scores are held transposed, S' = K Q', keys in rows: P' and dS' are then operands of dV and dK as
// they stand in registers.
struct BwdTile {
  int head_dim;    // of Q and K, rounded up to a bucket
  int head_dim_v;  // of V and dO
  int block_n;     // keys of a CTA, 64 for each of its consumer warpgroups
  int block_m;     // queries of a step
  int stages;      // of the rings of Q and dO

  constexpr int box_cols() const { return 64; }
  constexpr int consumers() const { return block_n / 64; }
  constexpr int threads() const { return (consumers() + 1) * 128; }
  // Of 64 K, of which the producer needs few.
  static constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

  constexpr GradQLayout grad_q() const { return {block_m, head_dim, consumers()}; }
};

// Heads of other buckets are left to sm80.
constexpr bool has_bwd_tile(Bucket bucket) { return bucket == Bucket(128); }

constexpr BwdTile bwd_tile(Bucket) { return {128, 128, 128, 64, 2}; }

}  // namespace fa2::sm90
