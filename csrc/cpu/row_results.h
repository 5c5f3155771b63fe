#pragma once

// What a row of the forward pass leaves: its output and lse, or, where keys are cut into parts, a
// partial result of each part; and how partial results become one.

#include "core/online_softmax.h"
#include "cpu/chunk.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class Real>
FA2_CPU_INLINE RowStateOf<Real> merged(RowStateOf<Real> a, RowStateOf<Real> b) {
  return merge(a, b, [](Real x) FA2_CPU_INLINE_LAMBDA { return exp2_of(x); });
}

// One row of one part: the state of a row and its output relative to the base.
template <class E>
struct PartResult {
  using Real = typename E::Real;

  RowStateOf<Real>* state;
  Real* out;

  static int64_t length(int head_dim) { return kLanes<Real> + round_up(head_dim, kLanes<Real>); }
  PartResult(void* rows, int64_t index, int head_dim) {
    Real* const row = static_cast<Real*>(rows) + index * length(head_dim);
    state = reinterpret_cast<RowStateOf<Real>*>(row);
    out = row + kLanes<Real>;
  }
};

template <class E>
class RowResults : protected ChunkQueries<E> {
 protected:
  using Base = ChunkQueries<E>;
  using Base::chunk_, Base::params_, Base::rule_;
  using typename Base::Query;
  using typename Base::Real;

  using Base::Base;

  RowStateOf<Real> empty_row() const { return {rule_.empty_base * rule_.scale, 0}; }

  // Writes lse and returns the factor of the output.
  Real finish_row(RowStateOf<Real> row, Query query) const {
    Real factor = 1;
    if (params_.sink != nullptr) {
      RowStateOf<Real> const sink = {Real(params_.sink[Base::head_of(query)] * kLog2eDouble), 1};
      RowStateOf<Real> const with_sink = merged(row, sink);
      factor = exp2_of(row.base - with_sink.base);
      row = with_sink;
    }
    Real const lse = row.base * Real(kLn2Double) + log_of(row.sum);
    params_.lse[Base::lse_of(query)] = row.sum == 0 ? -__builtin_inff() : float(lse);
    if (Base::drops()) factor *= Base::keep_factor();
    return row.sum == 0 ? 0 : factor / row.sum;
  }
};

// The results of a chunk from those of its parts, always merged in the same order.
template <class E>
class PartMerger : RowResults<E> {
  using Base = RowResults<E>;
  using Base::chunk_, Base::group_, Base::params_;
  using typename Base::Query;
  using typename Base::Real;

 public:
  PartMerger(FwdParams const& params, ForwardChunk const& chunk, int32_t num_parts)
      : Base(params, chunk.queries),
        num_heads_(chunk.num_heads),
        partial_(chunk.partial),
        num_parts_(num_parts) {}

  void run() const {
    int index = 0;
    for (int head = 0; head < num_heads_; ++head) {
      Query query = Base::first_query(0);
      for (int i = 0; i < chunk_.count; ++i, query = Base::next(query)) {
        merge_row(index++, {query.row, head * group_ + query.in_group});
      }
    }
  }

 private:
  PartResult<E> part(int32_t index, int row) const {
    return {partial_, int64_t(index) * num_heads_ * chunk_.count + row, params_.head_dim};
  }

  void merge_row(int index, Query query) const {
    RowStateOf<Real> row = Base::empty_row();
    for (int32_t p = 0; p < num_parts_; ++p) {
      Real const base = part(p, index).state->base;
      if (base > row.base) row.base = base;
    }
    Real factors[kMaxParts];
    for (int32_t p = 0; p < num_parts_; ++p) {
      RowStateOf<Real> const state = *part(p, index).state;
      factors[p] = exp2_of(state.base - row.base);
      row.sum += state.sum * factors[p];
    }
    Real const scale = Base::finish_row(row, query);

    typename E::Storage* const out = Base::row_ptr(params_.out, query);
    for (int d = 0; d < params_.head_dim; d += kLanes<Real>) {
      Vec<Real> sum = {};
      for (int32_t p = 0; p < num_parts_; ++p) {
        sum += load<Real>(part(p, index).out + d) * factors[p];
      }
      store_row<E>(out + d, sum * scale, params_.head_dim - d);
    }
  }

  int const num_heads_;
  void* const partial_;
  int32_t const num_parts_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
