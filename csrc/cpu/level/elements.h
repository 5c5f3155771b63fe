#pragma once

// Element types as the kernels see them. An element names
//   Storage   what tensors hold,
//   Real      what scores, probabilities and outputs are computed in,
//   Operand   what the products read: a Real, or a pair of bf16 for vdpbf16ps,
//   kDepth    entries of the summed dimension that one Operand holds,
//   kDirect   whether tensors can be read as Operands where they lie,
//   kExpDegree  degree of exp2 for probabilities,
//   Products  the element with the same Reals and Operands whose products and masks are used,
// and converts between them. kLanes<Real> elements are converted at a time.

#include "cpu/level/exp2.h"
#include "cpu/level/simd.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class T>
struct PlainElement {
  using Storage = T;
  using Real = T;
  using Operand = T;
  using Products = PlainElement;
  static constexpr int kDepth = 1;
  static constexpr bool kDirect = true;
  static constexpr int kExpDegree = kFullDegree<T>;

  static FA2_CPU_INLINE Vec<T> widen(Storage const* from) { return load<T>(from); }
  static FA2_CPU_INLINE void narrow(Storage* to, Vec<T> v) { store(to, v); }
  static FA2_CPU_INLINE Vec<T> round(Vec<T> v) { return v; }
  static FA2_CPU_INLINE Vec<T> multiply_add(Vec<T> sum, Vec<T> a, Vec<T> b) { return sum + a * b; }
};

using Float32 = PlainElement<float>;
using Float64 = PlainElement<double>;

// kLanes<float> 16-bit words.
typedef uint16_t HalfVector __attribute__((vector_size(kVectorBytes / 2)));

FA2_CPU_INLINE HalfVector load_half_vector(void const* from) {
  HalfVector words;
  __builtin_memcpy(&words, from, sizeof(words));
  return words;
}

// A vector of kLanes<float> 16-bit storage words in the low halves of 32-bit lanes.
FA2_CPU_INLINE Vec<uint32_t> load_words(uint16_t const* from) {
  return __builtin_convertvector(load_half_vector(from), Vec<uint32_t>);
}

FA2_CPU_INLINE void store_words(uint16_t* to, Vec<uint32_t> v) {
  HalfVector const words = __builtin_convertvector(v, HalfVector);
  __builtin_memcpy(to, &words, sizeof(words));
}

// Rounds to nearest even at bit kDropped, leaving the bits below it zero. NaNs of 16-bit tensors
// have no bits there, so they cannot overflow into another number.
template <int kDropped>
FA2_CPU_INLINE Vec<uint32_t> round_bits(Vec<uint32_t> bits) {
  constexpr uint32_t kHalf = (1u << (kDropped - 1)) - 1;
  return (bits + kHalf + ((bits >> kDropped) & 1)) & ~((1u << kDropped) - 1);
}

// Two vectors of floats.
struct TwoVectors {
  Vec<float> first;
  Vec<float> second;
};

// 16-bit elements that are widened to float when a block is packed.
struct WidenedElement {
  using Storage = uint16_t;
  using Real = float;
  using Operand = float;
  using Products = Float32;
  static constexpr int kDepth = 1;
  static constexpr bool kDirect = false;
  static constexpr int kExpDegree = 4;

  static FA2_CPU_INLINE Vec<float> multiply_add(Vec<float> sum, Vec<float> a, Vec<float> b) {
    return sum + a * b;
  }
};

struct BFloat16 : WidenedElement {
  // The even and the odd entries of two vectors, whose order this saves restoring.
  static FA2_CPU_INLINE TwoVectors widen_apart(Storage const* from) {
    Vec<uint32_t> const pairs = load<uint32_t>(from);
    return {(Vec<float>)(pairs << 16), (Vec<float>)(pairs & 0xffff0000u)};
  }
  static FA2_CPU_INLINE Vec<float> widen(Storage const* from) {
    return (Vec<float>)(load_words(from) << 16);
  }
  static FA2_CPU_INLINE void narrow(Storage* to, Vec<float> v) {
    // A NaN that arose in arithmetic has payload bits of its own; keep it quiet and below overflow.
    Vec<uint32_t> const rounded = round_bits<16>((Vec<uint32_t>)v) >> 16;
    store_words(to, v == v ? rounded : broadcast<uint32_t>(0x7fc0u));
  }
  static FA2_CPU_INLINE Vec<float> round(Vec<float> v) {
    return (Vec<float>)round_bits<16>((Vec<uint32_t>)v);
  }
};

