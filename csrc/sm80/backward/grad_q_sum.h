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
  using SmemKV = typename Config::SmemKV;
  using SmemP = typename Config::SmemP;
  using Warps = typename Config::Warps;
  static constexpr int kMQ = Config::kMQ;
  static constexpr int kNumQ = Config::kNumQ;
  using GradQ = decltype(make_tensor<float>(AccumulatorLayout<kMQ, kNumQ>{}));

 public:
  CUTE_DEVICE GradQSum(BwdArgs const& args, Smem& smem) : args_(args), smem_(smem) {}

  // dS of all warps is in shared memory. The order says whose turn it is.
  template <class Order>
  CUTE_DEVICE void add(Order const& order, int m, int head) const {
    GradQ acc;
    clear(acc);
    multiply(acc);

    int const tile = workspace_tile(args_, smem_.work, m, head);
    float* const sums =
        args_.workspace.grad_q + int64_t(tile) * Config::kGradQ.size() + lane_offset();
    bool const ordered = args_.workspace.semaphores != nullptr;
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
      if (threadIdx.x == 0) {
        red_release_add(args_.workspace.semaphores + tile, order.turns_taken());
      }
    }
  }

 private:
  // Of this lane's first sum in a tile. Formed anew where scores need all registers.
  CUTE_DEVICE static int lane_offset() {
    constexpr int kWarpSize = Config::kGradQ.warp_size();
    if constexpr (Config::kVariant == Variant::kListedDropout) {
      return warp_index() * kWarpSize + lane_index();
    } else {
      return Warps::warp() * kWarpSize + Warps::lane();
    }
  }

  CUTE_DEVICE void multiply(GradQ& acc) const {
    constexpr int kRowWarps = Config::kGradQ.row_warps();
    int const row_warp = Warps::warp() % kRowWarps, col_warp = warp_index() / kRowWarps;
    auto const sA = ldsm_view<SmemP>(smem_.grad_scores() + row_warp * kMQ * SmemP::kSubTile,
                                     LdsmLanes::cols_first(Warps::lane()));
    auto const sB = ldsm_view<SmemKV>(smem_.k + col_warp * (kNumQ / 2) * SmemKV::kSubTile,
                                      LdsmLanes::rows_first(lane_index()));
    CUTE_UNROLL
    for (int k = 0; k < Config::kTile.block_n / 16; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kMQ>>{});
      CUTE_UNROLL
      for (int i = 0; i < kMQ; ++i) load_block<SM75_U16x8_LDSM_T>(sA(k, i), rA(_, i));
      CUTE_UNROLL
      for (int n = 0; n < kNumQ; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<kMQ>(acc, n, rA, rB);
      }
    }
  }

  template <class Order>
  CUTE_DEVICE void await_turn(Order const& order, int m, int tile) const {
    if (threadIdx.x == 0) {
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
