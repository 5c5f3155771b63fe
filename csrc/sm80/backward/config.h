#pragma once

// Shared memory of a CTA of the main backward kernel, and the sizes that follow from its tile.

#include "sm80/backward/listed.h"
#include "sm80/backward/tiles.h"
#include "sm80/backward/warps.h"
#include "sm80/backward/work_tile.h"
#include "tile/copy.h"
#include "tile/smem_tile.h"

namespace fa2::sm80 {

template <class Element_, BwdTile kTile_, Variant kVariant_>
struct BwdConfig {
  using Element = Element_;
  static constexpr BwdTile kTile = kTile_;
  static constexpr Variant kVariant = kVariant_;
  static constexpr bool kExchange = kTile.query_warps > 1 || kTile.shares_scores();
  static constexpr bool kModified = kVariant != Variant::kPlain;
  static constexpr bool kDropout = has_dropout(kVariant);
  static constexpr bool kListed = is_listed(kVariant);

  using Warps = BwdWarps<kTile>;

  // One warp's blocks: keys (16), queries of a chunk (8).
  static constexpr int kM = Warps::kKeys / 16;
  static constexpr int kNumS = kTile.chunk / 8;
  static constexpr int kChunks = Warps::kQueries / kTile.chunk;
  static_assert(Warps::kQueries % kTile.chunk == 0 && kTile.chunk % 16 == 0);
  static constexpr int kGradM = Warps::kGradKeys / 16;  // of dK and dV

  // dQ of a step: a warp takes kMQ x 16 queries and kNumQ x 8 columns.
  static constexpr GradQLayout kGradQ = kTile.grad_q();
  static constexpr int kMQ = kGradQ.rows_per_warp() / 16;
  static constexpr int kNumQ = kGradQ.cols_per_warp() / 8;
  static_assert(kGradQ.cols_per_warp() % 16 == 0);

  // Rows of keys and of queries that are multiplied: K and Q, or V and dO.
  template <int kWidth, bool kInRegisters_>
  struct Side {
    static constexpr bool kInRegisters = kInRegisters_;  // those of keys
    // A warp's blocks: depth of S' or dP' (16), columns of dK or dV (8).
    static constexpr int kDepth = kWidth / 16;
    static constexpr int kNum = kWidth / (8 * Warps::kColumnWarps);
    using CopiesKeys = CopyShape<kTile.block_n, kWidth, kTile.threads()>;
    using CopiesQueries = CopyShape<kTile.block_m, kWidth, kTile.threads()>;
    static_assert(CopiesQueries::kRowsPerPass == kTile.rows_per_pass());
    using SmemKeys = SmemTile<kTile.block_n, kWidth, CopiesKeys::kSmemPad>;
    using SmemQueries = SmemTile<kTile.block_m, kWidth, CopiesQueries::kSmemPad>;
  };
  using OfScores = Side<kTile.head_dim, kTile.k_in_registers>;
  using OfValues = Side<kTile.head_dim_v, kTile.v_in_registers>;
  using SmemP = SmemTile<kTile.block_n, kTile.block_m, 16>;

  // Once V is in registers, its buffer is free for dS.
  static constexpr bool kReuseV =
      OfValues::kInRegisters && SmemP::kElements <= OfValues::SmemKeys::kElements;

  // Sums of scores over parts of the columns, of all warps that share them.
  static constexpr int kPartScores =
      kTile.shares_scores() ? kTile.warps() * Warps::kKeys * kTile.block_m : 0;

  struct Smem {
    alignas(128) Element k[OfScores::SmemKeys::kElements];
    alignas(128) Element v[OfValues::SmemKeys::kElements];
    alignas(128) Element q[kTile.stages][OfScores::SmemQueries::kElements];
    alignas(128) Element grad_out[kTile.stages][OfValues::SmemQueries::kElements];
    alignas(128) Element probs[kExchange ? SmemP::kElements : 0];
    alignas(128) Element grad_scores_[kReuseV ? 0 : SmemP::kElements];
    alignas(16) float part_scores[kPartScores];
    alignas(16) float row_stats[kTile.stages][2][kTile.block_m];
    BwdWorkTile work;
    int32_t index;  // of the CTA in the schedule
    ListedSteps steps[kListed ? 1 : 0];

    CUTE_DEVICE Element* grad_scores() { return kReuseV ? v : grad_scores_; }
  };
};

}  // namespace fa2::sm80
