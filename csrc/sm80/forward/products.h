#pragma once

// The products of a forward step, S = Q K' and O += P V, from shared memory. Where warps come in
// pairs, each has the scores of half of the keys and half of the columns of O: they exchange P.
// With whole scores each has a share of the columns of O alone.

#include <cute/tensor.hpp>

#include "sm80/forward/config.h"
#include "tile/fragments.h"
#include "tile/smem_tile.h"

namespace fa2::sm80 {

template <class Config>
class FwdProducts {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using SmemQ = typename Config::SmemQ;
  using SmemK = typename Config::StreamK::Smem;
  using SmemV = typename Config::StreamV::Smem;
  using SmemP = typename Config::SmemP;
  using Warps = typename Config::Warps;
  static constexpr FwdTile kTile = Config::kTile;
  // Computed anew, these places would take less than a register, but what they follow from more.
  static constexpr bool kKeepsViews = Config::kListed || Config::kOverlapsAlone;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static constexpr int kNumO = Config::kNumO;
  static constexpr int kDepthS = Config::kDepthS;
  static constexpr int kDepthO = Config::kDepthO;

  using Queries = decltype(make_tensor<Element>(OperandLayout<kM, kDepthS>{}));

 public:
  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumS>{}));
  using Probs = decltype(make_tensor<Element>(OperandLayout<kM, kDepthO>{}));
  using Output = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumO>{}));

  CUTE_DEVICE explicit FwdProducts(Smem& smem)
      : smem_(smem),
        tSsQ_(
            ldsm_view<SmemQ>(smem.q, LdsmLanes::rows_first(threadIdx.x % 32), Warps::row_begin())),
        tSsK_(ldsm_view<SmemK, kKeepsViews>(smem.k, LdsmLanes::cols_first(threadIdx.x % 32),
                                            Warps::key_part() * kNumS * 8)),
        tOsV_(values_of(smem, Warps::key_part())),
        tOsV_partner_(values_of(smem, 1 - Warps::column_warp())),
        tPsP_(ldsm_view<SmemP>(smem.probs + (1 - Warps::column_warp()) * kDepthO * SmemP::kSubTile,
                               LdsmLanes::rows_first(threadIdx.x % 32), Warps::row_begin())),
        published_(operand_offset<SmemP>(Warps::row_begin(), threadIdx.x % 32) +
                   Warps::column_warp() * kDepthO * SmemP::kSubTile) {}

  // Q has landed.
  CUTE_DEVICE void keep_queries() {
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) load_queries(k, queries_(_, _, k));
  }

  // Latents lie in two buffers in turn: from here on those of tile n are read.
  CUTE_DEVICE void turn_to(int n) {
    if constexpr (Config::kLatents) buffer_ = n % 2 * SmemK::kElements;
  }

  CUTE_DEVICE void multiply_qk(Scores& tSrS) const {
    multiply_qk(tSrS, [](int) {});
  }

  // Calls meanwhile(k) behind each 16 columns of Q and K: arithmetic that hides behind MMAs.
  template <class Meanwhile>
  CUTE_DEVICE void multiply_qk(Scores& tSrS, Meanwhile const& meanwhile) const {
    clear(tSrS);
    auto const& keys = in_turn(tSsK_);
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      auto tSrQ = make_tensor<Element>(Shape<_8, Int<kM>>{});
      if constexpr (kTile.q_in_registers) {
        copy(queries_(_, _, k), tSrQ);
      } else {
        load_queries(k, tSrQ);
      }
      CUTE_UNROLL
      for (int n = 0; n < kNumS; n += 2) {
        auto tSrK = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(keys(n / 2, k), flatten_block(tSrK));
        multiply_blocks<kM>(tSrS, n, tSrQ, tSrK);
      }
      meanwhile(k);
    }
  }

  // Of pairs: P of this warp's keys, for the partner to read behind a barrier.
  CUTE_DEVICE void publish(Probs const& probs) const {
    if constexpr (Config::kPairs) store_operand<SmemP>(probs, smem_.probs, published_);
  }

  // O += P V. Of pairs P is published, and then that of the partner's keys.
  CUTE_DEVICE void multiply_published(Probs& probs, Output& output) const {
    multiply_pv(probs, tOsV_, output);
    if constexpr (Config::kPairs) {
      fetch_partner(probs);
      multiply_pv(probs, tOsV_partner_, output);
    }
  }

  // Of pairs, P is that of the partner's keys afterwards.
  CUTE_DEVICE void multiply_pv(Probs& probs, Output& output) const {
    if constexpr (Config::kPairs) {
      publish(probs);
      multiply_pv(probs, in_turn(tOsV_), output);
      named_barrier_sync(1 + Warps::row_warp(), 64);
      fetch_partner(probs);
      multiply_pv(probs, in_turn(tOsV_partner_), output);
    } else {
      multiply_pv(probs, in_turn(tOsV_), output);
    }
  }

 private:
  template <class View>
  CUTE_DEVICE decltype(auto) in_turn(View const& view) const {
    if constexpr (Config::kLatents) {
      return make_tensor(view.data() + buffer_, view.layout());
    } else {
      return (view);
    }
  }

  template <class Fragment>
  CUTE_DEVICE void load_queries(int k, Fragment&& rQ) const {
    CUTE_UNROLL
    for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(tSsQ_(m, k), rQ(_, m));
  }

  // O += P V, V at the keys of P.
  template <class Values>
  CUTE_DEVICE static void multiply_pv(Probs const& tOrP, Values const& tOsV, Output& output) {
    CUTE_UNROLL
    for (int k = 0; k < kDepthO; ++k) {
      CUTE_UNROLL
      for (int n = 0; n < kNumO; n += 2) {
        auto tOrV = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(tOsV(k, n / 2), flatten_block(tOrV));
        multiply_blocks<kM>(output, n, tOrP(_, _, k), tOrV);
      }
    }
  }

  // This warp's columns of V, at the keys of a column warp.
  CUTE_DEVICE static auto values_of(Smem& smem, int key_warp) {
    int const first_sub_tile = kTile.column_warps > 1 ? Warps::column_warp() * (kNumO / 2) : 0;
    Element* const tile = Config::kLatents ? smem.k : smem.v;
    return ldsm_view<SmemV, kKeepsViews>(tile + first_sub_tile * SmemV::kSubTile,
                                         LdsmLanes::rows_first(threadIdx.x % 32),
                                         key_warp * kDepthO * 16);
  }

  CUTE_DEVICE void fetch_partner(Probs& probs) const {
    CUTE_UNROLL
    for (int k = 0; k < kDepthO; ++k) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(tPsP_(m, k), probs(_, m, k));
    }
  }

  Smem& smem_;
  Queries queries_;
  decltype(ldsm_view<SmemQ>(smem_.q, LdsmLanes{})) tSsQ_;
  decltype(ldsm_view<SmemK>(smem_.k, LdsmLanes{})) tSsK_;
  decltype(ldsm_view<SmemV>(smem_.v, LdsmLanes{})) tOsV_, tOsV_partner_;
  decltype(ldsm_view<SmemP>(smem_.probs, LdsmLanes{})) tPsP_;
  int published_;   // where this lane's first probability goes
  int buffer_ = 0;  // of latents, from the first one on
};

}  // namespace fa2::sm80
