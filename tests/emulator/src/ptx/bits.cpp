// Operations on bits that take more than a few instructions.

#include "ptx/bits.h"

#include <algorithm>

namespace emu::ptx {

namespace {

u32 selector(u32 a, u32 b, u32 c, u32 d) { return a | b << 4 | c << 8 | d << 12; }

template <class T>
T insert(T bits, T into, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255;
  length &= 255;
  if (position >= kBits || length == 0) return into;
  T const ones = length >= kBits ? T(~T(0)) : T((T(1) << length) - 1);
  T const mask = T(ones << position);
  return T((into & ~mask) | (T(bits << position) & mask));
}

// The bits from `position` up, `length` of them; for signed types the topmost fills the rest.
template <class T, class Unsigned>
T extract(T a, u32 position, u32 length) {
  constexpr u32 kBits = 8 * sizeof(T);
  position &= 255;
  length &= 255;
  if (length == 0) return 0;
  u32 const top = std::min(position + length - 1, kBits - 1);
  bool const fills = T(-1) < T(0) && (Unsigned(a) >> top & 1);
  Unsigned result = fills ? Unsigned(~Unsigned(0)) : Unsigned(0);
  for (u32 i = 0; i < length && position + i < kBits; ++i) {
    Unsigned const bit = Unsigned(1) << i;
    result = (Unsigned(a) >> (position + i) & 1) ? result | bit : result & ~bit;
  }
  return T(result);
}

template <class T>
T reverse(T a) {
  T result = 0;
  for (u32 i = 0; i < 8 * sizeof(T); ++i) result = T(result << 1 | (a >> i & 1));
  return result;
}

}  // namespace

u32 permute_bytes(u32 low, u32 high, u32 selector) {
  u64 const bytes = u64(high) << 32 | low;
  u32 result = 0;
  for (u32 i = 0; i < 4; ++i) {
    u32 const choice = selector >> 4 * i & 15;
    u32 const byte = u32(bytes >> 8 * (choice & 7)) & 255;
    u32 const value = !(choice & 8) ? byte : (byte & 128) ? 255 : 0;
    result |= value << 8 * i;
  }
  return result;
}

u32 selector_f4e(u32 n) { return n &= 3, selector(n, n + 1, n + 2, n + 3); }
u32 selector_b4e(u32 n) { return n &= 3, selector(n, (n + 7) & 7, (n + 6) & 7, (n + 5) & 7); }
u32 selector_rc8(u32 n) { return n &= 3, selector(n, n, n, n); }
u32 selector_ecl(u32 n) {
  return n &= 3, selector(std::max(0u, n), std::max(1u, n), std::max(2u, n), 3);
}
u32 selector_ecr(u32 n) { return n &= 3, selector(0, std::min(1u, n), std::min(2u, n), n); }
u32 selector_rc16(u32 n) { return n = (n & 1) * 2, selector(n, n + 1, n, n + 1); }

s32 extract_bits(s32 a, u32 position, u32 length) { return extract<s32, u32>(a, position, length); }
u32 extract_bits(u32 a, u32 position, u32 length) { return extract<u32, u32>(a, position, length); }
s64 extract_bits(s64 a, u32 position, u32 length) { return extract<s64, u64>(a, position, length); }
u64 extract_bits(u64 a, u32 position, u32 length) { return extract<u64, u64>(a, position, length); }
u32 insert_bits(u32 bits, u32 into, u32 position, u32 length) {
  return insert(bits, into, position, length);
}
u64 insert_bits(u64 bits, u64 into, u32 position, u32 length) {
  return insert(bits, into, position, length);
}

u32 find_top_bit(u32 a) { return a == 0 ? ~0u : 31 - u32(__builtin_clz(a)); }
u32 find_top_bit(u64 a) { return a == 0 ? ~0u : 63 - u32(__builtin_clzll(a)); }
u32 find_top_bit(s32 a) { return find_top_bit(u32(a < 0 ? ~a : a)); }
u32 find_top_bit(s64 a) { return find_top_bit(u64(a < 0 ? ~a : a)); }

u32 reverse_bits(u32 a) { return reverse(a); }
u64 reverse_bits(u64 a) { return reverse(a); }

u32 find_nth_set(u32 mask, u32 base, s32 n) {
  if (n == 0) return mask >> (base & 31) & 1 ? base : ~0u;
  int const step = n > 0 ? 1 : -1;
  int left = n > 0 ? n - 1 : -n - 1;
  for (int at = int(base); at >= 0 && at < 32; at += step) {
    if ((mask >> at & 1) && left-- == 0) return u32(at);
  }
  return ~0u;
}

}  // namespace emu::ptx
