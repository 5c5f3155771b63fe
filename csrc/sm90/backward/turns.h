#pragma once

// The fixed order in which key blocks add to the sums of a query tile: from the last one that sees
// it to the first.

#include "sm80/backward/work_tile.h"
#include "sm90/backward/args.h"
#include "tile/intrinsics.h"

namespace fa2::sm90 {

// How many add to query tile m before the CTA's.
CUTE_DEVICE int turn_of(sm80::BwdArgs const& args, sm80::BwdWorkTile const& work, int m,
                        int block_n) {
  int const row_begin = m * GradQLayout::kRows;
  int const row_end = min(row_begin + GradQLayout::kRows, work.seqlen_q);
  BlockRange const blocks =
      block_range(row_begin + work.diagonal, row_end + work.diagonal, work.seqlen_k, work.seqlen_k,
                  args.problem.forward.window, block_n);
  return blocks.end - 1 - work.block;
}

// Until so many additions have been counted.
CUTE_DEVICE void await_additions(int32_t const* semaphore, int count) {
  while (load_acquire(semaphore) < count) {
  }
}

}  // namespace fa2::sm90
