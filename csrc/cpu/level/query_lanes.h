#pragma once

// A tile of queries, one per vector lane: where each stands and what it sees.

#include "cpu/level/simd.h"
#include "cpu/level/tiles.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// A tile that is not full repeats its last query.
template <class E>
struct QueryLanes {
  using Real = typename E::Real;
  static constexpr int kCapacity = kTileVectors * kLanes<Real>;

  int vectors;  // 1 ... kTileVectors
  int num_queries;
  int32_t begin;  // keys [begin, end) are seen by some query, [full_begin, full_end) by all
  int32_t full_begin;
  int32_t full_end;
  int32_t end;
  typename E::Operand* queries;  // [operand][lane]

  alignas(kVectorBytes) Real diagonal[kCapacity];  // the key that ALiBi distances count from
  alignas(kVectorBytes) Real slope[kCapacity];     // ALiBi
  alignas(kVectorBytes) Int<Real> col_begin[kCapacity];
  alignas(kVectorBytes) Int<Real> col_end[kCapacity];
  alignas(kVectorBytes) Uint<Real> row[kCapacity];
  alignas(kVectorBytes) Uint<Real> batch_head[kCapacity];
  int64_t bias_offset[2][kCapacity];  // of its row in each of the biases, if there are any
};

template <class E>
using LanesOf = QueryLanes<typename E::Products>;

}  // namespace fa2::cpu::FA2_CPU_LEVEL
