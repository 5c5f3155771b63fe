// What the hardware approximates. Exact to the C++ library, or with approx=worst as far off as the
// PTX ISA allows: up or down, as the operand and the seed decide, so that the same operand always
// gives the same result.

#include <cmath>

#include "machine.h"
#include "ptx/floats.h"

namespace emu::ptx {

namespace {

enum class Function : u32 { kRcp, kSqrt, kRsqrt, kEx2, kLg2, kSin, kCos, kTanh, kDiv };

bool is_worst() { return grid.options.approximations == Approximations::kWorst; }

// Whether to err upwards.
bool errs_up(Function function, u32 operand) {
  u64 hash = (u64(function) << 32 | operand) * 0x9e3779b97f4a7c15ull;
  hash ^= (grid.options.seed + 1) * 0xd1b54a32d192ed03ull;
  hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9ull;
  return hash >> 63;
}

// The number that is furthest off `exact` in one direction, but by `bound` at most.
f32 off_by(f64 exact, f64 bound, bool up) {
  if (!std::isfinite(exact) || exact == 0) return f32(exact);
  f64 const limit = up ? exact + bound : exact - bound;
  f32 near = f32(limit);
  if (std::isinf(near)) return f32(exact);
  // Rounding must not lead beyond the bound.
  if (up && f64(near) > limit) near = std::nextafterf(near, -INFINITY);
  if (!up && f64(near) < limit) near = std::nextafterf(near, INFINITY);
  bool const between = up ? f64(near) >= exact : f64(near) <= exact;
  return between ? near : f32(exact);
}

f32 relative(Function function, f32 operand, f64 exact, f64 bound) {
  if (!is_worst()) return f32(exact);
  return off_by(exact, std::fabs(exact) * bound, errs_up(function, as_u32(operand)));
}
f32 absolute(Function function, f32 operand, f64 exact, f64 bound) {
  if (!is_worst()) return f32(exact);
  return off_by(exact, bound, errs_up(function, as_u32(operand)));
}

}  // namespace

f32 rcp_approx(f32 x) { return relative(Function::kRcp, x, 1. / f64(x), 0x1p-23); }
// The upper half of the bits only.
f64 rcp_approx(f64 x) { return as_f64(as_u64(1. / x) & 0xffffffff00000000ull); }
f32 sqrt_approx(f32 x) { return relative(Function::kSqrt, x, std::sqrt(f64(x)), 0x1p-23); }
f32 rsqrt_approx(f32 x) {
  return relative(Function::kRsqrt, x, 1. / std::sqrt(f64(x)), std::exp2(-22.9));
}
f32 ex2_approx(f32 x) {
  // The powers of zero are 1 (PTX ISA, table of special values).
  if (!is_worst() || x == 0) return std::exp2(x);
  return relative(Function::kEx2, x, std::exp2(f64(x)), 0x1p-22);
}
f32 lg2_approx(f32 x) {
  if (!is_worst()) return std::log2(x);
  f64 const exact = std::log2(f64(x));
  if (x > 0.5f && x < 2.f) {
    bool const up = errs_up(Function::kLg2, as_u32(x));
    return exact == 0 ? (up ? 0x1p-22f : -0x1p-22f) : off_by(exact, 0x1p-22, up);
  }
  return relative(Function::kLg2, x, exact, 0x1p-22);
}
f32 sin_approx(f32 x) {
  return is_worst() ? absolute(Function::kSin, x, std::sin(f64(x)), std::exp2(-20.5)) : std::sin(x);
}
f32 cos_approx(f32 x) {
  return is_worst() ? absolute(Function::kCos, x, std::cos(f64(x)), std::exp2(-20.5)) : std::cos(x);
}
f32 tanh_approx(f32 x) {
  if (!is_worst()) return std::tanh(x);
  f32 const y = relative(Function::kTanh, x, std::tanh(f64(x)), 0x1p-11);
  return std::fabs(y) > 1.f ? std::copysign(1.f, y) : y;
}
f32 div_approx(f32 a, f32 b) {
  return is_worst() ? relative(Function::kDiv, a + b, f64(a) / f64(b), 0x1p-22) : a / b;
}
f32 div_full(f32 a, f32 b) { return div_approx(a, b); }

}  // namespace emu::ptx
