#pragma once

// Which steps the forward kernel takes under a block mask: key blocks from the last to the first,
// as without one.

#include "sm80/forward/work_tile.h"
#include "sm80/lists/args.h"
#include "sm80/lists/cut.h"
#include "sm80/lists/step_queue.h"

namespace fa2::sm80 {

template <int kBlockM, int kBlockN>
using ForwardSteps = StepQueue<kBlockM / BlockMask::kBlock, BlockMask::kBlock / kBlockN>;

// Entries of a mask by rows of queries.
struct RowEntries {
  BlockMask const& mask;

  CUTE_DEVICE ListedBlock operator()(int64_t entry) const {
    return {mask.cols[entry], listed_tile(mask, entry)};
  }
};

template <int kBlockN>
CUTE_DEVICE KeyJumps key_jumps(FwdArgs const& args) {
  constexpr int64_t kRowBytes = kBlockN * 2;  // of one column of a tile
  FwdParams const& p = args.problem;
  return {{p.k.row_stride * kRowBytes, args.k_pass_bytes},
          {p.v.row_stride * kRowBytes, args.v_pass_bytes}};
}

// What of a tile's lists a CTA goes through.
struct ListedTile {
  int32_t piece;
  int32_t pieces;
  int64_t slot;  // where the results of a piece go; negative: all of the tile is here

  CUTE_DEVICE bool is_piece() const { return slot >= 0; }
};

// Sets what the CTA of an index computes; false: nothing.
template <int kBlockM, int kBlockN>
CUTE_DEVICE bool schedule_listed(FwdArgs const& args, int32_t index, WorkTile& work,
                                 ListedTile& listed) {
  ScheduledItem const at = scheduled_item(args.listed, index);
  WorkItem const& item = at.item;
  if (!item.exists()) return false;
  ListedPair const pair = listed_pair(args.problem, item.unit, at.copy);
  work = work_tile(args, pair.batch, pair.head, item.list, kBlockM, kBlockN);
  listed = {item.piece, item.pieces,
            item.is_piece() ? args.listed.slot(at.copy, item.slot) : int64_t(-1)};
  return true;
}

// By one warp: finds the first steps of a CTA, and says in `tiles` where they begin. Tiles where
// keys end are not simple; neither is any where scores are modified, which only masked steps do.
template <int kBlockM, int kBlockN>
CUTE_DEVICE void start_steps(FwdArgs const& args, WorkTile const& work, ListedTile const& listed,
                             ForwardSteps<kBlockM, kBlockN>& steps, BlockRange& tiles) {
  FwdParams const& p = args.problem;
  constexpr int kLists = ForwardSteps<kBlockM, kBlockN>::kLists;
  int32_t const head = mask_head(p, work.head);
  int32_t const first_row = work.row_begin / BlockMask::kBlock;
  ListedEntries rest[kLists];
  for (int i = 0; i < kLists; ++i) {
    rest[i] = {0, 0};
    if (first_row + i >= mask_blocks(work.seqlen_q)) continue;
    rest[i] = row_entries(p, work.batch, head, first_row + i);
  }
  if (listed.is_piece()) cut(rest, p.block_mask.cols, listed.piece, listed.pieces);
  steps.start(rest, mask_blocks(work.seqlen_k),
              is_modified(p.score_mod) ? 0 : work.seqlen_k / kBlockN);
  steps.fill(RowEntries{p.block_mask}, key_jumps<kBlockN>(args));
  if (threadIdx.x % 32 == 0) {
    ListedStep const& first = steps.steps[0];
    tiles = {0, 0, 0, first.tile == kNoStep ? 0 : first.key_tile + 1};
  }
}

}  // namespace fa2::sm80
