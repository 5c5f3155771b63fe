#pragma once

// What happens to a warpgroup's scores in a backward step, transposed: rows are keys, columns are
// queries. Softcap, ALiBi and biases, masks, P' = exp(S' - lse), dropout, and their place in shared
// memory.

#include "sm90/backward/config.h"
#include "tile/biases.h"
#include "tile/dropout.h"
#include "tile/scores.h"

namespace fa2::sm90 {

template <class Config>
class BwdScores {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using Tile = typename Config::TileGradScores;
  static constexpr int kNumS = Config::kNumS;

 public:
  using Scores = decltype(make_tensor<float>(AccumulatorLayout<1, kNumS>{}));
  using Operand = decltype(make_tensor<Element>(OperandLayout<1, Config::kDepth>{}));
  // None is above 1, and where slopes are small float16 has few bits of them.
  static constexpr float kWeightScale = 256.f;
  // Derivative of the softcap at each score.
  using Slopes = decltype(make_tensor<half_t>(AccumulatorLayout<1, kNumS>{}));

  // `first_key`: the warpgroup's, in the tile.
  CUTE_DEVICE BwdScores(BwdArgs const& args, Smem const& smem, int first_key)
      : args_(args.common),
        work_(smem.work),
        first_key_(first_key),
        thread_(int(threadIdx.x) % 128) {}

  // Of a value for each query, those of the lane's two queries among 8 from 8n on.
  CUTE_DEVICE static float2 of_lane(float const* values, int n) {
    return reinterpret_cast<float2 const&>(values[8 * n + lane_col(lane_index())]);
  }

