#pragma once

// Adds up the results of splits, in the order of the splits, and finishes a row. A CTA that has all
// splits and the combine kernel do the same operations, to the bit: products and sums whose fusion
// would be left to the compiler are fused by hand.

#include <cute/config.hpp>

#include "core/online_softmax.h"
#include "tile/softmax.h"

namespace fa2::sm80 {

// What both sides of a sum are multiplied by.
struct SumFactors {
  float before;
  float split;
};

// `base` is that of the sum, the larger one of the two.
CUTE_DEVICE SumFactors sum_factors(float base_before, float base_split, float base) {
  return {exp2_approx(base_before - base), exp2_approx(base_split - base)};
}

CUTE_DEVICE float added(float before, float split, SumFactors factors) {
  return fmaf(before, factors.before, split * factors.split);
}

CUTE_DEVICE RowState empty_row() { return {kEmptyBase, 0.f}; }

// A row's natural-log normaliser, and what its sum of outputs is multiplied by.
struct FinishedRow {
  float lse;
  float scale;
};

CUTE_DEVICE FinishedRow finish_row(RowState row, float const* sink) {
  RowState whole = row;
  if (sink != nullptr) whole = merge_sink(row, *sink, DeviceExp2{});
  // The sink may have raised the base, which the outputs are relative to.
  return {row_lse(whole), row_scale(whole) * exp2_approx(row.base - whole.base)};
}

}  // namespace fa2::sm80
