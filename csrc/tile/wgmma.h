#pragma once

// Products of a warpgroup, asynchronous.
//
// A warp of four has 16 rows of the 64. Its accumulators of 64 x 8 kN and its A operands in
// registers lie as those of mma.m16n8k16 (tile/fragments.h), so that whatever is done to these
// serves both.

#include "tile/fragments.h"
#include "tile/hopper.h"
#include "tile/wgmma_operations.h"

namespace fa2 {

// A tile of rows x columns in shared memory, as copies of boxes leave it: one box of columns behind
// the other, each with rows of 128 bytes, or of 64 where the width asks for it, that are swizzled
// over their length. Boxes may hold more columns than are used of them.
template <int kRows_, int kCols_, int kBoxCols_ = kCols_ % 64 == 0 ? 64 : 32,
          int kUsedCols_ = kBoxCols_>
struct WgmmaTile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static constexpr int kBoxCols = kBoxCols_, kUsedCols = kUsedCols_;
  static constexpr int kBoxes = kCols / kUsedCols;
  static constexpr int kBoxElements = kRows * kBoxCols;
  static constexpr int kElements = kBoxes * kBoxElements;
  static constexpr int kDepthBlocks = kCols / 16;

  static constexpr uint32_t kRowBytes = 2 * kBoxCols;
  static constexpr uint32_t kBoxBytes = kRows * kRowBytes;
  static_assert(kRows % 8 == 0 && kCols % kUsedCols == 0 && kUsedCols % 16 == 0);

  // Descriptors (PTX ISA, "Matrix descriptor format"). Of rows from `row` on and 16 columns, with
  // the depth along the columns:
  CUTE_DEVICE static uint64_t rows_at(void const* tile, int row, int k) {
    constexpr int kStepsPerBox = kUsedCols / 16;
    uint32_t const place = k / kStepsPerBox * kBoxBytes + k % kStepsPerBox * 32;
    return descriptor(shared_address(tile) + row * kRowBytes, place, 0);
  }
  // Of all columns, or those from a box on, and 16 rows, with the depth along the rows:
  CUTE_DEVICE static uint64_t cols_at(void const* tile, int k, int box = 0) {
    return descriptor(shared_address(tile) + box * kBoxBytes, k * 16 * kRowBytes, kBoxBytes);
  }

  // Where 8 columns of a row begin, in bytes.
  CUTE_DEVICE static uint32_t place_of(int row, int col) {
    static_assert(kBoxCols == 64);
    return col / 64 * kBoxBytes + row * kRowBytes + (col % 64 / 8 ^ row % 8) * 16;
  }
  // The address of other columns of a box differs in these bits, as tiles begin at multiples of
  // 1024.
  CUTE_DEVICE static constexpr uint32_t distance_of(int cols) { return cols / 8 * 16; }

 private:
  // Boxes of columns are `leading` bytes apart, groups of 8 rows what these take.
  CUTE_DEVICE static uint64_t descriptor(uint32_t begin, uint32_t place, uint32_t leading) {
    constexpr uint32_t kSwizzle = kBoxCols == 64 ? 1 : 2;
    uint32_t const low = (begin >> 4) + ((place >> 4) | (leading >> 4) << 16);
    uint32_t const high = (8 * kRowBytes >> 4) | kSwizzle << 30;
    return uint64_t(high) << 32 | low;
  }
};

// Keeps in front of this what computes these values, and behind it what uses them.
template <class Tensor>
CUTE_DEVICE void pin(Tensor& values) {
  CUTE_UNROLL
  for (int i = 0; i < size(values); ++i) asm volatile("" : "+f"(values(i))::"memory");
}

// Products follow that read what this thread has in registers, accumulators included. Operands are
// pinned by whoever has some.
template <class Accumulator>
CUTE_DEVICE void begin_product(Accumulator& acc) {
  pin(acc);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
CUTE_DEVICE void end_product() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Starts acc = A B' for the 64 rows of A from `row` on, or acc += A B'; both tiles are row by row.
template <class TileA, class TileB, bool kAdds = false, class Accumulator, class Element>
CUTE_DEVICE void start_rows_product(Accumulator& acc, Element const* a, int row, Element const* b) {
  constexpr int kN = decltype(size(acc))::value * 2;
  begin_product(acc);
  CUTE_UNROLL
  for (int k = 0; k < TileA::kDepthBlocks; ++k) {
    Wgmma<Element, kN>::from_shared(&acc(0), TileA::rows_at(a, row, k), TileB::rows_at(b, 0, k),
                                    kAdds || k > 0);
  }
  end_product();
}

struct WholeDepth {
  CUTE_DEVICE bool operator()(int) const { return true; }
};

// Starts acc += A B, with A in registers (tile/fragments.h), over the blocks of depth that
// `takes(k)`, which is the same in all of the warpgroup.
template <class TileB, class Accumulator, class Operand, class Element, class Takes = WholeDepth>
CUTE_DEVICE void start_cols_product(Accumulator& acc, Operand& a, Element const* b,
                                    Takes const& takes = {}) {
  constexpr int kN = decltype(size(acc))::value * 2;
  auto packed = recast<uint32_t>(a);  // (register, row block, depth block)
  CUTE_UNROLL
  for (int i = 0; i < size(packed); ++i) asm volatile("" : "+r"(packed(i))::"memory");
  begin_product(acc);
  CUTE_UNROLL
  for (int k = 0; k < size<2>(a); ++k) {
    if (!takes(k)) continue;
    uint32_t const words[4] = {packed(0, 0, k), packed(1, 0, k), packed(2, 0, k), packed(3, 0, k)};
    Wgmma<Element, kN>::from_registers(&acc(0), words, TileB::cols_at(b, k), 1);
  }
  end_product();
}

// Starts acc = A' B, for the columns of B from a box on. Of kRows rows of both, from where they
// begin, a multiple of 8.
template <class TileA, class TileB, int kRows = TileA::kRows, class Accumulator, class Element>
CUTE_DEVICE void start_transposed_product(Accumulator& acc, Element const* a, Element const* b,
                                          int box) {
  constexpr int kN = decltype(size(acc))::value * 2;
  static_assert(TileA::kCols == 64 && TileA::kRows == TileB::kRows);
  begin_product(acc);
  CUTE_UNROLL
  for (int k = 0; k < kRows / 16; ++k) {
    Wgmma<Element, kN>::from_columns(&acc(0), TileA::cols_at(a, k), TileB::cols_at(b, k, box),
                                     k > 0);
  }
  end_product();
}

// Until at most kPending of the products that were started are not done; `acc` is of one that is.
template <int kPending, class Accumulator>
CUTE_DEVICE void wait_for_products(Accumulator& acc) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  pin(acc);
}

}  // namespace fa2
