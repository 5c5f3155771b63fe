#pragma once

// What the probabilities of a row are relative to while its keys are gone through, so that no
// rounding of a large score reaches an exponent. With `scale` the factor that makes scores
// exponents of 2, and `base` the largest score so far, probabilities are formed in one of two ways:
//   near  exp2(s * scale - shift), one fused multiply-add, where shift is base * scale as rounded.
//         Everything kept of the row is relative to `shift` itself, so its rounding cancels; the
//         largest probability is 2 to the power of that rounding, all but 1.
//   far   exp2((s - base) * scale), where that rounding is no longer small. Relative to `base`.
// A row turns from near to far when |base * scale| grows too large for the first, and stays far.

#include <limits>

#include "cpu/level/exp2.h"
#include "cpu/level/simd.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

#if defined(__FMA__) || defined(__aarch64__)
// Up to here the rounding is at most 2^-15, which a 16-bit P does not see.
inline constexpr float kFarExponent = 0x1p10f;
#else
// Without fused multiply-adds the products of all scores are rounded, and far costs the same.
inline constexpr float kFarExponent = 0;
#endif

// The base of a row of no keys, or of infinitely small scores alone, is -inf; where differences are
// formed, this stands in for it.
template <class Real>
inline constexpr Real kLowest = std::numeric_limits<Real>::lowest();

template <class Real>
FA2_CPU_INLINE Vec<Real> at_least_lowest(Vec<Real> x) {
  return max(broadcast(kLowest<Real>), x);
}

template <class Real>
struct RowBase {
  Real score = -Real(__builtin_inf());
  bool far = false;

  Real finite() const { return score < kLowest<Real> ? kLowest<Real> : score; }
  // What near probabilities are relative to.
  Real shift(Real scale) const {
    Real const product = score * scale;
    return product < kLowest<Real> ? kLowest<Real> : product;
  }
  // Whether a row with this base has to be far.
  bool turns_far(Real scale) const {
    Real const product = score * scale;
    bool const is_near = product < Real(kFarExponent) && product > -Real(kFarExponent);
    return !is_near && score >= kLowest<Real>;
  }
};

// The power of 2 by which what is relative to `from` counts relative to `to`, which is not smaller
// and not near if `from` is far. (Where one of them is near, only that one's shift is rounded.)
template <class Real>
FA2_CPU_INLINE Real base_distance(RowBase<Real> from, RowBase<Real> to, Real scale) {
  Real distance;
  if (from.far) {
    distance = (from.finite() - to.finite()) * scale;
  } else if (to.far) {
    distance = from.shift(scale) - to.finite() * scale;
  } else {
    distance = from.shift(scale) - to.shift(scale);
  }
  return distance > 1 ? Real(1) : distance;  // of an empty row, which counts for nothing
}

// The state of a row's softmax.
template <class Real>
struct RowState {
  RowBase<Real> base;
  Real sum = 0;  // of probabilities
};

// Whether some lane of `count` bases has to be far.
template <class Real>
FA2_CPU_INLINE bool any_turns_far(Real const* bases, int count, Real scale) {
  Vec<Int<Real>> far = {};
  for (int i = 0; i < count; i += kLanes<Real>) {
    Vec<Real> const base = load<Real>(bases + i);
    far |= ~(abs<Real>(base * scale) < Real(kFarExponent)) & (base >= kLowest<Real>);
  }
  Int<Real> any = 0;
  for (int i = 0; i < kLanes<Real>; ++i) any |= far[i];
  return any != 0;
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
