#pragma once

// What a row of the forward pass leaves: its output and lse, or, where keys are cut into splits, a
// partial result of each split; and how partial results become one.

#include "cpu/level/chunk.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// One row of one split: the state of a row and its output relative to the base.
template <class E>
struct SplitResult {
  using Real = typename E::Real;
  static constexpr int kStateLength =
      round_up(int(sizeof(RowState<Real>) / sizeof(Real)), kLanes<Real>);

  RowState<Real>* state;
  Real* out;

  static int64_t length(int head_dim_v) {
    return kStateLength + round_up(head_dim_v, kLanes<Real>);
  }
  SplitResult(void* rows, int64_t index, int head_dim_v) {
    Real* const row = static_cast<Real*>(rows) + index * length(head_dim_v);
    state = reinterpret_cast<RowState<Real>*>(row);
    out = row + kStateLength;
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

  // Whether results are merged into those that are there.
  bool merges() const { return params_.partial_lse != nullptr; }

  // What a row's outputs are multiplied by, and those that are there, to be added up.
  struct MergeFactors {
    Real own;
    Real there;
  };

  // Merges the row's normaliser into the one that is there. In doubles, since lse may be large, and
  // what is added up next is relative to it.
  MergeFactors merge_row(RowState<Real> row, Query query) const {
    double& lse = params_.partial_lse[Base::lse_of(query)];
    if (row.sum == 0) return {0, 1};
    double const base = row.base.far ? double(row.base.score) * double(rule_.scale)
                                     : double(row.base.shift(rule_.scale));
    double const own = base * kLn2Double + log_of(double(row.sum));
    double const larger = own > lse ? own : lse;
    double const smaller = own > lse ? lse : own;
    double const total = larger + log1p_of(exp_of(smaller - larger));
    Real const factor = Real(exp_of(own - total)) / row.sum;
    Real const there = lse == -__builtin_inf() ? 0 : Real(exp_of(lse - total));
    lse = total;
    return {Base::drops() ? factor * Base::keep_factor() : factor, there};
  }

  // A row of `out` that is summed up.
  Real* sums_of(Query query) const { return Base::template row_of<Real>(params_.out, query); }

  // Writes lse and returns the factor of the output.
  Real finish_row(RowState<Real> row, Query query) const {
    Real total = row.sum;
    Real lse = natural_base(row.base) + log_of(total);
    Real factor = 1 / total;
    if (total == 0) {
      lse = -Real(__builtin_inf());
      factor = 0;
    }
    if (params_.sink != nullptr) {
      Real const sink = params_.sink[Base::head_of(query)];
      Real const distance = Base::sink_distance(row.base, query);
      bool const leads = total == 0 ? sink != -Real(__builtin_inf()) : distance > 0;
      if (leads) {
        // The row relative to the sink, whose own share NaN of an infinite one spoils.
        Real const ratio = total == 0 ? 0 : exp2_of(-distance);
        total = total * ratio + exp2_of(sink - sink);
        lse = sink + log_of(total);
        factor = ratio / total;
      } else if (total != 0) {
        total += exp2_of(distance);
        lse = natural_base(row.base) + log_of(total);
        factor = 1 / total;
      }
    }
    params_.lse[Base::lse_of(query)] = float(lse);
    return Base::drops() ? factor * Base::keep_factor() : factor;
  }

  // Ends a row: sum_of(d) are its outputs from `d` on, relative to the base.
  template <class SumOf>
  void write_row(RowState<Real> row, Query query, SumOf const& sum_of) const {
    int const head_dim_v = params_.head_dim_v;
    if (merges()) {
      MergeFactors const factors = merge_row(row, query);
      Real* const sums = sums_of(query);
      for (int d = 0; d < head_dim_v; d += kLanes<Real>) {
        add_to_row<Real>(sums + d, sum_of(d) * factors.own, factors.there, head_dim_v - d);
      }
      return;
    }
    Real const scale = finish_row(row, query);
    with_query_element<E>(params_.dtype, [&]<class Q>() FA2_CPU_INLINE_LAMBDA {
      typename Q::Storage* const out = Base::template row_ptr<Q>(params_.out, query);
      for (int d = 0; d < head_dim_v; d += kLanes<Real>) {
        store_row<Q>(out + d, sum_of(d) * scale, head_dim_v - d);
      }
    });
  }

 private:
  Real natural_base(RowBase<Real> base) const {
    return base.far ? base.score * rule_.natural : base.shift(rule_.scale) * Real(kLn2Double);
  }
};

// The results of a chunk from those of its splits, always combined in the same order.
template <class E>
class CombineSplits : RowResults<E> {
  using Base = RowResults<E>;
  using Base::chunk_, Base::group_, Base::params_, Base::rule_;
  using typename Base::Query;
  using typename Base::Real;

 public:
  CombineSplits(FwdParams const& params, ForwardChunk const& chunk, int32_t num_splits)
      : Base(params, chunk.queries),
        num_heads_(chunk.num_heads),
        partial_(chunk.partial),
        num_splits_(num_splits) {}

  void run() const {
    int index = 0;
    for (int head = 0; head < num_heads_; ++head) {
      Query query = Base::first_query(0);
      for (int i = 0; i < chunk_.count; ++i, query = Base::next(query)) {
        combine_row(index++, {query.row, head * group_ + query.in_group});
      }
    }
  }

 private:
  SplitResult<E> result(int32_t index, int row) const {
    return {partial_, int64_t(index) * num_heads_ * chunk_.count + row, params_.head_dim_v};
  }

  void combine_row(int index, Query query) const {
    RowState<Real> row;
    for (int32_t s = 0; s < num_splits_; ++s) {
      RowBase<Real> const base = result(s, index).state->base;
      row.base.far |= base.far;
      if (base.score > row.base.score) row.base.score = base.score;
    }
    Real factors[kMaxSplits];
    for (int32_t s = 0; s < num_splits_; ++s) {
      RowState<Real> const state = *result(s, index).state;
      factors[s] = exp2_of(base_distance(state.base, row.base, rule_.scale));
      row.sum += state.sum * factors[s];
    }
    auto const sum_of = [&](int d) {
      Vec<Real> sum = {};
      for (int32_t s = 0; s < num_splits_; ++s) {
        sum += load<Real>(result(s, index).out + d) * factors[s];
      }
      return sum;
    };
    Base::write_row(row, query, sum_of);
  }

  int const num_heads_;
  void* const partial_;
  int32_t const num_splits_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
