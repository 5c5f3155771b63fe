#pragma once

// What happens to a tile of scores between the products of the backward pass: probabilities P from
// scores and lse, and gradients dS = P (dP - D) of the modified scores. All of it lane by lane, one
// lane being one query.

#include <algorithm>

#include "cpu/level/pack.h"
#include "cpu/level/scores.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// From here on (base-2 units) the rounding of a stored lse is too much for probabilities that are
// relative to it: 2^-16 of the exponent.
inline constexpr float kLargeLse = 0x1p8f;

// A tile of queries in the backward pass.
template <class E>
struct GradTile : LanesOf<E> {
  using Real = typename E::Real;
  using LanesOf<E>::kCapacity;

  typename E::Operand* grad_out;                // [operand][lane]
  Real* grad_q;                                 // [dim][lane], before the softmax scale
  alignas(kVectorBytes) Real lse[kCapacity];    // base-2 units; +inf for a row without keys
  alignas(kVectorBytes) Real delta[kCapacity];  // D = rowsum(dO O) - grad_lse

  // Where lse will not do, rows have what it was made of instead, computed once more: probabilities
  // are exp2((s - base) * scale) * inverse_sum.
  bool far;
  bool large;  // some lse is: D is computed once more, too, as rowsum(P dP)
  alignas(kVectorBytes) Real base[kCapacity];
  alignas(kVectorBytes) Real inverse_sum[kCapacity];  // 0 for a row without keys
};

// The scores of one tile against one block of keys, [key][lane].
template <class Real>
struct ScoreBlock {
  Real* scores;          // then dS, as operands of a product over keys
  Real* grad_probs;      // dP = V dO^T
  Real* softcap_slopes;  // null without softcap
  Uint<Real>* keep;      // all bits set where dropout keeps; null without dropout
};

// P and dS of the queries of a whole chunk, as operands of products over queries:
// [key][query / kDepth].
template <class E>
struct WeightBlock {
  typename E::Operand* probs;
  typename E::Operand* grad_scores;
  int64_t stride;

  WeightBlock at_query(int query) const {
    return {probs + query / E::kDepth, grad_scores + query / E::kDepth, stride};
  }
  WeightBlock at_key(int64_t key) const {
    return {probs + key * stride, grad_scores + key * stride, stride};
  }
};

template <class E, int kVectors>
__attribute__((noinline)) void mark_kept(DropoutRule const& rule, QueryLanes<E> const& tile,
                                         int32_t first, int num_keys,
                                         Uint<typename E::Real>* keep) {
  using Word = Uint<typename E::Real>;
  constexpr int kSize = kLanes<Word>;
  for_kept<E, kVectors>(rule, tile, first, num_keys,
                        [&](int key, int n, Vec<Word> kept, Vec<Word> next_kept)
                            FA2_CPU_INLINE_LAMBDA {
                              auto* const low = keep + (key * kVectors + n) * kSize;
                              if (key >= 0) store(low, kept);
                              if (key + 1 < kKeyBlock) store(low + kVectors * kSize, next_kept);
                            });
}

// Writes one vector of two neighbouring rows of weights.
template <class E>
FA2_CPU_INLINE void store_weights(typename E::Operand* row, int64_t stride,
                                  Vec<typename E::Real> low, Vec<typename E::Real> high) {
  if constexpr (E::kDepth == 1) {
    store(row, low);
    store(row + stride, high);
  } else {
    auto const words = E::narrow_two(low, high);
    __builtin_memcpy(row, &words, sizeof(words) / 2);
    __builtin_memcpy(row + stride, reinterpret_cast<char const*>(&words) + sizeof(words) / 2,
                     sizeof(words) / 2);
  }
}

// P of a vector of queries and kCount keys that follow each other, and the gradients P (dP - D) of
// their scores as the softmax gets them. No P exceeds 1, whatever lse is. The survivors' factor of
// dropout is applied to dP here.
template <class Real, int kCount>
struct ScoreGrads {
  Vec<Real> prob[kCount];
  Vec<Real> grad[kCount];
};

