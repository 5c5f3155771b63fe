#pragma once

// What the splits of a chunk of the backward pass share: what far rows are made of, which takes all
// of their keys, and dQ of each split, to be added up in their order.

#include "cpu/level/chunk.h"
#include "cpu/level/derivatives.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class E>
struct SplitGrads {
  using Real = typename E::Real;
  static constexpr int kCapacity = GradTile<E>::kCapacity;

  size_t bytes;

  // With memory == nullptr: only the size.
  SplitGrads(void* memory, int head_dim, int num_tiles, int num_splits)
      : num_tiles_(num_tiles),
        num_splits_(num_splits),
        padded_dim_(round_up(head_dim, kLanes<Real>)) {
    Carver carver(memory);
    rows_ = carver.take<Row>(int64_t(num_tiles) * kCapacity);
    grad_q_ = carver.take<Real>(int64_t(num_splits) * num_tiles * padded_dim_ * kCapacity);
    bytes = carver.bytes();
  }

  void keep_rows(GradTile<E> const& tile, int index) const {
    for (int i = 0; i < kCapacity; ++i) {
      rows_[index * kCapacity + i] = {tile.base[i], tile.inverse_sum[i], tile.delta[i]};
    }
  }
  void read_rows(GradTile<E>& tile, int index) const {
    for (int i = 0; i < kCapacity; ++i) {
      Row const& row = rows_[index * kCapacity + i];
      tile.base[i] = row.base;
      tile.inverse_sum[i] = row.inverse_sum;
      tile.delta[i] = row.delta;
    }
  }

  void keep_grad_q(GradTile<E> const& tile, int index, int split) const {
    __builtin_memcpy(grad_q_of(split, index), tile.grad_q, length(tile) * sizeof(Real));
  }
  // The sum over all splits.
  void read_grad_q(GradTile<E> const& tile, int index) const {
    for (int64_t i = 0; i < length(tile); i += kLanes<Real>) {
      Vec<Real> sum = load<Real>(grad_q_of(0, index) + i);
      for (int split = 1; split < num_splits_; ++split) {
        sum += load<Real>(grad_q_of(split, index) + i);
      }
      store(tile.grad_q + i, sum);
    }
  }

 private:
  struct Row {
    Real base;
    Real inverse_sum;
    Real delta;
  };

  int64_t length(GradTile<E> const& tile) const {
    return int64_t(padded_dim_) * tile.vectors * kLanes<Real>;
  }
  Real* grad_q_of(int split, int index) const {
    return grad_q_ + (int64_t(split) * num_tiles_ + index) * padded_dim_ * kCapacity;
  }

  int const num_tiles_;
  int const num_splits_;
  int const padded_dim_;
  Row* rows_;
  Real* grad_q_;
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
