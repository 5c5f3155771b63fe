// f16 and bf16: every operation is computed so that it rounds once.

#include "ptx/halves.h"

#include <cmath>

#include "ptx/conversions.h"
#include "ptx/floats.h"

namespace emu::ptx {

namespace {

constexpr u16 kNan = 0x7fff;

// To the nearest number of a wider format whose lowest bit says whether it is exact: rounding that
// again, to a narrower format, is as if there had been one rounding.
f32 to_odd(f64 x) {
  f32 const near = f32(x);
  if (f64(near) == x || x != x || std::isinf(near)) return near;
  u32 bits = as_u32(near);
  if (std::fabs(f64(near)) > std::fabs(x)) --bits;
  return as_f32(bits | 1);
}

f64 add_to_odd(f64 a, f64 b) {
  f64 const sum = a + b;
  if (!std::isfinite(sum)) return sum;
  f64 const part = sum - a;
  f64 const error = (a - (sum - part)) + (b - part);
  if (error == 0) return sum;
  u64 bits = as_u64(sum);
  if ((error < 0) == (sum > 0)) --bits;
  return as_f64(bits | 1);
}

struct Half {
  static f64 wide(u16 x) { return wide_f16(x); }
  static u16 round(f64 x) { return round_f16(x); }
};
struct BFloat {
  static f64 wide(u16 x) { return wide_bf16(x); }
  static u16 round(f64 x) { return round_bf16(x); }
};

template <class F>
u16 add(u16 a, u16 b) {
  return F::round(add_to_odd(F::wide(a), F::wide(b)));
}
template <class F>
u16 sub(u16 a, u16 b) {
  return F::round(add_to_odd(F::wide(a), -F::wide(b)));
}
template <class F>
u16 mul(u16 a, u16 b) {
  return F::round(F::wide(a) * F::wide(b));
}
template <class F>
u16 fma(u16 a, u16 b, u16 c) {
  return F::round(add_to_odd(F::wide(a) * F::wide(b), F::wide(c)));
}
template <class F>
u16 clamp(u16 x) {
  return F::round(saturate(F::wide(x)));
}
template <class F>
u16 fma_relu(u16 a, u16 b, u16 c) {
  u16 const x = fma<F>(a, b, c);
  return F::wide(x) < 0 || x == 0x8000 ? 0 : x;
}
template <class F>
u16 pick(u16 a, u16 b, bool want_larger, bool keep_nan) {
  f64 const x = F::wide(a), y = F::wide(b);
  if (keep_nan && (x != x || y != y)) return kNan;
  return F::round(want_larger ? larger(x, y) : smaller(x, y));
}

template <class Operation>
u32 both(u32 a, Operation operation) {
  return operation(u16(a)) | u32(operation(u16(a >> 16))) << 16;
}
template <class Operation>
u32 both(u32 a, u32 b, Operation operation) {
  return operation(u16(a), u16(b)) | u32(operation(u16(a >> 16), u16(b >> 16))) << 16;
}
template <class Operation>
u32 both(u32 a, u32 b, u32 c, Operation operation) {
  return operation(u16(a), u16(b), u16(c)) |
         u32(operation(u16(a >> 16), u16(b >> 16), u16(c >> 16))) << 16;
}

// By truncation; then one step further from zero where that was inexact and the direction says so.
u16 directed_bf16(f32 x, bool away) {
  if (x != x) return kNan;
  u32 const bits = as_u32(x);
  return u16((bits >> 16) + (away && (bits & 0xffff) ? 1 : 0));
}
u16 directed_f16(f32 x, bool away) {
  u16 near = round_f16(x);
  if (x != x) return near;
  f32 const back = wide_f16(near);
  bool const is_further = std::fabs(back) > std::fabs(x);
  if (is_further && !away) --near;
  if (std::fabs(back) < std::fabs(x) && away) ++near;
  return near;
}

}  // namespace

f32 wide_f16(u16 bits) { return f32(__builtin_bit_cast(_Float16, bits)); }

u16 round_f16(f32 x) { return x != x ? kNan : __builtin_bit_cast(u16, _Float16(x)); }
u16 round_f16(f64 x) { return round_f16(to_odd(x)); }
u16 round_bf16(f32 x) {
  if (x != x) return kNan;
  u32 const bits = as_u32(x);
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
u16 round_bf16(f64 x) { return round_bf16(to_odd(x)); }
u16 round_rz_f16(f32 x) { return directed_f16(x, false); }
u16 round_rm_f16(f32 x) { return directed_f16(x, std::signbit(x)); }
u16 round_rp_f16(f32 x) { return directed_f16(x, !std::signbit(x)); }
u16 round_rz_bf16(f32 x) { return directed_bf16(x, false); }
u16 round_rm_bf16(f32 x) { return directed_bf16(x, std::signbit(x)); }
u16 round_rp_bf16(f32 x) { return directed_bf16(x, !std::signbit(x)); }
u16 saturate_f16(u16 bits) { return clamp<Half>(bits); }
u16 saturate_bf16(u16 bits) { return clamp<BFloat>(bits); }
u32 round_tf32(f32 x) {
  return std::isfinite(x) ? (as_u32(x) + 0x1000) & ~0x1fffu : x != x ? 0x7fffffff : as_u32(x);
}

u32 pack_f16(f32 high, f32 low) { return round_f16(low) | u32(round_f16(high)) << 16; }
u32 pack_bf16(f32 high, f32 low) { return round_bf16(low) | u32(round_bf16(high)) << 16; }
u32 pack_rz_f16(f32 high, f32 low) { return round_rz_f16(low) | u32(round_rz_f16(high)) << 16; }
u32 pack_rz_bf16(f32 high, f32 low) { return round_rz_bf16(low) | u32(round_rz_bf16(high)) << 16; }

#define EMU_HALVES(T, F)                                                            \
  u16 add_##T(u16 a, u16 b) { return add<F>(a, b); }                                \
  u16 sub_##T(u16 a, u16 b) { return sub<F>(a, b); }                                \
  u16 mul_##T(u16 a, u16 b) { return mul<F>(a, b); }                                \
  u16 fma_##T(u16 a, u16 b, u16 c) { return fma<F>(a, b, c); }                      \
  u16 fma_relu_##T(u16 a, u16 b, u16 c) { return fma_relu<F>(a, b, c); }            \
  u16 add_sat_##T(u16 a, u16 b) { return clamp<F>(add<F>(a, b)); }                  \
  u16 sub_sat_##T(u16 a, u16 b) { return clamp<F>(sub<F>(a, b)); }                  \
  u16 mul_sat_##T(u16 a, u16 b) { return clamp<F>(mul<F>(a, b)); }                  \
  u16 fma_sat_##T(u16 a, u16 b, u16 c) { return clamp<F>(fma<F>(a, b, c)); }        \
  u16 neg_##T(u16 a) { return a ^ 0x8000; }                                         \
  u16 abs_##T(u16 a) { return a & 0x7fff; }                                         \
  u16 max_##T(u16 a, u16 b) { return pick<F>(a, b, true, false); }                  \
  u16 min_##T(u16 a, u16 b) { return pick<F>(a, b, false, false); }                 \
  u16 max_nan_##T(u16 a, u16 b) { return pick<F>(a, b, true, true); }               \
  u16 min_nan_##T(u16 a, u16 b) { return pick<F>(a, b, false, true); }              \
  u16 ex2_##T(u16 a) { return F::round(std::exp2(F::wide(a))); }                    \
  u16 tanh_##T(u16 a) { return F::round(std::tanh(F::wide(a))); }                   \
  u32 add_##T##x2(u32 a, u32 b) { return both(a, b, add_##T); }                     \
  u32 sub_##T##x2(u32 a, u32 b) { return both(a, b, sub_##T); }                     \
  u32 mul_##T##x2(u32 a, u32 b) { return both(a, b, mul_##T); }                     \
  u32 fma_##T##x2(u32 a, u32 b, u32 c) { return both(a, b, c, fma_##T); }           \
  u32 fma_relu_##T##x2(u32 a, u32 b, u32 c) { return both(a, b, c, fma_relu_##T); } \
  u32 add_sat_##T##x2(u32 a, u32 b) { return both(a, b, add_sat_##T); }             \
  u32 sub_sat_##T##x2(u32 a, u32 b) { return both(a, b, sub_sat_##T); }             \
  u32 mul_sat_##T##x2(u32 a, u32 b) { return both(a, b, mul_sat_##T); }             \
  u32 fma_sat_##T##x2(u32 a, u32 b, u32 c) { return both(a, b, c, fma_sat_##T); }   \
  u32 neg_##T##x2(u32 a) { return both(a, neg_##T); }                               \
  u32 abs_##T##x2(u32 a) { return both(a, abs_##T); }                               \
  u32 max_##T##x2(u32 a, u32 b) { return both(a, b, max_##T); }                     \
  u32 min_##T##x2(u32 a, u32 b) { return both(a, b, min_##T); }                     \
  u32 max_nan_##T##x2(u32 a, u32 b) { return both(a, b, max_nan_##T); }             \
  u32 min_nan_##T##x2(u32 a, u32 b) { return both(a, b, min_nan_##T); }             \
  u32 ex2_##T##x2(u32 a) { return both(a, ex2_##T); }                               \
  u32 tanh_##T##x2(u32 a) { return both(a, tanh_##T); }
EMU_HALVES(f16, Half)
EMU_HALVES(bf16, BFloat)
#undef EMU_HALVES

}  // namespace emu::ptx
