#pragma once

// Which steps a CTA takes under a block mask: through the blocks of keys that its queries list,
// from the last to the first, as many at a time as a step has keys for, wherever they lie.

#include "core/block_mask.h"
#include "sm90/forward/work_tile.h"

namespace fa2::sm90 {

// What stands for a block of pairs that is not listed; otherwise there is an index into
// BlockMask::bits, 0 where all pairs are visible.
inline constexpr int32_t kUnlisted = -1;

// Queries of a CTA are up to two blocks of the mask, each with a list.
inline constexpr int kLists = 2;

// Places for steps, which are found one ahead of the copies of their keys. A place is filled again
// when these are in the place of others, which all consumers had done with; they are done with what
// came before, then.
inline constexpr uint32_t kListedSteps = 8;

// Handed from the producer to the consumers in shared memory. Where blocks run out in the middle of
// a step, the others lie behind all keys.
template <int kBlocks>
struct ListedStep {
  int32_t block[kBlocks];         // of keys
  int32_t tile[kLists][kBlocks];  // of the queries of each list
  int32_t parts[kLists];          // a bit for each block: whether it is listed
  int32_t masked[kLists];         // whether scores have to be looked at one by one
  int32_t is_last;
};

// By one thread: the lists of a CTA, gone through together.
template <int kBlocks>
class ListedWalk {
 public:
  CUTE_DEVICE void start(FwdArgs const& args, WorkTile const& work) {
    FwdParams const& p = args.problem;
    int32_t const first = work.query_begin / BlockMask::kBlock;
    int32_t const lists = args.queries > BlockMask::kBlock ? kLists : 1;
    blocks_ = mask_blocks(work.seqlen_k);
    for (int32_t i = 0; i < kLists; ++i) {
      walks_[i] = {{0, 0}, 0, blocks_};
      if (i >= lists || first + i >= mask_blocks(work.seqlen_q)) continue;
      walks_[i].left = listed_entries(p, work.batch, mask_head(p, work.head),
                                      p.positions.q_start / BlockMask::kBlock + first + i);
    }
  }

  // Says what the next step is; false: there is none.
  CUTE_DEVICE bool find(FwdArgs const& args, WorkTile const& work, ListedStep<kBlocks>& step) {
    BlockMask const& mask = args.problem.block_mask;
    for (int32_t i = 0; i < kLists; ++i) {
      step.parts[i] = 0;
      step.masked[i] = args.adjusts_scores;
    }
    for (int32_t j = 0; j < kBlocks; ++j) {
      int32_t const next[kLists] = {walks_[0].block(mask), walks_[1].block(mask)};
      int32_t const block = max(next[0], next[1]);
      bool const ends = (block + 1) * BlockMask::kBlock > work.seqlen_k;
      step.block[j] = block < 0 ? blocks_ : block;
      for (int32_t i = 0; i < kLists; ++i) {
        bool const listed = block >= 0 && next[i] == block;
        int32_t const tile = listed ? listed_tile(mask, walks_[i].entry()) : kUnlisted;
        if (listed) walks_[i].take(block);
        step.tile[i][j] = tile;
        step.parts[i] |= int32_t(listed) << j;
        step.masked[i] |= tile != 0 || ends;
      }
    }
    return step.block[0] < blocks_;
  }

 private:
  ListWalk<Order::kDown> walks_[kLists];
  int32_t blocks_;  // of keys
};

}  // namespace fa2::sm90