// The first key's scores are those from `at` on, those of the next one come `step` later.
template <class E, bool kModified, bool kFar, int kCount, class Real = typename E::Real>
FA2_CPU_INLINE ScoreGrads<Real, kCount> score_grads(Real scale, Real keep_factor,
                                                    GradTile<E> const& tile,
                                                    ScoreBlock<Real> const& block, int n,
                                                    int64_t at, int64_t step, Vec<Real> shift,
                                                    Vec<Real> delta) {
  ScoreGrads<Real, kCount> result;
#pragma GCC unroll 2
  for (int i = 0; i < kCount; ++i) {
    Vec<Real> const s = load<Real>(block.scores + at + i * step);
    result.prob[i] = min(Vec<Real>{}, kFar ? (s - shift) * scale : s * scale - shift);
  }
  exp2_in_place<Real, E::kExpDegree>(result.prob);
#pragma GCC unroll 2
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kFar) result.prob[i] *= load<Real>(tile.inverse_sum + n * kLanes<Real>);
    Vec<Real> dp = load<Real>(block.grad_probs + at + i * step);
    if (kModified && block.keep != nullptr) {
      Vec<Uint<Real>> const keep = load<Uint<Real>>(block.keep + at + i * step);
      dp = (Vec<Real>)((Vec<Uint<Real>>)dp & keep) * keep_factor;
    }
    result.grad[i] = result.prob[i] * (dp - delta);
  }
  return result;
}

// P and dS of `num_keys` keys, two at a time: if their number is odd, the next row must hold scores
// of -inf. The survivors' factor of dropout is applied to P at the very end.
template <class E, int kVectors, bool kModified, bool kFar>
__attribute__((noinline)) void differentiate(typename E::Real scale, typename E::Real keep_factor,
                                             int num_keys, GradTile<E> const& tile,
                                             ScoreBlock<typename E::Real> const& block,
                                             WeightBlock<E> const& weights) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  Vec<Real> shift[kVectors];
  Vec<Real> delta[kVectors];
  for (int n = 0; n < kVectors; ++n) {
    shift[n] = load<Real>((kFar ? tile.base : tile.lse) + n * kSize);
    delta[n] = load<Real>(tile.delta + n * kSize);
  }
  for (int64_t j = 0; j < num_keys; j += 2) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      int64_t const from = (j * kVectors + n) * kSize;
      constexpr int kStep = kVectors * kSize;
      auto [p, ds] = score_grads<E, kModified, kFar, 2>(scale, keep_factor, tile, block, n, from,
                                                        kStep, shift[n], delta[n]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        int64_t const at = from + i * kStep;
        if (kModified && block.softcap_slopes != nullptr) {
          ds[i] *= load<Real>(block.softcap_slopes + at);
        }
        if (kModified && block.keep != nullptr) {
          p[i] = (Vec<Real>)((Vec<Uint<Real>>)p[i] & load<Uint<Real>>(block.keep + at));
        }
      }
      int64_t const at = j * weights.stride + n * kSize / E::kDepth;
      store_weights<E>(weights.probs + at, weights.stride, p[0], p[1]);
      store_weights<E>(weights.grad_scores + at, weights.stride, ds[0], ds[1]);
      if constexpr (E::kDepth == 1) {
        store(block.scores + from, ds[0]);
        store(block.scores + from + kStep, ds[1]);
      } else {
        // Pair rows overwrite score rows that have been read.
        store(block.scores + (j / 2 * kVectors + n) * kSize, E::pair(ds[0], ds[1]));
      }
    }
  }
}

// Gradients of the scores of `num_keys` keys as the softmax gets them, in their place; 0 in lanes
// whose bits in `counts` are not set.
template <class E, int kVectors, bool kFar>
__attribute__((noinline)) void differentiate_scores(typename E::Real scale,
                                                    typename E::Real keep_factor, int num_keys,
                                                    GradTile<E> const& tile,
                                                    Uint<typename E::Real> const* counts,
                                                    ScoreBlock<typename E::Real> const& block) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  for (int n = 0; n < kVectors; ++n) {
    Vec<Real> const shift = load<Real>((kFar ? tile.base : tile.lse) + n * kSize);
    Vec<Real> const delta = load<Real>(tile.delta + n * kSize);
    Vec<Uint<Real>> const count = load<Uint<Real>>(counts + n * kSize);
    for (int64_t j = 0; j < num_keys; ++j) {
      int64_t const at = (j * kVectors + n) * kSize;
      auto const score =
          score_grads<E, true, kFar, 1>(scale, keep_factor, tile, block, n, at, 0, shift, delta);
      store(block.scores + at, (Vec<Uint<Real>>)score.grad[0] & count);
    }
  }
}

