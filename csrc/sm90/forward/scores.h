#pragma once

// What happens to the scores of a forward step before and after the softmax: softcap, ALiBi and
// biases, masks, dropout.

#include "sm90/forward/config.h"
#include "tile/biases.h"
#include "tile/dropout.h"
#include "tile/scores.h"

namespace fa2::sm90 {

template <class Config>
class FwdScores {
  static constexpr int kNumS = Config::kNumS;
  static constexpr int kBlock = BlockMask::kBlock;

 public:
  using Scores = decltype(make_tensor<float>(AccumulatorLayout<1, kNumS>{}));
  using KeyTile = typename Config::KeyTile;

  CUTE_DEVICE FwdScores(FwdArgs const& args, WorkTile const& work) : args_(args), work_(work) {}

  // Of the lane's first row in the tile.
  CUTE_DEVICE static int lane_first_row() {
    return (warp_index() - 4) * 16 + lane_row(lane_index());
  }

  CUTE_DEVICE void modify(Scores& scores, KeyTile at) const {
    if constexpr (Config::kListed) {
      if (!args_.modifies_scores) return;
    }
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales);
    } else {
      scale_scores(scores, args_.scales);
    }
    if (__builtin_expect(args_.adds_to_scores, 0)) {
      CUTE_UNROLL
      for (int j = 0; j < Config::kParts; ++j) {
        auto part = part_of(scores, j);
        add_to(part, first_key(at, j) + lane_col(lane_index()));
      }
    }
  }

  // By the window and the length of the keys.
  CUTE_DEVICE void mask(Scores& scores, int n) const {
    int const first_col = first_key(n, 0) + lane_col(lane_index());
    mask_scores<1, kNumS>(scores, lane_first_row(), first_col, [&](int row) {
      return cols_around(query_of(row) + work_.diagonal, work_.seqlen_k, work_.window);
    });
  }

  // By tiles of a block mask, for the queries of a list, and by the length of the keys.
  template <class Step>
  CUTE_DEVICE void mask_listed(Scores& scores, Step const& step, int list) const {
    CUTE_UNROLL
    for (int j = 0; j < Config::kParts; ++j) {
      int const tile = step.tile[list][j], keys = work_.seqlen_k - first_key(step, j);
      if (tile == 0 && keys >= kBlock) continue;
      uint64_t const all = keys >= kBlock ? ~uint64_t(0) : (uint64_t(1) << max(keys, 0)) - 1;
      uint64_t const* const words = tile_words(args_.problem.block_mask, max(tile, 0));
      auto part = part_of(scores, j);
      mask_scores_by_bits<1, kPartS>(part, lane_col(lane_index()), kBlock, [&](int row) {
        if (tile == kUnlisted) return uint64_t(0);
        return words == nullptr ? all : all & words[query_of(lane_first_row() + row) % kBlock];
      });
    }
  }

  // Of probabilities that have been added up.
  CUTE_DEVICE void drop(Scores& probs, KeyTile at) const {
    if (args_.keep_below == kKeepAll) return;
    FwdParams const& p = args_.problem;
    int64_t const* const state = p.dropout.rng_state;
    DropoutKey const key{state[0], state[1], dropout_batch_head(p, work_.batch, work_.head),
                         args_.keep_below, p.positions};
    CUTE_UNROLL
    for (int j = 0; j < Config::kParts; ++j) {
      auto part = part_of(probs, j);
      // A tile has one head, then: rows are queries.
      drop_scores<1, kPartS>(part, work_.query_begin + lane_first_row(), first_key(at, j),
                             lane_index(), key);
    }
  }

 private:
  // The keys of a part follow each other.
  static constexpr int kPartS = kNumS / Config::kParts;

  CUTE_DEVICE static auto part_of(Scores& scores, int i) {
    return make_tensor(&scores(0, 0, i * kPartS), AccumulatorLayout<1, kPartS>{});
  }
  CUTE_DEVICE static int first_key(int n, int part) {
    return n * Config::kTile.block_n + part * 8 * kPartS;
  }
  template <class Step>
  CUTE_DEVICE static int first_key(Step const& step, int part) {
    return step.block[part] * kBlock;
  }

  CUTE_DEVICE int query_of(int row) const { return work_.query_begin + args_.pack.query(row); }

  template <class Part>
  CUTE_DEVICE void add_to(Part& scores, int first_col) const {
    ScoreMod const& mod = args_.problem.score_mod;
    if (mod.alibi_slopes != nullptr) {
      add_alibi<1, kPartS>(scores, lane_first_row(), first_col, work_.diagonal, [&](int row) {
        int const head = work_.head + args_.pack.head(row);
        return AlibiRow{query_of(row), alibi_slope(mod, work_.batch, head)};
      });
    }
    if (!has_bias(mod)) return;
    // A tile has one head, then. Entries on their way are as many as there are registers for.
    constexpr int kPieceS = Config::kTile.head_dim > 128 ? 2 : 8;
    static_assert(kPartS % kPieceS == 0);
    CUTE_UNROLL
    for (int j = 0; j < kPartS; j += kPieceS) {
      auto piece = make_tensor(&scores(0, 0, j), AccumulatorLayout<1, kPieceS>{});
      add_biases<typename Config::Element, 1, kPieceS, BiasReads::kPairs>(
          piece, mod, {work_.batch, work_.head, work_.seqlen_q, work_.seqlen_k},
          work_.query_begin + lane_first_row(), first_col + 8 * j);
    }
  }

  FwdArgs const& args_;
  WorkTile const& work_;
};

}  // namespace fa2::sm90
