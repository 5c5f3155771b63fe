#pragma once

// What the products of a handful of queries (few_products_wide.h, few_products_narrow.h) read and
// write: blocks of rows of K or V of several KV heads, and rows of queries.

#include "cpu/level/microkernel.h"
#include "cpu/level/pack.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Queries that are worked through at once.
inline constexpr int kFewTogether = 4;

// Keys per step: after so many of one head it is the next head's turn. More save loads of queries
// and sums. Fewer, down to those of KeyBlock::turn_keys, keep the heads close together in memory,
// which can pay where memory is all that is waited for.
inline constexpr int kLongStep = 16;

// Brings a cache line that will be read soon into the second-level cache: the first one has no room
// for all that is on its way, and its misses are few at a time.
FA2_CPU_INLINE void fetch_line(char const* line) {
  constexpr int kIntoSecondLevel = 2;
  __builtin_prefetch(line, 0, kIntoSecondLevel);
}

// How many rows before the first line of one is fetched its page is looked up, which takes as long
// as fetching a few rows.
inline constexpr int kRowsLookedUp = 4;

// A block of K or V of several KV heads.
template <class Storage>
struct KeyBlock {
  Storage const* const* rows;  // of the first head, and as many beyond them as are fetched ahead
  int num_keys;
  int ahead;
  int num_heads;
  int64_t head_stride;
  int head_dim;
  int turn_keys;

  int step(int num_queries) const {
    return num_heads > 1 && num_queries <= kFewTogether ? turn_keys : kLongStep;
  }
};

// The rows of a group of queries: those of KV head h start at (h * num_queries) * stride.
template <class T>
struct QueryRows {
  T* data;
  int stride;
  int num_queries;

  FA2_CPU_INLINE T* at(int head, int query) const {
    return data + int64_t(head * num_queries + query) * stride;
  }
};

// Whether rows of K and V are widened by two vectors, the even entries apart from the odd ones.
// Queries are packed, and outputs summed, in that order, as far as rows have whole pairs of
// vectors.
template <class E>
inline constexpr bool kApart =
    requires(typename E::Storage const* from) { E::widen_apart(from); } && E::kDepth == 1;

// Two vectors of entries of a row, the even ones apart from the odd ones.
template <class E>
FA2_CPU_INLINE TwoVectors load_apart(typename E::Storage const* from) {
  if constexpr (kApart<E>) {
    return E::widen_apart(from);
  } else {
    constexpr int kSize = kLanes<float>;
    Vec<float> const first = E::widen(from);
    Vec<float> const second = E::widen(from + kSize);
    Vec<int32_t> even;
    for (int i = 0; i < kSize; ++i) even[i] = 2 * i;
    return {__builtin_shuffle(first, second, even), __builtin_shuffle(first, second, even + 1)};
  }
}

// Rows of queries, whose element is Q, as operands of E: to[query * to_stride + operand].
template <class E, class Q>
FA2_CPU_INLINE void pack_query_rows(typename E::Operand* to, int to_stride,
                                    typename Q::Storage const* const* rows, int count,
                                    int head_dim) {
  constexpr int kSize = kLanes<typename E::Operand>;
  for (int i = 0; i < count; ++i) {
    int d = 0;
    if constexpr (kApart<E>) {
      for (; d + 2 * kSize <= head_dim; d += 2 * kSize) {
        auto const [even, odd] = load_apart<Q>(rows[i] + d);
        store(to + i * to_stride + d, even);
        store(to + i * to_stride + d + kSize, odd);
      }
    }
    if (d == head_dim) continue;
    typename Q::Storage const* const rest = rows[i] + d;
    pack_keys<Q>(to + i * to_stride + d / E::kDepth, 0, &rest, 1, head_dim - d);
  }
}

// Puts the entries of a row of outputs into their own order.
template <class E>
FA2_CPU_INLINE void join_row(typename E::Real* row, int head_dim) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  if constexpr (kApart<E>) {
    Vec<Int<Real>> low;
    Vec<Int<Real>> high;
    interleave_orders<Real>(low, high);
    for (int d = 0; d + 2 * kSize <= head_dim; d += 2 * kSize) {
      Vec<Real> const even = load<Real>(row + d);
      Vec<Real> const odd = load<Real>(row + d + kSize);
      store(row + d, __builtin_shuffle(even, odd, low));
      store(row + d + kSize, __builtin_shuffle(even, odd, high));
    }
  }
}

// Whether a cache line begins at entry d of a row.
template <class Storage>
FA2_CPU_INLINE constexpr bool starts_line(int d) {
  return d % (kCacheLine / int(sizeof(Storage))) == 0;
}

// kColumns whole vectors of a row of V, a power of two of them, in the order of outputs.
template <class E, int kColumns>
FA2_CPU_INLINE void load_columns(typename E::Storage const* row, typename E::Storage const* partner,
                                 int dim, Vec<typename E::Operand>* to) {
  if constexpr (kApart<E> && kColumns > 1) {
#pragma GCC unroll 4
    for (int n = 0; n < kColumns; n += 2) {
      auto const [even, odd] = E::widen_apart(row + dim + n * kLanes<typename E::Operand>);
      to[n] = even;
      to[n + 1] = odd;
    }
  } else {
    load_value_vectors<E, kColumns>(row, partner, dim, to);
  }
}

// Calls step.operator()<queries, is_first>(first) over [0, count) in groups of kFewTogether, 2 and
// 1 queries, but at most kMost.
template <int kMost, class Step>
FA2_CPU_INLINE void for_query_groups(int count, Step const& step) {
  auto group = [&]<int kQueries>(int first) FA2_CPU_INLINE_LAMBDA {
    if (first == 0) return step.template operator()<kQueries, true>(first);
    step.template operator()<kQueries, false>(first);
  };
  for_row_groups<smaller(kFewTogether, kMost)>(count, group);
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
