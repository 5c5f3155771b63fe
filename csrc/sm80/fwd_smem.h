#pragma once

// Shared memory of a forward CTA, and the sizes that follow from its tile.

#include "sm80/tiles.h"
#include "sm80/work_tile.h"
#include "tile/copy.h"
#include "tile/smem_tile.h"

namespace fa2::sm80 {

template <class Element_, FwdTile kTile_, Variant kVariant_>
struct FwdConfig {
  using Element = Element_;
  static constexpr FwdTile kTile = kTile_;
  static constexpr Variant kVariant = kVariant_;
  static constexpr bool kPairs = kTile.column_warps == 2;
  static constexpr bool kModified = kVariant != Variant::kPlain;
  static constexpr bool kDropout = kVariant == Variant::kDropout;

  // One warp's blocks: rows (16), columns of S (8), depth of S = Q K' and O = P V (16), and
  // columns of O (8).
  static constexpr int kM = kTile.block_m / (16 * kTile.row_warps);
  static constexpr int kNumS = kTile.block_n / (8 * kTile.column_warps);
  static constexpr int kDepthS = kTile.head_dim / 16;
  static constexpr int kDepthO = kTile.block_n / (16 * kTile.column_warps);
  static constexpr int kNumO = kTile.head_dim_v / (8 * kTile.column_warps);

  template <int kRows, int kCols>
  using CopyOf = CopyShape<kRows, kCols, kTile.threads()>;
  static constexpr int kPadQK = CopyOf<kTile.block_n, kTile.head_dim>::kSmemPad;
  static constexpr int kPadVO = CopyOf<kTile.block_n, kTile.head_dim_v>::kSmemPad;

  using StreamQ = TileStream<Element, kTile.block_m, kTile.head_dim, kTile.threads(), kPadQK>;
  using StreamK = TileStream<Element, kTile.block_n, kTile.head_dim, kTile.threads(), kPadQK>;
  using StreamV = TileStream<Element, kTile.block_n, kTile.head_dim_v, kTile.threads(), kPadVO>;
  using SmemO = SmemTile<kTile.block_m, kTile.head_dim_v, kPadVO>;
  using SmemP = SmemTile<kTile.block_m, kTile.block_n, 16>;

  struct Smem {
    union {
      alignas(128) Element q[StreamQ::Smem::kElements];
      Element out[SmemO::kElements];  // staged when all of Q has been read
    };
    alignas(128) Element k[StreamK::Smem::kElements];
    alignas(128) Element v[StreamV::Smem::kElements];
    alignas(128) Element probs[kPairs ? SmemP::kElements : 0];
    float row_exchange[kPairs ? 2 : 0][kTile.block_m];  // row maxima and sums of a pair's halves
    WorkTile work;
  };
};

}  // namespace fa2::sm80
