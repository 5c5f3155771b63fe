#pragma once

// Shared memory of a CTA of the main backward kernel, and the sizes that follow from its tile.

#include "sm80/backward/work_tile.h"
#include "sm90/backward/args.h"
#include "sm90/backward/listed.h"
#include "sm90/backward/tiles.h"
#include "tile/ring.h"
#include "tile/wgmma.h"

namespace fa2::sm90 {

template <class Element_, BwdTile kTile_, Variant kVariant_>
struct BwdConfig {
  using Element = Element_;
  static constexpr BwdTile kTile = kTile_;
  static constexpr bool kModified = kVariant_ != Variant::kPlain;
  static constexpr bool kListed = kVariant_ == Variant::kListed;
  static constexpr int kStages = kTile.stages;
  static_assert(kStages >= 2);  // a step waits for the next Q before it gives its own back
  static constexpr int kConsumers = kTile.consumers();
  static constexpr GradQLayout kGradQ = kTile.grad_q();

  // A warpgroup's blocks: columns of S' (8), depth of dK and dV (16), columns of dK, dV and dQ (8).
  static constexpr int kNumS = BwdTile::kBlockM / 8;
  static constexpr int kDepth = BwdTile::kBlockM / 16;
  static constexpr int kNumK = kTile.head_dim / 8;
  static constexpr int kNumV = kTile.head_dim_v / 8;
  static constexpr int kNumQ = kGradQ.cols_per_part() / 8;

  using TileK = WgmmaTile<kTile.block_n, kTile.head_dim, kTile.k_box_cols(), kTile.k_used_cols()>;
  using TileV = WgmmaTile<kTile.block_n, kTile.head_dim_v, kTile.box_cols()>;
  using TileQ = WgmmaTile<BwdTile::kBlockM, kTile.head_dim, kTile.box_cols()>;
  using TileGradOut = WgmmaTile<BwdTile::kBlockM, kTile.head_dim_v, kTile.box_cols()>;
  using TileGradScores = WgmmaTile<kTile.block_n, BwdTile::kBlockM>;  // keys in rows

  // While a warpgroup multiplies dS of one step, others may be at the next one; those
  // that share keys are not.
  static constexpr int kGradScores = kTile.shares_keys() ? 1 : 2;

  // Named barriers: all consumers have written dS; of each warpgroup, its dQ may be written, and
  // has been.
  static constexpr int kGradScoresThere = 1;
  static constexpr int kGradQEmpty = 2;
  static constexpr int kGradQFull = kGradQEmpty + kConsumers;
  static constexpr int kGradQThreads = 128 + 32;
  static constexpr int kProbsThere = kGradQFull + kConsumers;  // where keys are shared

  // Warps that read Q, and dO: where keys are shared, those of one warpgroup each.
  static constexpr int kReaders = 4 * (kTile.shares_keys() ? 1 : kConsumers);

  struct Smem {
    alignas(1024) Element k[TileK::kElements];
    alignas(1024) Element v[TileV::kElements];
    alignas(1024) Element q[kStages][TileQ::kElements];
    alignas(1024) Element grad_out[kStages][TileGradOut::kElements];
    alignas(1024) Element grad_scores[kGradScores][TileGradScores::kElements];
    alignas(1024) Element probs[kTile.shares_keys() ? TileGradScores::kElements : 0];
    alignas(1024) Element weights[kTile.shares_keys() && kModified ? TileGradScores::kElements : 0];
    alignas(128) float grad_q[kTile.copies_grad_q() ? kGradQ.size() : 0];
    // With Q; where keys are shared -D is with dO.
    alignas(16) float row_stats[kStages][2][BwdTile::kBlockM];
    uint64_t keys_full;
    Ring<kStages> q_ring, grad_out_ring;
    sm80::BwdWorkTile work;
    // Under a block mask, of the tiles of queries in the ring, and the one that comes next.
    ListedQueryStep steps[kListed ? kStages : 0];
    ListedQueryStep next_step[kListed ? 1 : 0];
    ListedQueryWalk walk[kListed ? 1 : 0];
  };
};

}  // namespace fa2::sm90