// The softmax of the rows of a tile, computed once more.
template <class E>
struct RowSums {
  using Real = typename E::Real;
  static constexpr int kCapacity = LanesOf<E>::kCapacity;

  alignas(kVectorBytes) Real base[kCapacity];  // largest score so far
  alignas(kVectorBytes) Real sum[kCapacity];   // of probabilities relative to it
  alignas(kVectorBytes) Real dot[kCapacity];   // of these times dP
};

// How many terms are added up before they join a sum. Keys that are all alike give terms that are,
// and so are the roundings of one addition after the other; D must not gather them, since what is
// left of dP - D in the end is multiplied by keys, which are large here.
inline constexpr int kKeysAtOnce = 8;

// Adds `num_keys` keys to `rows`; to their `dot` only if `grad_probs` holds dP.
template <class E, int kVectors, bool kDot>
__attribute__((noinline)) void add_rows(typename E::Real scale, typename E::Real keep_factor,
                                        int num_keys, ScoreBlock<typename E::Real> const& block,
                                        RowSums<E>& rows) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  for (int n = 0; n < kVectors; ++n) {
    Vec<Real> const old_base = load<Real>(rows.base + n * kSize);
    Vec<Real> base = old_base;
    for (int j = 0; j < num_keys; ++j) {
      base = max(load<Real>(block.scores + (j * kVectors + n) * kSize), base);
    }
    store(rows.base + n * kSize, base);
    Vec<Real> const shift = at_least_lowest<Real>(base);
    Vec<Real> const rescale =
        exp2<Real, kFullDegree<Real>>((at_least_lowest<Real>(old_base) - shift) * scale);
    Vec<Real> sum{};
    Vec<Real> dot{};
    for (int begin = 0; begin < num_keys; begin += kKeysAtOnce) {
      Vec<Real> part_of_sum{};
      Vec<Real> part_of_dot{};
      for (int j = begin; j < std::min(begin + kKeysAtOnce, num_keys); ++j) {
        int const at = (j * kVectors + n) * kSize;
        Vec<Real> const p =
            exp2<Real, E::kExpDegree>((load<Real>(block.scores + at) - shift) * scale);
        part_of_sum += p;
        if constexpr (kDot) {
          Vec<Real> dp = load<Real>(block.grad_probs + at);
          if (block.keep != nullptr) {
            dp = (Vec<Real>)((Vec<Uint<Real>>)dp & load<Uint<Real>>(block.keep + at)) * keep_factor;
          }
          part_of_dot += p * dp;
        }
      }
      sum += part_of_sum;
      dot += part_of_dot;
    }
    store(rows.sum + n * kSize, load<Real>(rows.sum + n * kSize) * rescale + sum);
    store(rows.dot + n * kSize, load<Real>(rows.dot + n * kSize) * rescale + dot);
  }
}

// delta[i] = sum over d of out[i][d] grad_out[i][d] for one vector of rows.
template <class E>
FA2_CPU_INLINE Vec<typename E::Real> row_products(typename E::Storage const* const* out,
                                                  typename E::Storage const* const* grad_out,
                                                  int head_dim) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  auto widen = [](typename E::Storage const* from, int count) {
    if (count >= kSize) return E::widen(from);
    return E::widen(PartialRow<typename E::Storage, kSize>(from, count).entries);
  };
  Vec<Real> sums[kSize];
  for (int i = 0; i < kSize; ++i) {
    sums[i] = Vec<Real>{};
    for (int d = 0; d < head_dim; d += kSize) {
      sums[i] += widen(out[i] + d, head_dim - d) * widen(grad_out[i] + d, head_dim - d);
    }
  }
  return sum_lanes<Real>(sums);
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
