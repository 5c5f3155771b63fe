#pragma once

// The one inner loop, C[rows][queries] = A B with A broadcast and B vectors of queries, and the two
// products made of it: scores = K Q^T and out = out * rescale + V^T P^T. Vector lanes are queries
// in both, so that row maxima and sums need no shuffles.

#include "cpu/level/simd.h"
#include "cpu/level/tiles.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class E, int kRows, int kVectors>
using Accumulators = Vec<typename E::Real>[kRows][kVectors];

// a[r * row_stride + i * depth_stride] is row r at depth i; b[i * lanes] are the queries there.
template <class E, int kRows, int kVectors>
FA2_CPU_INLINE void multiply(typename E::Operand const* a, int64_t row_stride, int64_t depth_stride,
                             typename E::Operand const* b, int depth,
                             Accumulators<E, kRows, kVectors>& sums) {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  constexpr int kWidth = kVectors * kLanes<Real>;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sums[r][n] = Vec<Real>{};
  }
#pragma GCC unroll kDepthSteps
  for (int i = 0; i < depth; ++i) {
    Vec<Operand> queries[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      queries[n] = load<Operand>(b + int64_t(i) * kWidth + n * kLanes<Real>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Vec<Operand> const entry = broadcast_from<Operand>(a + r * row_stride + i * depth_stride);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        sums[r][n] = E::multiply_add(sums[r][n], entry, queries[n]);
      }
    }
  }
}

// Calls step.operator()<rows>(first) over [0, count) in steps of kRows, then 4, 2 and 1.
template <int kRows, class Step>
FA2_CPU_INLINE void for_row_groups(int count, Step const& step) {
  int i = 0;
  for (; i + kRows <= count; i += kRows) step.template operator()<kRows>(i);
  if constexpr (kRows > 4) {
    if (i + 4 <= count) {
      step.template operator()<4>(i);
      i += 4;
    }
  }
  if (i + 2 <= count) {
    step.template operator()<2>(i);
    i += 2;
  }
  if (i < count) step.template operator()<1>(i);
}

// scores[key][query] = k[key] . q[query] for `num_keys` keys; `maxima`, if wanted, takes them in.
template <class E, int kVectors, bool kTrackMaxima = true>
__attribute__((noinline)) void multiply_keys(typename E::Operand const* keys, int64_t key_stride,
                                             int num_keys, typename E::Operand const* queries,
                                             int depth, typename E::Real* scores,
                                             typename E::Real* maxima) {
  using Real = typename E::Real;
  constexpr int kWidth = kVectors * kLanes<Real>;
  Vec<Real> top[kVectors];
  if constexpr (kTrackMaxima) {
    for (int n = 0; n < kVectors; ++n) top[n] = load<Real>(maxima + n * kLanes<Real>);
  }
  for_row_groups<kTileRows<kVectors>>(num_keys, [&]<int kRows>(int key) FA2_CPU_INLINE_LAMBDA {
    Accumulators<E, kRows, kVectors> sums;
    multiply<E, kRows, kVectors>(keys + key * key_stride, key_stride, 1, queries, depth, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        store(scores + (key + r) * kWidth + n * kLanes<Real>, sums[r][n]);
        if constexpr (kTrackMaxima) top[n] = max(sums[r][n], top[n]);
      }
    }
  });
  if constexpr (kTrackMaxima) {
    for (int n = 0; n < kVectors; ++n) store(maxima + n * kLanes<Real>, top[n]);
  }
}

// out[dim][query] = out[dim][query] * rescale[query] + sum over keys of v[key][dim] p[key][query].
// The block's sum is formed apart from `out`: rounding errors then grow with the number of blocks
// and not with the number of keys.
template <class E, int kVectors>
__attribute__((noinline)) void multiply_values(typename E::Operand const* values,
                                               int64_t value_stride, int depth,
                                               typename E::Operand const* probs, int head_dim,
                                               typename E::Real const* rescale,
                                               typename E::Real* out) {
  using Real = typename E::Real;
  constexpr int kWidth = kVectors * kLanes<Real>;
  for_row_groups<kTileRows<kVectors>>(head_dim, [&]<int kRows>(int dim) FA2_CPU_INLINE_LAMBDA {
    Accumulators<E, kRows, kVectors> sums;
    multiply<E, kRows, kVectors>(values + dim, 1, value_stride, probs, depth, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        Real* const target = out + (dim + r) * kWidth + n * kLanes<Real>;
        store(target, load<Real>(target) * load<Real>(rescale + n * kLanes<Real>) + sums[r][n]);
      }
    }
  });
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
