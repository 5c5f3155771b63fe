#pragma once

// Which rows and columns of a forward CTA's tile a warp has. Column warps split the keys, unless
// each has whole scores; where they are of one softmax, also the columns of O.

#include <cute/config.hpp>

#include "sm80/tiles.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

template <FwdTile kTile>
struct FwdWarps {
  static constexpr int kColumnWarps = kTile.column_warps * kTile.key_warps;
  static constexpr int kRows = kTile.block_m / kTile.row_warps;

  CUTE_DEVICE static int row_warp() { return warp_index() / kColumnWarps; }
  CUTE_DEVICE static int column_warp() { return warp_index() % kColumnWarps; }
  CUTE_DEVICE static int row_begin() { return row_warp() * kRows; }

  static constexpr int kKeyParts = kTile.whole_scores ? 1 : kColumnWarps;
  CUTE_DEVICE static int key_part() { return kTile.whole_scores ? 0 : column_warp(); }
};

}  // namespace fa2::sm80
