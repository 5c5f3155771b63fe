#pragma once

// Copies between tensors and the layouts that the products read: rows of K and V as operands,
// queries transposed, outputs transposed back.

#include "cpu/level/elements.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

FA2_CPU_INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }
FA2_CPU_INLINE constexpr int larger(int a, int b) { return a > b ? a : b; }
FA2_CPU_INLINE constexpr int round_up(int x, int multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

inline constexpr int kCacheLine = 64;

// Length of a packed row: whole vectors, plus a cache line that keeps a column of the block from
// falling into a few cache sets.
template <class Operand>
FA2_CPU_INLINE int packed_stride(int length) {
  return round_up(length, kLanes<Operand>) + kCacheLine / int(sizeof(Operand));
}

// `count` entries of a row, followed by zeros.
template <class Storage, int kCapacity>
struct PartialRow {
  Storage entries[kCapacity];
  FA2_CPU_INLINE PartialRow(Storage const* from, int count) {
    for (int i = 0; i < kCapacity; ++i) entries[i] = i < count ? from[i] : Storage(0);
  }
};

// The next vector of operands of a row of Q or K that has `count` entries left.
template <class E>
FA2_CPU_INLINE Vec<typename E::Operand> load_operands(typename E::Storage const* from, int count) {
  constexpr int kEntries = kLanes<typename E::Operand> * E::kDepth;
  auto convert = [](typename E::Storage const* entries) {
    // A pair of neighbours in memory is an operand as it stands.
    if constexpr (E::kDepth == 1) return E::widen(entries);
    if constexpr (E::kDepth == 2) return load<typename E::Operand>(entries);
  };
  if (count >= kEntries) return convert(from);
  return convert(PartialRow<typename E::Storage, kEntries>(from, count).entries);
}

// The next vector of a row of results that has room for `count` entries more.
template <class E>
FA2_CPU_INLINE void store_row(typename E::Storage* to, Vec<typename E::Real> v, int count) {
  constexpr int kSize = kLanes<typename E::Real>;
  if (count >= kSize) return E::narrow(to, v);
  typename E::Storage entries[kSize];
  E::narrow(entries, v);
  __builtin_memcpy(to, entries, count * sizeof(entries[0]));
}

// Rows of K and V are often far apart, where the hardware does not fetch ahead.
template <int kForWriting = 0, class Storage>
FA2_CPU_INLINE void fetch_row(Storage const* row, int head_dim) {
  for (int d = 0; d < head_dim; d += kCacheLine / int(sizeof(Storage))) {
    __builtin_prefetch(row + d, kForWriting);
  }
}

// The row that comes some rows after rows[key].
template <class Storage>
FA2_CPU_INLINE void fetch_ahead(Storage const* const* rows, int key, int num_keys, int head_dim) {
  constexpr int kRowsAhead = 8;
  fetch_row(rows[smaller(key + kRowsAhead, num_keys - 1)], head_dim);
}

// Rows of K: to[key][operand].
template <class E>
__attribute__((noinline)) void pack_keys(typename E::Operand* to, int64_t to_stride,
                                         typename E::Storage const* const* rows, int num_keys,
                                         int head_dim) {
  constexpr int kEntries = kLanes<typename E::Operand> * E::kDepth;
  for (int key = 0; key < num_keys; ++key, to += to_stride) {
    fetch_ahead(rows, key, num_keys, head_dim);
    for (int d = 0; d < head_dim; d += kEntries) {
      store(to + d / E::kDepth, load_operands<E>(rows[key] + d, head_dim - d));
    }
  }
}

// Operands of a row of V from entry `at` on, of which the row has `count` left: where operands are
// pairs of keys, with those of the next key's row. A last key without a partner (null) is paired
// with zeros.
template <class E>
FA2_CPU_INLINE Vec<typename E::Operand> load_values(typename E::Storage const* row,
                                                    typename E::Storage const* partner, int at,
                                                    int count) {
  if constexpr (E::kDepth == 1) {
    return load_operands<E>(row + at, count);
  } else {
    constexpr int kEntries = kLanes<typename E::Operand>;
    auto words = [&](typename E::Storage const* from) FA2_CPU_INLINE_LAMBDA {
      if (count >= kEntries) return load_words(from + at);
      return load_words(PartialRow<typename E::Storage, kEntries>(from + at, count).entries);
    };
    return partner == nullptr ? words(row) : words(row) | words(partner) << 16;
  }
}

// The same for kVectors whole vectors.
template <class E, int kVectors>
FA2_CPU_INLINE void load_value_vectors(typename E::Storage const* row,
                                       typename E::Storage const* partner, int at,
                                       Vec<typename E::Operand>* to) {
  constexpr int kEntries = kLanes<typename E::Operand>;
  int n = 0;
  if constexpr (E::kDepth == 2) {
    using Words = typename E::Words;
#pragma GCC unroll 4
    for (; n + 2 <= kVectors; n += 2) {
      Words low;
      Words high = {};
      __builtin_memcpy(&low, row + at + n * kEntries, sizeof(low));
      if (partner != nullptr) __builtin_memcpy(&high, partner + at + n * kEntries, sizeof(high));
      E::pair_words(low, high, to + n);
    }
  }
#pragma GCC unroll 8
  for (; n < kVectors; ++n) to[n] = load_values<E>(row, partner, at + n * kEntries, kEntries);
}

// The row that is paired with rows[i], or null.
template <class E>
FA2_CPU_INLINE typename E::Storage const* partner_of(typename E::Storage const* const* rows, int i,
                                                     int count) {
  return E::kDepth > 1 && i + 1 < count ? rows[i + 1] : nullptr;
}

// Rows of V: to[key / kDepth][dim].
template <class E>
__attribute__((noinline)) void pack_values(typename E::Operand* to, int64_t to_stride,
                                           typename E::Storage const* const* rows, int num_keys,
                                           int head_dim) {
  for (int key = 0; key < num_keys; key += E::kDepth, to += to_stride) {
    typename E::Storage const* const partner = partner_of<E>(rows, key, num_keys);
    for (int i = 0; i < E::kDepth; ++i) fetch_ahead(rows, key + i, num_keys, head_dim);
    for (int d = 0; d < head_dim; d += kLanes<typename E::Operand>) {
      store(to + d, load_values<E>(rows[key], partner, d, head_dim - d));
    }
  }
}

// Queries of one vector of lanes, transposed: to[operand * to_stride + lane].
template <class E>
FA2_CPU_INLINE void pack_queries(typename E::Operand* to, int to_stride,
                                 typename E::Storage const* const* rows, int head_dim) {
  using Operand = typename E::Operand;
  constexpr int kEntries = kLanes<Operand> * E::kDepth;
  for (int d = 0; d < head_dim; d += kEntries) {
    Vec<Operand> block[kLanes<Operand>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<Operand>; ++i) {
      block[i] = load_operands<E>(rows[i] + d, head_dim - d);
    }
    transpose<Operand>(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<Operand>; ++i) store(to + (d / E::kDepth + i) * to_stride, block[i]);
  }
}

// Outputs of one vector of lanes, from[dim * from_stride + lane] * scale[lane], into `count` rows.
template <class E>
FA2_CPU_INLINE void unpack_outputs(typename E::Storage* const* rows, int count,
                                   typename E::Real const* from, int from_stride,
                                   Vec<typename E::Real> scale, int head_dim) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  // Stores to rows that are far apart would wait for one line after the other.
  for (int i = 0; i < count; ++i) fetch_row<1>(rows[i], head_dim);
  for (int d = 0; d < head_dim; d += kSize) {
    Vec<Real> block[kSize];
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) block[i] = load<Real>(from + (d + i) * from_stride) * scale;
    transpose<Real>(block);
    for (int i = 0; i < count; ++i) store_row<E>(rows[i] + d, block[i], head_dim - d);
  }
}

// to[i] = to[i] * there + values[i] for `count` entries, or a whole vector if there are more.
template <class Real>
FA2_CPU_INLINE void add_to_row(Real* to, Vec<Real> values, Real there, int count) {
  if (count >= kLanes<Real>) return store(to, load<Real>(to) * there + values);
  for (int i = 0; i < count; ++i) to[i] = to[i] * there + values[i];
}

// As unpack_outputs, added to what `count` rows hold times there[i].
template <class Real>
FA2_CPU_INLINE void add_outputs(Real* const* rows, int count, Real const* from, int from_stride,
                                Vec<Real> scale, Real const* there, int head_dim) {
  constexpr int kSize = kLanes<Real>;
  for (int d = 0; d < head_dim; d += kSize) {
    Vec<Real> block[kSize];
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) block[i] = load<Real>(from + (d + i) * from_stride) * scale;
    transpose<Real>(block);
    for (int i = 0; i < count; ++i) add_to_row<Real>(rows[i] + d, block[i], there[i], head_dim - d);
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
