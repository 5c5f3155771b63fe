#pragma once

// What dropout does to the probabilities that a warp holds, or to their gradients. Rows and columns
// are those of the call, which may be a part of longer sequences: entries are numbered there.

#include <cute/tensor.hpp>

#include "core/dropout.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2 {

struct DropoutKey {
  int64_t seed;
  int64_t offset;
  uint32_t batch_head;
  uint32_t keep_below;  // dropout_keep_below
  Positions const& at;

  // Whether the blocks of 32 columns that a Philox call spans are those of the call. Where they are
  // not, each entry is asked for on its own.
  CUTE_DEVICE bool is_aligned() const { return at.k_start % 32 == 0; }

  CUTE_DEVICE uint32_t group(int col) const { return dropout_col_group(at.k_start + col); }
  CUTE_DEVICE PhiloxCounter words(int row, uint32_t group) const {
    return dropout_words(seed, offset, batch_head, at.q_start + row, group);
  }
  CUTE_DEVICE bool keeps(int row, int col) const {
    return dropout_bits(seed, offset, batch_head, at.q_start + row, at.k_start + col) << 16 <
           keep_below;
  }
};

// Bit 2 j + e: whether column col + 8 j + e of a row is kept, of the 8 that a lane has in 32.
CUTE_DEVICE uint32_t keep_bits_of_row(int row, int col, DropoutKey const& key) {
  uint32_t bits = 0;
  CUTE_NO_UNROLL
  for (int i = 0; i < 8; ++i) bits |= uint32_t(key.keeps(row, col + i / 2 * 8 + i % 2)) << i;
  return bits;
}

// Calls drop(row half, row block, column, bits) for each 32 columns of a row that the lane has;
// bits as above.
template <int kM, int kCols, class Drop>
CUTE_DEVICE void for_rows_anywhere(int first_row, int first_col, int lane, DropoutKey const& key,
                                   Drop const& drop) {
  CUTE_UNROLL
  for (int m = 0; m < kM; ++m) {
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      CUTE_UNROLL
      for (int col = 0; col < kCols; col += 32) {
        int const row = first_row + RowCoord<kM>{}(half, m);
        drop(half, m, col, keep_bits_of_row(row, first_col + col + lane_col(lane), key));
      }
    }
  }
}

// Zeroes the dropped probabilities. `first_col` is that of the tile and a multiple of 32, so that
// one Philox call serves this lane's columns in four neighbouring blocks of eight.
template <int kM, int kK, class Probs>
CUTE_DEVICE void drop_probs(Probs& probs, int first_row, int first_col, int lane,
                            DropoutKey const& key) {
  static_assert(kK % 2 == 0, "a Philox call spans 32 columns");
  auto packed = recast<uint32_t>(probs);  // ((row half, 8-column half), row block, depth block)
  if (!key.is_aligned()) {
    for_rows_anywhere<kM, 16 * kK>(
        first_row, first_col, lane, key, [&](int half, int m, int col, uint32_t bits) {
          CUTE_UNROLL
          for (int j = 0; j < 4; ++j) {
            uint32_t const low = bits >> 2 * j & 1, high = bits >> (2 * j + 1) & 1;
            packed(half + 2 * (j % 2), m, col / 16 + j / 2) &= low * 0xffffu + high * 0xffff0000u;
          }
        });
    return;
  }
  CUTE_UNROLL
  for (int m = 0; m < kM; ++m) {
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const row = first_row + RowCoord<kM>{}(half, m);
      CUTE_UNROLL
      for (int k = 0; k < kK; k += 2) {
        PhiloxCounter const words = key.words(row, key.group(first_col + 16 * k) + lane % 4);
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

// The same of scores, such as gradients of probabilities.
template <int kM, int kN, class Scores>
CUTE_DEVICE void drop_scores(Scores& scores, int first_row, int first_col, int lane,
                             DropoutKey const& key) {
  static_assert(kN % 4 == 0, "a Philox call spans 32 columns");
  if (!key.is_aligned()) {
    for_rows_anywhere<kM, 8 * kN>(first_row, first_col, lane, key,
                                  [&](int half, int m, int col, uint32_t bits) {
                                    CUTE_UNROLL
                                    for (int j = 0; j < 4; ++j) {
                                      auto pair = scores(make_coord(_, half), m, col / 8 + j);
                                      if ((bits >> 2 * j & 1) == 0) pair(0) = 0.f;
                                      if ((bits >> (2 * j + 1) & 1) == 0) pair(1) = 0.f;
                                    }
                                  });
    return;
  }
  CUTE_UNROLL
  for (int m = 0; m < kM; ++m) {
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const row = first_row + RowCoord<kM>{}(half, m);
      CUTE_UNROLL
      for (int n = 0; n < kN; n += 4) {
        PhiloxCounter const words = key.words(row, key.group(first_col + 8 * n) + lane % 4);
        uint32_t const word[4] = {words.x, words.y, words.z, words.w};
        CUTE_UNROLL
        for (int j = 0; j < 4; ++j) {
          auto pair = scores(make_coord(_, half), m, n + j);
          if (word[j] << 16 >= key.keep_below) pair(0) = 0.f;
          if (word[j] >= key.keep_below) pair(1) = 0.f;
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
  uint32_t bits = 0;
  if (!key.is_aligned()) {
    CUTE_NO_UNROLL
    for (int at = 0; at < 4 * kM * kN; ++at) {
      int const i = at % (2 * kM), col = at / (2 * kM);
      bool const kept =
          key.keeps(first_query + col / 2 * 8 + col % 2, first_key + lane_row(lane) + 8 * i);
      bits |= uint32_t(kept) << at;
    }
    return bits;
  }
  int const parity = lane / 4 % 2;
  uint32_t const group = key.group(first_key + lane / 8 * 2);
  CUTE_UNROLL
  for (int n = 0; n < kN; ++n) {
    PhiloxCounter const words = key.words(first_query + 8 * n + parity, group);
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
