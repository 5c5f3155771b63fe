// ldmatrix, movmatrix and mma.sync.

#include <cstring>

#include "collectives.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define EMU_AVX2 1
#endif

namespace emu {

namespace {

constexpr int kRows = 8;  // of a matrix; each has 8 elements of 16 bits
constexpr int kRowBytes = 16;

void load_matrices(Warp& warp, int matrices, bool transposed, void const* site) {
  Cta& cta = *warp.cta;
  totals.ldmatrix.requests += 1;
  for (int m = 0; m < matrices; ++m) {
    uint16_t row[kRows][8];
    uintptr_t address[kRows];
    for (int i = 0; i < kRows; ++i) {
      int const lane = m * kRows + i;
      char const* const from = static_cast<char const*>(warp.matrix.row[lane]);
      size_t const offset = size_t(from - shared_base);
      if (offset + kRowBytes > size_t(grid.shared_bytes)) {
        fail(site, "ldmatrix: the row of lane %d is %td bytes into %d bytes of shared memory", lane,
             ptrdiff_t(offset), grid.shared_bytes);
      }
      if (offset % kRowBytes != 0) {
        fail(site, "ldmatrix: the row of lane %d at shared memory + %zu is not 16-byte aligned",
             lane, offset);
      }
      if (grid.options.races) {
        cta.shadow.read(warp, lane, SharedShadow::Reader::kWholeWarp, uint32_t(offset), kRowBytes,
                        site);
      }
      std::memcpy(row[i], from, kRowBytes);
      address[i] = offset;
    }
    totals.ldmatrix.wavefronts += uint64_t(wavefronts(address, kRows, kRowBytes).actual);
    totals.ldmatrix.ideal_wavefronts += 1;
    for (int l = 0; l < kWarpSize; ++l) {
      int const i = l / 4, j = l % 4 * 2;
      warp.matrix.registers[l][m] = transposed ? row[j][i] | uint32_t(row[j + 1][i]) << 16
                                               : row[i][j] | uint32_t(row[i][j + 1]) << 16;
    }
  }
}

#ifdef EMU_AVX2

__m256 widen(uint16_t const* eight, MmaType type) {
  __m128i const bits = _mm_load_si128(reinterpret_cast<__m128i const*>(eight));
  if (type == MmaType::kHalf) return _mm256_cvtph_ps(bits);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

void multiply(uint16_t const (*a)[16], uint16_t const (*b)[8], float (*c)[8], MmaType type,
              int depth) {
  alignas(32) float wide_a[16][16];
  __m256 wide_b[16];
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < depth; k += 8) _mm256_store_ps(&wide_a[i][k], widen(&a[i][k], type));
  }
  for (int k = 0; k < depth; ++k) wide_b[k] = widen(b[k], type);
  for (int i = 0; i < 16; ++i) {
    __m256 sum = _mm256_load_ps(c[i]);
    for (int k = 0; k < depth; ++k) {
      sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&wide_a[i][k]), wide_b[k], sum);
    }
    _mm256_store_ps(c[i], sum);
  }
}

#else

float widen(uint16_t bits, MmaType type) {
  if (type == MmaType::kBFloat16) {
    uint32_t const wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
  return __half2float(__ushort_as_half(bits));
}

void multiply(uint16_t const (*a)[16], uint16_t const (*b)[8], float (*c)[8], MmaType type,
              int depth) {
  float wide_a[16][16], wide_b[16][8];
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < depth; ++k) wide_a[i][k] = widen(a[i][k], type);
  }
  for (int k = 0; k < depth; ++k) {
    for (int j = 0; j < 8; ++j) wide_b[k][j] = widen(b[k][j], type);
  }
  // The products are exact in float, so this rounds as a fused multiply-add does.
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < depth; ++k) {
      for (int j = 0; j < 8; ++j) c[i][j] += wide_a[i][k] * wide_b[k][j];
    }
  }
}

#endif

// Gathers the fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"), multiplies, hands out.
void multiply_fragments(Warp& warp, MmaType type, int k) {
  alignas(32) uint16_t a[16][16], b[16][8];
  alignas(32) float c[16][8];
  auto& fragments = warp.mma;
  for (int l = 0; l < kWarpSize; ++l) {
    int const row = l / 4, col = l % 4 * 2;
    std::memcpy(&a[row][col], &fragments.a[l][0], 4);
    std::memcpy(&a[row + 8][col], &fragments.a[l][1], 4);
    std::memcpy(&a[row][col + 8], &fragments.a[l][2], 4);
    std::memcpy(&a[row + 8][col + 8], &fragments.a[l][3], 4);
    for (int half = 0; half < 2; ++half) {
      b[col + 8 * half][row] = uint16_t(fragments.b[l][half]);
      b[col + 8 * half + 1][row] = uint16_t(fragments.b[l][half] >> 16);
    }
    std::memcpy(&c[row][col], &fragments.c[l][0], 8);
    std::memcpy(&c[row + 8][col], &fragments.c[l][2], 8);
  }
  multiply(a, b, c, type, k);
  for (int l = 0; l < kWarpSize; ++l) {
    int const row = l / 4, col = l % 4 * 2;
    std::memcpy(&fragments.c[l][0], &c[row][col], 8);
    std::memcpy(&fragments.c[l][2], &c[row + 8][col], 8);
  }
}

}  // namespace

void mma(MmaOperands& operands, MmaType type, int k) {
  auto& fragments = current_warp().mma;
  int const lane = current->lane;
  std::memcpy(fragments.a[lane], operands.a, sizeof(operands.a));
  std::memcpy(fragments.b[lane], operands.b, sizeof(operands.b));
  std::memcpy(fragments.c[lane], operands.c, sizeof(operands.c));
  converge(Operation::kMma, uint32_t(type) << 8 | uint32_t(k), kAllLanes, [=](Warp& warp) {
    ++(k == 16 ? totals.mma : totals.mma_k8);
    multiply_fragments(warp, type, k);
    return true;
  });
  std::memcpy(operands.c, fragments.c[lane], sizeof(operands.c));
}

void load_matrix(void const* row, uint32_t* registers, int matrices, bool transposed) {
  void const* const site = __builtin_return_address(0);
  auto& matrix = current_warp().matrix;
  int const lane = current->lane;
  matrix.row[lane] = row;
  converge(Operation::kLoadMatrix, uint32_t(transposed) << 8 | uint32_t(matrices), kAllLanes,
           [=](Warp& warp) {
             load_matrices(warp, matrices, transposed, site);
             return true;
           });
  std::memcpy(registers, matrix.registers[lane], size_t(matrices) * 4);
}

uint32_t transpose_matrix(uint32_t fragment) {
  auto& matrix = current_warp().matrix;
  int const lane = current->lane;
  matrix.registers[lane][0] = fragment;
  converge(Operation::kTransposeMatrix, 0, kAllLanes, [](Warp& warp) {
    uint16_t element[kRows][8];
    for (int l = 0; l < kWarpSize; ++l) {
      std::memcpy(&element[l / 4][l % 4 * 2], &warp.matrix.registers[l][0], 4);
    }
    for (int l = 0; l < kWarpSize; ++l) {
      int const i = l / 4, j = l % 4 * 2;
      warp.matrix.registers[l][0] = element[j][i] | uint32_t(element[j + 1][i]) << 16;
    }
    return true;
  });
  return matrix.registers[lane][0];
}

}  // namespace emu
