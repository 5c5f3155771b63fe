#pragma once

// Codes of 8 bits (CodeType) become 16-bit elements. sm_80 has no conversion: bits are moved to
// where a half has them, four codes at once, and one multiplication does the rest. Every number of
// a code is exact in a half and in a bfloat16.

#include <cuda_fp16.h>

#include "core/params.h"
#include "tile/fragments.h"

namespace fa2 {

// Halves of codes are smaller than their numbers by this power of two.
CUTE_HOST_DEVICE constexpr int code_exponent(CodeType type) {
  return type == CodeType::kFloat8E4M3 ? 8 : 0;
}

// A factor of codes, which is the product of both: elements take the power of two, scores or
// probabilities the rest.
struct CodeFactor {
  float power;
  float rest;
};

// With kTakesPower elements are about as large as what the codes stand for, and exact where numbers
// of that size are. What is no factor (core/quantised.h) makes NaN of what it multiplies.
template <class Element, bool kTakesPower>
CUTE_DEVICE CodeFactor code_factor(CodeType type, float factor) {
  auto const power_of_two = [](int exponent) { return __int_as_float((127 + exponent) << 23); };
  int exponent = 0;
  if constexpr (kTakesPower) {
    constexpr bool kHalf = is_same_v<Element, half_t>;
    constexpr int kLeast = kHalf ? -24 : -100, kMost = kHalf ? 15 : 100;
    int const own = (__float_as_int(factor) >> 23 & 0xff) - 127;
    exponent = max(kLeast, min(own + code_exponent(type), kMost));
  }
  float const rest = factor * power_of_two(code_exponent(type) - exponent);
  return {power_of_two(exponent), factor > 0.f ? rest : NAN};
}

// Two of four codes as the high bytes of words.
CUTE_DEVICE uint32_t high_bytes(uint32_t codes, bool second) {
  return __byte_perm(codes, 0, second ? 0x3424 : 0x1404);
}

// The halves of four codes, two by two.
template <CodeType kType>
CUTE_DEVICE void code_halves(uint32_t codes, uint32_t (&pairs)[2]) {
  if constexpr (kType == CodeType::kFloat8E5M2) {
    pairs[0] = high_bytes(codes, false);
    pairs[1] = high_bytes(codes, true);
  } else if constexpr (kType == CodeType::kFloat8E4M3) {
    // All bits of a magnitude are NaN. The bit of the sign, which moves into the exponent, says so.
    uint32_t const magnitudes = codes & 0x7f7f7f7f;
    uint32_t const marked = magnitudes | ((magnitudes + 0x01010101) & 0x80808080);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      pairs[i] = (high_bytes(codes, i == 1) & 0x80008000) | high_bytes(marked, i == 1) >> 1;
    }
  } else {
    // Behind the bits of 1024, codes are in units of one.
    uint32_t const above_least = codes ^ 0x80808080;
    __half2 const offset = __float2half2_rn(1024 + 128);
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      uint32_t const sum = __byte_perm(above_least, 0x64646464, i == 1 ? 0x4342 : 0x4140);
      __half2 const pair = __hsub2(reinterpret_cast<__half2 const&>(sum), offset);
      pairs[i] = reinterpret_cast<uint32_t const&>(pair);
    }
  }
}

// A pair of halves as elements, which take a power of two.
template <class Element, bool kTakesPower>
CUTE_DEVICE uint32_t element_pair(uint32_t halves, float power) {
  if constexpr (is_same_v<Element, half_t>) {
    if constexpr (!kTakesPower) return halves;
    auto const& pair = reinterpret_cast<__half2 const&>(halves);
    __half2 const product = __hmul2(pair, __float2half2_rn(power));
    return reinterpret_cast<uint32_t const&>(product);
  } else {
    float2 const pair = __half22float2(reinterpret_cast<__half2 const&>(halves));
    return kTakesPower ? pack<Element>(pair.x * power, pair.y * power)
                       : pack<Element>(pair.x, pair.y);
  }
}

}  // namespace fa2
