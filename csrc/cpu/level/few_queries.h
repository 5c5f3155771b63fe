#pragma once

// The products and the softmax for a handful of queries, as in decoding. A tile whose lanes are
// queries would be mostly padding, and every entry of K and V would be broadcast for it. Here lanes
// are head dims in the products and keys in the softmax. Rows of K and V are read where they lie,
// each once from memory and long before its turn, since reading them is most of the work.

#include "core/mask.h"
#include "cpu/level/microkernel.h"
#include "cpu/level/pack.h"
#include "cpu/level/scores.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Queries that are worked through at once.
inline constexpr int kFewTogether = 4;

// Keys per step: after so many of one head it is the next head's turn. More save loads of queries
// and sums. Fewer, down to those of KeyBlock::turn_keys, keep the heads close together in memory,
// which can pay where memory is all that is waited for.
inline constexpr int kLongStep = 16;

// Accumulators of P V in vectors: as many as the registers hold.
inline constexpr int kFewAccumulators = kTileVectors == 4 ? 16 : 8;

// Fetches rows in the order in which they lie in memory, a cache line at a time, while others are
// worked on. That is the order in which the hardware fetches ahead by itself, and memory is read
// at full speed: pieces of rows, head by head, come at half of it. They go to the second-level
// cache: the first one has no room for all that is on its way, and its misses are few at a time.
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
    fetch(*row_ + at_);
    at_ += kCacheLine;
    if (at_ >= bytes_) {
      at_ = 0;
      ++row_;
      // Its page may have to be looked up first, which takes as long as fetching a few rows.
      if (row_ + kRowsLookedUp < end_) fetch(row_[kRowsLookedUp]);
    }
  }

 private:
  static constexpr int kRowsLookedUp = 4;

  static FA2_CPU_INLINE void fetch(char const* line) {
    constexpr int kIntoSecondLevel = 2;
    __builtin_prefetch(line, 0, kIntoSecondLevel);
  }

  char const* const* row_;
  char const* const* end_;
  int bytes_;
  int at_ = 0;
};

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

  // What is fetched while the block is read.
  RowFetcher fetcher() const {
    int const bytes = int((num_heads - 1) * head_stride + head_dim) * int(sizeof(Storage));
    return {rows + ahead, rows + num_keys + ahead, bytes};
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

// Scores of all queries: one row of `scores` each, one entry per key. There must be pointers to
// keys up to the next whole vector.
template <class E>
__attribute__((noinline)) void multiply_keys_few(KeyBlock<typename E::Storage> const& keys,
                                                 QueryRows<typename E::Operand> const& queries,
                                                 QueryRows<typename E::Real> const& scores) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  RowFetcher fetcher = keys.fetcher();
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
  RowFetcher fetcher = values.fetcher();
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

// row[i] *= factors[i], in whole vectors.
template <class Real>
FA2_CPU_INLINE void multiply_row(Real* row, Real const* factors, int count) {
  for (int i = 0; i < count; i += kLanes<Real>) {
    store(row + i, load<Real>(row + i) * load<Real>(factors + i));
  }
}

// exponentiate_row reads whole steps of so many scores.
template <class Real>
inline constexpr int kExpStep = 2 * kLanes<Real>;

// What the scores of one query are modified by.
template <class Real>
struct FewModifiers {
  Real diagonal;  // the key that ALiBi distances count from
  Real slope;
  int64_t bias_offset[2];  // of its row in each of the biases, if there are any
};

// Softcap, ALiBi, biases and then the mask, which goes by columns alone, on the scores of one query
// from key `first` on, at most a block, up to what exponentiate_row reads. Whatever is not
// `visible` becomes -inf, and what lies behind the last key is not: it may hold anything.
template <class Real>
__attribute__((noinline)) void adjust_row(ScoreRule<Real> const& rule, ColRange visible,
                                          FewModifiers<Real> const& modifiers, int32_t first,
                                          int num_keys, Real* scores) {
  constexpr int kSize = kLanes<Real>;
  alignas(kVectorBytes) Real biases[round_up(kKeyBlock, kExpStep<Real>)];
  for (int i = 0; i < rule.num_biases; ++i) {
    read_bias_row<Real>(rule.biases[i], modifiers.bias_offset[i], first, num_keys, i > 0, biases);
  }
  visible.end = smaller(visible.end, first + num_keys);
  Vec<Int<Real>> lane;
  for (int i = 0; i < kSize; ++i) lane[i] = i;
  for (int j = 0; j < round_up(num_keys, kExpStep<Real>); j += kSize) {
    Vec<Int<Real>> const col = lane + Int<Real>(first + j);
    Vec<Real> s = load<Real>(scores + j);
    if (rule.scales.has_softcap) {
      s = cap_score(s, rule.scales, Tanh<Real>{}).score;
    } else if (rule.modifies) {
      s *= rule.scales.inner;
    }
    if (rule.has_alibi) {
      Vec<Real> const distance = modifiers.diagonal - __builtin_convertvector(col, Vec<Real>);
      s = with_alibi(s, modifiers.slope, distance, Abs<Real>{});
    }
    if (rule.num_biases > 0) s += load<Real>(biases + j);
    bool const whole = first + j >= visible.begin && first + j + kSize <= visible.end;
    if (!whole) {
      s = (col >= Int<Real>(visible.begin)) & (col < Int<Real>(visible.end))
              ? s
              : broadcast<Real>(-__builtin_inf());
    }
    store(scores + j, s);
  }
}

// Lane by lane up a tree.
template <class T, class Combine>
FA2_CPU_INLINE T reduce_lanes(Vec<T> v, Combine const& combine) {
  T lanes[kLanes<T>];
  store(lanes, v);
#pragma GCC unroll 4
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) lanes[i] = combine(lanes[i], lanes[i + width]);
  }
  return lanes[0];
}

