#pragma once

// Operations on bits.

#include "ptx/types.h"

namespace emu::ptx {

// Shifts by the width or more leave the sign or nothing.
template <class T>
T shift_left(T a, u32 n) {
  return n < 8 * sizeof(T) ? T(a << n) : T(0);
}
template <class T>
T shift_right(T a, u32 n) {
  return n < 8 * sizeof(T) ? T(a >> n) : a < T(0) ? T(-1) : T(0);
}

// 32 bits of 64, of which `high` is the upper half.
inline u32 funnel_left(u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) << n >> 32); }
inline u32 funnel_right(u32 low, u32 high, u32 n) { return u32((u64(high) << 32 | low) >> n); }

// prmt: four of eight bytes, or what their signs fill.
u32 permute_bytes(u32 low, u32 high, u32 selector);
// Selectors of prmt's other modes, from the operand's lowest bits.
u32 selector_f4e(u32 n);
u32 selector_b4e(u32 n);
u32 selector_rc8(u32 n);
u32 selector_ecl(u32 n);
u32 selector_ecr(u32 n);
u32 selector_rc16(u32 n);

// bfe and bfi; position and length count modulo 256.
s32 extract_bits(s32 a, u32 position, u32 length);
u32 extract_bits(u32 a, u32 position, u32 length);
s64 extract_bits(s64 a, u32 position, u32 length);
u64 extract_bits(u64 a, u32 position, u32 length);
u32 insert_bits(u32 bits, u32 into, u32 position, u32 length);
u64 insert_bits(u64 bits, u64 into, u32 position, u32 length);

inline u32 leading_zeros(u32 a) { return a == 0 ? 32 : u32(__builtin_clz(a)); }
inline u32 leading_zeros(u64 a) { return a == 0 ? 64 : u32(__builtin_clzll(a)); }

// The highest bit that differs from the sign; ~0 where there is none.
u32 find_top_bit(u32 a);
u32 find_top_bit(s32 a);
u32 find_top_bit(u64 a);
u32 find_top_bit(s64 a);
// How far to shift left to bring it to the top.
template <class T>
u32 shift_to_top_bit(T a) {
  u32 const at = find_top_bit(a);
  return at == ~0u ? at : u32(8 * sizeof(T)) - 1 - at;
}

u32 reverse_bits(u32 a);
u64 reverse_bits(u64 a);

// fns: the n-th set bit from `base`, upwards or, for negative n, downwards.
u32 find_nth_set(u32 mask, u32 base, s32 n);

}  // namespace emu::ptx
