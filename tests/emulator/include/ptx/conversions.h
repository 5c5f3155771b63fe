#pragma once

// Conversions between numbers.

#include "ptx/types.h"

namespace emu::ptx {

// To an integral value of the same type.
inline f32 nearest(f32 x) { return __builtin_nearbyintf(x); }
inline f64 nearest(f64 x) { return __builtin_nearbyint(x); }
inline f32 toward_zero(f32 x) { return __builtin_truncf(x); }
inline f64 toward_zero(f64 x) { return __builtin_trunc(x); }
inline f32 down(f32 x) { return __builtin_floorf(x); }
inline f64 down(f64 x) { return __builtin_floor(x); }
inline f32 up(f32 x) { return __builtin_ceilf(x); }
inline f64 up(f64 x) { return __builtin_ceil(x); }

template <class T>
inline constexpr bool is_signed = T(-1) < T(0);
template <class T>
inline constexpr T least = is_signed<T> ? T(T(1) << (8 * sizeof(T) - 1)) : T(0);
template <class T>
inline constexpr T most = T(~least<T>);

// Of an integral value. It saturates, and NaN becomes 0.
template <class T>
T to_integer(f64 x) {
  if (x != x) return 0;
  if (x <= f64(least<T>)) return least<T>;
  if (x >= f64(most<T>)) return most<T>;
  return T(x);
}

// cvt.sat between integers.
template <class T, class From>
T clamp_to(From x) {
  if (s128(x) < s128(least<T>)) return least<T>;
  if (s128(x) > s128(most<T>)) return most<T>;
  return T(x);
}

// Rounded toward zero (rz), down (rm) or up (rp).
#define EMU_PTX_ROUNDED(mode)                                       \
  f32 to_f32_##mode(f64 x);                                         \
  f32 to_f32_##mode(s64 x);                                         \
  f32 to_f32_##mode(u64 x);                                         \
  f64 to_f64_##mode(s64 x);                                         \
  f64 to_f64_##mode(u64 x);                                         \
  inline f32 to_f32_##mode(s32 x) { return to_f32_##mode(s64(x)); } \
  inline f32 to_f32_##mode(u32 x) { return to_f32_##mode(u64(x)); }
EMU_PTX_ROUNDED(rz)
EMU_PTX_ROUNDED(rm)
EMU_PTX_ROUNDED(rp)
#undef EMU_PTX_ROUNDED

}  // namespace emu::ptx
