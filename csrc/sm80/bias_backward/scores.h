#pragma once

// What happens to a tile of scores before the softmax, and to its gradients: softcap, ALiBi and
// biases, masks, dropout.

#include "core/dropout.h"
#include "sm80/bias_backward/config.h"
#include "tile/biases.h"
#include "tile/dropout.h"
#include "tile/scores.h"

namespace fa2::sm80 {

template <class Config>
class BiasScores {
  using Element = typename Config::Element;
  static constexpr int kM = Config::kM;
  static constexpr int kN = Config::kN;

 public:
  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kN>{}));

  CUTE_DEVICE explicit BiasScores(BiasBwdArgs const& args) : args_(args) {}

  CUTE_DEVICE void modify(Scores& scores, BiasWorkTile const& tile) const {
    ScoreMod const& mod = args_.problem.forward.score_mod;
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales);
    } else {
      scale_scores(scores, args_.scales);
    }
    float const slope = alibi_slope(mod, tile.batch, tile.head);
    if (slope != 0.f) {
      add_alibi<kM, kN>(scores, slope, first_row(tile), first_col(tile), tile.diagonal);
    }
    add_biases<Element, kM, kN, BiasReads::kSingle>(
        scores, mod, {tile.batch, tile.head, tile.seqlen_q, tile.seqlen_k}, first_row(tile),
        first_col(tile));
  }

  CUTE_DEVICE void mask(Scores& scores, BiasWorkTile const& tile) const {
    FwdParams const& p = args_.problem.forward;
    if (uint64_t const* const words = tile_words(p.block_mask, tile.mask_tile)) {
      int const row = warp_row_begin() + lane_row(lane_index());
      mask_scores_by_bits<kM, kN>(scores, lane_col(lane_index()), tile.seqlen_k - first_col(tile),
                                  [&](int i) { return words[row + i]; });
    } else {
      mask_scores<kM, kN>(scores, first_row(tile), first_col(tile), [&](int row) {
        return cols_around(row + tile.diagonal, tile.seqlen_k, p.window);
      });
    }
  }

  CUTE_DEVICE void drop(Scores& grad_probs, BiasWorkTile const& tile) const {
    FwdParams const& p = args_.problem.forward;
    DropoutKey const key{p.dropout.rng_state[0], p.dropout.rng_state[1],
                         dropout_batch_head(p, tile.batch, tile.head), args_.keep_below,
                         p.positions};
    drop_scores<kM, kN>(grad_probs, first_row(tile), tile.col_begin, lane_index(), key);
  }

  CUTE_DEVICE static int warp_row_begin() { return warp_index() * 16 * kM; }

  CUTE_DEVICE static int first_row(BiasWorkTile const& tile) {
    return tile.row_begin + warp_row_begin() + lane_row(lane_index());
  }
  CUTE_DEVICE static int first_col(BiasWorkTile const& tile) {
    return tile.col_begin + lane_col(lane_index());
  }

 private:
  BiasBwdArgs const& args_;
};

}  // namespace fa2::sm80
