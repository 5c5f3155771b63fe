#pragma once

// What happens to a tile of scores between the two products: softcap, ALiBi, biases and mask where
// they apply, then the online softmax, then dropout. All of it lane by lane, one lane being one
// query.

#include <initializer_list>

#include "core/dropout.h"
#include "core/params.h"
#include "core/score_mod.h"
#include "cpu/level/biases.h"
#include "cpu/level/elements.h"
#include "cpu/level/query_lanes.h"
#include "cpu/level/row_state.h"
#include "cpu/level/tile_lists.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// A tile of queries in the forward pass, with the state of its softmax.
template <class E>
struct Tile : LanesOf<E> {
  using Real = typename E::Real;
  using LanesOf<E>::kCapacity;

  Real* out;                                   // [dim][lane], sums of values times probabilities
  bool far;                                    // of all rows; row_state.h
  alignas(kVectorBytes) Real base[kCapacity];  // largest score so far
  alignas(kVectorBytes) Real sum[kCapacity];   // of probabilities
};

// How raw scores become exponents of 2: core/score_mod.h with the element's own precision, and with
// the factor log2(e) left to the exponent, which nothing can overflow.
template <class Real>
struct ScoreRule {
  bool has_alibi;
  int num_biases;
  Bias biases[2];
  bool modifies;               // adjust_scores has more to do than to mask,
  ScoreScalesOf<Real> scales;  // by these: scores become natural ones
  Real natural;                // what adjust_scores leaves, times this, is the natural score,
  Real scale;  // times this the exponent of 2; neither is 0: a masked score times 0 were NaN
};

template <class Real>
FA2_CPU_INLINE ScoreRule<Real> score_rule(FwdParams const& params) {
  ScoreMod const& mod = params.score_mod;
  ScoreRule<Real> rule;
  rule.scales = score_scales<Real>(params.softmax_scale, mod.softcap);
  rule.has_alibi = mod.alibi_slopes != nullptr;
  rule.num_biases = 0;
  for (Bias const& bias : {mod.bias, mod.relative_bias}) {
    if (bias.data != nullptr) rule.biases[rule.num_biases++] = bias;
  }
  rule.modifies =
      rule.scales.has_softcap || rule.has_alibi || rule.num_biases > 0 || params.softmax_scale == 0;
  double const natural = rule.modifies ? 1 : params.softmax_scale;
  rule.natural = Real(natural);
  rule.scale = Real(natural * kLog2eDouble);
  return rule;
}

// The biases of keys first, first + 1, ... and the lanes of vector n: of a whole block, or of
// `num_keys` that are fewer.
template <class E, class Real = typename E::Real>
FA2_CPU_INLINE void read_biases(ScoreRule<Real> const& rule, QueryLanes<E> const& tile, int n,
                                int32_t first, int num_keys, BiasBlock<Real>& block) {
  for (int i = 0; i < rule.num_biases; ++i) {
    int64_t const* const offsets = tile.bias_offset[i] + n * kLanes<Real>;
    read_bias<Real>(rule.biases[i], offsets, first, num_keys, i > 0, block);
  }
}

// For core/score_mod.h.
template <class Real>
struct Tanh {
  FA2_CPU_INLINE Vec<Real> operator()(Vec<Real> x) const { return tanh<Real>(x); }
};

template <class Real>
struct Abs {
  FA2_CPU_INLINE Vec<Real> operator()(Vec<Real> x) const { return abs<Real>(x); }
};

struct DropoutRule {
  uint32_t keep_threshold;
  uint32_t stream;
  uint64_t key;
  int32_t first_col;  // of the first key of the call
};

// Which lanes see a key, by the range of columns that each sees: of_vector(n)(j) is about keys
// first + j and the lanes of vector n.
template <class E>
struct ColumnMask {
  using Column = Int<typename E::Real>;
  QueryLanes<E> const& tile;
  int32_t first;

  FA2_CPU_INLINE auto of_vector(int n) const {
    Vec<Column> const begin = load<Column>(tile.col_begin + n * kLanes<Column>);
    Vec<Column> const end = load<Column>(tile.col_end + n * kLanes<Column>);
    return [begin, end, first = first](int j) FA2_CPU_INLINE_LAMBDA {
      Column const col = first + j;
      return (begin <= col) & (col < end);
    };
  }
};

// The same by words, for keys of one block of a mask.
template <class E>
struct WordMask {
  using Word = typename RunMask<E>::Word;
  Word const (&words)[RunMask<E>::kWords][RunMask<E>::kCapacity];

  FA2_CPU_INLINE auto of_vector(int n) const {
    return [from = &words[0][n * kLanes<Word>]](int j) FA2_CPU_INLINE_LAMBDA {
      constexpr int kBits = RunMask<E>::kBits;
      Vec<Word> const keys = load<Word>(from + j / kBits * RunMask<E>::kCapacity);
      return (keys & Word(Word(1) << j % kBits)) != Word(0);
    };
  }
};

