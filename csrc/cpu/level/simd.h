#pragma once

// Vectors of the instruction-set level that the file is compiled for. GCC's vector extensions give
// arithmetic, comparison and selection on every machine; the few operations they lack or compile
// badly stand here or, where only an intrinsic will do, in elements.h.
//
// Everything below and in the headers that include this one lives in a namespace named after the
// level, FA2_CPU_LEVEL: the linker would merge equally named inline functions of two levels, and a
// machine without AVX-512 would then run AVX-512 code.

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FA2_CPU_INLINE inline __attribute__((always_inline))
#define FA2_CPU_INLINE_LAMBDA __attribute__((always_inline))

namespace fa2::cpu::FA2_CPU_LEVEL {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;

template <class T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);

// Integers as wide as T, for masks and bit manipulation.
template <int kBytes>
struct IntegersOf;
template <>
struct IntegersOf<4> {
  using Int = int32_t;
  using Uint = uint32_t;
};
template <>
struct IntegersOf<8> {
  using Int = int64_t;
  using Uint = uint64_t;
};
template <class T>
using Int = typename IntegersOf<sizeof(T)>::Int;
template <class T>
using Uint = typename IntegersOf<sizeof(T)>::Uint;

// memcpy reads any address of any type without breaking aliasing rules, in one instruction.
template <class T>
FA2_CPU_INLINE Vec<T> load(void const* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// A vector that several products read. GCC would load it for each of them, since products can read
// memory themselves, and loads are what they wait for.
template <class T>
FA2_CPU_INLINE Vec<T> load_once(void const* from) {
  Vec<T> v = load<T>(from);
#if defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

template <class V>
FA2_CPU_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

template <class T>
FA2_CPU_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <class T>
FA2_CPU_INLINE Vec<T> broadcast_from(void const* from) {
  T x;
  __builtin_memcpy(&x, from, sizeof(x));
  return broadcast(x);
}

// The larger and the smaller; if either is NaN, the second. (As a > b ? a : b on vectors, GCC
// compares and blends.)
#if defined(__AVX512F__)
FA2_CPU_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
FA2_CPU_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
FA2_CPU_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a, b); }
FA2_CPU_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX__)
FA2_CPU_INLINE Vec<float> max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
FA2_CPU_INLINE Vec<double> max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
FA2_CPU_INLINE Vec<float> min(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
FA2_CPU_INLINE Vec<double> min(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a, b); }
#else
template <class V>
FA2_CPU_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FA2_CPU_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
#endif

template <class T>
FA2_CPU_INLINE Vec<T> abs(Vec<T> x) {
  Vec<Int<T>> const magnitude = ~(Vec<Int<T>>{} + (Int<T>(1) << (8 * sizeof(T) - 1)));
  return (Vec<T>)((Vec<Int<T>>)x & magnitude);
}

// Products of the low halves of each 64-bit lane.
FA2_CPU_INLINE Vec<uint64_t> multiply_low_halves(Vec<uint64_t> a, Vec<uint64_t> b) {
#if defined(__AVX512F__)
  return (Vec<uint64_t>)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Vec<uint64_t>)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Index vectors that interleave the low halves, and the high halves, of two vectors.
template <class T>
FA2_CPU_INLINE void interleave_orders(Vec<Int<T>>& low, Vec<Int<T>>& high) {
  constexpr int kSize = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < kSize; ++i) {
    low[i] = i / 2 + (i % 2) * kSize;
    high[i] = low[i] + kSize / 2;
  }
}

// Transposes the square matrix whose rows are m[0], m[1], ...: interleaving row i with row
// i + lanes/2, log2(lanes) times over, moves every element to its mirror place.
template <class T>
FA2_CPU_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  constexpr int kSize = kLanes<T>;
  Vec<Int<T>> low;
  Vec<Int<T>> high;
  interleave_orders<T>(low, high);
#pragma GCC unroll 4
  for (int step = 1; step < kSize; step *= 2) {
    Vec<T> next[kSize];
#pragma GCC unroll 8
    for (int i = 0; i < kSize / 2; ++i) {
      next[2 * i] = __builtin_shuffle(m[i], m[i + kSize / 2], low);
      next[2 * i + 1] = __builtin_shuffle(m[i], m[i + kSize / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) m[i] = next[i];
  }
}

// One step of sum_lanes: kRows pairs of rows become kRows rows. A template and not a loop, whose
// bound would keep m out of registers.
template <class T, int kRows>
FA2_CPU_INLINE void fold_rows(Vec<T>* m, Vec<Int<T>> low, Vec<Int<T>> high) {
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    m[i] = __builtin_shuffle(m[i], m[i + kRows], low) + __builtin_shuffle(m[i], m[i + kRows], high);
  }
  if constexpr (kRows > 1) fold_rows<T, kRows / 2>(m, low, high);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// As sum_lanes, which moves all of it between the halves of vectors, where this does so once.
FA2_CPU_INLINE Vec<float> sum_lanes_by_halves(Vec<float> const (&m)[8]) {
  auto fold = [](Vec<float> a, Vec<float> b) FA2_CPU_INLINE_LAMBDA {
    return (Vec<float>)(_mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b));
  };
  auto fold_pairs = [](Vec<float> a, Vec<float> b) FA2_CPU_INLINE_LAMBDA {
    return (Vec<float>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b) +
           (Vec<float>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
  };
  Vec<float> const first = fold_pairs(fold(m[0], m[1]), fold(m[2], m[3]));
  Vec<float> const second = fold_pairs(fold(m[4], m[5]), fold(m[6], m[7]));
  return _mm256_permute2f128_ps(first, second, 0x20) + _mm256_permute2f128_ps(first, second, 0x31);
}
#endif

// Lane i of the result is the sum over the lanes of m[i]. Destroys m. The same steps as in
// transpose, but the two halves are added as soon as they are in place.
template <class T>
FA2_CPU_INLINE Vec<T> sum_lanes(Vec<T> (&m)[kLanes<T>]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) return sum_lanes_by_halves(m);
#endif
  Vec<Int<T>> low;
  Vec<Int<T>> high;
  interleave_orders<T>(low, high);
  fold_rows<T, kLanes<T> / 2>(m, low, high);
  return m[0];
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
