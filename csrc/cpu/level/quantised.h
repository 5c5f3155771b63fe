#pragma once

// Entries of 8 bits of a KV cache as the kernels see them: elements (elements.h) whose Storage is a
// code. Queries and results have elements of their own, which the problem's dtype names.

#include "core/params.h"
#include "cpu/level/elements.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Also names
//   kFactor  what widened codes are to be multiplied by.
struct QuantisedElement : PlainElement<float> {
  using Storage = uint8_t;
  static constexpr bool kDirect = false;
  static constexpr float kFactor = 1;

 protected:
  // kLanes<float> codes, in the high halves of words.
  static FA2_CPU_INLINE HalfVector load_codes(Storage const* from) {
#if defined(__AVX512F__)
    __m128i const codes = _mm_loadu_si128((__m128i const*)from);
    return (HalfVector)_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8);
#elif defined(__AVX2__)
    __m128i const codes = _mm_loadl_epi64((__m128i const*)from);
    return (HalfVector)_mm_unpacklo_epi8(__m128i{}, codes);
#else
    typedef Storage Codes __attribute__((vector_size(kVectorBytes / 4)));
    Codes codes;
    __builtin_memcpy(&codes, from, sizeof(codes));
    return __builtin_convertvector(codes, HalfVector) << 8;
#endif
  }
};

template <class E>
inline constexpr bool kQuantised = requires { E::kFactor; };

// The high byte of a half.
struct Float8E5M2 : QuantisedElement {
  static FA2_CPU_INLINE Vec<float> widen(Storage const* from) {
    return Float16::widen(load_codes(from));
  }
  static FA2_CPU_INLINE TwoVectors widen_apart(Storage const* from) {
    HalfVector const pairs = load_half_vector(from);
    return {Float16::widen(pairs << 8), Float16::widen(pairs & 0xff00)};
  }
};

// With the fields of the code in those of a half, whose exponent has another bias, a half is
// smaller by the factor.
struct Float8E4M3 : QuantisedElement {
  static constexpr float kFactor = 256;

  static FA2_CPU_INLINE Vec<float> widen(Storage const* from) {
    return Float16::widen(halves(load_codes(from)));
  }
  static FA2_CPU_INLINE TwoVectors widen_apart(Storage const* from) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // Both halves of a vector at once, the even codes moved up by a product.
    __m256i const pairs = _mm256_broadcastsi128_si256(_mm_loadu_si128((__m128i const*)from));
    Words const up = {256, 256, 256, 256, 256, 256, 256, 256, 1, 1, 1, 1, 1, 1, 1, 1};
    __m256i const both = (__m256i)halves((Words)pairs * up);
    return {Float16::widen((HalfVector)_mm256_castsi256_si128(both)),
            Float16::widen((HalfVector)_mm256_extracti128_si256(both, 1))};
#else
    HalfVector const pairs = load_half_vector(from);
    return {Float16::widen(halves(pairs << 8)), Float16::widen(halves(pairs))};
#endif
  }

 private:
  typedef uint16_t Words __attribute__((vector_size(kVectorBytes)));

  // Of codes in the high halves of words, whose low halves may hold anything.
  template <class V>
  static FA2_CPU_INLINE V halves(V codes) {
    typedef int16_t Signed __attribute__((vector_size(sizeof(V))));
    V const fields = (V)((Signed)codes >> 1) & 0xbf80;
    // All bits of the magnitude are NaN, and no infinity.
    return fields | (V)((codes & 0x7f00) == 0x7f00);
  }
};

struct Int8 : QuantisedElement {
  static FA2_CPU_INLINE Vec<float> widen(Storage const* from) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((__m128i const*)from)));
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64((__m128i const*)from)));
#else
    typedef int8_t Codes __attribute__((vector_size(kVectorBytes / 4)));
    Codes codes;
    __builtin_memcpy(&codes, from, sizeof(codes));
    return __builtin_convertvector(__builtin_convertvector(codes, Vec<int32_t>), Vec<float>);
#endif
  }
};

// Calls step.operator()<Q>() with the element Q of queries and results: E itself or, over a cache
// of 8 bits, that of `dtype`.
template <class E, class Step>
FA2_CPU_INLINE void with_query_element(DType dtype, Step const& step) {
  if constexpr (!kQuantised<E>) {
    step.template operator()<E>();
  } else if (dtype == DType::kFloat16) {
    step.template operator()<Float16>();
  } else if (dtype == DType::kBFloat16) {
    step.template operator()<BFloat16>();
  } else {
    step.template operator()<Float32>();
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
