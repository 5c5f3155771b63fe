#pragma once

// S' and dP' of a step whose warps share them. Of the warps that have the same keys, half multiply
// S' and half dP', each over its part of the columns and for all queries of the step; the sums lie
// in shared memory, from where each warp adds up the scores that are its own. Wide heads have so
// few keys and queries in a tile that a warp would read more operands than it multiplies.

#include "sm80/backward/config.h"
#include "tile/fragments.h"

namespace fa2::sm80 {

template <class Config>
class BwdScoreParts {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using OfScores = typename Config::OfScores;
  using OfValues = typename Config::OfValues;
  using Warps = typename Config::Warps;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;
  static constexpr int kNum = kTile.block_m / 8;                      // blocks of queries
  static constexpr int kParts = kTile.query_warps * kTile.twins / 2;  // of S', and as many of dP'
  static_assert(kTile.head_dim == kTile.head_dim_v && OfScores::kDepth % kParts == 0);
  static_assert(kTile.stages == 1);

 public:
  static constexpr int kDepth = OfScores::kDepth / kParts;  // blocks of a part

  CUTE_DEVICE explicit BwdScoreParts(Smem& smem) : smem_(smem) {}

  // This warp's part, for all to read after a barrier, with what comes between its products.
  template <class Between>
  CUTE_DEVICE void multiply(Between const& between) const {
    bool const of_values = Warps::sharer() >= kParts;
    int const part = Warps::sharer() % kParts;
    using SmemKeys = typename OfScores::SmemKeys;
    using SmemQueries = typename OfScores::SmemQueries;
    auto const sA =
        ldsm_view<SmemKeys>((of_values ? smem_.v : smem_.k) + part * kDepth * SmemKeys::kSubTile,
                            LdsmLanes::rows_first(Warps::lane()), Warps::key_begin());
    auto const sB = ldsm_view<SmemQueries>(
        (of_values ? smem_.grad_out[0] : smem_.q[0]) + part * kDepth * SmemQueries::kSubTile,
        LdsmLanes::cols_first(Warps::lane()));
    auto acc = make_tensor<float>(AccumulatorLayout<kM, kNum>{});
    clear(acc);
    CUTE_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
      CUTE_UNROLL
      for (int n = 0; n < kNum; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(sB(n / 2, k), flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA, rB);
      }
      between();
    }
    CUTE_UNROLL
    for (int n = 0; n < kNum; ++n) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) {
        place(Warps::sharer(), m, n) =
            make_float4(acc(0, m, n), acc(1, m, n), acc(2, m, n), acc(3, m, n));
      }
    }
  }

  // acc += S', or dP', of queries from a multiple of 8 on.
  template <class Scores>
  CUTE_DEVICE void add_scores(int first_query, Scores& acc) const {
    add(0, first_query, acc);
  }
  template <class Scores>
  CUTE_DEVICE void add_grad_probs(int first_query, Scores& acc) const {
    add(kParts, first_query, acc);
  }

 private:
  // Of all parts, the first of which such a sharer has, in one order: twins have the same sums.
  template <class Scores>
  CUTE_DEVICE void add(int first_sharer, int first_query, Scores& acc) const {
    CUTE_UNROLL
    for (int part = 0; part < kParts; ++part) {
      CUTE_UNROLL
      for (int n = 0; n < size<2>(acc); ++n) {
        CUTE_UNROLL
        for (int m = 0; m < kM; ++m) {
          float4 const sums = place(first_sharer + part, m, first_query / 8 + n);
          acc(0, m, n) += sums.x;
          acc(1, m, n) += sums.y;
          acc(2, m, n) += sums.z;
          acc(3, m, n) += sums.w;
        }
      }
    }
  }

  // What this lane has of a block of the keys of this warp.
  CUTE_DEVICE float4& place(int sharer, int m, int n) const {
    int const warp = sharer * kTile.key_warps + Warps::warp() % kTile.key_warps;
    return reinterpret_cast<float4*>(
        smem_.part_scores)[((warp * kM + m) * kNum + n) * 32 + Warps::lane()];
  }

  Smem& smem_;
};

}  // namespace fa2::sm80
