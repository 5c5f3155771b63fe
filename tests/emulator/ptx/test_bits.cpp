// Instructions on bits, and selections.

#include "instruction.h"

namespace {

using namespace emu::ptx;
using namespace selftest;

u32 nibble_bytes(u32 a, u32 b, u32 selector) {
  u8 const bytes[8] = {u8(a), u8(a >> 8), u8(a >> 16), u8(a >> 24),
                       u8(b), u8(b >> 8), u8(b >> 16), u8(b >> 24)};
  u32 result = 0;
  for (int i = 3; i >= 0; --i) {
    u32 const nibble = (selector >> 4 * i) % 16;
    u8 const byte = bytes[nibble % 8];
    result = result * 256 + (nibble < 8 ? byte : byte >= 128 ? 255 : 0);
  }
  return result;
}

// bfe and bfi, bit for bit as the PTX ISA writes them.
template <class T>
T extracted(T a, u32 position, u32 length, bool is_signed) {
  int const msb = 8 * sizeof(T) - 1;
  int const pos = int(position % 256), len = int(length % 256);
  bool const sign = !is_signed || len == 0 ? false : a >> std::min(pos + len - 1, msb) & 1;
  T result = 0;
  for (int i = 0; i <= msb; ++i) {
    bool const bit = i < len && pos + i <= msb ? a >> (pos + i) & 1 : sign;
    result |= T(bit) << i;
  }
  return result;
}
template <class T>
T inserted(T a, T b, u32 position, u32 length) {
  int const msb = 8 * sizeof(T) - 1;
  int const pos = int(position % 256), len = int(length % 256);
  T result = b;
  for (int i = 0; i < len && pos + i <= msb; ++i) {
    T const bit = T(1) << (pos + i);
    result = (a >> i & 1) ? result | bit : result & ~bit;
  }
  return result;
}

template <class T>
u32 top_bit(T a, bool is_signed) {
  int const bits = 8 * sizeof(T);
  if (is_signed && (a >> (bits - 1) & 1)) a = ~a;
  for (int i = bits - 1; i >= 0; --i) {
    if (a >> i & 1) return u32(i);
  }
  return ~0u;
}

template <class T>
T reversed(T a) {
  T result = 0;
  int const bits = 8 * sizeof(T);
  for (int i = 0; i < bits; ++i) result |= (a >> i & 1) << (bits - 1 - i);
  return result;
}

template <class T>
u32 ones(T a) {
  u32 n = 0;
  for (; a != 0; a >>= 1) n += a & 1;
  return n;
}

u32 by_table(u32 a, u32 b, u32 c, int table) {
  u32 result = 0;
  for (int i = 0; i < 32; ++i) {
    int const row = int((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1));
    result |= u32(table >> row & 1) << i;
  }
  return result;
}

INSTRUCTION("and.b32", u32, (u32 a, u32 b), a& b)
INSTRUCTION("and.pred", bool, (bool a, bool b), a&& b)
INSTRUCTION("or.b64", u64, (u64 a, u64 b), a | b)
INSTRUCTION("or.pred", bool, (bool a, bool b), a || b)
INSTRUCTION("xor.b16", u16, (u16 a, u16 b), u16(a ^ b))
INSTRUCTION("xor.pred", bool, (bool a, bool b), a != b)
INSTRUCTION("not.b32", u32, (u32 a), ~a)
INSTRUCTION("not.b16", u16, (u16 a), u16(~a))
INSTRUCTION("not.pred", bool, (bool a), !a)
INSTRUCTION("cnot.b32", u32, (u32 a), a == 0 ? 1 : 0)
INSTRUCTION("shl.b32", u32, (u32 a, u32 b), b < 32 ? a << b : 0)
INSTRUCTION("shl.b16", u16, (u16 a, u32 b), u16(b < 16 ? a << b : 0))
INSTRUCTION("shl.b64", u64, (u64 a, u32 b), b < 64 ? a << b : 0)
INSTRUCTION("shr.u32", u32, (u32 a, u32 b), b < 32 ? a >> b : 0)
INSTRUCTION("shr.s32", s32, (s32 a, u32 b), a >> std::min(b, 31u))
INSTRUCTION("shr.s64", s64, (s64 a, u32 b), a >> std::min(b, 63u))
INSTRUCTION("shr.s16", s16, (s16 a, u32 b), s16(a >> std::min(b, 15u)))
INSTRUCTION("shr.b32", u32, (u32 a, u32 b), b < 32 ? a >> b : 0)
INSTRUCTION("shf.l.wrap.b32", u32, (u32 a, u32 b, u32 c),
            c % 32 == 0 ? b : b << c % 32 | a >> (32 - c % 32))
INSTRUCTION("shf.r.wrap.b32", u32, (u32 a, u32 b, u32 c),
            c % 32 == 0 ? a : a >> c % 32 | b << (32 - c % 32))
INSTRUCTION("shf.l.clamp.b32", u32, (u32 a, u32 b, u32 c),
            c == 0    ? b
            : c >= 32 ? a
                      : b << c | a >> (32 - c))
INSTRUCTION("shf.r.clamp.b32", u32, (u32 a, u32 b, u32 c),
            c == 0    ? a
            : c >= 32 ? b
                      : a >> c | b << (32 - c))
INSTRUCTION("prmt.b32", u32, (u32 a, u32 b, u32 c), nibble_bytes(a, b, c))
INSTRUCTION("prmt.b32.f4e", u32, (u32 a, u32 b, u32 c),
            nibble_bytes(a, b, (c % 4) * 0x1111 + 0x3210))
INSTRUCTION("prmt.b32.b4e", u32, (u32 a, u32 b, u32 c),
            nibble_bytes(a, b,
                         c % 4 == 0   ? 0x5670
                         : c % 4 == 1 ? 0x6701
                         : c % 4 == 2 ? 0x7012
                                      : 0x0123))
INSTRUCTION("prmt.b32.rc8", u32, (u32 a, u32 b, u32 c), nibble_bytes(a, b, (c % 4) * 0x1111))
INSTRUCTION("prmt.b32.rc16", u32, (u32 a, u32 b, u32 c),
            nibble_bytes(a, b, c % 2 ? 0x3232 : 0x1010))
INSTRUCTION("prmt.b32.ecl", u32, (u32 a, u32 b, u32 c),
            nibble_bytes(a, b,
                         c % 4 == 0   ? 0x3210
                         : c % 4 == 1 ? 0x3211
                         : c % 4 == 2 ? 0x3222
                                      : 0x3333))
INSTRUCTION("prmt.b32.ecr", u32, (u32 a, u32 b, u32 c),
            nibble_bytes(a, b,
                         c % 4 == 0   ? 0x0000
                         : c % 4 == 1 ? 0x1110
                         : c % 4 == 2 ? 0x2210
                                      : 0x3210))
INSTRUCTION("bfe.u32", u32, (u32 a, u32 b, u32 c), extracted(a, b, c, false))
INSTRUCTION("bfe.s32", u32, (u32 a, u32 b, u32 c), extracted(a, b, c, true))
INSTRUCTION("bfe.u64", u64, (u64 a, u32 b, u32 c), extracted(a, b, c, false))
INSTRUCTION("bfe.s64", u64, (u64 a, u32 b, u32 c), extracted(a, b, c, true))
INSTRUCTION("bfi.b32", u32, (u32 a, u32 b, u32 c, u32 e), inserted(a, b, c, e))
INSTRUCTION("bfi.b64", u64, (u64 a, u64 b, u32 c, u32 e), inserted(a, b, c, e))
INSTRUCTION("popc.b32", u32, (u32 a), ones(a))
INSTRUCTION("popc.b64", u32, (u64 a), ones(a))
INSTRUCTION("clz.b32", u32, (u32 a), a == 0 ? 32 : 31 - top_bit(a, false))
INSTRUCTION("clz.b64", u32, (u64 a), a == 0 ? 64 : 63 - top_bit(a, false))
INSTRUCTION("brev.b32", u32, (u32 a), reversed(a))
INSTRUCTION("brev.b64", u64, (u64 a), reversed(a))
INSTRUCTION("bfind.u32", u32, (u32 a), top_bit(a, false))
INSTRUCTION("bfind.s32", u32, (u32 a), top_bit(a, true))
INSTRUCTION("bfind.u64", u32, (u64 a), top_bit(a, false))
INSTRUCTION("bfind.shiftamt.u32", u32, (u32 a), a == 0 ? ~0u : 31 - top_bit(a, false))
INSTRUCTION("bfind.shiftamt.s64", u32, (u64 a),
            top_bit(a, true) == ~0u ? ~0u : 63 - top_bit(a, true))
INSTRUCTION("lop3.b32 %d, %a, %b, %c, 0x96", u32, (u32 a, u32 b, u32 c), a ^ b ^ c)
INSTRUCTION("lop3.b32 %d, %a, %b, %c, 0xe8", u32, (u32 a, u32 b, u32 c),
            (a & b) | (b & c) | (a & c))
INSTRUCTION("lop3.b32 %d, %a, %b, %c, 0x1d", u32, (u32 a, u32 b, u32 c), by_table(a, b, c, 0x1d))
INSTRUCTION("lop3.b32 %d, %a, %b, %c, 0", u32, (u32 a, u32 b, u32 c), 0 & (a | b | c))
INSTRUCTION("selp.b32", u32, (u32 a, u32 b, bool c), c ? a : b)
INSTRUCTION("selp.f32", f32, (f32 a, f32 b, bool c), c ? a : b)
INSTRUCTION("selp.u16", u16, (u16 a, u16 b, bool c), c ? a : b)
INSTRUCTION("slct.u32.s32", u32, (u32 a, u32 b, s32 c), c >= 0 ? a : b)
INSTRUCTION("slct.f32.f32", f32, (f32 a, f32 b, f32 c), c >= 0 ? a : b)

// Moves between registers of different sizes; the lowest bits come first.
INSTRUCTION("mov.b64 %d, {%a, %b}", u64, (u32 a, u32 b), u64(b) << 32 | a)
INSTRUCTION("mov.b32 %d, {%a, %b}", u32, (u16 a, u16 b), u32(b) << 16 | a)
INSTRUCTION("mov.b64 {%d, _}, %a", u32, (u64 a), u32(a))
INSTRUCTION("mov.b64 {_, %d}, %a", u32, (u64 a), u32(a >> 32))
INSTRUCTION("mov.b32 {_, %d}, %a", u16, (u32 a), u16(a >> 16))
INSTRUCTION("mov.b32", f32, (u32 a), std::bit_cast<f32>(a))

// A predicate on the instruction.
INSTRUCTION("mov.u32 %d, %a; @%c add.u32 %d, %a, %b", u32, (u32 a, u32 b, bool c), c ? a + b : a)
INSTRUCTION("mov.u32 %d, %a; @!%c add.u32 %d, %a, %b", u32, (u32 a, u32 b, bool c), c ? a : a + b)

}  // namespace
