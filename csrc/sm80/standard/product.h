#pragma once

// C = A B by tiles of C, one to a CTA, with tensor cores: as plain as can be.

#include "sm80/standard/args.h"
#include "tile/copy.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"
#include "tile/smem_tile.h"

namespace fa2::sm80::standard {

using Element = half_t;

// Where row `row`, column `col` of a CTA's matrix lies.
template <class Args>
CUTE_DEVICE Element* at(Args const& args, Matrix const& matrix, int pair, int64_t row, int col) {
  return static_cast<Element*>(matrix.data) + pair / args.heads * matrix.batch_stride +
         pair % args.heads * matrix.head_stride + row * matrix.row_stride + col;
}

template <Form kForm, int kTileCols>
struct Product {
  using Args = ProductArgs;
  static constexpr int kRowWarps = 2, kColWarps = 2;
  static constexpr int kThreads = kRowWarps * kColWarps * 32;
  static constexpr int kCtasPerSm = 2;

 private:
  static constexpr bool kTransposedA = kForm == Form::kTransposedA;
  static constexpr bool kByRows = kForm == Form::kByRows;
  static constexpr int kM = kTileRows / (16 * kRowWarps);
  static constexpr int kN = kTileCols / (8 * kColWarps);

  // A tile as it lies in memory.
  template <int kRows, int kCols>
  struct Tile {
    using Copies = CopyShape<kRows, kCols, kThreads>;
    using Smem = SmemTile<kRows, kCols, Copies::kSmemPad>;
  };
  using TileA =
      conditional_t<kTransposedA, Tile<kTileDepth, kTileRows>, Tile<kTileRows, kTileDepth>>;
  using TileB = conditional_t<kByRows, Tile<kTileCols, kTileDepth>, Tile<kTileDepth, kTileCols>>;
  using TileC = Tile<kTileRows, kTileCols>;

  struct Factors {
    alignas(128) Element a[TileA::Smem::kElements];
    alignas(128) Element b[TileB::Smem::kElements];
  };
  union Smem {
    Factors factors;
    alignas(128) Element c[TileC::Smem::kElements];
  };

  using Accumulator = decltype(make_tensor<float>(AccumulatorLayout<kM, kN>{}));

 public:
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(Args const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    int const col_tiles = (args.cols + kTileCols - 1) / kTileCols;
    int const row_tiles = (args.rows + kTileRows - 1) / kTileRows;
    int const pair = blockIdx.x / (row_tiles * col_tiles);
    int const row = blockIdx.x / col_tiles % row_tiles * kTileRows;
    int const col = blockIdx.x % col_tiles * kTileCols;

    Accumulator acc;
    clear(acc);
    for (int depth = 0; depth < args.depth; depth += kTileDepth) {
      load(args, smem.factors, pair, row, col, depth);
      cp_async_fence();
      cp_async_wait_group<0>();
      __syncthreads();
      multiply(smem.factors, acc);
      __syncthreads();
    }
    store(args, smem.c, acc, pair, row, col);
  }

 private:
  CUTE_DEVICE static int lane() { return int(threadIdx.x) % 32; }
  CUTE_DEVICE static int first_row() { return int(threadIdx.x) / 32 / kColWarps * 16 * kM; }
  CUTE_DEVICE static int first_col() { return int(threadIdx.x) / 32 % kColWarps * 8 * kN; }

  CUTE_DEVICE static void load(Args const& args, Factors& smem, int pair, int row, int col,
                               int depth) {
    if constexpr (kTransposedA) {
      load_tile<TileA>(args, args.a, pair, depth, row, args.depth, args.rows, smem.a);
    } else {
      load_tile<TileA>(args, args.a, pair, row, depth, args.rows, args.depth, smem.a);
    }
    if constexpr (kByRows) {
      load_tile<TileB>(args, args.b, pair, col, depth, args.cols, args.depth, smem.b);
    } else {
      load_tile<TileB>(args, args.b, pair, depth, col, args.depth, args.cols, smem.b);
    }
  }

  // From (row, col) of a matrix of rows x cols on, as it lies in memory.
  template <class Tile>
  CUTE_DEVICE static void load_tile(Args const& args, Matrix const& matrix, int pair, int row,
                                    int col, int rows, int cols, Element* tile) {
    using Copies = typename Tile::Copies;
    int const thread = threadIdx.x;
    Element const* const from =
        at(args, matrix, pair, row + Copies::row(thread), col + Copies::col(thread));
    copy_tile<Copies, typename Tile::Smem>(
        reinterpret_cast<char const*>(from),
        matrix.row_stride * Copies::kRowsPerPass * int64_t(sizeof(Element)), rows - row, cols - col,
        tile);
  }

  CUTE_DEVICE static void multiply(Factors& smem, Accumulator& acc) {
    CUTE_UNROLL
    for (int k = 0; k < kTileDepth / 16; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_a(smem, k, m, rA(_, m));
      CUTE_UNROLL
      for (int n = 0; n < kN; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_b(smem, k, n / 2, flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA, rB);
      }
    }
  }

  template <class Fragment>
  CUTE_DEVICE static void load_a(Factors& smem, int k, int m, Fragment&& rA) {
    using Smem = typename TileA::Smem;
    int const block = first_row() / 16 + m;
    if constexpr (kTransposedA) {
      load_block<SM75_U16x8_LDSM_T>(
          ldsm_view<Smem>(smem.a, LdsmLanes::cols_first(lane()))(k, block), rA);
    } else {
      load_block<SM75_U32x4_LDSM_N>(
          ldsm_view<Smem>(smem.a, LdsmLanes::rows_first(lane()))(block, k), rA);
    }
  }

  template <class Fragment>
  CUTE_DEVICE static void load_b(Factors& smem, int k, int n, Fragment&& rB) {
    using Smem = typename TileB::Smem;
    int const block = first_col() / 16 + n;
    if constexpr (kByRows) {
      load_block<SM75_U32x4_LDSM_N>(
          ldsm_view<Smem>(smem.b, LdsmLanes::cols_first(lane()))(block, k), rB);
    } else {
      load_block<SM75_U16x8_LDSM_T>(
          ldsm_view<Smem>(smem.b, LdsmLanes::rows_first(lane()))(k, block), rB);
    }
  }

  // Rounds C and puts it where the factors were, so that whole rows can be stored.
  CUTE_DEVICE static void store(Args const& args, Element* tile, Accumulator& acc, int pair,
                                int row, int col) {
    using Smem = typename TileC::Smem;
    using Copies = typename TileC::Copies;
    CUTE_UNROLL
    for (int i = 0; i < size(acc); ++i) acc(i) *= args.scale;
    auto rounded = make_tensor<Element>(OperandLayout<kM, kN / 2>{});
    round_to_operand(acc, rounded);
    store_operand<Smem>(rounded, tile + first_col() / 16 * Smem::kSubTile,
                        operand_offset<Smem>(first_row(), lane()));
    __syncthreads();
    int const thread = threadIdx.x, tile_row = Copies::row(thread), tile_col = Copies::col(thread);
    store_tile<Copies, Smem, Copies::kPasses>(
        tile, tile_row, tile_col, at(args, args.c, pair, row + tile_row, col + tile_col),
        args.c.row_stride, args.rows - row, args.cols - col);
  }
};

}  // namespace fa2::sm80::standard
