// Instructions on f32 and f64.

#include <cfenv>

#include "instruction.h"

namespace {

using namespace emu::ptx;
using namespace selftest;

f32 flushed(f32 x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }
f32 clamped(f32 x) { return !(x > 0) ? 0 : x > 1 ? 1 : x; }

// The neighbour that a rounding mode wants, from an exact value that long double or f64 can hold.
template <class T, class Exact>
T directed(Exact exact, int mode) {
  T near = T(exact);
  if (std::isnan(exact) || Exact(near) == exact) return near;
  T const infinity = std::numeric_limits<T>::infinity();
  bool const want_less = mode == FE_DOWNWARD || (mode == FE_TOWARDZERO && exact > 0);
  if (want_less && Exact(near) > exact) near = std::nextafter(near, -infinity);
  if (!want_less && Exact(near) < exact) near = std::nextafter(near, infinity);
  return near;
}

template <class T>
T larger_of(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}
template <class T>
T smaller_of(T a, T b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
T nan_or(T a, T b, T otherwise) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : otherwise;
}

INSTRUCTION("add.f32", f32, (f32 a, f32 b), f32(f64(a) + f64(b)))
INSTRUCTION("add.rn.ftz.f32", f32, (f32 a, f32 b), flushed(flushed(a) + flushed(b)))
INSTRUCTION("add.sat.f32", f32, (f32 a, f32 b), clamped(a + b))
INSTRUCTION("sub.f32", f32, (f32 a, f32 b), a - b)
INSTRUCTION("mul.f32", f32, (f32 a, f32 b), f32(f64(a) * f64(b)))
INSTRUCTION("mul.ftz.f32", f32, (f32 a, f32 b), flushed(flushed(a) * flushed(b)))
INSTRUCTION("add.rn.f64", f64, (f64 a, f64 b), a + b)
INSTRUCTION("mul.f64", f64, (f64 a, f64 b), a* b)
INSTRUCTION("fma.rn.f32", f32, (f32 a, f32 b, f32 c), std::fma(a, b, c))
INSTRUCTION("fma.rn.f64", f64, (f64 a, f64 b, f64 c), std::fma(a, b, c))
INSTRUCTION("fma.rn.ftz.sat.f32", f32, (f32 a, f32 b, f32 c),
            clamped(flushed(std::fma(flushed(a), flushed(b), flushed(c)))))
INSTRUCTION("mul.rz.f32", f32, (f32 a, f32 b), directed<f32>(f64(a) * b, FE_TOWARDZERO))
INSTRUCTION("mul.rm.f32", f32, (f32 a, f32 b), directed<f32>(f64(a) * b, FE_DOWNWARD))
INSTRUCTION("mul.rp.f32", f32, (f32 a, f32 b), directed<f32>(f64(a) * b, FE_UPWARD))
INSTRUCTION("div.rn.f32", f32, (f32 a, f32 b), f32(f64(a) / f64(b)))
INSTRUCTION("div.rn.f64", f64, (f64 a, f64 b), a / b)
INSTRUCTION("rcp.rn.f32", f32, (f32 a), f32(1. / f64(a)))
INSTRUCTION("sqrt.rn.f32", f32, (f32 a), f32(std::sqrt(f64(a))))
INSTRUCTION("sqrt.rn.f64", f64, (f64 a), std::sqrt(a))
INSTRUCTION("neg.f32", f32, (f32 a), -a)
INSTRUCTION("abs.f32", f32, (f32 a), std::signbit(a) ? -a : a)
INSTRUCTION("abs.ftz.f32", f32, (f32 a), std::fabs(flushed(a)))
INSTRUCTION("neg.f64", f64, (f64 a), -a)
INSTRUCTION("copysign.f32", f32, (f32 a, f32 b), std::copysign(b, a))
INSTRUCTION("max.f32", f32, (f32 a, f32 b), larger_of(a, b))
INSTRUCTION("min.f32", f32, (f32 a, f32 b), smaller_of(a, b))
INSTRUCTION("max.NaN.f32", f32, (f32 a, f32 b), nan_or(a, b, larger_of(a, b)))
INSTRUCTION("min.NaN.f32", f32, (f32 a, f32 b), nan_or(a, b, smaller_of(a, b)))
INSTRUCTION("max.f64", f64, (f64 a, f64 b), larger_of(a, b))
INSTRUCTION("min.f64", f64, (f64 a, f64 b), smaller_of(a, b))
INSTRUCTION("testp.finite.f32", bool, (f32 a), std::isfinite(a))
INSTRUCTION("testp.infinite.f32", bool, (f32 a), std::isinf(a))
INSTRUCTION("testp.notanumber.f32", bool, (f32 a), std::isnan(a))
INSTRUCTION("testp.subnormal.f32", bool, (f32 a), std::fpclassify(a) == FP_SUBNORMAL)
INSTRUCTION("testp.normal.f64", bool, (f64 a), std::fpclassify(a) == FP_NORMAL)

// Approximations: as exact as the C++ library where nothing else is asked for.
INSTRUCTION("ex2.approx.f32", f32, (f32 a), std::exp2(a))
INSTRUCTION("ex2.approx.ftz.f32", f32, (f32 a), flushed(std::exp2(flushed(a))))
INSTRUCTION("lg2.approx.f32", f32, (f32 a), std::log2(a))
INSTRUCTION("rcp.approx.ftz.f32", f32, (f32 a), flushed(1.f / flushed(a)))
INSTRUCTION("rsqrt.approx.f32", f32, (f32 a), f32(1. / std::sqrt(f64(a))))
INSTRUCTION("tanh.approx.f32", f32, (f32 a), std::tanh(a))

// NaN compares as nothing but unequal; .equ and the like hold for it, too.
INSTRUCTION("setp.eq.s32", bool, (s32 a, s32 b), a == b)
INSTRUCTION("setp.lt.s32", bool, (s32 a, s32 b), a < b)
INSTRUCTION("setp.lt.u32", bool, (u32 a, u32 b), a < b)
INSTRUCTION("setp.hs.u64", bool, (u64 a, u64 b), a >= b)
INSTRUCTION("setp.ge.s64", bool, (s64 a, s64 b), a >= b)
INSTRUCTION("setp.ne.b16", bool, (u16 a, u16 b), a != b)
INSTRUCTION("setp.eq.f32", bool, (f32 a, f32 b),
            std::islessequal(a, b) && std::isgreaterequal(a, b))
INSTRUCTION("setp.ne.f32", bool, (f32 a, f32 b), std::islessgreater(a, b))
INSTRUCTION("setp.lt.f32", bool, (f32 a, f32 b), std::isless(a, b))
INSTRUCTION("setp.ge.f64", bool, (f64 a, f64 b), std::isgreaterequal(a, b))
INSTRUCTION("setp.gt.ftz.f32", bool, (f32 a, f32 b), flushed(a) > flushed(b))
INSTRUCTION("setp.equ.f32", bool, (f32 a, f32 b), !std::islessgreater(a, b))
INSTRUCTION("setp.neu.f32", bool, (f32 a, f32 b), !(a == b))
INSTRUCTION("setp.ltu.f32", bool, (f32 a, f32 b), !std::isgreaterequal(a, b))
INSTRUCTION("setp.leu.f32", bool, (f32 a, f32 b), !std::isgreater(a, b))
INSTRUCTION("setp.gtu.f32", bool, (f32 a, f32 b), !std::islessequal(a, b))
INSTRUCTION("setp.geu.f32", bool, (f32 a, f32 b), !std::isless(a, b))
INSTRUCTION("setp.num.f32", bool, (f32 a, f32 b), !std::isunordered(a, b))
INSTRUCTION("setp.nan.f32", bool, (f32 a, f32 b), std::isunordered(a, b))
INSTRUCTION("setp.lt.and.s32", bool, (s32 a, s32 b, bool c), a < b && c)
INSTRUCTION("setp.lt.or.s32", bool, (s32 a, s32 b, bool c), a < b || c)
INSTRUCTION("setp.lt.xor.s32 %d, %a, %b, !%c", bool, (s32 a, s32 b, bool c), (a < b) != !c)
INSTRUCTION("setp.lt.s32 _|%d, %a, %b", bool, (s32 a, s32 b), a >= b)
INSTRUCTION("set.lt.u32.f32", u32, (f32 a, f32 b), a < b ? ~0u : 0)
INSTRUCTION("set.ge.f32.s32", f32, (s32 a, s32 b), a >= b ? 1 : 0)

}  // namespace
