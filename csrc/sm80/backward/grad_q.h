#pragma once

// dQ is summed in float32 by all key blocks of a sequence. The sums of a tile are laid out as the
// warps hold them, so that each addition of a warp is one line of 128 bytes:
//
//   (lane, register, row block of a warp, column block of a warp)
//
// A warp holds 32 queries and its share of the head dim, which are pairs of MMAs: 16 queries where
// 32 would leave a single one, and all where they are fewer.

#include "core/macros.h"

namespace fa2::sm80 {

struct GradQLayout {
  int block_m;
  int head_dim;  // bucket
  int warps;

  FA2_HD constexpr int size() const { return block_m * head_dim; }
  FA2_HD constexpr int rows_per_warp() const {
    return block_m < 32 || size() / warps % 512 != 0 ? 16 : 32;
  }
  FA2_HD constexpr int row_warps() const { return block_m / rows_per_warp(); }
  FA2_HD constexpr int cols_per_warp() const { return head_dim * row_warps() / warps; }
  FA2_HD constexpr int warp_size() const { return rows_per_warp() * cols_per_warp(); }

  // Where 4 pairs of columns from col on lie, col a multiple of 8: their first columns follow each
  // other from here, their second ones 32 floats later.
  FA2_HD int offset(int row, int col) const {
    int const warp = row / rows_per_warp() + col / cols_per_warp() * row_warps();
    int const row_block = row % rows_per_warp() / 16, half = row % 16 / 8;
    int const col_block = col % cols_per_warp() / 8;
    int const reg = (row_block * (cols_per_warp() / 8) + col_block) * 4 + half * 2;
    return warp * warp_size() + reg * 32 + row % 8 * 4;
  }
};

}  // namespace fa2::sm80
