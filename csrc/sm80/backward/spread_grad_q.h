#pragma once

// dQ of wide heads. Its sums in memory take as long as many products do, so they are added beside
// these, a few at a time: half of a warp's columns in the step that they are of, where scores are
// shared while dV and dK are multiplied, the others with the scores of the next step.

#include "sm80/backward/grad_q_sum.h"
#include "sm80/backward/score_parts.h"

namespace fa2::sm80 {

template <class Config>
class SpreadGradQ {
  using Sum = GradQSum<Config>;
  using Half = typename Sum::Half;
  using Parts = BwdScoreParts<Config>;
  // Blocks of B that a warp multiplies for dV and dK.
  static constexpr int kGradBlocks =
      Config::kTile.block_m / 16 * (Config::OfScores::kNum + Config::OfValues::kNum) / 2;

  // Adds a half in so many calls.
  template <int kWhich, int kCalls>
  struct AddSome {
    static_assert(Sum::kHalfSize % kCalls == 0);
    static constexpr int kAtOnce = Sum::kHalfSize / kCalls;
    float* sums;
    Half const& half;
    mutable int next = 0;

    CUTE_DEVICE void operator()() const {
      Sum::template add_some<kWhich>(sums, half, next, kAtOnce);
      next += kAtOnce;
    }
  };

  // Adds the other half, if there is any. A branch each time: without, ptxas would gather all sums
  // before the products.
  template <int kCalls>
  struct AddRest {
    bool pending;
    AddSome<1, kCalls> add_some;

    CUTE_DEVICE void operator()() const {
      int const first = add_some.next;
      add_some.next += add_some.kAtOnce;
      if (pending) Sum::template add_some<1>(add_some.sums, add_some.half, first, add_some.kAtOnce);
    }
  };

 public:
  CUTE_DEVICE SpreadGradQ(BwdArgs const& args, typename Config::Smem& smem)
      : args_(args), smem_(smem) {}

  // dS of all warps is in shared memory. What is returned is to be called for each of kGradBlocks.
  template <class Order>
  CUTE_DEVICE auto begin_step(Order const& order, int m, int head) {
    take(order, m, head);
    sum().template multiply_half<0>(half_);
    sum().await(order, m, tile_);
    return AddSome<0, kGradBlocks>{sum().sums_of(tile_), half_};
  }

  // dS may be overwritten after a barrier.
  CUTE_DEVICE void multiply_second_half() { sum().template multiply_half<1>(half_); }

  // Of pairs: all of a step's dQ, with its first half.
  template <class Order>
  CUTE_DEVICE void add(Order const& order, int m, int head) {
    take(order, m, head);
    Half first;
    sum().template multiply_half<0>(first);
    sum().await(order, m, tile_);
    multiply_second_half();
    AddSome<0, 1>{sum().sums_of(tile_), first}();
  }

  // To be called so often while the scores of a step are multiplied: adds what the last one left.
  template <int kCalls>
  CUTE_DEVICE AddRest<kCalls> rest() const {
    return {tile_ >= 0, {sum().sums_of(tile_), half_}};
  }

  // This warp's part of the scores of a step, while what the last step has left is added.
  CUTE_DEVICE void multiply_scores() const {
    Parts const parts(smem_);
    if (tile_ < 0) return parts.multiply([] {});
    parts.multiply(AddSome<1, Parts::kDepth>{sum().sums_of(tile_), half_});
  }

  // After a barrier: the last step is over.
  CUTE_DEVICE void end_step() const {
    if (tile_ >= 0) sum().pass(tile_, turns_);
  }

  // After the last step, with no other scores to come.
  CUTE_DEVICE void finish() const {
    AddSome<1, 1>{sum().sums_of(tile_), half_}();
    __syncthreads();
    end_step();
  }

 private:
  CUTE_DEVICE Sum sum() const { return {args_, smem_}; }

  template <class Order>
  CUTE_DEVICE void take(Order const& order, int m, int head) {
    tile_ = workspace_tile(args_, smem_.work, m, head);
    turns_ = order.turns_taken();
  }

  BwdArgs const& args_;
  typename Config::Smem& smem_;
  Half half_;
  int tile_ = -1;  // of the workspace: that of half_
  int turns_;      // that the step counts for in a fixed order
};

}  // namespace fa2::sm80
