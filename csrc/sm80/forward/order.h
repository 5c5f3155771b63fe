#pragma once

// In which order a forward CTA takes the key tiles that a block mask lists: from the last to the
// first, as it takes a range of tiles without one. Steps are put in a queue while others are worked
// on (lists/step_queue.h).

#include "sm80/forward/config.h"

namespace fa2::sm80 {

template <class Config>
class ListedKeyTiles {
  using Args = typename Config::Args;
  using Smem = typename Config::Smem;

 public:
  static constexpr int kStepsPerBlock = BlockMask::kBlock / Config::kTile.block_n;

  CUTE_DEVICE ListedKeyTiles(Args const& args, Smem& smem)
      : args_(args), queue_(smem.steps[0]), tiles_(smem.work.tiles) {}

  // Whether there is a step i, of which all before have been looked ahead of.
  CUTE_DEVICE bool has(int i) const { return i < queue_.size * kStepsPerBlock; }

  CUTE_DEVICE int key_tile(int i) const {
    return queue_[i / kStepsPerBlock].block * kStepsPerBlock + kStepsPerBlock - 1 -
           i % kStepsPerBlock;
  }

  // Which of the lists this warp's rows have.
  CUTE_DEVICE static int own_list() { return Config::Warps::row_begin() / BlockMask::kBlock; }

  // What step i is to the rows of a list: a tile of the mask, or kUnlisted.
  CUTE_DEVICE int mask_tile(int i, int list) const { return queue_[i / kStepsPerBlock].tile[list]; }

  CUTE_DEVICE bool is_edge(int key_tile) const { return fa2::is_edge(tiles_, key_tile); }

  // Between the barriers of step i: all that comes next is known after the second.
  CUTE_DEVICE void look_ahead(int i) {
    if (threadIdx.x >= 32 || has(i + 1)) return;
    queue_.fill(RowEntries{args_.problem.block_mask});
  }

 private:
  Args const& args_;
  ForwardSteps<Config::kTile.block_m>& queue_;
  BlockRange const& tiles_;
};

}  // namespace fa2::sm80
