#pragma once

// Copies between global and shared memory, 16 bytes a thread.

#include <cute/tensor.hpp>

#include "tile/intrinsics.h"
#include "tile/smem_tile.h"

namespace fa2 {

// How kThreads threads cover a tile of 16-bit elements: each row by kThreadsPerRow neighbours, so
// that a warp reads whole 64- or 128-byte segments, in passes of kRowsPerPass rows.
template <int kRows, int kCols, int kThreads>
struct CopyShape {
  static constexpr int kThreadsPerRow = kCols % 64 == 0 ? 8 : 4;
  static constexpr int kChunks = kCols / (8 * kThreadsPerRow);  // 16-byte chunks a thread and row
  static constexpr int kRowsPerPass = kThreads / kThreadsPerRow;
  static constexpr int kPasses = kRows / kRowsPerPass;
  // Puts the sub-tiles that one pass writes at once into different banks.
  static constexpr int kSmemPad = kThreadsPerRow == 8 ? 16 : 32;

  static_assert(kCols % (8 * kThreadsPerRow) == 0 && kRows % kRowsPerPass == 0);

  CUTE_DEVICE static int row(int thread) { return thread / kThreadsPerRow; }
  CUTE_DEVICE static int col(int thread) { return thread % kThreadsPerRow * 8; }
  // The thread's chunks in the tile: (pass, chunk) -> offset from its first one.
  template <class Smem>
  using SmemChunks =
      Layout<Shape<Int<kPasses>, Int<kChunks>>,
             Stride<Int<kRowsPerPass * 16>, Int<kThreadsPerRow / 2 * Smem::kSubTile>>>;
};

enum class Rows { kBounded, kAll };  // check rows against the end of the sequence, or not

// Streams the tiles of K or V into one shared buffer with cp.async, from the last to the first: the
// one pointer only ever steps back by a pass.
template <class Element, int kRows, int kCols, int kThreads, int kPad>
class TileStream {
 public:
  using Copies = CopyShape<kRows, kCols, kThreads>;
  using Smem = SmemTile<kRows, kCols, kPad>;
  static constexpr int kPasses = Copies::kPasses;
  static constexpr int kChunks = Copies::kChunks;
  static_assert(Copies::kRowsPerPass % 8 == 0, "a pass must keep the swizzle bit");

  // `rows` points at row 0 of the sequence; tile `last` will be loaded first. `pass_stride` is the
  // distance of one pass in bytes.
  CUTE_DEVICE TileStream(Element const* rows, int64_t row_stride, int64_t pass_stride, int head_dim,
                         int last, Element* smem)
      : pass_stride_(pass_stride) {
    int const thread = threadIdx.x;
    int const row = Copies::row(thread), col = Copies::col(thread);
    int64_t const first_row = int64_t(last) * kRows + kRows + row;  // load() steps back first
    source_ = reinterpret_cast<char const*>(rows + first_row * row_stride + col);
    target_ = smem + Smem::offset(row, col);
    constexpr int kChunkStep = 8 * Copies::kThreadsPerRow;
    chunks_ = (head_dim - col + kChunkStep - 1) / kChunkStep;
  }

  // Loads the next tile; with kBounded only the first `rows` of it. All else becomes zero, as do
  // columns beyond head_dim.
  template <Rows kCheck>
  CUTE_DEVICE void load(int rows) {
    auto const chunks =
        make_tensor(make_smem_ptr(target_), typename Copies::template SmemChunks<Smem>{});
    int const row = kCheck == Rows::kBounded ? Copies::row(thread_index()) : 0;
    CUTE_UNROLL
    for (int pass = kPasses - 1; pass >= 0; --pass) {
      source_ -= pass_stride_;
      opaque(source_);  // one live pointer, not one for each pass
      CUTE_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        auto const& from = reinterpret_cast<uint128_t const*>(source_)[c * Copies::kThreadsPerRow];
        auto& to = reinterpret_cast<uint128_t&>(chunks(pass, c));
        bool const inside = kCheck == Rows::kAll || row + pass * Copies::kRowsPerPass < rows;
        SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(from, to, inside && c < chunks_);
      }
    }
    cp_async_fence();
  }

 private:
  char const* source_;
  Element* target_;
  int64_t pass_stride_;
  int chunks_;  // how many of this thread's chunks of a row lie inside head_dim
};

// Starts the copy of one tile, this thread's share of it. `source` is the first row in memory at
// this thread's row and column; rows from `rows` on and columns from `head_dim` on become zero.
template <class Copies, class Smem, class Element>
CUTE_DEVICE void copy_tile(char const* source, int64_t pass_bytes, int rows, int head_dim,
                           Element* tile) {
  int const thread = thread_index();
  int const row = Copies::row(thread), col = Copies::col(thread);
  auto const chunks = make_tensor(make_smem_ptr(tile + Smem::offset(row, col)),
                                  typename Copies::template SmemChunks<Smem>{});
  CUTE_UNROLL
  for (int pass = 0; pass < Copies::kPasses; ++pass) {
    CUTE_UNROLL
    for (int c = 0; c < Copies::kChunks; ++c) {
      auto const& from = reinterpret_cast<uint128_t const*>(source)[c * Copies::kThreadsPerRow];
      auto& to = reinterpret_cast<uint128_t&>(chunks(pass, c));
      bool const inside = row + pass * Copies::kRowsPerPass < rows &&
                          col + c * 8 * Copies::kThreadsPerRow < head_dim;
      SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(from, to, inside);
    }
    source += pass_bytes;
  }
}

// The way back, for a thread whose first row and column of the tile are given, in kPasses steps of
// rows. `to` is where they lie in memory; what copy_tile fills with zeros is not stored.
template <class Copies, class Smem, int kPasses, class Element>
CUTE_DEVICE void store_tile(Element const* tile, int row, int col, Element* to, int64_t row_stride,
                            int rows, int head_dim) {
  CUTE_UNROLL
  for (int pass = 0; pass < kPasses; ++pass) {
    CUTE_UNROLL
    for (int c = 0; c < Copies::kChunks; ++c) {
      int const chunk = c * Copies::kThreadsPerRow * 8;
      if (row < rows && col + chunk < head_dim) {
        *reinterpret_cast<uint128_t*>(to + chunk) =
            *reinterpret_cast<uint128_t const*>(tile + Smem::offset(row, col + chunk));
      }
    }
    row += Copies::kRowsPerPass;
    to += Copies::kRowsPerPass * row_stride;
  }
}

}  // namespace fa2