  // Calls combine(score, value) for each score, with the value of its query.
  template <class Combine>
  CUTE_DEVICE void with_values(Scores& scores, float const* values, Combine const& combine) const {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const pair = of_lane(values, n);
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        combine(s(half, 2 * n), pair.x);
        combine(s(half, 2 * n + 1), pair.y);
      }
    }
  }

  // Softcap with its derivative, ALiBi and biases, of query tile m of a head.
  CUTE_DEVICE void modify(Scores& scores, Slopes& slopes, int head, int m) const {
    if constexpr (Config::kListed) {
      if (!args_.is_modified) return;
    }
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales, slopes);
    } else {
      scale_scores(scores, args_.scales);
    }
    if (__builtin_expect(args_.adds_to_scores, 0)) add_to(scores, head, first_query(m));
  }

  CUTE_DEVICE void exponentiate(Scores& scores, float const* lse) const {
    float const scale = args_.scales.plain;
    with_values(scores, lse, [scale](float& s, float l) { s = exp2_approx(fmaf(s, scale, -l)); });
    pin(scores);
  }

  CUTE_DEVICE void mask(Scores& scores, int m) const {
    Window const window = mirrored(args_.problem.forward.window);
    mask_scores<1, kNumS>(scores, lane_first_key(), first_query(m), [&](int key) {
      ColRange queries = cols_around(key - work_.diagonal, work_.seqlen_q, window);
      if (key >= work_.seqlen_k) queries.end = 0;
      return queries;
    });
  }

  // By a tile of a block mask, and by the length of the keys.
  CUTE_DEVICE void mask_listed(Scores& scores, int tile) const {
    int const first_key = lane_first_key();
    // Of each word the half that has the warp's keys.
    auto const* halves = reinterpret_cast<uint32_t const*>(
        tile_words(args_.problem.forward.block_mask, max(tile, 0)));
    if (halves != nullptr) {
      halves += 2 * lane_col(lane_index()) + first_key % BlockMask::kBlock / 32;
    }
    mask_transposed_scores_by_bits<1, kNumS>(
        scores, first_key % 32, work_.seqlen_k - first_key,
        [halves](int query) { return halves == nullptr ? ~0u : halves[2 * query]; });
  }

  CUTE_DEVICE bool drops() const { return args_.keep_below != kKeepAll; }
  // Which entries dropout keeps; bits as `is_kept` reads them. All of them without dropout.
  CUTE_DEVICE uint32_t keep_bits(int head, int m) const {
    if (!drops()) return ~0u;
    DropoutKey const key{work_.rng_seed, work_.rng_offset, work_.rng_batch_head + uint32_t(head),
                         args_.keep_below, args_.problem.forward.positions};
    int const lane = lane_index();
    return transposed_keep_bits<1, kNumS>(lane_first_key() - lane_row(lane), first_query(m), lane,
                                          key);
  }
  // Of `scores`, which are P', `probs` is what dV takes: without what is dropped. They become what
  // dS' takes: P' times the slope of the softcap, so that the product with dP' - D is the gradient
  // of scores before `modify`.
  CUTE_DEVICE void separate(Scores& scores, Slopes const& slopes, uint32_t keep,
                            Operand& probs) const {
    if (args_.scales.has_softcap) {
      separate<true>(scores, slopes, keep, probs);
    } else if (drops()) {
      separate<false>(scores, slopes, keep, probs);
    } else {
      round_to_operand(scores, probs);
    }
  }
  // Whether dS' takes something else of P' than dV.
  CUTE_DEVICE bool has_weights() const { return args_.scales.has_softcap || drops(); }
  // What dS' takes, as another warpgroup is told it: negative where dropped, and times
  // kWeightScale. A slope that is rounded to less than 0 is 0.
  CUTE_DEVICE void mark(Scores& scores, uint32_t keep) const {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kNumS; ++j) {
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) {
        float const weight = kWeightScale * fmaxf(s(i, j), 0.f);
        s(i, j) = is_kept(keep, i, j) ? weight : -weight;
      }
    }
  }
  // dP' - D becomes -D where dP' is dropped.
  CUTE_DEVICE void drop(Scores& grad_probs, uint32_t keep, float const* minus_delta) const {
    if (!drops()) return;
    auto s = row_col_view(grad_probs);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const dropped = of_lane(minus_delta, n);
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (!is_kept(keep, i, 2 * n)) s(i, 2 * n) = dropped.x;
        if (!is_kept(keep, i, 2 * n + 1)) s(i, 2 * n + 1) = dropped.y;
      }
    }
  }

  // As they stand, so that queries lie side by side.
  CUTE_DEVICE void store(Operand& operand, Element* tile) const {
    for_each_block(tile, [&operand](int k, uint32_t place) {
      auto const packed = recast<uint32_t>(operand);  // ((row half, column half), 1, 16 columns)
      uint32_t const words[4] = {packed(0, 0, k), packed(1, 0, k), packed(2, 0, k),
                                 packed(3, 0, k)};
      store_matrices(place, words);
    });
  }
  CUTE_DEVICE void load(Operand& operand, Element const* tile) const {
    for_each_block(tile, [&operand](int k, uint32_t place) {
      auto packed = recast<uint32_t>(operand);
      uint32_t words[4];
      load_matrices(place, words);
      CUTE_UNROLL
      for (int r = 0; r < 4; ++r) packed(r, 0, k) = words[r];
    });
  }

 private:
  CUTE_DEVICE int lane_first_key() const {
    return work_.col_begin + first_key_ + warp_index() % 4 * 16 + lane_row(lane_index());
  }
  CUTE_DEVICE static int first_query(int m) {
    return m * BwdTile::kBlockM + lane_col(lane_index());
  }
  CUTE_DEVICE static bool is_kept(uint32_t keep, int i, int j) { return keep >> (2 * j + i) & 1; }

  // Slopes are used up one by one, as there come to be rounded values.
  template <bool kCapped>
  CUTE_DEVICE static void separate(Scores& scores, Slopes const& slopes, uint32_t keep,
                                   Operand& probs) {
    auto packed = recast<uint32_t>(probs);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        auto pair = scores(make_coord(_, half), 0, n);
        float const low = is_kept(keep, half, 2 * n) ? pair(0) : 0.f;
        float const high = is_kept(keep, half, 2 * n + 1) ? pair(1) : 0.f;
        packed(half + 2 * (n % 2), 0, n / 2) = pack<Element>(low, high);
        if constexpr (kCapped) {
          pair(0) *= float(slopes(make_coord(0, half), 0, n));
          pair(1) *= float(slopes(make_coord(1, half), 0, n));
        }
      }
    }
  }

  CUTE_DEVICE void add_to(Scores& scores, int head, int first_col) const {
    ScoreMod const& mod = args_.problem.forward.score_mod;
    float const slope = alibi_slope(mod, work_.batch, head);
    if (slope != 0.f) {
      add_alibi<1, kNumS>(scores, slope, lane_first_key(), first_col, -work_.diagonal);
    }
    if (!has_bias(mod)) return;
    // Entries on their way are as many as there are registers for.
    constexpr int kPieceS = 2;
    CUTE_UNROLL
    for (int n = 0; n < kNumS; n += kPieceS) {
      auto piece = make_tensor(&scores(0, 0, n), AccumulatorLayout<1, kPieceS>{});
      add_biases<Element, 1, kPieceS, BiasReads::kTransposed>(
          piece, mod, {work_.batch, head, work_.seqlen_q, work_.seqlen_k}, first_col + 8 * n,
          lane_first_key());
    }
  }

  // Calls visit(block of 16 queries, where the lane's row of it is).
  template <class Visit>
  CUTE_DEVICE void for_each_block(Element const* tile, Visit const& visit) const {
    int const key = first_key_ + thread_ / 32 * 16 + thread_ % 16;
    int const half = thread_ % 32 / 16;
    uint32_t const first = shared_address(tile) + Tile::place_of(key, 8 * half);
    CUTE_UNROLL
    for (int k = 0; k < Config::kDepth; ++k) visit(k, first ^ Tile::distance_of(16 * k));
  }

  sm80::BwdArgs const& args_;
  sm80::BwdWorkTile const& work_;
  int first_key_;
  int thread_;  // of the warpgroup
};

}  // namespace fa2::sm90
