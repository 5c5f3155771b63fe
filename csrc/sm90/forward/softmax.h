#pragma once

// The online softmax of a step while the products of the step before it are on their way to the
// output: what that must be scaled by is found first, and applied when they are done.

#include "tile/softmax.h"

namespace fa2::sm90 {

struct OverlappedSoftmax : RowSoftmax<1> {
  // Raises every base to the row's maximum, and returns what was accumulated relative to the old
  // one must be multiplied by. Sums are.
  CUTE_DEVICE PerRow raise(PerRow const& row_max, float scale) {
    PerRow factor;
    CUTE_UNROLL
    for (int i = 0; i < size(base); ++i) {
      float const raised = fmaxf(base(i), folded(row_max(i), scale));
      factor(i) = exp2_approx(base(i) - raised);
      base(i) = raised;
      sum(i) *= factor(i);
    }
    return factor;
  }

  // Scores become probabilities relative to the base, in their place.
  template <class Scores>
  CUTE_DEVICE void exponentiate(Scores& scores, float scale) {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int j = 0; j < size<1>(s); ++j) {
      CUTE_UNROLL
      for (int i = 0; i < size<0>(s); ++i) {
        s(i, j) = exp2_approx(fmaf(s(i, j), scale, -base(i)));
        sum(i) += s(i, j);
      }
    }
  }
};

template <class Output, class PerRow>
CUTE_DEVICE void scale_rows(Output& output, PerRow const& factor) {
  auto o = row_col_view(output);
  CUTE_UNROLL
  for (int j = 0; j < size<1>(o); ++j) {
    CUTE_UNROLL
    for (int i = 0; i < size<0>(o); ++i) o(i, j) *= factor(i);
  }
}

}  // namespace fa2::sm90
