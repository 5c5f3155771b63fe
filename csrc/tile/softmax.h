#pragma once

// Online softmax over the rows that one thread holds (core/online_softmax.h says what it computes).

#include <cute/tensor.hpp>

#include "core/online_softmax.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2 {

struct DeviceExp2 {
  CUTE_DEVICE float operator()(float x) const { return exp2_approx(x); }
};

// The largest, over the four lanes that share a row.
CUTE_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

CUTE_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// State of 16 kM rows of a warp: each lane holds two rows of every 16, and of their sums only the
// part of its own columns until the end.
template <int kM>
struct RowSoftmax {
  using PerRow = decltype(make_tensor<float>(Shape<_2, Int<kM>>{}));  // (row half, row block)
  PerRow base, sum;

  CUTE_DEVICE RowSoftmax() {
    fill(base, float(kEmptyBase));
    clear(sum);
  }

  // Largest score of each row among this lane's columns.
  template <class Scores>
  CUTE_DEVICE static PerRow lane_max(Scores& scores) {
    auto const s = row_col_view(scores);
    PerRow largest;
    CUTE_UNROLL
    for (int i = 0; i < size<0>(s); ++i) {
      largest(i) = s(i, 0);
      CUTE_UNROLL
      for (int j = 1; j < size<1>(s); ++j) largest(i) = fmaxf(largest(i), s(i, j));
    }
    return largest;
  }

  // Whether some row has outgrown its base so far that it must be rescaled. When the scale is NaN
  // all of them have.
  CUTE_DEVICE bool outgrown(PerRow const& largest, float scale) const {
    bool any = false;
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) {
      any = any || !(fmaf(largest(i), scale, -base(i)) <= kRescaleThreshold);
    }
    return any;
  }

  // Whether rounding has moved the product that some base is by more than 2^-4.
  CUTE_DEVICE bool has_large_base() const {
    bool any = false;
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) {
      any = any || (fabsf(base(i)) > 0x1p20f && base(i) != float(kEmptyBase));
    }
    return any;
  }

  // Whether some row has seen no key. A finite score may be below its base, for that is not folded.
  CUTE_DEVICE bool has_empty_row() const {
    bool any = false;
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) any = any || base(i) == float(kEmptyBase);
    return any;
  }

  // Raises every base to the row's maximum and scales what was accumulated relative to the old one.
  template <class Output>
  CUTE_DEVICE void rescale(PerRow const& row_max, float scale, Output& output) {
    auto o = row_col_view(output);
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) {
      float const raised = fmaxf(base(i), folded(row_max(i), scale));
      float const factor = exp2_approx(base(i) - raised);
      base(i) = raised;
      sum(i) *= factor;
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); ++j) o(i, j) *= factor;
    }
  }

  // Makes powers of two of scores, as bases are: `folded`, whose side and excess a row's base
  // tells. Scores of another size than it are too small to matter either way.
  template <class Scores>
  CUTE_DEVICE void fold(Scores& scores, float scale) const {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) {
      float const share = fabsf(base(i)) > 0x1p127f ? 0.5f : 1.f;
      float const factor = share * scale;
      float const offset = copysignf(share == 1.f ? 0.f : 0x1p126f, base(i));
      CUTE_UNROLL
      for (int j = 0; j < size<1>(s); ++j) s(i, j) = fmaf(s(i, j), factor, offset);
    }
  }

  // Probabilities relative to the base, rounded to the A operand of P * V.
  template <class Scores, class Probs>
  CUTE_DEVICE void exponentiate(Scores& scores, float scale, Probs& probs) {
    exponentiate(scores, scale, probs, [](int, float&, float&) {});
  }

  // weigh(n, p0, p1) changes what becomes of two columns of block n, their sums being as before.
  template <class Scores, class Probs, class Weigh>
  CUTE_DEVICE void exponentiate(Scores& scores, float scale, Probs& probs, Weigh const& weigh) {
    CUTE_UNROLL
    for (int k = 0; k < size<2>(probs); ++k) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) exponentiate(scores, scale, probs, m, k, weigh);
    }
  }

  // Those of 16 rows and 16 columns.
  template <class Scores, class Probs>
  CUTE_DEVICE void exponentiate(Scores const& scores, float scale, Probs& probs, int m, int k) {
    exponentiate(scores, scale, probs, m, k, [](int, float&, float&) {});
  }

  template <class Scores, class Probs, class Weigh>
  CUTE_DEVICE void exponentiate(Scores const& scores, float scale, Probs& probs, int m, int k,
                                Weigh const& weigh) {
    using Element = typename Probs::value_type;
    auto packed = recast<uint32_t>(probs);  // ((row half, 8-column half), row block, depth block)
    CUTE_UNROLL
    for (int r = 0; r < 4; ++r) {
      int const half = r % 2, n = 2 * k + r / 2;
      float p0 = exp2_approx(fmaf(scores(make_coord(0, half), m, n), scale, -base(half, m)));
      float p1 = exp2_approx(fmaf(scores(make_coord(1, half), m, n), scale, -base(half, m)));
      sum(half, m) += p0;
      sum(half, m) += p1;
      weigh(n, p0, p1);
      packed(r, m, k) = pack<Element>(p0, p1);
    }
  }
};

}  // namespace fa2
