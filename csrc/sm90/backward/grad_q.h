#pragma once

// dQ is summed in float32 by all key blocks of a sequence. The sums of a query tile are laid out as
// the warpgroups of a CTA hold them, so that each of these adds its part as it stands:
//
//   (register of four, thread of the warpgroup, block of 8 columns, warpgroup)
//
// A warpgroup has 64 queries, and of more warpgroups than these are for each its share of the head
// dim.

#include "core/macros.h"

namespace fa2::sm90 {

struct GradQLayout {
  int block_m;
  int head_dim;  // bucket
  int warpgroups;

  FA2_HD constexpr int size() const { return block_m * head_dim; }
  FA2_HD constexpr int row_parts() const { return block_m / 64; }
  FA2_HD constexpr int cols_per_part() const { return head_dim * row_parts() / warpgroups; }
  FA2_HD constexpr int part_size() const { return 64 * cols_per_part(); }

  // Where a warpgroup begins in each.
  FA2_HD constexpr int row_begin(int warpgroup) const { return warpgroup % row_parts() * 64; }
  FA2_HD constexpr int col_begin(int warpgroup) const {
    return warpgroup / row_parts() * cols_per_part();
  }
  // Of the four registers of a thread, which are pairs of columns of two rows, 8 rows apart.
  FA2_HD constexpr int offset(int warpgroup, int block, int thread) const {
    return warpgroup * part_size() + (block * 128 + thread) * 4;
  }
};

}  // namespace fa2::sm90
