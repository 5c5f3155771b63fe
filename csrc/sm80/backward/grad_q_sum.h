#pragma once

// dQ += dS K of a backward step: added to the sums of a query tile in global memory, in any order
// or in turn.

#include "sm80/backward/config.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

template <class Config>
class GradQSum {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using SmemK = typename Config::OfScores::SmemKeys;
  using SmemP = typename Config::SmemP;
  using Warps = typename Config::Warps;
  static constexpr int kBlockN = Config::kTile.block_n;
  static constexpr int kMQ = Config::kMQ;
  static constexpr int kNumQ = Config::kNumQ;
  static constexpr int kHalf = kNumQ / 2;
  using GradQ = decltype(make_tensor<float>(AccumulatorLayout<kMQ, kNumQ>{}));

 public:
  CUTE_DEVICE GradQSum(BwdArgs const& args, Smem& smem) : args_(args), smem_(smem) {}

  // dS of all warps is in shared memory. The order says whose turn it is.
  template <class Order>
  CUTE_DEVICE void add(Order const& order, int m, int head) const {
    GradQ acc;
    clear(acc);
    multiply(order, acc);

    int const tile = workspace_tile(args_, smem_.work, m, head);
    float* const sums =
        args_.workspace.grad_q + int64_t(tile) * Config::kGradQ.size() + lane_offset();
    bool const ordered = is_ordered();
    if (ordered) await_turn(order, m, tile);
    CUTE_UNROLL
    for (int i = 0; i < size<1>(acc); ++i) {
      CUTE_UNROLL
      for (int j = 0; j < size<2>(acc); ++j) {
        CUTE_UNROLL
        for (int e = 0; e < 4; ++e) red_add(sums + ((i * kNumQ + j) * 4 + e) * 32, acc(e, i, j));
      }
    }
    if (ordered) {
      __syncthreads();
      if (is_first_thread()) {
        red_release_add(args_.workspace.semaphores + tile, order.turns_taken());
      }
    }
  }

  // The same in halves of a warp's columns, whose sums can be added between other products.
  using Half = decltype(make_tensor<float>(AccumulatorLayout<kMQ, kHalf>{}));
  static constexpr int kHalfSize = kMQ * kHalf * 4;

  template <int kWhich>
  CUTE_DEVICE void multiply_half(Half& acc) const {
    clear(acc);
    multiply<kBlockN>(0, acc, kWhich * kHalf);
  }
  // Of this lane, in a tile of the workspace.
  CUTE_DEVICE float* sums_of(int tile) const {
    return args_.workspace.grad_q + int64_t(tile) * Config::kGradQ.size() + lane_offset();
  }
  // `count` of them from `first` on.
  template <int kWhich>
  CUTE_DEVICE static void add_some(float* sums, Half const& acc, int first, int count) {
    CUTE_UNROLL
    for (int r = first; r < first + count; ++r) {
      int const i = r / (kHalf * 4), j = r / 4 % kHalf, e = r % 4;
      red_add(sums + ((i * kNumQ + kWhich * kHalf + j) * 4 + e) * 32, acc(e, i, j));
    }
  }
  // Around them, where the order is fixed: the second one behind a barrier.
  template <class Order>
  CUTE_DEVICE void await(Order const& order, int m, int tile) const {
    if (is_ordered()) await_turn(order, m, tile);
  }
  CUTE_DEVICE void pass(int tile, int turns) const {
    if (is_ordered() && is_first_thread()) {
      red_release_add(args_.workspace.semaphores + tile, turns);
    }
  }

 private:
  // Lists leave no registers for what can be read anew: these semaphores and the index.
  CUTE_DEVICE bool is_ordered() const {
    int32_t* semaphores = args_.workspace.semaphores;
    if constexpr (Config::kListed) opaque(semaphores);
    return semaphores != nullptr;
  }
  CUTE_DEVICE static bool is_first_thread() {
    return (Config::kListed ? thread_index() : int(threadIdx.x)) == 0;
  }

  // Of this lane's first sum in a tile. Formed anew where scores need all registers.
  CUTE_DEVICE static int lane_offset() {
    constexpr int kWarpSize = Config::kGradQ.warp_size();
    if constexpr (Config::kListed) {
      return warp_index() * kWarpSize + lane_index();
    } else {
      return Warps::warp() * kWarpSize + Warps::lane();
    }
  }

  // Where a CTA has two blocks of keys of a mask, those that the step is not for are passed over.
  // It is for one at least, whose products come first.
  template <class Order>
  CUTE_DEVICE void multiply(Order const& order, GradQ& acc) const {
    constexpr int kBlock = BlockMask::kBlock;
    if constexpr (!Order::kListed || kBlockN <= kBlock) {
      multiply<kBlockN>(0, acc);
    } else {
      bool const has_first = order.has_keys(0);
      multiply<kBlock>(has_first ? 0 : kBlock, acc);
      if (has_first && order.has_keys(kBlock)) multiply<kBlock>(kBlock, acc);
    }
  }

  // The keys from a multiple of 16 on; of the warp's columns the blocks from an even one on.
  template <int kKeys, class Acc>
  CUTE_DEVICE void multiply(int first_key, Acc& acc, int first_block = 0) const {
    constexpr int kRowWarps = Config::kGradQ.row_warps();
    int const row_warp = Warps::warp() % kRowWarps, col_warp = warp_index() / kRowWarps;
    auto const sA =
        ldsm_view<SmemP>(smem_.grad_scores() + row_warp * kMQ * SmemP::kSubTile + first_key * 16,
                         LdsmLanes::cols_first(Warps::lane()));
    auto const sB = ldsm_view<SmemK>(
        smem_.k + (col_warp * kNumQ + first_block) / 2 * SmemK::kSubTile + first_key * 16,
        LdsmLanes::rows_first(lane_index()));
    CUTE_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kMQ>>{});
      CUTE_UNROLL
      for (int i = 0; i < kMQ; ++i) load_block<SM75_U16x8_LDSM_T>(sA(k, i), rA(_, i));
      CUTE_UNROLL
      for (int n = 0; n < size<2>(acc); n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<kMQ>(acc, n, rA, rB);
      }
    }
  }

  template <class Order>
  CUTE_DEVICE void await_turn(Order const& order, int m, int tile) const {
    if (is_first_thread()) {
      int const before = order.turn(m);
      while (load_acquire(args_.workspace.semaphores + tile) != before) {
      }
    }
    __syncthreads();
  }

  BwdArgs const& args_;
  Smem& smem_;
};

}  // namespace fa2::sm80
