#pragma once

// What every backward kernel needs to know of a row.

#include <cute/tensor.hpp>

#include <cfloat>

#include "core/online_softmax.h"
#include "core/seq_info.h"

namespace fa2::sm80 {

using namespace cute;  // NOLINT: the kernels read as CuTe

// Of each row the log-sum-exp in base 2, with +inf where it is -inf so that probabilities come out
// as 0, and -D: D = sum(dO * O) - dlse is what the softmax subtracts from dP. With dropout D is in
// units of 1 / keep_prob, like dP before that factor. So many neighbouring lanes work on a row, and
// all of them have the result.
template <class Element>
struct RowStats {
  static constexpr int kLanes = 8;

  float lse = INFINITY;  // where no row exists, probabilities are 0 too
  float minus_delta = 0;

  // What rows are asked of.
  struct Source {
    FwdParams const& problem;
    TensorRef const& grad_out;
    float const* grad_lse;
    float keep_prob;
    int32_t batch;
    int32_t head;
    int64_t first_row_q;  // of the sequence
  };

  // All lanes of a warp call it, `exists` or not.
  CUTE_DEVICE static RowStats of(Source const& source, int row, bool exists, int lane) {
    float delta = sum_over_row(exists ? lane_product(source, row, lane) : 0.f);
    RowStats stats;
    if (!exists) return stats;
    FwdParams const& p = source.problem;
    int64_t const at = lse_index(p, source.batch, source.first_row_q, source.head) + row;
    if (p.partial_lse != nullptr) {
      double const natural = p.partial_lse[at];
      if (natural != -INFINITY) stats.lse = bound_of(float(natural * kLog2eDouble));
    } else {
      float const natural = p.lse[at];
      if (natural != -INFINITY) stats.lse = bound_of(natural * kLog2e);
    }
    if (source.grad_lse != nullptr) delta -= source.grad_lse[at];
    stats.minus_delta = -delta * source.keep_prob;
    return stats;
  }

 private:
  // Not below the logarithm of the row's sum, whatever was rounded on the way from the scores to
  // it: no probability that is recomputed from it exceeds 1, however large the scores.
  CUTE_DEVICE static float bound_of(float log2_of_sum) {
    constexpr float kRelative = 0x1p-22f, kAbsolute = 0x1p-16f;
    // Of -inf no bound is left.
    float const log2_sum = log2_of_sum < -FLT_MAX ? -FLT_MAX : log2_of_sum;
    return log2_sum + (fabsf(log2_sum) * kRelative + kAbsolute);
  }

  // This lane's share of sum(dO * O) of a row.
  CUTE_DEVICE static float lane_product(Source const& source, int row, int lane) {
    Element const* const out = row_of(source.problem.out, source, row);
    Element const* const grad = row_of(source.grad_out, source, row);
    float sum = 0.f;
    for (int col = lane * 8; col < source.problem.head_dim_v; col += kLanes * 8) {
      auto const o = *reinterpret_cast<cutlass::AlignedArray<Element, 8> const*>(out + col);
      auto const g = *reinterpret_cast<cutlass::AlignedArray<Element, 8> const*>(grad + col);
      CUTE_UNROLL
      for (int i = 0; i < 8; ++i) sum += float(o[i]) * float(g[i]);
    }
    return sum;
  }

  CUTE_DEVICE static float sum_over_row(float sum) {
    CUTE_UNROLL
    for (int distance = 1; distance < kLanes; distance *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    return sum;
  }

  CUTE_DEVICE static Element const* row_of(TensorRef const& t, Source const& source, int row) {
    return head_ptr<Element const>(t, source.batch, source.first_row_q, source.head) +
           row * t.row_stride;
  }
};

}  // namespace fa2::sm80
