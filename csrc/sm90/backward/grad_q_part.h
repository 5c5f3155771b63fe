#pragma once

// A warpgroup's part of dQ = dS K of a step.

#include "sm90/backward/config.h"
#include "sm90/backward/turns.h"
#include "tile/fragments.h"

namespace fa2::sm90 {

template <class Config>
class GradQPart {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using TileK = typename Config::TileK;

 public:
  using GradQ = decltype(make_tensor<float>(AccumulatorLayout<1, Config::kNumQ>{}));

  CUTE_DEVICE GradQPart(BwdArgs const& args, Smem& smem, int warpgroup)
      : args_(args.common), smem_(smem), warpgroup_(warpgroup) {}

  // dS of all warpgroups is in shared memory.
  CUTE_DEVICE void start(GradQ& grad_q, Element const* grad_scores) const {
    constexpr int kBoxes = Config::kNumQ * 8 / TileK::kUsedCols;
    start_transposed_product<typename Config::TileGradScores, TileK>(grad_q, grad_scores, smem_.k,
                                                                     warpgroup_ * kBoxes);
  }

  // The same of one block of 64 keys alone: others may have anything for K.
  CUTE_DEVICE void start_block(GradQ& grad_q, Element const* grad_scores, int block) const {
    using TileGradScores = typename Config::TileGradScores;
    constexpr int kBlock = BlockMask::kBlock, kBoxes = Config::kNumQ * 8 / TileK::kUsedCols;
    start_transposed_product<TileGradScores, TileK, kBlock>(
        grad_q, grad_scores + block * kBlock * TileGradScores::kBoxCols,
        smem_.k + block * kBlock * TileK::kBoxCols, warpgroup_ * kBoxes);
  }

  // To the warp that adds it up.
  CUTE_DEVICE void hand_over(GradQ const& grad_q) const {
    constexpr GradQLayout layout = kLayout;
    named_barrier_sync(Config::kGradQEmpty + warpgroup_, Config::kGradQThreads);
    float* const to = smem_.grad_q + place();
    CUTE_UNROLL
    for (int j = 0; j < Config::kNumQ; ++j) {
      reinterpret_cast<float4&>(to[layout.offset(8 * j, 0)]) =
          make_float4(grad_q(0, 0, j), grad_q(1, 0, j), grad_q(2, 0, j), grad_q(3, 0, j));
    }
    fence_shared_async_proxy();
    named_barrier_arrive(Config::kGradQFull + warpgroup_, Config::kGradQThreads);
  }

  // Straight to the sums of query tile m of a head. In a fixed order every warpgroup counts as one
  // that adds.
  CUTE_DEVICE void add(GradQ const& grad_q, int m, int head) const {
    constexpr GradQLayout layout = kLayout;
    int const tile = sm80::workspace_tile(args_, smem_.work, m, head);
    float* const sums = args_.workspace.grad_q + int64_t(tile) * layout.size() + place();
    int32_t* const semaphores = args_.workspace.semaphores;
    if (semaphores != nullptr) {
      if (threadIdx.x % 128 == 0) {
        int const turn = turn_of(args_, smem_.work, m, Config::kTile.block_n);
        await_additions(semaphores + tile, Config::kConsumers * turn);
      }
      named_barrier_sync(Config::kGradQEmpty + warpgroup_, 128);
    }
    CUTE_UNROLL
    for (int j = 0; j < Config::kNumQ; ++j) {
      CUTE_UNROLL
      for (int r = 0; r < 4; ++r) {
        red_add(sums + layout.offset(8 * j, 0) + r * layout.step(), grad_q(r, 0, j));
      }
    }
    if (semaphores != nullptr) {
      named_barrier_sync(Config::kGradQEmpty + warpgroup_, 128);
      if (threadIdx.x % 128 == 0) red_release_add(semaphores + tile, 1);
    }
  }

 private:
  static constexpr GradQLayout kLayout = Config::kGradQ;

  // Of this thread's first register, in a tile.
  CUTE_DEVICE int place() const {
    constexpr GradQLayout layout = kLayout;
    return warpgroup_ * layout.part_size() + layout.offset(0, int(threadIdx.x) % 128);
  }

  sm80::BwdArgs const& args_;
  Smem& smem_;
  int warpgroup_;  // of the consumers
};

}  // namespace fa2::sm90
