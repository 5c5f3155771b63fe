#pragma once

// exp2 and tanh on vectors. Round-to-nearest splits x into an integer n and f in [-1/2, 1/2];
// 2^f = 1 + f q(f) with q a minimax polynomial. The leading 1 is exact, so that exp2(0) is 1 and a
// row with a single key gives exactly its value.

#include "cpu/level/simd.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Coefficients of q for a polynomial 1 + f q(f) of the given degree, and its relative error.
template <class T, int kDegree>
struct Exp2Poly;

template <>
struct Exp2Poly<float, 4> {  // 2.8e-6: P in 16-bit elements
  static constexpr float kCoeffs[] = {0.693124175f, 0.240240991f, 0.0559064262f, 0.00958285294f};
};
template <>
struct Exp2Poly<float, 6> {  // 2.0e-9, a thirtieth of the rounding error of a float
  static constexpr float kCoeffs[] = {0.693147182f,   0.240226477f,   0.0555033237f,
                                      0.00961843692f, 0.00133988739f, 0.00015353362f};
};
template <>
struct Exp2Poly<double, 11> {  // 8.4e-18
  static constexpr double kCoeffs[] = {
      0.693147180559945309,     0.240226506959100982,   0.0555041086648215943,
      0.00961812910760688853,   0.00133335581464169353, 0.000154035304417360502,
      0.0000152527338298361184, 1.32154425879216897e-6, 1.01780624458457735e-7,
      7.0725859492692237e-9,    4.45496059818651839e-10};
};

// The degree that is exact to rounding.
template <class T>
inline constexpr int kFullDegree = sizeof(T) == 4 ? 6 : 11;

// f q(f) = 2^f - 1 for each f in [-1/2, 1/2].
//
// Here and below, several vectors go through the steps side by side: each is a chain of dependent
// operations, and a core's scheduler holds no more than some five chains that follow each other.
template <class T, int kDegree, int kCount>
FA2_CPU_INLINE void exp2_fractions(Vec<T> const (&f)[kCount], Vec<T> (&results)[kCount]) {
  constexpr auto const& c = Exp2Poly<T, kDegree>::kCoeffs;
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) results[i] = broadcast<T>(c[kDegree - 1]);
#pragma GCC unroll 16
  for (int j = kDegree - 2; j >= 0; --j) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) results[i] = results[i] * f[i] + c[j];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) results[i] *= f[i];
}

template <class T, int kCount>
struct Exp2Parts {
  Vec<T> scale[kCount];     // 2^n
  Vec<T> fraction[kCount];  // f q(f) = 2^f - 1
};

template <class T, int kDegree, int kCount>
FA2_CPU_INLINE void exp2_parts(Vec<T> const (&x)[kCount], Exp2Parts<T, kCount>& parts) {
  constexpr int kMantissaBits = sizeof(T) == 4 ? 23 : 52;
  constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
  // Adding 1.5 * 2^mantissa_bits rounds to an integer, which then stands in the lowest bits; with
  // the bias added as well, a shift makes them the float 2^n. n = -bias gives exactly 0.
  constexpr T kRound = T(3) * T(Int<T>(1) << (kMantissaBits - 1)) + T(kBias);
  Vec<T> shifted[kCount];
  Vec<T> f[kCount];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) shifted[i] = x[i] + kRound;
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) f[i] = x[i] - (shifted[i] - kRound);
  exp2_fractions<T, kDegree>(f, parts.fraction);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    parts.scale[i] = (Vec<T>)((Vec<Int<T>>)shifted[i] << kMantissaBits);
  }
}

#if defined(__AVX512DQ__)

// The same split by instructions: what is left of x beside the nearest integer, and a product with
// 2^n that is 0 below all floats. Three of fourteen instructions fewer.
FA2_CPU_INLINE Vec<float> fraction_of(Vec<float> x) { return _mm512_reduce_ps(x, 0); }
FA2_CPU_INLINE Vec<double> fraction_of(Vec<double> x) { return _mm512_reduce_pd(x, 0); }
FA2_CPU_INLINE Vec<float> times_exp2(Vec<float> x, Vec<float> n) { return _mm512_scalef_ps(x, n); }
FA2_CPU_INLINE Vec<double> times_exp2(Vec<double> x, Vec<double> n) {
  return _mm512_scalef_pd(x, n);
}

// Each x, up to about 1, becomes 2^x; NaN stays NaN.
template <class T, int kDegree, int kCount>
FA2_CPU_INLINE void exp2_in_place(Vec<T> (&x)[kCount]) {
  // One after the other, as long as nobody has measured them side by side here.
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
    Vec<T> const f[1] = {fraction_of(x[i])};
    Vec<T> fraction[1];
    exp2_fractions<T, kDegree>(f, fraction);
    x[i] = times_exp2(fraction[0] + 1, x[i] - f[0]);
  }
}

#else

// Each x, up to about 1, becomes 2^x. Results below the smallest normal number are 0; NaN stays
// NaN.
template <class T, int kDegree, int kCount>
FA2_CPU_INLINE void exp2_in_place(Vec<T> (&x)[kCount]) {
  constexpr T kLowest = sizeof(T) == 4 ? T(-127) : T(-1023);
  Exp2Parts<T, kCount> parts;
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) x[i] = max(broadcast<T>(kLowest), x[i]);
  exp2_parts<T, kDegree>(x, parts);
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) x[i] = parts.scale[i] * parts.fraction[i] + parts.scale[i];
}

#endif

// The same of a single vector.
template <class T, int kDegree>
FA2_CPU_INLINE Vec<T> exp2(Vec<T> x) {
  Vec<T> result[1] = {x};
  exp2_in_place<T, kDegree>(result);
  return result[0];
}

// tanh(x) = (e - 1) / (e + 1), e = exp(2x). e - 1 is formed without cancellation, so that small
// arguments keep their relative accuracy.
template <class T>
FA2_CPU_INLINE Vec<T> tanh(Vec<T> x) {
  constexpr T kTwoLog2e = T(2.8853900817779268147);
  constexpr T kSaturated = T(60);  // beyond it tanh rounds to +-1
  Vec<T> const bound = broadcast<T>(kSaturated);
  Vec<T> const u[1] = {max(-bound, min(bound, x * kTwoLog2e))};
  Exp2Parts<T, 1> parts;
  exp2_parts<T, kFullDegree<T>>(u, parts);
  Vec<T> const scale = parts.scale[0];
  Vec<T> const e_minus_1 = scale * parts.fraction[0] + (scale - 1);
  return e_minus_1 / (e_minus_1 + 2);
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
