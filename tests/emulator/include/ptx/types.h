#pragma once

// The types of translated PTX. Registers hold bits: integers are unsigned there, halves are their
// bits; an instruction reads them as the type it names.

#include <cstddef>
#include <cstdint>

namespace emu::ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using u128 = unsigned __int128;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using s128 = __int128;
using b8 = u8;
using b16 = u16;
using b32 = u32;
using b64 = u64;
using f32 = float;
using f64 = double;
using pred = bool;

inline f32 as_f32(u32 bits) { return __builtin_bit_cast(f32, bits); }
inline f64 as_f64(u64 bits) { return __builtin_bit_cast(f64, bits); }
inline u32 as_u32(f32 x) { return __builtin_bit_cast(u32, x); }
inline u64 as_u64(f64 x) { return __builtin_bit_cast(u64, x); }

inline u64 address_of(void const* data) { return u64(data); }

}  // namespace emu::ptx
