#pragma once

// The products of a handful of queries where there are 32 vector registers: 16 accumulators, in
// which a vector of K meets all queries of a group and several keys each vector of queries.

#include "cpu/level/few_rows.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Accumulators of P V in vectors: as many as the registers hold.
inline constexpr int kFewAccumulators = 16;

// Fetches rows in the order in which they lie in memory, a cache line at a time, while others are
// worked on. That is the order in which the hardware fetches ahead by itself, and memory is read
// at full speed: pieces of rows, head by head, come at half of it.
class RowFetcher {
 public:
  // Rows [begin, end), which are `bytes` long.
  template <class Storage>
  RowFetcher(Storage const* const* begin, Storage const* const* end, int bytes)
      : row_(reinterpret_cast<char const* const*>(begin)),
        end_(reinterpret_cast<char const* const*>(end)),
        bytes_(bytes) {}

  FA2_CPU_INLINE void next() {
    if (row_ == end_) return;
    fetch_line(*row_ + at_);
    at_ += kCacheLine;
    if (at_ >= bytes_) {
      at_ = 0;
      ++row_;
      if (row_ + kRowsLookedUp < end_) fetch_line(row_[kRowsLookedUp]);
    }
  }

 private:
  char const* const* row_;
  char const* const* end_;
  int bytes_;
  int at_ = 0;
};

// What is fetched while a block is read.
template <class Storage>
RowFetcher fetcher_of(KeyBlock<Storage> const& block) {
  int const bytes =
      int((block.num_heads - 1) * block.head_stride + block.head_dim) * int(sizeof(Storage));
  return {block.rows + block.ahead, block.rows + block.num_keys + block.ahead, bytes};
}

// sums[i * kKeys + r] += query i . key r over one vector of entries from d on, of which the rows
// have `count`.
template <class E, int kQueries, int kKeys, bool kFetch>
FA2_CPU_INLINE void add_products(typename E::Operand const* queries, int query_stride,
                                 typename E::Storage const* const* rows, int64_t offset, int d,
                                 int count, RowFetcher& fetcher,
                                 Vec<typename E::Real> (&sums)[kQueries * kKeys]) {
  using Operand = typename E::Operand;
  Vec<Operand> q[kQueries];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
    q[i] = load<Operand>(queries + i * query_stride + d / E::kDepth);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kKeys; ++r) {
    if (kFetch && starts_line<typename E::Storage>(d)) fetcher.next();
    Vec<Operand> const k = load_operands<E>(rows[r] + offset + d, count);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      sums[i * kKeys + r] = E::multiply_add(sums[i * kKeys + r], k, q[i]);
    }
  }
}

// The same over two vectors of entries, the even ones apart from the odd ones.
template <class E, int kQueries, int kKeys, bool kFetch>
FA2_CPU_INLINE void add_products_apart(typename E::Operand const* queries, int query_stride,
                                       typename E::Storage const* const* rows, int64_t offset,
                                       int d, RowFetcher& fetcher,
                                       Vec<typename E::Real> (&sums)[kQueries * kKeys]) {
  using Operand = typename E::Operand;
  constexpr int kSize = kLanes<Operand>;
#pragma GCC unroll 16
  for (int r = 0; r < kKeys; ++r) {
    if (kFetch && starts_line<typename E::Storage>(d)) fetcher.next();
    auto const [even, odd] = E::widen_apart(rows[r] + offset + d);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      typename E::Operand const* const query = queries + i * query_stride + d;
      Vec<Operand>& sum = sums[i * kKeys + r];
      sum = E::multiply_add(sum, even, load<Operand>(query));
      sum = E::multiply_add(sum, odd, load<Operand>(query + kSize));
    }
  }
}

// Dot products of kQueries queries with as many keys as fill a vector: of key r and query i in lane
// i * keys + r.
template <class E, int kQueries, bool kFetch>
FA2_CPU_INLINE Vec<typename E::Real> dot_products(typename E::Operand const* queries,
                                                  int query_stride,
                                                  typename E::Storage const* const* rows,
                                                  int64_t offset, int head_dim,
                                                  RowFetcher& fetcher) {
  using Real = typename E::Real;
  constexpr int kKeys = kLanes<Real> / kQueries;
  constexpr int kEntries = kLanes<typename E::Operand> * E::kDepth;
  Vec<Real> sums[kQueries * kKeys];
#pragma GCC unroll 16
  for (int i = 0; i < kQueries * kKeys; ++i) sums[i] = Vec<Real>{};
  int d = 0;
  if constexpr (kApart<E>) {
    for (; d + 2 * kEntries <= head_dim; d += 2 * kEntries) {
      add_products_apart<E, kQueries, kKeys, kFetch>(queries, query_stride, rows, offset, d,
                                                     fetcher, sums);
    }
  }
  for (; d + kEntries <= head_dim; d += kEntries) {
    add_products<E, kQueries, kKeys, kFetch>(queries, query_stride, rows, offset, d, kEntries,
                                             fetcher, sums);
  }
  if (d < head_dim) {
    add_products<E, kQueries, kKeys, kFetch>(queries, query_stride, rows, offset, d, head_dim - d,
                                             fetcher, sums);
  }
  return sum_lanes<Real>(sums);
}

