#pragma once

#include <cute/tensor.hpp>

namespace fa2 {

using namespace cute;  // NOLINT: the kernels read as CuTe

// A tile of kRows x kCols 16-bit elements in shared memory, cut into sub-tiles of 16 columns:
//
//   ((row), (col in sub-tile, sub-tile)) : ((16), (1, kSubTile)),
//
// with the two 16-byte halves of a row exchanged where bit 2 of the row is set. Eight rows of one
// half then lie in eight different bank groups, so ldmatrix never conflicts; and since the
// exchange stays inside a sub-tile, every 16 x 16 block lies at a compile-time distance from
// block (0, 0): a lane needs one address register for the whole tile. The usual 128-byte XOR
// swizzle needs one per 64 columns.
//
// kPad elements between sub-tiles keep the 16-byte writes of cp.async conflict-free.
template <int kRows, int kCols, int kPad = 0>
struct SmemTile {
  static_assert(kRows % 16 == 0 && kCols % 16 == 0 && kPad % 8 == 0);
  static constexpr int kSubTile = kRows * 16 + kPad;
  static constexpr int kElements = kSubTile * (kCols / 16);

  using SubTile =
      decltype(composition(Swizzle<1, 3, 3>{}, Layout<Shape<Int<kRows>, _16>, Stride<_16, _1>>{}));
  // (16-row block, 16-column block) -> offset from the same place in block (0, 0)
  using Blocks = Layout<Shape<Int<kRows / 16>, Int<kCols / 16>>, Stride<_256, Int<kSubTile>>>;

  CUTE_HOST_DEVICE static int offset(int row, int col) {
    return SubTile{}(row, col % 16) + (col / 16) * kSubTile;
  }

  // The offset of the same place in the other 8 columns of its sub-tile.
  CUTE_HOST_DEVICE static int other_half(int offset) { return offset ^ 8; }
};

// Where each lane of a warp points in a 16 x 16 block for ldmatrix.x4, so that the four 8 x 8
// matrices arrive in the order of the mma.m16n8k16 operands.
struct LdsmLanes {
  int row;
  int col;

  // A operand from rows of A; also a B operand, transposed, from rows of B's transpose (V).
  CUTE_DEVICE static LdsmLanes rows_first(int lane) { return {lane % 16, lane / 16 * 8}; }
  // Two B operands (n, n + 8) from rows of B (K).
  CUTE_DEVICE static LdsmLanes cols_first(int lane) {
    return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
  }
};

// One lane's ldmatrix sources in a tile: (16-row block, 16-column block) -> address.
template <class Smem, class Element>
CUTE_DEVICE auto ldsm_view(Element* tile, LdsmLanes lanes, int first_row = 0) {
  return make_tensor(make_smem_ptr(tile + Smem::offset(first_row + lanes.row, lanes.col)),
                     typename Smem::Blocks{});
}

}  // namespace fa2
