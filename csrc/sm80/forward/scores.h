#pragma once

// What happens to the scores of a forward step before and after the softmax: softcap, ALiBi and
// biases, masks, dropout.

#include "sm80/forward/products.h"
#include "tile/biases.h"
#include "tile/dropout.h"
#include "tile/scores.h"

namespace fa2::sm80 {

template <class Config>
class FwdScores {
  using Args = typename Config::Args;
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  using Scores = typename FwdProducts<Config>::Scores;
  using Probs = typename FwdProducts<Config>::Probs;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static constexpr bool kListed = Config::kListed;

 public:
  CUTE_DEVICE FwdScores(Args const& args, Smem const& smem) : args_(args), smem_(smem) {}

  // Makes powers of two of scores: of raw ones, or of natural ones where `modify` has made these.
  CUTE_DEVICE float usual_scale() const {
    return Config::kModified && !kListed ? kLog2e : args_.scales.plain;
  }

  // By the factors of keys, over codes.
  CUTE_DEVICE void multiply_by_keys(Scores& scores) const {
    float const* const factors = smem_.k_factors + lane_first_col(0);
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kNumS; ++j) {
      float const factor = factors[ColCoord<kNumS>{}(j)];
      CUTE_UNROLL
      for (int i = 0; i < 2 * kM; ++i) s(i, j) *= factor;
    }
  }

  // Multiplies probabilities by the factors of values.
  CUTE_DEVICE auto value_factors() const {
    float const* const factors = smem_.v_factors + lane_first_col(0);
    return [factors](int n, float& p0, float& p1) {
      p0 *= factors[8 * n];
      p1 *= factors[8 * n + 1];
    };
  }

  CUTE_DEVICE void modify(Scores& scores, int n) const {
    auto const& work = smem_.work;
    if constexpr (kListed) {
      if (!modifies()) return;
    }
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales);
    } else {
      scale_scores(scores, args_.scales);
    }
    int const first_col = lane_first_col(n);
    if constexpr (Config::kPacked) {
      if (args_.problem.score_mod.alibi_slopes != nullptr) {
        add_alibi<kM, kNumS>(scores, lane_first_row(), first_col, work.diagonal,
                             [&](int row) { return Config::alibi_row(args_, work, row); });
      }
    } else if (!has_biases(Config::kVariant) || __builtin_expect(args_.adds_to_scores, 0)) {
      if (work.alibi_slope != 0.f) {
        add_alibi<kM, kNumS>(scores, work.alibi_slope, lane_first_row(), first_col, work.diagonal);
      }
      if constexpr (has_biases(Config::kVariant)) {
        add_biases<typename Config::Element, kM, kNumS, BiasReads::kPairs>(
            scores, args_.problem.score_mod, {work.batch, work.head, work.seqlen_q, work.seqlen_k},
            lane_first_row(), first_col);
      }
    }
  }

  CUTE_DEVICE void mask(Scores& scores, int n) const {
    auto const& work = smem_.work;
    mask_scores<kM, kNumS>(scores, lane_first_row(), lane_first_col(n), [&](int row) {
      int const query = Config::query_of(args_, row);
      return cols_around(query + work.diagonal, work.seqlen_k, work.window);
    });
  }

  // By a tile of a block mask, and by the length of the keys.
  CUTE_DEVICE void mask_listed(Scores& scores, int n, int tile) const {
    constexpr int kBlock = BlockMask::kBlock;
    uint64_t const* words = tile_words(args_.problem.block_mask, max(tile, 0));
    int const first_row = Warps::row_begin() % kBlock + lane_row(lane_index());
    int const first_col = lane_first_col(n);
    mask_scores_by_bits<kM, kNumS>(
        scores, first_col % kBlock, smem_.work.seqlen_k - first_col,
        [&](int row) { return words == nullptr ? ~uint64_t(0) : words[first_row + row]; });
  }

  CUTE_DEVICE void drop(Probs& probs, int n) const {
    if (kListed && args_.keep_below == kKeepAll) return;  // biases brought it here
    auto const& work = smem_.work;
    DropoutKey const key{work.rng_seed, work.rng_offset, work.rng_batch_head, args_.keep_below,
                         args_.problem.positions};
    drop_probs<kM, Config::kDepthO>(probs, lane_first_row(), warp_first_col(n), lane_index(), key);
  }

 private:
  CUTE_DEVICE bool modifies() const {
    return has_softcap_or_alibi(args_.problem.score_mod) ||
           (has_biases(Config::kVariant) && args_.adds_to_scores);
  }

  CUTE_DEVICE int lane_first_row() const {
    return smem_.work.row_begin + Warps::row_begin() + lane_row(lane_index());
  }
  CUTE_DEVICE static int warp_first_col(int n) {
    return n * kTile.block_n + Warps::key_part() * kNumS * 8;
  }
  CUTE_DEVICE static int lane_first_col(int n) {
    return warp_first_col(n) + lane_col(lane_index());
  }

  Args const& args_;
  Smem const& smem_;
};

}  // namespace fa2::sm80
