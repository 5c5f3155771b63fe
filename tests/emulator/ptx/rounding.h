#pragma once

// Rounding to a format by looking for the neighbours among all its numbers.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "values.h"

namespace selftest {

enum class Mode { kNearest, kZero, kDown, kUp };

// Whether to take the upper one of two neighbours in size, `low` <= |x| <= `high`.
inline bool takes_upper(double size, double low, double high, bool low_is_even, bool negative,
                        Mode mode) {
  if (size == low) return false;
  switch (mode) {
    case Mode::kZero: return false;
    case Mode::kDown: return negative;
    case Mode::kUp: return !negative;
    case Mode::kNearest: break;
  }
  double const below = size - low, above = high - size;
  return below == above ? !low_is_even : below > above;
}

// f16 or bf16, whose positive numbers ascend with their bits.
template <class Half>
Half round_to(double x, Mode mode) {
  if (std::isnan(x)) return {0x7fff};
  uint16_t const infinity = std::is_same_v<Half, f16> ? 0x7c00 : 0x7f80;
  uint16_t const sign = std::signbit(x) ? 0x8000 : 0;
  double const size = std::fabs(x);
  if (std::isinf(size)) return {uint16_t(sign | infinity)};
  uint16_t low = 0, end = infinity;  // the largest number that is not above
  while (end - low > 1) {
    uint16_t const middle = uint16_t((low + end) / 2);
    (double(wide(Half{middle})) <= size ? low : end) = middle;
  }
  uint16_t const next = uint16_t(low + 1);
  // Beyond the largest number comes what the format would have there, were it no infinity.
  double const step = double(wide(Half{low})) - double(wide(Half{uint16_t(low - 1)}));
  double const at_low = wide(Half{low});
  double const at_next = next == infinity ? at_low + step : double(wide(Half{next}));
  bool const upper = size > at_next || takes_upper(size, at_low, at_next, low % 2 == 0, sign, mode);
  bool const away =
      mode == Mode::kNearest || (mode == Mode::kUp && !sign) || (mode == Mode::kDown && sign);
  return {uint16_t(sign | (upper && (away || next != infinity) ? next : low))};
}

// An integer as f32: its highest 24 bits, and what the rest says.
inline float round_f32(__int128 value, Mode mode) {
  bool const negative = value < 0;
  unsigned __int128 const size =
      negative ? -(unsigned __int128)(value) : (unsigned __int128)(value);
  int shift = 0;
  while (size >> shift >= (1u << 24)) ++shift;
  unsigned __int128 const kept = size >> shift, rest = size - (kept << shift);
  unsigned __int128 const half = shift == 0 ? 0 : (unsigned __int128)(1) << (shift - 1);
  bool up = false;
  if (rest != 0) {
    up = mode == Mode::kNearest ? rest > half || (rest == half && kept % 2 == 1)
         : mode == Mode::kDown  ? negative
         : mode == Mode::kUp    ? !negative
                                : false;
  }
  float const result = std::ldexp(float(kept + (up ? 1 : 0)), shift);
  return negative ? -result : result;
}

}  // namespace selftest