struct Float16 : WidenedElement {
  static FA2_CPU_INLINE Vec<float> widen(Storage const* from) {
    return widen(load_half_vector(from));
  }
  static FA2_CPU_INLINE Vec<float> widen(HalfVector words) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_cvtph_ps((__m256i)words);
#elif defined(__F16C__)
    return (Vec<float>)_mm256_cvtph_ps((__m128i)words);
#else
    // Moves exponent and mantissa into place and corrects the exponent's bias by a product, which
    // also normalises subnormals. Infinities and NaNs get the float's largest exponent.
    Vec<uint32_t> const half = __builtin_convertvector(words, Vec<uint32_t>);
    Vec<uint32_t> const magnitude = (half & 0x7fffu) << 13;
    Vec<float> const scaled = (Vec<float>)magnitude * 0x1p112f;
    Vec<uint32_t> const special = (Vec<uint32_t>)(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
    return (Vec<float>)((Vec<uint32_t>)scaled | special | (half & 0x8000u) << 16);
#endif
  }
  static FA2_CPU_INLINE void narrow(Storage* to, Vec<float> v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    // Normal numbers: round at bit 13 and correct the bias. Subnormals: adding 2^-1 makes the adder
    // round at the last place of a subnormal half, which is 2^-24.
    Vec<uint32_t> const bits = (Vec<uint32_t>)v;
    Vec<uint32_t> const sign = (bits >> 16) & 0x8000u;
    Vec<uint32_t> const magnitude = bits & 0x7fffffffu;
    Vec<uint32_t> const normal = (round_bits<13>(magnitude) - (112u << 23)) >> 13;
    Vec<uint32_t> const tiny = (Vec<uint32_t>)((Vec<float>)magnitude + 0.5f) - 0x3f000000u;
    Vec<uint32_t> const infinity = broadcast<uint32_t>(0x7c00u);
    Vec<uint32_t> result = magnitude < (113u << 23) ? tiny : normal;
    result = result > infinity || magnitude >= (255u << 23) ? infinity : result;
    result = v == v ? result : broadcast<uint32_t>(0x7e00u);
    store_words(to, result | sign);
#endif
  }
  static FA2_CPU_INLINE Vec<float> round(Vec<float> v) {
    return (Vec<float>)round_bits<13>((Vec<uint32_t>)v);
  }
};

#if defined(__AVX512BF16__)
// bf16 products of pairs, summed in float: a pair of neighbouring head dims for Q K^T, of
// neighbouring keys for P V.
struct BFloat16Pairs : BFloat16 {
  using Operand = uint32_t;
  using Products = BFloat16Pairs;
  static constexpr int kDepth = 2;

  static FA2_CPU_INLINE Vec<float> multiply_add(Vec<float> sum, Vec<uint32_t> a, Vec<uint32_t> b) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
  // All of `low`, then all of `high`.
  typedef uint16_t Words __attribute__((vector_size(kVectorBytes)));
  static FA2_CPU_INLINE Words narrow_two(Vec<float> low, Vec<float> high) {
    return (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
  // Lane i becomes the pair {low[i], high[i]}.
  static FA2_CPU_INLINE Vec<uint32_t> pair(Words low_then_high) {
    Words order;
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) order[i] = i / 2 + i % 2 * 16;
    return (Vec<uint32_t>)__builtin_shuffle(low_then_high, order);
  }
  static FA2_CPU_INLINE Vec<uint32_t> pair(Vec<float> low, Vec<float> high) {
    return pair(narrow_two(low, high));
  }
  // The pairs {low[i], high[i]} of whole vectors of words, as two vectors of operands.
  static FA2_CPU_INLINE void pair_words(Words low, Words high, Vec<uint32_t>* to) {
    Words order;
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) order[i] = i / 2 + i % 2 * 32;
    to[0] = (Vec<uint32_t>)__builtin_shuffle(low, high, order);
    to[1] = (Vec<uint32_t>)__builtin_shuffle(low, high, (Words)(order + uint16_t(16)));
  }
};
#endif

}  // namespace fa2::cpu::FA2_CPU_LEVEL
