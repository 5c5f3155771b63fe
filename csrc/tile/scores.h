#pragma once

// What happens to a tile of scores before and after the softmax, in logical coordinates.
// `first_row` and `first_col` are those of this lane's first element in its sequence.

#include <cute/tensor.hpp>

#include "core/dropout.h"
#include "core/mask.h"
#include "core/score_mod.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2 {

// Scores outside a row's visible columns become -inf.
template <int kM, int kN, class Scores>
CUTE_DEVICE void mask_scores(Scores& scores, int first_row, int first_col, int seqlen_q,
                             int seqlen_k, Window const& window) {
  auto s = row_col_view(scores);
  CUTE_UNROLL
  for (int i = 0; i < 2 * kM; ++i) {
    int const row = first_row + RowCoord<kM>{}(i);
    ColRange const cols = visible_cols(row, seqlen_q, seqlen_k, window);
    int const begin = cols.begin - first_col, end = cols.end - first_col;
    CUTE_UNROLL
    for (int j = 0; j < 2 * kN; ++j) {
      int const col = ColCoord<kN>{}(j);
      if (col < begin || col >= end) s(i, j) = -INFINITY;
    }
  }
}

// Raw scores become base-2 ones: scale, softcap, ALiBi (core/score_mod.h).
template <int kM, int kN, class Scores>
CUTE_DEVICE void modify_scores(Scores& scores, ScoreScales scales, bool softcap, float slope,
                               int first_row, int first_col, int diagonal) {
  if (softcap) {
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) {
      scores(i) = tanh_approx(scores(i) * scales.inner) * scales.outer;
    }
  } else {
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) scores(i) *= scales.inner;
  }
  if (slope != 0.f) {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int i = 0; i < 2 * kM; ++i) {
      float const distance = float(first_row + RowCoord<kM>{}(i) + diagonal - first_col);
      CUTE_UNROLL
      for (int j = 0; j < 2 * kN; ++j) {
        s(i, j) -= slope * fabsf(distance - float(ColCoord<kN>{}(j)));
      }
    }
  }
}

struct DropoutKey {
  int64_t seed;
  int64_t offset;
  uint32_t batch_head;
  uint32_t keep_below;  // dropout_keep_threshold << 16
};

// Zeroes the dropped probabilities. `first_col` is that of the tile and a multiple of 32, so that
// one Philox call serves this lane's columns in four neighbouring blocks of eight.
template <int kM, int kK, class Probs>
CUTE_DEVICE void drop_probs(Probs& probs, int first_row, int first_col, int lane,
                            DropoutKey const& key) {
  static_assert(kK % 2 == 0, "a Philox call spans 32 columns");
  auto packed = recast<uint32_t>(probs);  // ((row half, 8-column half), row block, depth block)
  CUTE_UNROLL
  for (int m = 0; m < kM; ++m) {
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const row = first_row + RowCoord<kM>{}(half, m);
      CUTE_UNROLL
      for (int k = 0; k < kK; k += 2) {
        uint32_t const group = dropout_col_group(first_col + 16 * k) + lane % 4;
        PhiloxCounter const words = dropout_words(key.seed, key.offset, key.batch_head, row, group);
        uint32_t const word[4] = {words.x, words.y, words.z, words.w};
        CUTE_UNROLL
        for (int j = 0; j < 4; ++j) {
          uint32_t& pair = packed(half + 2 * (j % 2), m, k + j / 2);
          uint32_t const low = (word[j] << 16) < key.keep_below ? pair & 0xffffu : 0u;
          uint32_t const high = word[j] < key.keep_below ? pair & 0xffff0000u : 0u;
          pair = low | high;
        }
      }
    }
  }
}

}  // namespace fa2