// The softmax of one query, with a sum that is still spread over lanes.
template <class E>
struct FewState {
  RowBase<typename E::Real> base;
  Vec<typename E::Real> sum;
};

// As exponentiate in scores.h, for one query, whose scores up to the next multiple of kExpStep must
// be -inf; returns what sums and outputs relative to the old base were multiplied by.
template <class E>
__attribute__((noinline)) typename E::Real exponentiate_row(typename E::Real scale, int num_keys,
                                                            FewState<E>& state,
                                                            typename E::Real* scores) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  Vec<Real> top = broadcast(state.base.score);
  for (int j = 0; j < num_keys; j += kSize) top = max(load<Real>(scores + j), top);
  RowBase<Real> base = {reduce_lanes<Real>(top, [](Real a, Real b) { return a > b ? a : b; }),
                        state.base.far};
  base.far |= base.turns_far(scale);
  Real const distance = base_distance(state.base, base, scale);
  Vec<Real> const rescale = exp2<Real, kFullDegree<Real>>(broadcast(distance));
  Vec<Real> sum = {};
  auto to_probs = [&](auto const& exponent) FA2_CPU_INLINE_LAMBDA {
    for (int j = 0; j < num_keys; j += kExpStep<Real>) {
      Vec<Real> const p0 = exp2<Real, E::kExpDegree>(exponent(load<Real>(scores + j)));
      Vec<Real> const p1 = exp2<Real, E::kExpDegree>(exponent(load<Real>(scores + j + kSize)));
      sum += p0 + p1;
      if constexpr (E::kDepth == 1) {
        store(scores + j, E::round(p0));
        store(scores + j + kSize, E::round(p1));
      } else {
        // Neighbouring keys are pairs as they stand. Overwrites scores that have been read.
        store(reinterpret_cast<typename E::Storage*>(scores) + j, E::narrow_two(p0, p1));
      }
    }
  };
  if (base.far) {
    Real const shift = base.finite();
    to_probs([&](Vec<Real> s) FA2_CPU_INLINE_LAMBDA { return (s - shift) * scale; });
  } else {
    Real const shift = base.shift(scale);
    to_probs([&](Vec<Real> s) FA2_CPU_INLINE_LAMBDA { return s * scale - shift; });
  }
  state.base = base;
  state.sum = state.sum * rescale + sum;
  return rescale[0];
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
