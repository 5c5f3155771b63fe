#pragma once

// Copies between tensors and the layouts that the products read: rows of K and V as operands,
// queries transposed, outputs transposed back.

#include "cpu/elements.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

FA2_CPU_INLINE int smaller(int a, int b) { return a < b ? a : b; }
FA2_CPU_INLINE int larger(int a, int b) { return a > b ? a : b; }
FA2_CPU_INLINE int round_up(int x, int multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Length of a packed row: whole vectors, plus a cache line that keeps a column of the block from
// falling into a few cache sets.
template <class Operand>
FA2_CPU_INLINE int packed_stride(int length) {
  constexpr int kCacheLine = 64;
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

// Rows of K: to[key][operand].
template <class E>
__attribute__((noinline)) void pack_keys(typename E::Operand* to, int64_t to_stride,
                                         typename E::Storage const* from, int64_t from_stride,
                                         int num_keys, int head_dim) {
  constexpr int kEntries = kLanes<typename E::Operand> * E::kDepth;
  for (int key = 0; key < num_keys; ++key, to += to_stride, from += from_stride) {
    for (int d = 0; d < head_dim; d += kEntries) {
      store(to + d / E::kDepth, load_operands<E>(from + d, head_dim - d));
    }
  }
}

// The next vector of operands of a row of V that has `count` entries left: where operands are pairs
// of keys, with the next row. A last key without a partner is paired with zeros, since what lies
// beyond it may be any garbage.
template <class E>
FA2_CPU_INLINE Vec<typename E::Operand> load_values(typename E::Storage const* from, int64_t stride,
                                                    bool has_partner, int count) {
  if constexpr (E::kDepth == 1) {
    return load_operands<E>(from, count);
  } else {
    constexpr int kEntries = kLanes<typename E::Operand>;
    auto words = [](typename E::Storage const* row, int entries) {
      if (entries >= kEntries) return load_words(row);
      return load_words(PartialRow<typename E::Storage, kEntries>(row, entries).entries);
    };
    return words(from, count) | words(from + stride, has_partner ? count : 0) << 16;
  }
}

// Rows of V: to[key / kDepth][dim].
template <class E>
__attribute__((noinline)) void pack_values(typename E::Operand* to, int64_t to_stride,
                                           typename E::Storage const* from, int64_t from_stride,
                                           int num_keys, int head_dim) {
  constexpr int kEntries = kLanes<typename E::Operand>;
  for (int key = 0; key < num_keys; key += E::kDepth, to += to_stride) {
    typename E::Storage const* const row = from + key * from_stride;
    for (int d = 0; d < head_dim; d += kEntries) {
      store(to + d, load_values<E>(row + d, from_stride, key + 1 < num_keys, head_dim - d));
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
  for (int d = 0; d < head_dim; d += kSize) {
    Vec<Real> block[kSize];
#pragma GCC unroll 16
    for (int i = 0; i < kSize; ++i) block[i] = load<Real>(from + (d + i) * from_stride) * scale;
    transpose<Real>(block);
    bool const whole = d + kSize <= head_dim;
    for (int i = 0; i < count; ++i) {
      if (whole) {
        E::narrow(rows[i] + d, block[i]);
      } else {
        typename E::Storage entries[kSize];
        E::narrow(entries, block[i]);
        for (int j = 0; d + j < head_dim; ++j) rows[i][d + j] = entries[j];
      }
    }
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
