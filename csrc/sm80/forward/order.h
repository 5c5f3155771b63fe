#pragma once

// In which order a forward CTA takes the key tiles that a block mask lists: from the last to the
// first, as it takes a range of tiles without one. Steps are put in a queue while others are worked
// on (lists/step_queue.h), whose places number them here.

#include "sm80/forward/config.h"

namespace fa2::sm80 {

template <class Config>
class ListedKeyTiles {
  using Args = typename Config::Args;
  using Smem = typename Config::Smem;
  using Queue = ForwardSteps<Config::kTile.block_m, Config::kTile.block_n>;

 public:
  static constexpr int kStepsPerBlock = BlockMask::kBlock / Config::kTile.block_n;

  CUTE_DEVICE ListedKeyTiles(Args const& args, Smem& smem) : args_(args), queue_(smem.steps[0]) {}

  // The first step, for this warp's rows.
  CUTE_DEVICE static int first() {
    return Queue::first(Config::Warps::row_begin() / BlockMask::kBlock);
  }

  CUTE_DEVICE ListedStep const& operator[](int at) const { return queue_.steps[at]; }

  // Between the barriers of step `at`: all that comes next is known after the second.
  CUTE_DEVICE void look_ahead(int at) {
    if (thread_index() >= 32 || (*this)[at].next == at + 1) return;
    queue_.fill(RowEntries{args_.problem.block_mask}, key_jumps<Config::kTile.block_n>(args_));
  }

 private:
  Args const& args_;
  Queue& queue_;
};

}  // namespace fa2::sm80
