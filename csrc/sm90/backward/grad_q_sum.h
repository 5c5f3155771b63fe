#pragma once

// The warp that adds dQ of every step to the sums in global memory: what the consumers have left in
// shared memory, by copies that add, in any order of key blocks or in turn.

#include "sm90/backward/config.h"
#include "sm90/backward/turns.h"

namespace fa2::sm90 {

template <class Config>
class GradQSum {
  using Smem = typename Config::Smem;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr GradQLayout kLayout = Config::kGradQ;
  static constexpr int kConsumers = Config::kConsumers;

 public:
  CUTE_DEVICE GradQSum(BwdArgs const& args, Smem& smem)
      : args_(args.common), smem_(smem), work_(smem.work), adds_(elect_one()) {}

  // By all lanes of the warp, one of which adds.
  CUTE_DEVICE void run() const {
    if constexpr (Config::kListed) {
      run_listed();
    } else {
      run_range();
    }
    if (adds_) wait_for_reading<0>();
  }

 private:
  CUTE_DEVICE void run_range() const {
    int const group = args_.problem.forward.group();
    CUTE_NO_UNROLL
    for (int head = work_.head_kv * group; head < (work_.head_kv + 1) * group; ++head) {
      CUTE_NO_UNROLL
      for (int m = work_.tiles.begin; m < work_.tiles.end; ++m) {
        give_back();
        add(head, m, 1, [&] { return turn_of(args_, work_, m, kTile.block_n); });
      }
    }
  }

  // Steps are known with Q. Their place is not filled again before consumers have been told below
  // that they may write dQ.
  CUTE_DEVICE void run_listed() const {
    RingPosition<Config::kStages> at;
    bool is_last;
    do {
      wait_full(smem_.q_ring, at);
      ListedQueryStep const step = smem_.steps[at.stage];
      is_last = step.is_last;
      give_back();
      add(step.head, step.queries.block, step.turns(), [&] { return step.queries.later; });
      at.advance();
    } while (!is_last);
  }

  // What the last step has left is read.
  CUTE_DEVICE void give_back() const {
    if (adds_) wait_for_reading<0>();
    __syncwarp();
    CUTE_UNROLL
    for (int w = 0; w < kConsumers; ++w) {
      named_barrier_arrive(Config::kGradQEmpty + w, Config::kGradQThreads);
    }
  }

  // In a fixed order, after turn() additions, and counting for so many.
  template <class Turn>
  CUTE_DEVICE void add(int head, int m, int turns, Turn const& turn) const {
    int const tile = sm80::workspace_tile(args_, work_, m, head);
    float* const sums = args_.workspace.grad_q + int64_t(tile) * kLayout.size();
    int32_t* const semaphores = args_.workspace.semaphores;
    bool const ordered = semaphores != nullptr;
    if (ordered && adds_) {
      await_additions(semaphores + tile, turn());
      fence_async_proxy();
    }
    CUTE_UNROLL
    for (int w = 0; w < kConsumers; ++w) {
      named_barrier_sync(Config::kGradQFull + w, Config::kGradQThreads);
      if (adds_) {
        add_floats(sums + w * kLayout.part_size(), smem_.grad_q + w * kLayout.part_size(),
                   kLayout.part_size() * int(sizeof(float)));
        commit_additions();
      }
    }
    if (ordered && adds_) {
      wait_for_additions<0>();
      fence_async_proxy();
      red_release_add(semaphores + tile, turns);
    }
  }

  sm80::BwdArgs const& args_;
  Smem& smem_;
  sm80::BwdWorkTile const& work_;
  bool adds_;
};

}  // namespace fa2::sm90
