#pragma once

// Matrices, whose fragments the lanes of a warp hold.

#include "ptx/module.h"

namespace emu::ptx {

struct MmaOperands {
  u32 a[4];
  u32 b[2];
  f32 c[4];  // becomes the result
  u32 h[2];  // the same in halves
};

// d = a * b + c, m16n8k8 or m16n8k16.
void multiply_f16(Site const* site, MmaOperands& operands, int depth);
void multiply_bf16(Site const* site, MmaOperands& operands, int depth);
void multiply_f16_f16(Site const* site, MmaOperands& operands, int depth);

// wgmma with f32 sums, of which a thread has half as many as there are columns.
struct WgmmaOperands {
  int columns;
  bool adds, negates_a, negates_b, transposes_a, transposes_b;
  u64 a, b;  // descriptors of matrices in shared memory
};
// A is in four registers of each thread, unless `a` is null.
void wgmma_f16(Site const* site, WgmmaOperands const& operands, u32 const* a, f32* sums);
void wgmma_bf16(Site const* site, WgmmaOperands const& operands, u32 const* a, f32* sums);
void wgmma_fence(Site const* site);
void wgmma_commit(Site const* site);
void wgmma_wait(Site const* site, u32 pending);

void load_matrices(Site const* site, u64 row, u32* registers, int matrices, bool transposed);
void store_matrices(Site const* site, u64 row, u32 const* registers, int matrices, bool transposed);
u32 transpose_matrix(Site const* site, u32 fragment);

}  // namespace emu::ptx
