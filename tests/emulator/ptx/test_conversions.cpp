// cvt.

#include <algorithm>
#include <cfenv>

#include "instruction.h"
#include "rounding.h"

namespace {

using namespace emu::ptx;
using namespace selftest;

f32 flushed(f32 x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

// An integral value as an integer: what does not fit saturates, and NaN is 0.
template <class T>
T saturated(long double x) {
  if (std::isnan(x)) return 0;
  long double const least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
  return x <= least  ? std::numeric_limits<T>::min()
         : x >= most ? std::numeric_limits<T>::max()
                     : T(x);
}
template <class T>
T clamp(s128 x) {
  s128 const least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
  return T(std::clamp(x, least, most));
}

// Half to even, without the library's rounding.
f64 even(f64 x) {
  f64 const down = std::floor(x), rest = x - down;
  if (rest != 0.5) return rest < 0.5 ? down : down + 1;
  return std::fmod(down, 2) == 0 ? down : down + 1;
}

INSTRUCTION("cvt.s64.s32", s64, (s32 a), s64(a))
INSTRUCTION("cvt.u64.u32", u64, (u32 a), u64(a))
INSTRUCTION("cvt.u32.u64", u32, (u64 a), u32(a))
INSTRUCTION("cvt.u16.u32", u16, (u32 a), u16(a))
INSTRUCTION("cvt.s32.s8", s32, (u32 a), s32(s8(a)))
INSTRUCTION("cvt.u32.u8", u32, (u16 a), u32(u8(a)))
INSTRUCTION("cvt.s32.u16", s32, (u16 a), s32(a))
INSTRUCTION("cvt.sat.s16.s32", s16, (s32 a), clamp<s16>(a))
INSTRUCTION("cvt.sat.u8.s32", u16, (s32 a), clamp<u8>(a))
INSTRUCTION("cvt.sat.u32.s64", u32, (s64 a), clamp<u32>(a))
INSTRUCTION("cvt.sat.s32.u64", s32, (u64 a), clamp<s32>(a))

INSTRUCTION("cvt.rzi.s32.f32", s32, (f32 a), saturated<s32>(std::trunc(a)))
INSTRUCTION("cvt.rni.s32.f32", s32, (f32 a), saturated<s32>(even(a)))
INSTRUCTION("cvt.rmi.s32.f32", s32, (f32 a), saturated<s32>(std::floor(a)))
INSTRUCTION("cvt.rpi.s32.f32", s32, (f32 a), saturated<s32>(std::ceil(a)))
INSTRUCTION("cvt.rzi.u32.f32", u32, (f32 a), saturated<u32>(std::trunc(a)))
INSTRUCTION("cvt.rzi.ftz.u16.f32", u16, (f32 a), saturated<u16>(std::trunc(a)))
INSTRUCTION("cvt.rzi.s64.f32", s64, (f32 a), saturated<s64>(std::trunc(a)))
INSTRUCTION("cvt.rzi.u64.f64", u64, (f64 a), saturated<u64>(std::trunc(a)))
INSTRUCTION("cvt.rni.s64.f64", s64, (f64 a), saturated<s64>(even(a)))
INSTRUCTION("cvt.rzi.s32.f64", s32, (f64 a), saturated<s32>(std::trunc(a)))
INSTRUCTION("cvt.rzi.s32.f16", s32, (f16 a), saturated<s32>(std::trunc(wide(a))))
INSTRUCTION("cvt.rni.f32.f32", f32, (f32 a), std::isfinite(a) ? std::copysign(f32(even(a)), a) : a)
INSTRUCTION("cvt.rzi.f32.f32", f32, (f32 a), std::trunc(a))
INSTRUCTION("cvt.rmi.f32.f32", f32, (f32 a), std::floor(a))
INSTRUCTION("cvt.rpi.f64.f64", f64, (f64 a), std::ceil(a))

INSTRUCTION("cvt.rn.f32.s32", f32, (s32 a), round_f32(s128(a), Mode::kNearest))
INSTRUCTION("cvt.rz.f32.s32", f32, (s32 a), round_f32(s128(a), Mode::kZero))
INSTRUCTION("cvt.rm.f32.s64", f32, (s64 a), round_f32(s128(a), Mode::kDown))
INSTRUCTION("cvt.rp.f32.u64", f32, (u64 a), round_f32(s128(a), Mode::kUp))
INSTRUCTION("cvt.rn.f32.u64", f32, (u64 a), round_f32(s128(a), Mode::kNearest))
INSTRUCTION("cvt.rn.f64.s32", f64, (s32 a), f64(a))
INSTRUCTION("cvt.rn.f64.u64", f64, (u64 a), f64(a))
INSTRUCTION("cvt.f64.f32", f64, (f32 a), f64(a))
INSTRUCTION("cvt.rn.f32.f64", f32, (f64 a), f32(a))
INSTRUCTION("cvt.ftz.f64.f32", f64, (f32 a), f64(flushed(a)))
INSTRUCTION("cvt.sat.f32.f32", f32, (f32 a), !(a > 0) ? 0 : std::min(a, 1.f))

INSTRUCTION("cvt.f32.f16", f32, (f16 a), wide(a))
INSTRUCTION("cvt.f32.bf16", f32, (bf16 a), wide(a))
INSTRUCTION("cvt.f64.f16", f64, (f16 a), wide(a))
INSTRUCTION("cvt.rn.f16.f32", f16, (f32 a), round_to<f16>(a, Mode::kNearest))
INSTRUCTION("cvt.rz.f16.f32", f16, (f32 a), round_to<f16>(a, Mode::kZero))
INSTRUCTION("cvt.rm.f16.f32", f16, (f32 a), round_to<f16>(a, Mode::kDown))
INSTRUCTION("cvt.rp.f16.f32", f16, (f32 a), round_to<f16>(a, Mode::kUp))
INSTRUCTION("cvt.rn.f16.f64", f16, (f64 a), round_to<f16>(a, Mode::kNearest))
INSTRUCTION("cvt.rn.f16.s32", f16, (s32 a), round_to<f16>(f64(a), Mode::kNearest))
INSTRUCTION("cvt.rn.bf16.f32", bf16, (f32 a), round_to<bf16>(a, Mode::kNearest))
INSTRUCTION("cvt.rz.bf16.f32", bf16, (f32 a), round_to<bf16>(a, Mode::kZero))
INSTRUCTION("cvt.rm.bf16.f32", bf16, (f32 a), round_to<bf16>(a, Mode::kDown))
INSTRUCTION("cvt.rp.bf16.f32", bf16, (f32 a), round_to<bf16>(a, Mode::kUp))
INSTRUCTION("cvt.rn.f16x2.f32", f16x2, (f32 a, f32 b),
            {round_to<f16>(b, Mode::kNearest), round_to<f16>(a, Mode::kNearest)})
INSTRUCTION("cvt.rz.f16x2.f32", f16x2, (f32 a, f32 b),
            {round_to<f16>(b, Mode::kZero), round_to<f16>(a, Mode::kZero)})
INSTRUCTION("cvt.rn.bf16x2.f32", bf16x2, (f32 a, f32 b),
            {round_to<bf16>(b, Mode::kNearest), round_to<bf16>(a, Mode::kNearest)})
INSTRUCTION("cvt.rn.relu.bf16x2.f32", bf16x2, (f32 a, f32 b),
            {round_to<bf16>(b <= 0 ? 0 : b, Mode::kNearest),
             round_to<bf16>(a <= 0 ? 0 : a, Mode::kNearest)})

// Ties of tf32 go away from zero.
INSTRUCTION("cvt.rna.tf32.f32", u32, (f32 a),
            std::isnan(a) ? 0x7fffffffu
            : std::isinf(a)
                ? u32(to_bits(a))
                : u32(to_bits(a) / 0x2000 * 0x2000 + (to_bits(a) % 0x2000 >= 0x1000 ? 0x2000 : 0)))

}  // namespace
