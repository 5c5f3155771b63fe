#pragma once

// Online softmax over one row, in base 2 (Milakov and Gimelshein 2018; FlashAttention-2
// section 3.1). The state is `base`, to which probabilities are relative, and `sum` of exp2(score -
// base).

#include <cmath>

#include "core/macros.h"
#include "core/score_mod.h"

namespace fa2 {

// The base before any key was seen: finite, so that exp2(-inf - base) is 0 and never NaN.
inline constexpr float kEmptyBase = -3.402823466e38f;

// A row is rescaled only when its maximum has outgrown the base by this many powers of two:
// probabilities stay below 2^8, exact in relative terms, and most tiles skip the rescale.
inline constexpr float kRescaleThreshold = 8.f;

struct RowState {
  float base;
  float sum;
};

// The one merge rule: the state of a row over two disjoint sets of keys. What was accumulated
// relative to one of them counts in the merged row by the factor exp2(its base - merged base).
// exp2 comes from the caller: each family has its own.
template <class Exp2>
FA2_HD RowState merge(RowState a, RowState b, Exp2 const& exp2) {
  float const base = a.base > b.base ? a.base : b.base;
  return {base, a.sum * exp2(a.base - base) + b.sum * exp2(b.base - base)};
}

// A sink is one more key, which has no value.
template <class Exp2>
FA2_HD RowState merge_sink(RowState row, float sink, Exp2 const& exp2) {
  return merge(row, {sink * kLog2e, 1.f}, exp2);
}

// The state of a row whose natural-log normaliser is `lse`, of outputs that are normalised by it.
FA2_HD RowState finished_row(float lse) {
  return lse == -INFINITY ? RowState{kEmptyBase, 0.f} : RowState{lse * kLog2e, 1.f};
}

// Natural-log normaliser; -inf for a row that attends to nothing. NaN stays NaN.
FA2_HD float row_lse(RowState row) {
  return row.sum == 0.f ? -INFINITY : row.base * kLn2 + logf(row.sum);
}

// What the output accumulator is multiplied by; 0 for a row that attends to nothing.
FA2_HD float row_scale(RowState row) { return row.sum == 0.f ? 0.f : 1.f / row.sum; }

}  // namespace fa2
