#pragma once

// Arithmetic of integers that C++ has no operator for.

#include "ptx/types.h"

namespace emu::ptx {

inline s32 clamp_s32(s64 x) {
  return x < -0x80000000ll ? s32(-0x80000000ll) : x > 0x7fffffff ? 0x7fffffff : s32(x);
}
inline s32 add_saturating(s32 a, s32 b) { return clamp_s32(s64(a) + b); }
inline s32 sub_saturating(s32 a, s32 b) { return clamp_s32(s64(a) - b); }

// The product of the lower 24 bits, as 48 bits.
inline s64 mul24(s32 a, s32 b) { return s64(a << 8 >> 8) * (b << 8 >> 8); }
inline u64 mul24(u32 a, u32 b) { return u64(a & 0xffffff) * (b & 0xffffff); }

// What the device gives where C++ has no answer: all ones for x / 0, x for x % 0.
template <class T>
T divide(T a, T b) {
  if (b == 0) return T(-1);
  if (T(-1) < T(0) && b == T(-1)) return T(-a);
  return T(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if (T(-1) < T(0) && b == T(-1)) return 0;
  return T(a % b);
}

inline u32 low(u32 a, u32 b) { return a * b; }
inline u32 low(s32 a, s32 b) { return u32(a) * u32(b); }
inline u64 low(u64 a, u64 b) { return a * b; }
inline u64 low(s64 a, s64 b) { return u64(a) * u64(b); }
inline u32 high(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
inline u32 high(s32 a, s32 b) { return u32(s64(a) * b >> 32); }
inline u64 high(u64 a, u64 b) { return u64(u128(a) * b >> 64); }
inline u64 high(s64 a, s64 b) { return u64(s128(a) * b >> 64); }

// Sum and difference with a carry in and out.
template <class T>
T add_carry(T a, T b, u32 carry_in, u32& carry) {
  u128 const sum = u128(a) + b + carry_in;
  carry = u32(sum >> 8 * sizeof(T)) & 1;
  return T(sum);
}
template <class T>
T sub_borrow(T a, T b, u32 borrow_in, u32& carry) {
  u128 const difference = u128(a) - b - borrow_in;
  carry = u32(difference >> 8 * sizeof(T)) & 1;
  return T(difference);
}

// Products of the bytes of `a` with those of `b`, or of its halves with two bytes, and their sum.
template <class A, class B>
s32 dot4(A a, B b, s32 c) {
  u32 sum = u32(c);
  for (int i = 0; i < 4; ++i) {
    s32 const x = A(-1) < A(0) ? s32(s8(a >> 8 * i)) : s32(u8(a >> 8 * i));
    s32 const y = B(-1) < B(0) ? s32(s8(b >> 8 * i)) : s32(u8(b >> 8 * i));
    sum += u32(x * y);
  }
  return s32(sum);
}
template <class A, class B>
s32 dot2(A a, B b, s32 c) {
  u32 sum = u32(c);
  for (int i = 0; i < 2; ++i) {
    s32 const x = A(-1) < A(0) ? s32(s16(a >> 16 * i)) : s32(u16(a >> 16 * i));
    s32 const y = B(-1) < B(0) ? s32(s8(b >> 8 * i)) : s32(u8(b >> 8 * i));
    sum += u32(x * y);
  }
  return s32(sum);
}

}  // namespace emu::ptx
