#pragma once

// What happens to a warpgroup's scores in a backward step, transposed: rows are keys, columns are
// queries. Masks, P' = exp(S' - lse), and their place in shared memory.

#include "sm90/backward/config.h"
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

  // `first_key`: the warpgroup's, in the tile.
  CUTE_DEVICE BwdScores(BwdArgs const& args, Smem const& smem, int first_key)
      : args_(args.common),
        work_(smem.work),
        first_key_(first_key),
        thread_(int(threadIdx.x) % 128) {}

  // Calls combine(score, value) for each score, with the value of its query.
  template <class Combine>
  CUTE_DEVICE void with_values(Scores& scores, float const* values, Combine const& combine) const {
    auto s = row_col_view(scores);
    int const first = lane_col(thread_ % 32);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const pair = reinterpret_cast<float2 const&>(values[8 * n + first]);
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        combine(s(half, 2 * n), pair.x);
        combine(s(half, 2 * n + 1), pair.y);
      }
    }
  }

  CUTE_DEVICE void exponentiate(Scores& scores, float const* lse) const {
    float const scale = args_.scales.plain;
    with_values(scores, lse, [scale](float& s, float l) { s = exp2_approx(fmaf(s, scale, -l)); });
    pin(scores);
  }

  CUTE_DEVICE void mask(Scores& scores, int m) const {
    Window const window = mirrored(args_.problem.forward.window);
    int const first_row =
        work_.col_begin + first_key_ + warp_index() % 4 * 16 + lane_row(lane_index());
    mask_scores<1, kNumS>(
        scores, first_row, m * BwdTile::kBlockM + lane_col(lane_index()), [&](int key) {
          ColRange queries = cols_around(key - work_.diagonal, work_.seqlen_q, window);
          if (key >= work_.seqlen_k) queries.end = 0;
          return queries;
        });
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
  // Calls visit(block of 16 queries, where the lane's row of it is).
  template <class Visit>
  CUTE_DEVICE void for_each_block(Element const* tile, Visit const& visit) const {
    int const key = first_key_ + thread_ / 32 * 16 + thread_ % 16;
    int const half = thread_ % 32 / 16;
    uint32_t const begin = shared_address(tile);
    CUTE_UNROLL
    for (int k = 0; k < Config::kDepth; ++k) {
      visit(k, begin + Tile::place_of(key, 16 * k + 8 * half));
    }
  }

  sm80::BwdArgs const& args_;
  sm80::BwdWorkTile const& work_;
  int first_key_;
  int thread_;  // of the warpgroup
};

}  // namespace fa2::sm90
