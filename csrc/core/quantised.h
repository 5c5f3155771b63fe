#pragma once

// Numbers of 8 bits in KV caches: how a number becomes a code, and where its factor lies. Codes are
// rounded to nearest even and saturate: what lies beyond the largest number becomes that,
// infinities too. NaN stays NaN, or becomes 0 where there is none.

#include "core/macros.h"
#include "core/paging.h"
#include "core/params.h"

namespace fa2 {

// The largest number of a type, whose factors of rows are chosen to reach.
FA2_HD float largest_code(CodeType type) {
  return type == CodeType::kFloat8E4M3 ? 448.f : type == CodeType::kFloat8E5M2 ? 57344.f : 127.f;
}

// Of a float with kMantissa bits of mantissa and this bias of the exponent.
template <int kMantissa, int kBias, uint8_t kNaN>
FA2_HD uint8_t float8_code(float x, float largest) {
  uint32_t const bits = __builtin_bit_cast(uint32_t, x);
  uint32_t const sign = bits >> 24 & 0x80u;
  float const magnitude = __builtin_bit_cast(float, bits & 0x7fffffffu);
  if (magnitude != magnitude) return uint8_t(sign | kNaN);
  float const value = magnitude < largest ? magnitude : largest;
  // Subnormal codes: a sum whose last place is theirs, so that adding rounds there.
  constexpr float kSubnormals = 1 << (24 - kMantissa - kBias);
  constexpr uint32_t kExponent = 127 - kBias;  // of what the exponent 0 stands for
  if (value < __builtin_bit_cast(float, (kExponent + 1) << 23)) {
    float const sum = value + kSubnormals;
    return uint8_t(sign |
                   (__builtin_bit_cast(uint32_t, sum) - __builtin_bit_cast(uint32_t, kSubnormals)));
  }
  constexpr int kDropped = 23 - kMantissa;
  uint32_t const exact = __builtin_bit_cast(uint32_t, value);
  uint32_t const rounded = exact + ((1u << (kDropped - 1)) - 1) + (exact >> kDropped & 1u);
  return uint8_t(sign | ((rounded >> kDropped) - (kExponent << kMantissa)));
}

FA2_HD uint8_t int8_code(float x) {
  if (x != x) return 0;
  float const value = x < -128.f ? -128.f : x > 127.f ? 127.f : x;
  return uint8_t(__builtin_bit_cast(uint32_t, value + 0x1.8p23f));
}

FA2_HD uint8_t code_of(CodeType type, float x) {
  switch (type) {
    case CodeType::kFloat8E4M3: return float8_code<3, 7, 0x7f>(x, largest_code(type));
    case CodeType::kFloat8E5M2: return float8_code<2, 15, 0x7f>(x, largest_code(type));
    default: return int8_code(x);
  }
}

// The factor of a row whose largest finite magnitude is given: that becomes the largest code.
FA2_HD float row_factor(CodeType type, float magnitude) {
  constexpr float kSmallestNormal = 0x1p-126f;
  if (magnitude == 0) return 1;
  float const factor = magnitude / largest_code(type);
  return factor < kSmallestNormal ? kSmallestNormal : factor;
}

// The pages by which factors are found: those of a sequence lie at its number.
FA2_HD PagedKV scale_pages(Scales const& scales, PagedKV const& pages) {
  return scales.unit == ScaleUnit::kSequence ? PagedKV{} : pages;
}

// Where the factor of a row of a sequence lies, for head 0 of `scales`, in elements.
FA2_HD int64_t scale_offset(Scales const& scales, PagedKV const& pages, int32_t batch,
                            int64_t position) {
  return kv_row_offset(scales.factors, scale_pages(scales, pages), batch, position);
}

}  // namespace fa2
