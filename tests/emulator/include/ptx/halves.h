#pragma once

// f16, bf16, and pairs of them; each value is its bits. Every operation rounds once.

#include "ptx/types.h"

namespace emu::ptx {

f32 wide_f16(u16 bits);
inline f32 wide_bf16(u16 bits) { return as_f32(u32(bits) << 16); }

// To the nearest, ties to even.
u16 round_f16(f32 x);
u16 round_f16(f64 x);
u16 round_bf16(f32 x);
u16 round_bf16(f64 x);
// Toward zero, down, up.
u16 round_rz_f16(f32 x);
u16 round_rm_f16(f32 x);
u16 round_rp_f16(f32 x);
u16 round_rz_bf16(f32 x);
u16 round_rm_bf16(f32 x);
u16 round_rp_bf16(f32 x);
u16 saturate_f16(u16 bits);
u16 saturate_bf16(u16 bits);
u32 round_tf32(f32 x);  // ties away from zero

u32 pack_f16(f32 high, f32 low);
u32 pack_bf16(f32 high, f32 low);
u32 pack_rz_f16(f32 high, f32 low);
u32 pack_rz_bf16(f32 high, f32 low);

#define EMU_PTX_HALVES(T, Bits)              \
  Bits add_##T(Bits a, Bits b);              \
  Bits sub_##T(Bits a, Bits b);              \
  Bits mul_##T(Bits a, Bits b);              \
  Bits fma_##T(Bits a, Bits b, Bits c);      \
  Bits fma_relu_##T(Bits a, Bits b, Bits c); \
  Bits add_sat_##T(Bits a, Bits b);          \
  Bits sub_sat_##T(Bits a, Bits b);          \
  Bits mul_sat_##T(Bits a, Bits b);          \
  Bits fma_sat_##T(Bits a, Bits b, Bits c);  \
  Bits neg_##T(Bits a);                      \
  Bits abs_##T(Bits a);                      \
  Bits max_##T(Bits a, Bits b);              \
  Bits min_##T(Bits a, Bits b);              \
  Bits max_nan_##T(Bits a, Bits b);          \
  Bits min_nan_##T(Bits a, Bits b);          \
  Bits ex2_##T(Bits a);                      \
  Bits tanh_##T(Bits a);
EMU_PTX_HALVES(f16, u16)
EMU_PTX_HALVES(bf16, u16)
EMU_PTX_HALVES(f16x2, u32)
EMU_PTX_HALVES(bf16x2, u32)
#undef EMU_PTX_HALVES

}  // namespace emu::ptx
