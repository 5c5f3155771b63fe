#pragma once

// dQ is summed in float32 by all key blocks of a sequence. The sums of a tile of 64 queries are
// laid out as the warpgroups of a CTA hold them, each its share of the columns: so that it adds its
// part as it stands in shared memory, or where there is no room for that, lines of 128 bytes a
// warp:
//
//   (register of four, thread of a warpgroup, block of 8 columns)
//   (thread of a warpgroup, register of four, block of 8 columns)

#include "core/macros.h"

namespace fa2::sm90 {

struct GradQLayout {
  int head_dim;  // bucket
  int warpgroups;
  bool by_threads;  // the second one

  static constexpr int kRows = 64;

  FA2_HD constexpr int size() const { return kRows * head_dim; }
  FA2_HD constexpr int cols_per_part() const { return head_dim / warpgroups; }  // of a warpgroup
  FA2_HD constexpr int part_size() const { return kRows * cols_per_part(); }

  // Of the four registers of a thread in a block: pairs of columns of two rows, 8 rows apart.
  FA2_HD constexpr int offset(int col, int thread) const {
    return col / 8 * 512 + thread * (by_threads ? 1 : 4);
  }
  FA2_HD constexpr int step() const { return by_threads ? 128 : 1; }  // from one to the next
};

}  // namespace fa2::sm90
