#pragma once

// Shared memory of a forward CTA, and the sizes that follow from its tile.

#include "sm90/forward/work_tile.h"
#include "sm90/tiles.h"
#include "tile/ring.h"
#include "tile/wgmma.h"

namespace fa2::sm90 {

template <class Element_, FwdTile kTile_>
struct FwdConfig {
  using Element = Element_;
  static constexpr FwdTile kTile = kTile_;
  static constexpr int kStages = kTile.stages;
  static constexpr int kConsumerWarps = 4 * kTile.consumers();

  // A warp's blocks: columns of S (8), depth of O = P V (16), columns of O (8).
  static constexpr int kNumS = kTile.block_n / 8;
  static constexpr int kDepthO = kTile.block_n / 16;
  static constexpr int kNumO = kTile.head_dim_v / 8;

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
  };
};

}  // namespace fa2::sm90
