#pragma once

// What happens to a warp's scores in a backward step, transposed: rows are keys, columns are
// queries. Softcap, ALiBi and biases, masks, P' = exp(S' - lse), dropout.

#include "sm80/backward/config.h"
#include "tile/biases.h"
#include "tile/dropout.h"
#include "tile/scores.h"

namespace fa2::sm80 {

template <class Config>
class BwdScores {
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static constexpr bool kListed = Config::kListed;

 public:
  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumS>{}));
  // Derivative of the softcap at each score.
  using Slopes = decltype(make_tensor<half_t>(AccumulatorLayout<kM, kNumS>{}));

  CUTE_DEVICE BwdScores(BwdArgs const& args, Smem const& smem) : args_(args), smem_(smem) {}

  // Softcap with its derivative, ALiBi and biases.
  CUTE_DEVICE void modify(Scores& scores, Slopes& slopes, int head, int first_query) const {
    if constexpr (kListed) {
      if (!modifies()) return;
    }
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales, slopes);
    } else {
      scale_scores(scores, args_.scales);
    }
    if (!has_biases(Config::kVariant) || __builtin_expect(args_.adds_to_scores, 0)) {
      add(scores, head, first_query);
    }
  }

  // dS' after `modify` becomes that before it.
  CUTE_DEVICE void unmodify(Scores& grad_scores, Slopes const& slopes) const {
    if (!args_.scales.has_softcap) return;
    CUTE_UNROLL
    for (int i = 0; i < size(grad_scores); ++i) grad_scores(i) *= float(slopes(i));
  }

  CUTE_DEVICE void mask(Scores& scores, int first_query) const {
    BwdWorkTile const& work = smem_.work;
    Window const window = mirrored(args_.problem.forward.window);
    mask_scores<kM, kNumS>(
        scores, lane_first_key(), first_query + lane_col(lane_index()), [&](int key) {
          ColRange queries = cols_around(key - work.diagonal, work.seqlen_q, window);
          if (key >= work.seqlen_k) queries.end = 0;
          return queries;
        });
  }

  // By a tile of a block mask, and by the length of the keys.
  CUTE_DEVICE void mask_listed(Scores& scores, int tile, int first_query) const {
    constexpr int kBlock = BlockMask::kBlock;
    int const first_key = lane_first_key();
    // Of each word the half that has the warp's keys.
    auto const* halves = reinterpret_cast<uint32_t const*>(
        tile_words(args_.problem.forward.block_mask, max(tile, 0)));
    if (halves != nullptr) {
      halves += 2 * (first_query % kBlock + lane_col(lane_index())) + first_key % kBlock / 32;
    }
    mask_transposed_scores_by_bits<kM, kNumS>(
        scores, first_key % 32, smem_.work.seqlen_k - first_key,
        [&](int query) { return halves == nullptr ? ~0u : halves[2 * query]; });
  }

  // Fused: the product of a finite score may be infinite, and so may lse be as a power of two.
  CUTE_DEVICE void exponentiate(Scores& scores, float const* lse) const {
    float const scale = Config::kModified && !kListed ? kLog2e : args_.scales.plain;
    with_values(scores, lse, [&](float& s, float l) { s = exp2_approx(fmaf(s, scale, -l)); });
  }

  // Calls combine(score, value) for each score, with the value of its query.
  template <class Combine>
  CUTE_DEVICE static void with_values(Scores& scores, float const* values, Combine const& combine) {
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const pair = reinterpret_cast<float2 const&>(values[8 * n + lane_col(lane_index())]);
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) {
        CUTE_UNROLL
        for (int half = 0; half < 2; ++half) {
          auto s = scores(make_coord(_, half), m, n);
          combine(s(0), pair.x);
          combine(s(1), pair.y);
        }
      }
    }
  }

  CUTE_DEVICE uint32_t keep_bits(int head, int first_query) const {
    if (kListed && args_.keep_below == kKeepAll) return ~0u;  // biases brought it here
    BwdWorkTile const& work = smem_.work;
    DropoutKey const key{work.rng_seed, work.rng_offset, work.rng_batch_head + uint32_t(head),
                         args_.keep_below, args_.problem.forward.positions};
    int const lane = lane_index();
    return transposed_keep_bits<kM, kNumS>(work.col_begin + Warps::key_begin(),
                                           first_query + lane_col(lane), lane, key);
  }

  CUTE_DEVICE static void drop(uint32_t keep, Scores& scores) {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kNumS; ++j) {
      CUTE_UNROLL
      for (int i = 0; i < 2 * kM; ++i) {
        if ((keep >> (j * 2 * kM + i) & 1) == 0) s(i, j) = 0.f;
      }
    }
  }

 private:
  CUTE_DEVICE bool modifies() const {
    return has_biases(Config::kVariant) ? args_.is_modified
                                        : has_softcap_or_alibi(args_.problem.forward.score_mod);
  }

  CUTE_DEVICE void add(Scores& scores, int head, int first_query) const {
    ScoreMod const& mod = args_.problem.forward.score_mod;
    BwdWorkTile const& work = smem_.work;
    int const first_col = first_query + lane_col(lane_index());
    float const slope = alibi_slope(mod, work.batch, head);
    if (slope != 0.f) {
      add_alibi<kM, kNumS>(scores, slope, lane_first_key(), first_col, -work.diagonal);
    }
    if constexpr (has_biases(Config::kVariant)) {
      add_biases<typename Config::Element, kM, kNumS, BiasReads::kTransposed>(
          scores, mod, {work.batch, head, work.seqlen_q, work.seqlen_k}, first_col,
          lane_first_key());
    }
  }

  CUTE_DEVICE int lane_first_key() const {
    return smem_.work.col_begin + Warps::key_begin() + lane_row(lane_index());
  }

  BwdArgs const& args_;
  Smem const& smem_;
};

}  // namespace fa2::sm80
