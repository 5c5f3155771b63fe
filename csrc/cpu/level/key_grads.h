#pragma once

// Gradients of keys and values: dV += P^T dO and dK += dS^T Q. Lanes are head dims, the sum runs
// over the queries of a chunk.

#include "cpu/level/chunk.h"
#include "cpu/level/microkernel.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Rows of Q or dO of a chunk, as operands of products over queries. Head dims are cut into panels
// of up to kTileVectors vectors, each stored [query / kDepth][dim].
template <class E>
struct QueryPanels {
  using Operand = typename E::Operand;
  static constexpr int kSize = kLanes<Operand>;
  static constexpr int kPanelDims = kTileVectors * kSize;

  Operand* data;
  int64_t rows;  // per panel
  int vectors;   // of a whole row

  // Of an even number of queries.
  static int64_t operands(int num_queries, int head_dim) {
    return int64_t(num_queries) / E::kDepth * round_up(head_dim, kSize);
  }
  Operand* panel(int index) const { return data + index * rows * kPanelDims; }
  int panel_vectors(int index) const {
    return smaller(kTileVectors, vectors - index * kTileVectors);
  }
  int num_panels() const { return (vectors + kTileVectors - 1) / kTileVectors; }

  // Writes the rows of queries [first, first + count); `first` is a multiple of kDepth.
  void pack(int first, int count, typename E::Storage const* const* from, int head_dim) const {
    for (int index = 0; index < num_panels(); ++index) {
      int const width = panel_vectors(index) * kSize;
      Operand* to = panel(index) + int64_t(first) / E::kDepth * width;
      for (int i = 0; i < count; i += E::kDepth, to += width) {
        typename E::Storage const* const partner = partner_of<E>(from, i, count);
        for (int d = 0; d < width; d += kSize) {
          int const dim = index * kPanelDims + d;
          store(to + d, load_values<E>(from[i], partner, dim, head_dim - dim));
        }
      }
    }
  }
};

// Which queries of a chunk see a key: of those in `queries`, the ones whose window holds it.
struct LaneWindow {
  QueryChunk const& chunk;
  Window const& window;
  int32_t group;
  int32_t diagonal;  // the key that the first query of the sequence stands on
  RowRange queries;

  // A range that holds those of keys first ... last.
  FA2_CPU_INLINE RowRange of_keys(int32_t first, int32_t last) const {
    return {inside(rows_of(first).begin), inside(rows_of(last).end)};
  }

 private:
  FA2_CPU_INLINE RowRange rows_of(int32_t key) const {
    ColRange const rows = cols_around(key - diagonal, chunk.q_seq.length, mirrored(window));
    return {rows.begin, rows.end};
  }
  FA2_CPU_INLINE int32_t inside(int32_t row) const {
    int64_t const query = int64_t(row) * group - chunk.first;
    return int32_t(query < queries.begin ? queries.begin
                                         : (query < queries.end ? query : queries.end));
  }
};

// grads[key][dim] += sum over queries of weights[key][query] rows[query][dim] for the keys
// [first, first + num_keys), whose weights and gradients come first. Rows of weights are zero where
// a query does not see the key; runs of such queries are skipped.
template <class E, int kVectors>
__attribute__((noinline)) void multiply_queries(typename E::Operand const* weights,
                                                int64_t weight_stride, LaneWindow const& window,
                                                int32_t first, int num_keys,
                                                typename E::Operand const* rows,
                                                typename E::Real* grads, int64_t grad_stride) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  for_row_groups<kTileRows<kVectors>>(num_keys, [&]<int kRows>(int key) FA2_CPU_INLINE_LAMBDA {
    RowRange const lanes = window.of_keys(first + key, first + key + kRows - 1);
    int const begin = lanes.begin / E::kDepth;
    int const end = (lanes.end + E::kDepth - 1) / E::kDepth;
    if (begin >= end) return;
    Accumulators<E, kRows, kVectors> sums;
    multiply<E, kRows, kVectors>(weights + key * weight_stride + begin, weight_stride, 1,
                                 rows + int64_t(begin) * kVectors * kSize, end - begin, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        Real* const target = grads + (key + r) * grad_stride + n * kSize;
        store(target, load<Real>(target) + sums[r][n]);
      }
    }
  });
}

// The sums of one KV head of one sequence, [key][stride] each.
template <class E>
struct KeyGradSums {
  using Real = typename E::Real;

  Real* grad_k;  // before the softmax scale
  Real* grad_v;  // before the survivors' factor of dropout
  int64_t stride_k;
  int64_t stride_v;

  KeyGradSums(void* memory, int32_t seqlen_k, HeadDims const& dims)
      : grad_k(static_cast<Real*>(memory)), stride_k(padded(dims.qk)), stride_v(padded(dims.v)) {
    grad_v = grad_k + seqlen_k * stride_k;
  }
  void clear(ColRange keys) const {
    size_t const count = keys.end - keys.begin;
    if (count == 0) return;  // without keys there is no memory either
    __builtin_memset(grad_k + keys.begin * stride_k, 0, count * stride_k * sizeof(Real));
    __builtin_memset(grad_v + keys.begin * stride_v, 0, count * stride_v * sizeof(Real));
  }
  static size_t bytes(int32_t seqlen_k, HeadDims const& dims) {
    return size_t(seqlen_k) * (padded(dims.qk) + padded(dims.v)) * sizeof(Real);
  }

 private:
  static int64_t padded(int32_t head_dim) { return round_up(head_dim, kLanes<Real>); }
};

// Rows of sums times `factor`, as rows of a tensor.
template <class E>
void write_rows(typename E::Storage* to, int64_t to_stride, typename E::Real const* from,
                int64_t from_stride, typename E::Real factor, int32_t num_keys, int32_t head_dim) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  constexpr int kRowsAhead = 8;
  for (int32_t key = 0; key < num_keys; ++key, to += to_stride, from += from_stride) {
    if (key + kRowsAhead < num_keys) fetch_row<1>(to + kRowsAhead * to_stride, head_dim);
    for (int d = 0; d < head_dim; d += kSize) {
      store_row<E>(to + d, load<Real>(from + d) * factor, head_dim - d);
    }
  }
}

// The same, added to rows of Reals.
template <class Real>
void add_key_rows(Real* to, int64_t to_stride, Real const* from, int64_t from_stride, Real factor,
                  int32_t num_keys, int32_t head_dim) {
  for (int32_t key = 0; key < num_keys; ++key, to += to_stride, from += from_stride) {
    for (int d = 0; d < head_dim; d += kLanes<Real>) {
      add_to_row<Real>(to + d, load<Real>(from + d) * factor, Real(1), head_dim - d);
    }
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
