// Instructions on integers.

#include <algorithm>

#include "instruction.h"

namespace {

using namespace emu::ptx;
using namespace selftest;

template <class T>
T clamp(s128 x) {
  s128 const least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
  return T(std::clamp(x, least, most));
}

s128 lower_24(s32 x) { return s32(u32(x) << 8) / 256; }

INSTRUCTION("add.s16", s16, (s16 a, s16 b), s16(u32(a) + u32(b)))
INSTRUCTION("add.u16", u16, (u16 a, u16 b), u16(u32(a) + u32(b)))
INSTRUCTION("add.s32", s32, (s32 a, s32 b), s32(s64(a) + b))
INSTRUCTION("add.u64", u64, (u64 a, u64 b), u64(u128(a) + b))
INSTRUCTION("add.sat.s32", s32, (s32 a, s32 b), clamp<s32>(s128(a) + b))
INSTRUCTION("sub.s32", s32, (s32 a, s32 b), s32(s64(a) - b))
INSTRUCTION("sub.s64", s64, (s64 a, s64 b), s64(s128(a) - b))
INSTRUCTION("sub.sat.s32", s32, (s32 a, s32 b), clamp<s32>(s128(a) - b))
INSTRUCTION("mul.lo.s16", s16, (s16 a, s16 b), s16(s64(a) * b))
INSTRUCTION("mul.lo.s32", s32, (s32 a, s32 b), s32(s64(a) * b))
INSTRUCTION("mul.lo.u64", u64, (u64 a, u64 b), u64(u128(a) * b))
INSTRUCTION("mul.hi.u16", u16, (u16 a, u16 b), u16(u64(a) * b >> 16))
INSTRUCTION("mul.hi.s32", s32, (s32 a, s32 b), s32(s64(a) * b >> 32))
INSTRUCTION("mul.hi.u32", u32, (u32 a, u32 b), u32(u64(a) * b >> 32))
INSTRUCTION("mul.hi.s64", s64, (s64 a, s64 b), s64(s128(a) * b >> 64))
INSTRUCTION("mul.hi.u64", u64, (u64 a, u64 b), u64(u128(a) * b >> 64))
INSTRUCTION("mul.wide.s16", s32, (s16 a, s16 b), s32(a) * s32(b))
INSTRUCTION("mul.wide.s32", s64, (s32 a, s32 b), s64(a) * s64(b))
INSTRUCTION("mul.wide.u32", u64, (u32 a, u32 b), u64(a) * u64(b))
INSTRUCTION("mul24.lo.s32", s32, (s32 a, s32 b), s32(lower_24(a) * lower_24(b)))
INSTRUCTION("mul24.hi.s32", s32, (s32 a, s32 b), s32(lower_24(a) * lower_24(b) >> 16))
INSTRUCTION("mul24.lo.u32", u32, (u32 a, u32 b), u32(u64(a % 16777216) * (b % 16777216)))
INSTRUCTION("mul24.hi.u32", u32, (u32 a, u32 b), u32(u64(a % 16777216) * (b % 16777216) >> 16))
INSTRUCTION("mad.lo.s32", s32, (s32 a, s32 b, s32 c), s32(s64(a) * b + c))
INSTRUCTION("mad.lo.u64", u64, (u64 a, u64 b, u64 c), u64(u128(a) * b + c))
INSTRUCTION("mad.hi.s32", s32, (s32 a, s32 b, s32 c), s32((s64(a) * b >> 32) + c))
INSTRUCTION("mad.hi.u64", u64, (u64 a, u64 b, u64 c), u64((u128(a) * b >> 64) + c))
INSTRUCTION("mad.wide.s32", s64, (s32 a, s32 b, s64 c), s64(s128(a) * b + c))
INSTRUCTION("mad.wide.u32", u64, (u32 a, u32 b, u64 c), u64(u128(a) * b + c))
INSTRUCTION("mad24.lo.u32", u32, (u32 a, u32 b, u32 c), u32(u64(a % 16777216) * (b % 16777216) + c))
INSTRUCTION("sad.s32", s32, (s32 a, s32 b, s32 c), s32(c + (a < b ? s64(b) - a : s64(a) - b)))
INSTRUCTION("sad.u16", u16, (u16 a, u16 b, u16 c), u16(c + (a < b ? b - a : a - b)))
INSTRUCTION("div.s32", s32, (s32 a, s32 b), b == 0 ? -1 : s32(s64(a) / b))
INSTRUCTION("div.u32", u32, (u32 a, u32 b), b == 0 ? ~0u : a / b)
INSTRUCTION("div.s64", s64, (s64 a, s64 b), b == 0 ? -1 : s64(s128(a) / b))
INSTRUCTION("div.u16", u16, (u16 a, u16 b), b == 0 ? u16(~0) : u16(a / b))
INSTRUCTION("rem.s32", s32, (s32 a, s32 b), b == 0 ? a : s32(s64(a) % b))
INSTRUCTION("rem.u64", u64, (u64 a, u64 b), b == 0 ? a : a % b)
INSTRUCTION("rem.s64", s64, (s64 a, s64 b), b == 0 ? a : s64(s128(a) % b))
INSTRUCTION("abs.s32", s32, (s32 a), s32(a < 0 ? -s64(a) : a))
INSTRUCTION("abs.s16", s16, (s16 a), s16(a < 0 ? -s64(a) : a))
INSTRUCTION("neg.s32", s32, (s32 a), s32(-s64(a)))
INSTRUCTION("neg.s64", s64, (s64 a), s64(-s128(a)))
INSTRUCTION("min.s32", s32, (s32 a, s32 b), std::min(a, b))
INSTRUCTION("min.u32", u32, (u32 a, u32 b), std::min(a, b))
INSTRUCTION("min.s64", s64, (s64 a, s64 b), std::min(a, b))
INSTRUCTION("max.s16", s16, (s16 a, s16 b), std::max(a, b))
INSTRUCTION("max.s32", s32, (s32 a, s32 b), std::max(a, b))
INSTRUCTION("max.u64", u64, (u64 a, u64 b), std::max(a, b))

template <class A, class B>
s32 sum_of_products(u32 a, u32 b, s32 c, int a_bits, int terms, int first_byte) {
  s64 sum = c;
  for (int i = 0; i < terms; ++i) {
    s64 const x = A(a >> a_bits * i), y = B(b >> 8 * (i + first_byte));
    sum += x * y;
  }
  return s32(sum);
}

INSTRUCTION("dp4a.s32.s32", s32, (s32 a, s32 b, s32 c),
            sum_of_products<s8, s8>(u32(a), u32(b), c, 8, 4, 0))
INSTRUCTION("dp4a.u32.s32", s32, (u32 a, s32 b, s32 c),
            sum_of_products<u8, s8>(a, u32(b), c, 8, 4, 0))
INSTRUCTION("dp2a.lo.s32.u32", s32, (s32 a, u32 b, s32 c),
            sum_of_products<s16, u8>(u32(a), b, c, 16, 2, 0))
INSTRUCTION("dp2a.hi.s32.s32", s32, (s32 a, s32 b, s32 c),
            sum_of_products<s16, s8>(u32(a), u32(b), c, 16, 2, 2))

// The carry goes from one to the other.
INSTRUCTION("add.cc.u32 %d, %a, %b; addc.u32 %d, 0, 0", u32, (u32 a, u32 b),
            u32((u64(a) + b) >> 32))
INSTRUCTION("add.cc.u32 %d, %a, %b; addc.cc.u32 %d, %c, %b; addc.u32 %d, 0, %d", u32,
            (u32 a, u32 b, u32 c),
            u32(((u64(a) + b) >> 32) + c + b + ((((u64(a) + b) >> 32) + c + b) >> 32)))
INSTRUCTION("sub.cc.u64 %d, %a, %b; subc.u64 %d, %c, 0", u64, (u64 a, u64 b, u64 c),
            c - (a < b ? 1 : 0))
INSTRUCTION("sub.cc.u32 %d, %a, %b; subc.cc.u32 %d, %c, %b; subc.u32 %d, 0, 0", u32,
            (u32 a, u32 b, u32 c), s64(c) - s64(b) - (a < b ? 1 : 0) < 0 ? ~0u : 0u)
INSTRUCTION("mad.lo.cc.u32 %d, %a, %b, %c; madc.hi.u32 %d, %a, %b, %c", u32, (u32 a, u32 b, u32 c),
            u32((u64(a) * b >> 32) + c + ((u64(u32(a * b)) + c) >> 32)))

}  // namespace
