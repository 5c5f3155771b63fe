#pragma once

// The softmax of a handful of queries, one at a time: vector lanes are keys.

#include "core/mask.h"
#include "cpu/level/scores.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// row[i] *= factors[i], in whole vectors.
template <class Real>
FA2_CPU_INLINE void multiply_row(Real* row, Real const* factors, int count) {
  for (int i = 0; i < count; i += kLanes<Real>) {
    store(row + i, load<Real>(row + i) * load<Real>(factors + i));
  }
}

// exponentiate_row reads whole steps of so many scores.
template <class Real>
inline constexpr int kExpStep = 2 * kLanes<Real>;

// What the scores of one query are modified by.
template <class Real>
struct FewModifiers {
  Real diagonal;  // the key that ALiBi distances count from
  Real slope;
  int64_t bias_offset[2];  // of its row in each of the biases, if there are any
};

// Softcap, ALiBi, biases and then the mask, which goes by columns alone, on the scores of one query
// from key `first` on, at most a block, up to what exponentiate_row reads. Whatever is not
// `visible` becomes -inf, and what lies behind the last key is not: it may hold anything.
template <class Real>
__attribute__((noinline)) void adjust_row(ScoreRule<Real> const& rule, ColRange visible,
                                          FewModifiers<Real> const& modifiers, int32_t first,
                                          int num_keys, Real* scores) {
  constexpr int kSize = kLanes<Real>;
  alignas(kVectorBytes) Real biases[round_up(kKeyBlock, kExpStep<Real>)];
  for (int i = 0; i < rule.num_biases; ++i) {
    read_bias_row<Real>(rule.biases[i], modifiers.bias_offset[i], first, num_keys, i > 0, biases);
  }
  visible.end = smaller(visible.end, first + num_keys);
  Vec<Int<Real>> lane;
  for (int i = 0; i < kSize; ++i) lane[i] = i;
  for (int j = 0; j < round_up(num_keys, kExpStep<Real>); j += kSize) {
    Vec<Int<Real>> const col = lane + Int<Real>(first + j);
    Vec<Real> s = load<Real>(scores + j);
    if (rule.scales.has_softcap) {
      s = cap_score(s, rule.scales, Tanh<Real>{}).score;
    } else if (rule.modifies) {
      s *= rule.scales.inner;
    }
    if (rule.has_alibi) {
      Vec<Real> const distance = modifiers.diagonal - __builtin_convertvector(col, Vec<Real>);
      s = with_alibi(s, modifiers.slope, distance, Abs<Real>{});
    }
    if (rule.num_biases > 0) s += load<Real>(biases + j);
    bool const whole = first + j >= visible.begin && first + j + kSize <= visible.end;
    if (!whole) {
      s = (col >= Int<Real>(visible.begin)) & (col < Int<Real>(visible.end))
              ? s
              : broadcast<Real>(-__builtin_inf());
    }
    store(scores + j, s);
  }
}

// Lane by lane up a tree.
template <class T, class Combine>
FA2_CPU_INLINE T reduce_lanes(Vec<T> v, Combine const& combine) {
  T lanes[kLanes<T>];
  store(lanes, v);
#pragma GCC unroll 4
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) lanes[i] = combine(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}

// The softmax of one query, with a sum that is still spread over lanes.
template <class E>
struct FewState {
  RowBase<typename E::Real> base;
  Vec<typename E::Real> sum;
};

// As exponentiate in scores.h, for one query, whose scores up to the next multiple of kExpStep must
// be -inf; returns what sums and outputs relative to the old base were multiplied by.
template <class E>
__attribute__((noinline)) typename E::Real exponentiate_row(typename E::Real scale, int num_keys,
                                                            FewState<E>& state,
                                                            typename E::Real* scores) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  Vec<Real> top = broadcast(state.base.score);
  for (int j = 0; j < num_keys; j += kSize) top = max(load<Real>(scores + j), top);
  RowBase<Real> base = {reduce_lanes<Real>(top, [](Real a, Real b) { return a > b ? a : b; }),
                        state.base.far};
  base.far |= base.turns_far(scale);
  Real const distance = base_distance(state.base, base, scale);
  Vec<Real> const rescale = exp2<Real, kFullDegree<Real>>(broadcast(distance));
  Vec<Real> sum = {};
  auto to_probs = [&](auto const& exponent) FA2_CPU_INLINE_LAMBDA {
    for (int j = 0; j < num_keys; j += kExpStep<Real>) {
      Vec<Real> const p0 = exp2<Real, E::kExpDegree>(exponent(load<Real>(scores + j)));
      Vec<Real> const p1 = exp2<Real, E::kExpDegree>(exponent(load<Real>(scores + j + kSize)));
      sum += p0 + p1;
      if constexpr (E::kDepth == 1) {
        store(scores + j, E::round(p0));
        store(scores + j + kSize, E::round(p1));
      } else {
        // Neighbouring keys are pairs as they stand. Overwrites scores that have been read.
        store(reinterpret_cast<typename E::Storage*>(scores) + j, E::narrow_two(p0, p1));
      }
    }
  };
  if (base.far) {
    Real const shift = base.finite();
    to_probs([&](Vec<Real> s) FA2_CPU_INLINE_LAMBDA { return (s - shift) * scale; });
  } else {
    Real const shift = base.shift(scale);
    to_probs([&](Vec<Real> s) FA2_CPU_INLINE_LAMBDA { return s * scale - shift; });
  }
  state.base = base;
  state.sum = state.sum * rescale + sum;
  return rescale[0];
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