// Scores of all queries: one row of `scores` each, one entry per key. There must be pointers to
// keys up to the next whole vector.
template <class E>
__attribute__((noinline)) void multiply_keys_few(KeyBlock<typename E::Storage> const& keys,
                                                 QueryRows<typename E::Operand> const& queries,
                                                 QueryRows<typename E::Real> const& scores) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  RowFetcher fetcher = fetcher_of(keys);
  int const key_step = keys.step(queries.num_queries);
  for (int begin = 0; begin < keys.num_keys; begin += key_step) {
    for (int head = 0; head < keys.num_heads; ++head) {
      for_query_groups<kSize>(
          queries.num_queries, [&]<int kQueries, bool kFirst>(int first) FA2_CPU_INLINE_LAMBDA {
            constexpr int kKeys = kSize / kQueries;
            for (int key = begin; key < smaller(begin + key_step, keys.num_keys); key += kKeys) {
              if (key % kKeys != 0) return;
              Real products[kSize];
              store(products, dot_products<E, kQueries, kFirst>(
                                  queries.at(head, first), queries.stride, keys.rows + key,
                                  head * keys.head_stride, keys.head_dim, fetcher));
#pragma GCC unroll 4
              for (int i = 0; i < kQueries; ++i) {
                __builtin_memcpy(scores.at(head, first + i) + key, products + i * kKeys,
                                 kKeys * sizeof(Real));
              }
            }
          });
    }
  }
}

// to[i * stride + n * lanes] += P V over keys [begin, end) for kQueries queries and kColumns
// vectors of head dims from `dim` on, which lie at `offset` in a row; without kWhole there is a
// single one, and not all of it.
template <class E, int kQueries, int kColumns, bool kWhole, bool kFetch>
FA2_CPU_INLINE void add_values(KeyBlock<typename E::Storage> const& values, int begin, int end,
                               int64_t offset, typename E::Operand const* probs, int prob_stride,
                               int dim, RowFetcher& fetcher, typename E::Real* to, int stride) {
  using Real = typename E::Real;
  using Operand = typename E::Operand;
  constexpr int kSize = kLanes<Real>;
  Accumulators<E, kQueries, kColumns> sums;
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) sums[i][n] = load<Real>(to + i * stride + n * kSize);
  }
  for (int key = begin; key < end; key += E::kDepth) {
    if constexpr (kFetch) {
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) {
        if (starts_line<typename E::Storage>(dim + n * kSize)) {
#pragma GCC unroll 2
          for (int j = 0; j < E::kDepth; ++j) fetcher.next();
        }
      }
    }
    typename E::Storage const* const row = values.rows[key] + offset;
    typename E::Storage const* partner = partner_of<E>(values.rows, key, values.num_keys);
    if (partner != nullptr) partner += offset;
    Vec<Operand> v[kColumns];
    if constexpr (kWhole) {
      load_columns<E, kColumns>(row, partner, dim, v);
    } else {
      v[0] = load_values<E>(row, partner, dim, values.head_dim - dim);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      Vec<Operand> const p = broadcast_from<Operand>(probs + i * prob_stride + key / E::kDepth);
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) sums[i][n] = E::multiply_add(sums[i][n], v[n], p);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
    for (int n = 0; n < kColumns; ++n) store(to + i * stride + n * kSize, sums[i][n]);
  }
}

// sums += P V: one row of `probs` and of `sums` for each query.
template <class E>
__attribute__((noinline)) void multiply_values_few(KeyBlock<typename E::Storage> const& values,
                                                   QueryRows<typename E::Operand> const& probs,
                                                   QueryRows<typename E::Real> const& sums) {
  constexpr int kSize = kLanes<typename E::Real>;
  RowFetcher fetcher = fetcher_of(values);
  int const step = values.step(sums.num_queries);
  for (int begin = 0; begin < values.num_keys; begin += step) {
    int const end = smaller(begin + step, values.num_keys);
    for (int head = 0; head < values.num_heads; ++head) {
      for_query_groups<kFewTogether>(
          sums.num_queries, [&]<int kQueries, bool kFirst>(int first) FA2_CPU_INLINE_LAMBDA {
            auto add = [&]<int kColumns, bool kWhole>(int dim) FA2_CPU_INLINE_LAMBDA {
              add_values<E, kQueries, kColumns, kWhole, kFirst>(
                  values, begin, end, head * values.head_stride, probs.at(head, first),
                  probs.stride, dim, fetcher, sums.at(head, first) + dim, sums.stride);
            };
            constexpr int kMost = smaller(8, kFewAccumulators / kQueries);
            for_row_groups<kMost>(values.head_dim / kSize,
                                  [&]<int kColumns>(int n) FA2_CPU_INLINE_LAMBDA {
                                    add.template operator()<kColumns, true>(n * kSize);
                                  });
            int const rest = values.head_dim % kSize;
            if (rest != 0) add.template operator()<1, false>(values.head_dim - rest);
          });
    }
  }
}

template <class E>
struct WideProducts {
  using Operand = typename E::Operand;
  using Real = typename E::Real;
  using Storage = typename E::Storage;

  // What the number of keys is rounded up to that there are pointers to, and room for scores of.
  static constexpr int kKeyMultiple = kLanes<Real>;

  static FA2_CPU_INLINE void multiply_keys(KeyBlock<Storage> const& keys,
                                           QueryRows<Operand> const& queries,
                                           QueryRows<Real> const& scores) {
    multiply_keys_few<E>(keys, queries, scores);
  }
  static FA2_CPU_INLINE void multiply_values(KeyBlock<Storage> const& values,
                                             QueryRows<Operand> const& probs,
                                             QueryRows<Real> const& sums) {
    multiply_values_few<E>(values, probs, sums);
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
