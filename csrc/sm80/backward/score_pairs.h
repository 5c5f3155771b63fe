#pragma once

// S' and dP' of a step whose warps come in pairs. Alone, a warp would multiply both for its 16
// queries and read its keys' operands for each of them. Of a pair one warp multiplies S' and the
// other dP', for the queries of both, and each gives the other what is not its own.

#include "sm80/backward/config.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

template <class Config>
class BwdScorePairs {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using SmemKeys = typename Config::OfScores::SmemKeys;
  using SmemQueries = typename Config::OfScores::SmemQueries;
  using SmemP = typename Config::SmemP;
  using Warps = typename Config::Warps;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static_assert(Warps::kQueries == 16 && kNumS == 2 && Config::kTile.stages == 1);

 public:
  CUTE_DEVICE explicit BwdScorePairs(Smem& smem) : smem_(smem) {}

  // S' and dP' of this warp's keys and queries, with what comes between their products. Nobody
  // reads P' and dS' of the last step.
  template <class Scores, class Between>
  CUTE_DEVICE void multiply(Scores& scores, Scores& grad_probs, Between const& between) const {
    Scores own, others;  // of both warps' queries S', or dP'
    multiply_side(own, others, between);

    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) {
        place(Warps::query_begin() ^ 16, m, n) =
            make_float4(others(0, m, n), others(1, m, n), others(2, m, n), others(3, m, n));
      }
    }
    named_barrier_sync(1 + Warps::warp() / 2, 64);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) {
        float4 const given = place(Warps::query_begin(), m, n);
        float const values[] = {given.x, given.y, given.z, given.w};
        CUTE_UNROLL
        for (int e = 0; e < 4; ++e) {
          scores(e, m, n) = has_values() ? values[e] : own(e, m, n);
          grad_probs(e, m, n) = has_values() ? own(e, m, n) : values[e];
        }
      }
    }
    __syncwarp();  // P' and dS' go where this was
  }

 private:
  // Whether this warp multiplies dP'.
  CUTE_DEVICE static bool has_values() { return Warps::query_warp() % 2 == 1; }

  template <class Scores, class Between>
  CUTE_DEVICE void multiply_side(Scores& own, Scores& others, Between const& between) const {
    auto const sA = ldsm_view<SmemKeys>(has_values() ? smem_.v : smem_.k,
                                        LdsmLanes::rows_first(Warps::lane()), Warps::key_begin());
    Element* const queries = has_values() ? smem_.grad_out[0] : smem_.q[0];
    auto const lanes = LdsmLanes::cols_first(Warps::lane());
    auto const sB = ldsm_view<SmemQueries>(queries, lanes, Warps::query_begin());
    auto const sB_others = ldsm_view<SmemQueries>(queries, lanes, Warps::query_begin() ^ 16);
    clear(own);
    clear(others);
    CUTE_UNROLL
    for (int k = 0; k < Config::OfScores::kDepth; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      auto rB = make_tensor<Element>(Shape<_4, _2>{}),
           rB_others = make_tensor<Element>(Shape<_4, _2>{});
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
      load_block<SM75_U32x4_LDSM_N>(sB(0, k), flatten_block(rB));
      load_block<SM75_U32x4_LDSM_N>(sB_others(0, k), flatten_block(rB_others));
      multiply_blocks<kM>(own, 0, rA, rB);
      multiply_blocks<kM>(others, 0, rA, rB_others);
      between();
    }
  }

  // What is for this lane of 16 keys of its warp and 8 queries, where P' (n = 0) and dS' (n = 1) of
  // these keys and all 16 queries will be.
  CUTE_DEVICE float4& place(int query_begin, int m, int n) const {
    Element* const tile = n == 0 ? smem_.probs : smem_.grad_scores();
    Element* const block = tile + query_begin / 16 * SmemP::kSubTile + Warps::key_begin() * 16;
    return reinterpret_cast<float4*>(block)[m * 32 + Warps::lane()];
  }

  Smem& smem_;
};

}  // namespace fa2::sm80