// Softcap, ALiBi, biases and then the mask on keys [first, first + num_keys); `maxima` takes the
// results in, and `softcap_slopes`, unless null, the derivatives of softcap.
template <class E, int kVectors, class Mask>
__attribute__((noinline)) void adjust_scores(ScoreRule<typename E::Real> const& rule,
                                             QueryLanes<E> const& tile, Mask const& mask,
                                             int32_t first, int num_keys, typename E::Real* scores,
                                             typename E::Real* maxima,
                                             typename E::Real* softcap_slopes = nullptr) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  for (int n = 0; n < kVectors; ++n) {
    Vec<Real> const diagonal = load<Real>(tile.diagonal + n * kSize);
    Vec<Real> const slope = load<Real>(tile.slope + n * kSize);
    auto const sees = mask.of_vector(n);
    Vec<Real> top = load<Real>(maxima + n * kSize);
    BiasBlock<Real> biases;
    for (int j = 0; j < num_keys; ++j) {
      int const at = (j * kVectors + n) * kSize;
      Vec<Real> s = load<Real>(scores + at);
      if (rule.scales.has_softcap) {
        auto const capped = cap_score(s, rule.scales, Tanh<Real>{});
        if (softcap_slopes != nullptr) store(softcap_slopes + at, capped.slope);
        s = capped.score;
      } else if (rule.modifies) {
        s *= rule.scales.inner;
      }
      if (rule.has_alibi) s = with_alibi(s, slope, diagonal - Real(first + j), Abs<Real>{});
      if (rule.num_biases > 0) {
        if (j % kSize == 0) read_biases(rule, tile, n, first + j, num_keys - j, biases);
        s += load<Real>(biases.keys[j % kSize]);
      }
      s = sees(j) ? s : broadcast<Real>(-__builtin_inf());
      store(scores + at, s);
      top = max(s, top);
    }
    store(maxima + n * kSize, top);
  }
}

// Scores become probabilities relative to the new base `maxima`; `rescale` is what sums and outputs
// relative to the old base were multiplied by. Works in groups of four keys: rows up to the next
// multiple of four must hold -inf. Sums go up a small tree, or rounding errors would grow with the
// number of keys.
template <class E, int kVectors, bool kFar>
__attribute__((noinline)) void exponentiate(typename E::Real scale, int num_keys, Tile<E>& tile,
                                            typename E::Real const* maxima,
                                            typename E::Real* scores, typename E::Real* rescale) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  Vec<Real> shift[kVectors];
  Vec<Real> sum[kVectors];
  for (int n = 0; n < kVectors; ++n) {
    Vec<Real> const base = load<Real>(maxima + n * kSize);
    Vec<Real> const old_base = load<Real>(tile.base + n * kSize);
    // base_distance of row_state.h
    Vec<Real> const old_shift = at_least_lowest<Real>(old_base * scale);
    Vec<Real> distance;
    if constexpr (kFar) {
      shift[n] = at_least_lowest<Real>(base);
      distance = tile.far ? (at_least_lowest<Real>(old_base) - shift[n]) * scale
                          : old_shift - shift[n] * scale;
      distance = min(broadcast(Real(1)), distance);
    } else {
      shift[n] = at_least_lowest<Real>(base * scale);
      distance = old_shift - shift[n];
    }
    store(rescale + n * kSize, exp2<Real, kFullDegree<Real>>(distance));
    store(tile.base + n * kSize, base);
    sum[n] = Vec<Real>{};
  }
  tile.far = kFar;
  for (int64_t j = 0; j < num_keys; j += 4) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      Real* const place = scores + (j * kVectors + n) * kSize;
      Vec<Real> p[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        Vec<Real> const s = load<Real>(place + i * kVectors * kSize);
        p[i] = kFar ? (s - shift[n]) * scale : s * scale - shift[n];
      }
      exp2_in_place<Real, E::kExpDegree>(p);
      sum[n] += (p[0] + p[1]) + (p[2] + p[3]);
      if constexpr (E::kDepth == 1) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) store(place + i * kVectors * kSize, E::round(p[i]));
      } else {
        // Pair rows overwrite score rows that have been read.
        Real* const pair_place = scores + (j / 2 * kVectors + n) * kSize;
        store(pair_place, E::pair(p[0], p[1]));
        store(pair_place + kVectors * kSize, E::pair(p[2], p[3]));
      }
    }
  }
  for (int n = 0; n < kVectors; ++n) {
    Vec<Real> const old_sum = load<Real>(tile.sum + n * kSize);
    store(tile.sum + n * kSize, old_sum * load<Real>(rescale + n * kSize) + sum[n]);
  }
}

// core/philox.h on 64-bit lanes, of whose words only the low halves count.
using PhiloxVectors = PhiloxCounterOf<Vec<uint64_t>>;

