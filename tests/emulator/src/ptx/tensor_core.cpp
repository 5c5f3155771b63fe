// Matrices in translated kernels.

#include "ptx/tensor_core.h"

#include <cstring>

#include "operations.h"
#include "ptx/halves.h"

namespace emu::ptx {

namespace {

void multiply(Site const* site, MmaOperands& operands, MmaType type, int depth) {
  emu::MmaOperands all;
  std::memcpy(all.a, operands.a, sizeof(all.a));
  std::memcpy(all.b, operands.b, sizeof(all.b));
  std::memcpy(all.c, operands.c, sizeof(all.c));
  emu::mma(site, all, type, depth);
  std::memcpy(operands.c, all.c, sizeof(all.c));
}

void multiply_group(Site const* site, WgmmaOperands const& o, MmaType type, u32 const* a,
                    f32* sums) {
  bool const in_registers = a != nullptr;
  emu::wgmma(site,
             {o.columns, type, o.adds, o.negates_a, o.negates_b, o.transposes_a, o.transposes_b,
              in_registers, o.a, o.b},
             a, sums);
}

}  // namespace

void multiply_f16(Site const* site, MmaOperands& operands, int depth) {
  multiply(site, operands, MmaType::kHalf, depth);
}

void multiply_bf16(Site const* site, MmaOperands& operands, int depth) {
  multiply(site, operands, MmaType::kBFloat16, depth);
}

void multiply_f16_f16(Site const* site, MmaOperands& operands, int depth) {
  for (int i = 0; i < 4; ++i) operands.c[i] = wide_f16(u16(operands.h[i / 2] >> i % 2 * 16));
  multiply(site, operands, MmaType::kHalf, depth);
  for (int i = 0; i < 2; ++i) operands.h[i] = pack_f16(operands.c[2 * i + 1], operands.c[2 * i]);
}

void wgmma_f16(Site const* site, WgmmaOperands const& operands, u32 const* a, f32* sums) {
  multiply_group(site, operands, MmaType::kHalf, a, sums);
}
void wgmma_bf16(Site const* site, WgmmaOperands const& operands, u32 const* a, f32* sums) {
  multiply_group(site, operands, MmaType::kBFloat16, a, sums);
}
void wgmma_fence(Site const* site) { emu::wgmma_fence(site); }
void wgmma_commit(Site const* site) { emu::wgmma_commit(site); }
void wgmma_wait(Site const* site, u32 pending) { emu::wgmma_wait(site, int(pending)); }

void load_matrices(Site const* site, u64 row, u32* registers, int matrices, bool transposed) {
  emu::load_matrix(site, row, registers, matrices, transposed);
}

void store_matrices(Site const* site, u64 row, u32 const* registers, int matrices,
                    bool transposed) {
  emu::store_matrix(site, row, registers, matrices, transposed);
}

u32 transpose_matrix(Site const* site, u32 fragment) {
  return emu::transpose_matrix(site, fragment);
}

}  // namespace emu::ptx
