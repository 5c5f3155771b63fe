#pragma once

// Arithmetic of f32 and f64 that C++ has no operator for.

#include "ptx/types.h"

namespace emu::ptx {

// .ftz: subnormal numbers become zeros.
inline f32 flush(f32 x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.f, x) : x; }
// .sat: NaN becomes zero.
inline f32 saturate(f32 x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline f64 saturate(f64 x) { return x > 0. ? (x < 1. ? x : 1.) : 0.; }
inline f32 relu(f32 x) { return x != x ? as_f32(0x7fffffff) : x > 0.f ? x : 0.f; }

// max and min: the number where the other operand is NaN, and -0 is less than +0.
inline f32 larger(f32 a, f32 b) {
  if (a != a) return b;
  if (a == b) return as_f32(as_u32(a) & as_u32(b));
  return a < b ? b : a;
}
inline f32 smaller(f32 a, f32 b) {
  if (a != a) return b;
  if (a == b) return as_f32(as_u32(a) | as_u32(b));
  return b < a ? b : a;
}
inline f64 larger(f64 a, f64 b) {
  if (a != a) return b;
  if (a == b) return as_f64(as_u64(a) & as_u64(b));
  return a < b ? b : a;
}
inline f64 smaller(f64 a, f64 b) {
  if (a != a) return b;
  if (a == b) return as_f64(as_u64(a) | as_u64(b));
  return b < a ? b : a;
}
inline f32 larger_or_nan(f32 a, f32 b) {
  return a != a || b != b ? as_f32(0x7fffffff) : larger(a, b);
}
inline f32 smaller_or_nan(f32 a, f32 b) {
  return a != a || b != b ? as_f32(0x7fffffff) : smaller(a, b);
}

template <class T>
bool is_subnormal(T x) {
  return x != 0 && __builtin_isfinite(x) && !__builtin_isnormal(x);
}

// Rounded toward zero (rz), down (rm) or up (rp).
#define EMU_PTX_ROUNDED(mode)          \
  f32 add_##mode(f32 a, f32 b);        \
  f64 add_##mode(f64 a, f64 b);        \
  f32 sub_##mode(f32 a, f32 b);        \
  f64 sub_##mode(f64 a, f64 b);        \
  f32 mul_##mode(f32 a, f32 b);        \
  f64 mul_##mode(f64 a, f64 b);        \
  f32 div_##mode(f32 a, f32 b);        \
  f32 fma_##mode(f32 a, f32 b, f32 c); \
  f64 fma_##mode(f64 a, f64 b, f64 c);
EMU_PTX_ROUNDED(rz)
EMU_PTX_ROUNDED(rm)
EMU_PTX_ROUNDED(rp)
#undef EMU_PTX_ROUNDED

// What the hardware approximates.
f32 rcp_approx(f32 x);
f64 rcp_approx(f64 x);
f32 sqrt_approx(f32 x);
f32 rsqrt_approx(f32 x);
f32 ex2_approx(f32 x);
f32 lg2_approx(f32 x);
f32 sin_approx(f32 x);
f32 cos_approx(f32 x);
f32 tanh_approx(f32 x);
f32 div_approx(f32 a, f32 b);
f32 div_full(f32 a, f32 b);

}  // namespace emu::ptx