FA2_CPU_INLINE PhiloxVectors philox_vectors(PhiloxVectors counter, uint64_t key) {
  return philox(counter, key, [](uint32_t constant, Vec<uint64_t> word) FA2_CPU_INLINE_LAMBDA {
    Vec<uint64_t> const product = multiply_low_halves(broadcast<uint64_t>(constant), word);
    return PhiloxProduct<Vec<uint64_t>>{product >> 32, product};
  });
}

// dropout_words of core/dropout.h for a vector of queries, in lanes as wide as Real.
template <class Real>
FA2_CPU_INLINE void dropout_word_vectors(DropoutRule const& rule, Uint<Real> const* rows,
                                         Uint<Real> const* batch_heads, uint32_t col_group,
                                         Vec<Uint<Real>> (&words)[4]) {
  constexpr uint64_t kLow = 0xffffffffu;
  Vec<uint64_t> const row = load<uint64_t>(rows);
  Vec<uint64_t> const batch_head = load<uint64_t>(batch_heads);
  Vec<uint64_t> const group = broadcast<uint64_t>(col_group);
  Vec<uint64_t> const stream = broadcast<uint64_t>(rule.stream);
  auto const [x, y, z, w] = philox_vectors({row, group, batch_head, stream}, rule.key);
  Vec<uint64_t> const even[4] = {x & kLow, y & kLow, z & kLow, w & kLow};
  if constexpr (sizeof(Real) == 8) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) words[j] = even[j];
  } else {
    auto const odd = philox_vectors({row >> 32, group, batch_head >> 32, stream}, rule.key);
    Vec<uint64_t> const high[4] = {odd.x << 32, odd.y << 32, odd.z << 32, odd.w << 32};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) words[j] = (Vec<uint32_t>)(even[j] | high[j]);
  }
}

// Calls step(key, n, keep, keep_next) for keys [first, first + num_keys), two at a time, and every
// vector n of lanes: all bits of `keep` say whether first + key is kept, those of `keep_next`
// whether its neighbour is. `first` is a multiple of 8. The first key of the pair stands at an even
// place: where the call begins at an odd one, `key` is odd, from -1 on, and the last neighbour may
// be none of the keys.
template <class E, int kVectors, class Step>
FA2_CPU_INLINE void for_kept(DropoutRule const& rule, QueryLanes<E> const& tile, int32_t first,
                             int num_keys, Step const& step) {
  using Real = typename E::Real;
  using Word = Vec<Uint<Real>>;
  constexpr int kSize = kLanes<Real>;
  Uint<Real> const threshold = rule.keep_threshold;
  int32_t const begin = rule.first_col + first;
  for (int32_t block = begin & ~31; block < begin + num_keys; block += 32) {
    for (int n = 0; n < kVectors; ++n) {
      for (int t = 0; t < 4; ++t) {
        Word words[4];
        dropout_word_vectors<Real>(rule, tile.row + n * kSize, tile.batch_head + n * kSize,
                                   dropout_col_group(block + 2 * t), words);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          int const key = block + 8 * j + 2 * t - begin;
          if (key < -1 || key >= num_keys) continue;
          step(key, n, (Word)((words[j] & 0xffffu) < threshold),
               (Word)((words[j] >> 16) < threshold));
        }
      }
    }
  }
}

// Zeroes the dropped probabilities of keys [first, first + num_keys). The survivors' factor
// 1 / (1 - drop_prob) is applied to the output.
template <class E, int kVectors>
__attribute__((noinline)) void drop(DropoutRule const& rule, QueryLanes<E> const& tile,
                                    int32_t first, int num_keys, typename E::Real* probs) {
  using Word = Uint<typename E::Real>;
  constexpr int kSize = kLanes<typename E::Real>;
  for_kept<E, kVectors>(
      rule, tile, first, num_keys,
      [&](int key, int n, Vec<Word> keep, Vec<Word> keep_next) FA2_CPU_INLINE_LAMBDA {
        if constexpr (E::kDepth == 1) {
          auto* const low = probs + (key * kVectors + n) * kSize;
          auto* const high = low + kVectors * kSize;
          if (key >= 0) store(low, load<Word>(low) & keep);
          if (key + 1 < num_keys) store(high, load<Word>(high) & keep_next);
        } else if (key % 2 == 0) {
          auto* const pair = probs + (key / 2 * kVectors + n) * kSize;
          store(pair, load<Word>(pair) & ((keep & 0xffffu) | keep_next << 16));
        } else {
          auto* const next = probs + ((key + 1) / 2 * kVectors + n) * kSize;
          auto* const pair = next - kVectors * kSize;
          if (key >= 0) store(pair, load<Word>(pair) & (0xffffu | keep << 16));
          if (key + 1 < num_keys) store(next, load<Word>(next) & (keep_next | 0xffff0000u));
        }
      });
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
