#pragma once

// Shared memory of a forward CTA, and the sizes that follow from its tile.

#include "sm90/forward/listed.h"
#include "sm90/tiles.h"
#include "tile/ring.h"
#include "tile/wgmma.h"

namespace fa2::sm90 {

template <class Element_, FwdTile kTile_, Variant kVariant_>
struct FwdConfig {
  using Element = Element_;
  static constexpr FwdTile kTile = kTile_;
  static constexpr bool kPlain = kVariant_ == Variant::kPlain;
  static constexpr bool kListed = kVariant_ == Variant::kListed;
  static constexpr int kStages = kTile.stages;
  static constexpr int kConsumerWarps = 4 * kTile.consumers();

  // A warp's blocks: columns of S (8), depth of O = P V (16), columns of O (8).
  static constexpr int kNumS = kTile.block_n / 8;
  static constexpr int kDepthO = kTile.block_n / 16;
  static constexpr int kNumO = kTile.head_dim_v / 8;

  // Where a tile of keys lies: by its number, or under a block mask in parts, each a block of it.
  // Elsewhere scores that are modified have parts, too.
  static constexpr int kParts =
      kPlain || kTile.block_n % BlockMask::kBlock != 0 ? 1 : kTile.block_n / BlockMask::kBlock;
  using Step = ListedStep<kParts>;
  using KeyTile = conditional_t<kListed, Step const&, int>;
  static_assert(!kListed || (kTile.block_m == kLists * BlockMask::kBlock &&
                             kTile.block_n == kParts * BlockMask::kBlock));

  using TileQ = WgmmaTile<kTile.block_m, kTile.head_dim>;
  using TileK = WgmmaTile<kTile.block_n, kTile.head_dim>;
  using TileV = WgmmaTile<kTile.block_n, kTile.head_dim_v>;
  static_assert(TileK::kBoxCols == kTile.box_cols() && TileV::kBoxCols == kTile.box_cols());

  struct Smem {
    alignas(1024) Element q[TileQ::kElements];
    alignas(1024) Element k[kStages][TileK::kElements];
    alignas(1024) Element v[kStages][TileV::kElements];
    Ring<1> q_ring;
    Ring<kStages> k_ring, v_ring;
    Ring<2> work_ring;
    WorkTile work[2];
    ListedWalk<kParts> walk[kListed ? 1 : 0];
    Step steps[kListed ? kListedSteps : 0];
  };
};

}  // namespace fa2::sm90
