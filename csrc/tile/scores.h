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

// Scores outside the visible range of their row become -inf. `visible(row)` has begin and end.
template <int kM, int kN, class Scores, class Visible>
CUTE_DEVICE void mask_scores(Scores& scores, int first_row, int first_col, Visible const& visible) {
  auto s = row_col_view(scores);
  CUTE_UNROLL
  for (int i = 0; i < 2 * kM; ++i) {
    auto const cols = visible(first_row + RowCoord<kM>{}(i));
    int const begin = cols.begin - first_col, end = cols.end - first_col;
    CUTE_UNROLL
    for (int j = 0; j < 2 * kN; ++j) {
      int const col = ColCoord<kN>{}(j);
      if (col < begin || col >= end) s(i, j) = -INFINITY;
    }
  }
}

// Raw scores become base-2 ones (core/score_mod.h): by the scale alone, or with softcap.
template <class Scores>
CUTE_DEVICE void scale_scores(Scores& scores, ScoreScales scales) {
  CUTE_UNROLL
  for (int i = 0; i < size(scores); ++i) scores(i) *= scales.inner;
}

template <class Scores>
CUTE_DEVICE void cap_scores(Scores& scores, ScoreScales scales) {
  CUTE_UNROLL
  for (int i = 0; i < size(scores); ++i) {
    scores(i) = tanh_approx(scores(i) * scales.inner) * scales.outer;
  }
}

// Also gives the derivative of each capped score, in units of softmax_scale.
template <class Scores, class Slopes>
CUTE_DEVICE void cap_scores(Scores& scores, ScoreScales scales, Slopes& slopes) {
  auto packed = recast<uint32_t>(slopes);
  CUTE_UNROLL
  for (int i = 0; i < size(scores); i += 2) {
    float const t0 = tanh_approx(scores(i) * scales.inner);
    float const t1 = tanh_approx(scores(i + 1) * scales.inner);
    packed(i / 2) = pack<half_t>(1.f - t0 * t0, 1.f - t1 * t1);
    scores(i) = t0 * scales.outer;
    scores(i + 1) = t1 * scales.outer;
  }
}

// ALiBi on base-2 scores. `diagonal` is seqlen_k - seqlen_q where rows are queries.
template <int kM, int kN, class Scores>
CUTE_DEVICE void add_alibi(Scores& scores, float slope, int first_row, int first_col,
                           int diagonal) {
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

// Bit (2 n + e) * 2 kM + i of the result: whether transposed score (i, (e, n)) is kept, as indexed
// by row_col_view. Rows are keys, `first_key` is that of the warp and a multiple of 16;
// `first_query` is this lane's first column.
//
// A Philox call gives the 8 keys of one group for one query, of which this lane holds those of one
// parity and the lane four places on the others. So each of the two calls for one of their two
// columns, and they swap halves.
template <int kM, int kN>
CUTE_DEVICE uint32_t transposed_keep_bits(int first_key, int first_query, int lane,
                                          DropoutKey const& key) {
  static_assert(4 * kM * kN <= 32, "one word holds the bits");
  int const parity = lane / 4 % 2;
  uint32_t const group = dropout_col_group(first_key + lane / 8 * 2);
  uint32_t bits = 0;
  CUTE_UNROLL
  for (int n = 0; n < kN; ++n) {
    PhiloxCounter const words =
        dropout_words(key.seed, key.offset, key.batch_head, first_query + 8 * n + parity, group);
    // The key blocks of 8 that the warp holds: all four, or two when it has 16 keys.
    bool const second_half = kM == 1 && first_key % 32 != 0;
    uint32_t const word[4] = {second_half ? words.z : words.x, second_half ? words.w : words.y,
                              words.z, words.w};
    CUTE_UNROLL
    for (int pair = 0; pair < kM; ++pair) {  // key blocks 2 pair and 2 pair + 1: rows i of block m
      uint32_t const low = __byte_perm(word[2 * pair], word[2 * pair + 1], 0x5410);
      uint32_t const high = __byte_perm(word[2 * pair], word[2 * pair + 1], 0x7632);
      uint32_t const own = parity == 0 ? low : high;
      uint32_t const other = __shfl_xor_sync(0xffffffffu, parity == 0 ? high : low, 4);
      CUTE_UNROLL
      for (int e = 0; e < 2; ++e) {
        uint32_t const drawn = e == parity ? own : other;  // bits of column e: (block 0, block 1)
        int const at = (2 * n + e) * 2 * kM + 2 * pair;
        bits |= uint32_t((drawn << 16) < key.keep_below) << at;
        bits |= uint32_t((drawn & 0xffff0000u) < key.keep_below) << (at + 1);
      }
    }
  }
  return bits;
}

}  // namespace fa2
