#pragma once

// Register fragments of mma.m16n8k16 and the operations on them.

#include <cute/tensor.hpp>
#include <cutlass/numeric_conversion.h>

namespace fa2 {

using namespace cute;  // NOLINT: the kernels read as CuTe

template <class Element>
using MmaOp = conditional_t<is_same_v<Element, half_t>, SM80_16x8x16_F32F16F16F32_TN,
                            SM80_16x8x16_F32BF16BF16F32_TN>;

// Accumulators of (16 kM) x (8 kN): ((pair of columns, row half), row block, column block).
template <int kM, int kN>
using AccumulatorLayout = Layout<Shape<Shape<_2, _2>, Int<kM>, Int<kN>>>;

// A operands of (16 kM) x (16 kK): (register elements, row block, depth block).
template <int kM, int kK>
using OperandLayout = Layout<Shape<_8, Int<kM>, Int<kK>>>;

// Accumulators seen as (row, column): ((row half, row block), (pair, column block)).
template <class Tensor>
CUTE_DEVICE auto row_col_view(Tensor& acc) {
  auto const l = acc.layout();
  return make_tensor(acc.data(), make_layout(make_layout(get<0, 1>(l), get<1>(l)),
                                             make_layout(get<0, 0>(l), get<2>(l))));
}

// Coordinates, inside a warp's tile, of what row_col_view indexes: the part that depends on the
// index is static, the part that depends on the lane is one number each.
template <int kM>
using RowCoord = Layout<Shape<_2, Int<kM>>, Stride<_8, _16>>;
template <int kN>
using ColCoord = Layout<Shape<_2, Int<kN>>, Stride<_1, _8>>;

CUTE_DEVICE int lane_row(int lane) { return lane / 4; }
CUTE_DEVICE int lane_col(int lane) { return lane % 4 * 2; }

// ldmatrix.x4: one 16 x 16 block at `source` into 8 elements of `fragment`.
template <class Atom, class Source, class Fragment>
CUTE_DEVICE void load_block(Source const& source, Fragment&& fragment) {
  using Element = typename remove_cvref_t<Fragment>::value_type;
  copy(Copy_Atom<Atom, Element>{},
       make_tensor(make_smem_ptr(raw_pointer_cast(&source)), Layout<_8>{}), fragment);
}

// A pair of B operands (4, 2) as the one block that ldmatrix loads.
template <class Tensor>
CUTE_DEVICE auto flatten_block(Tensor& pair) {
  return make_tensor(pair.data(), Layout<_8>{});
}

// acc += a * b for one m16n8k16.
template <class Accumulator, class A, class B>
CUTE_DEVICE void mma(Accumulator&& acc, A const& a, B const& b) {
  using Element = typename remove_cvref_t<A>::value_type;
  gemm(MMA_Atom<MmaOp<Element>>{}, a, b, acc);
}

// acc(:, n : n + 2) += a * b: each B block meets all row blocks while it is in registers.
template <int kM, class Accumulator, class A, class B>
CUTE_DEVICE void multiply_blocks(Accumulator& acc, int n, A const& a, B const& b) {
  CUTE_UNROLL
  for (int j = 0; j < 2; ++j) {
    CUTE_UNROLL
    for (int m = 0; m < kM; ++m) mma(acc(_, m, n + j), a(_, m), b(_, j));
  }
}

// Two floats rounded to nearest even, packed in one register.
template <class Element>
CUTE_DEVICE uint32_t pack(float low, float high) {
  cutlass::Array<float, 2> const in{low, high};
  auto const out = cutlass::NumericArrayConverter<Element, float, 2>::convert(in);
  return reinterpret_cast<uint32_t const&>(out);
}

// Accumulators (kM, 2 kK) rounded to the A operand (kM, kK) of the next product.
template <class Accumulator, class Operand>
CUTE_DEVICE void round_to_operand(Accumulator const& acc, Operand& operand) {
  using Element = typename Operand::value_type;
  auto packed = recast<uint32_t>(operand);  // ((row half, 8-column half), row block, depth block)
  CUTE_UNROLL
  for (int k = 0; k < size<2>(operand); ++k) {
    CUTE_UNROLL
    for (int m = 0; m < size<1>(operand); ++m) {
      CUTE_UNROLL
      for (int r = 0; r < 4; ++r) {
        auto const pair = acc(make_coord(_, r % 2), m, 2 * k + r / 2);
        packed(r, m, k) = pack<Element>(pair(0), pair(1));
      }
    }
  }
}

}  // namespace fa2
