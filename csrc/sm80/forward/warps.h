#pragma once

// Which rows and columns of a forward CTA's tile a warp has. Column warps split the keys; where
// they come in pairs, also the columns of O.

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
};

}  // namespace fa2::sm80
