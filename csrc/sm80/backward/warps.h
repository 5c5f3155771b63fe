#pragma once

// Which keys, queries and head dims of a backward CTA's tile a warp has.

#include <cute/config.hpp>

#include "sm80/backward/tiles.h"

namespace fa2::sm80 {

// Addresses that follow from these may stay in registers; thread_index() and lane_index() are read
// anew, for what must not.
template <BwdTile kTile>
struct BwdWarps {
  static constexpr int kKeys = kTile.block_n / kTile.key_warps;
  static constexpr int kQueries = kTile.block_m / kTile.query_warps;

  CUTE_DEVICE static int lane() { return int(threadIdx.x) % 32; }
  CUTE_DEVICE static int warp() { return int(threadIdx.x) / 32; }
  // Among the warps of the same keys. Pairs stand side by side.
  CUTE_DEVICE static int sharer() {
    if constexpr (kTile.pairs_scores()) return warp() / (2 * kTile.key_warps) * 2 + warp() % 2;
    return warp() / kTile.key_warps;
  }
  CUTE_DEVICE static int query_warp() {
    if constexpr (kTile.shares_scores()) return sharer() % kTile.query_warps;
    return sharer();
  }
  CUTE_DEVICE static int twin() { return sharer() / kTile.query_warps; }
  CUTE_DEVICE static int key_begin() {
    return warp() / (kTile.pairs_scores() ? 2 : 1) % kTile.key_warps * kKeys;
  }
  CUTE_DEVICE static int query_begin() { return query_warp() * kQueries; }

  // Of dK and dV: keys, and which share of the columns.
  static constexpr int kGradKeys = kTile.shares_scores() ? kTile.block_n : kKeys;
  static constexpr int kColumnWarps = kTile.warps() * kGradKeys / kTile.block_n;
  CUTE_DEVICE static int grad_key_begin() { return kTile.shares_scores() ? 0 : key_begin(); }
  CUTE_DEVICE static int column_warp() { return kTile.shares_scores() ? warp() : query_warp(); }
};

}  // namespace fa2::sm80
