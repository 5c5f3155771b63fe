#pragma once

// The two products for a handful of queries, as in decoding. Here lanes are head dims: a tile whose
// lanes are queries would be mostly padding, and every entry of K and V would be broadcast for it.
// Operands are read and converted where they lie, each row once and in order, since reading K and V
// from memory is most of the work. Scores and probabilities keep the layout of a tile of one
// vector.

#include "cpu/pack.h"
#include "cpu/tiles.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Rows of queries as operands: to[query * to_stride + operand].
template <class E>
FA2_CPU_INLINE void pack_query_rows(typename E::Operand* to, int to_stride,
                                    typename E::Storage const* const* rows, int count,
                                    int head_dim) {
  for (int i = 0; i < count; ++i) pack_keys<E>(to + i * to_stride, 0, rows[i], 0, 1, head_dim);
}

// sums[i] += query . rows[i] over kVectors vectors of entries from `offset` on; one that is not
// whole has only `count` entries. Also fetches the rows that lie `ahead` entries further on.
template <class E, int kVectors>
FA2_CPU_INLINE void add_products(typename E::Operand const* query,
                                 typename E::Storage const* const* rows, int64_t offset,
                                 int64_t ahead, int count,
                                 Vec<typename E::Real> (&sums)[kLanes<typename E::Real>]) {
  using Operand = typename E::Operand;
  constexpr int kEntries = kLanes<Operand> * E::kDepth;
  Vec<Operand> q[kVectors];
#pragma GCC unroll 4
  for (int n = 0; n < kVectors; ++n) q[n] = load<Operand>(query + n * kLanes<Operand>);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<Operand>; ++i) {
    typename E::Storage const* const row = rows[i] + offset;
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      __builtin_prefetch(row + ahead + n * kEntries);
      sums[i] = E::multiply_add(sums[i], load_operands<E>(row + n * kEntries, count), q[n]);
    }
  }
}

// Dot products of `query` with the keys at rows[0], rows[1], ..., one per lane. Four vectors of a
// row at a time: rows are often a multiple of 4 KiB apart and then crowd into few cache sets, so
// that each is best read in one go.
template <class E>
FA2_CPU_INLINE Vec<typename E::Real> dot_products(typename E::Operand const* query,
                                                  typename E::Storage const* const* rows,
                                                  int64_t ahead, int head_dim) {
  constexpr int kEntries = kLanes<typename E::Operand> * E::kDepth;
  Vec<typename E::Real> sums[kLanes<typename E::Real>] = {};
  int d = 0;
  for (; d + 4 * kEntries <= head_dim; d += 4 * kEntries) {
    add_products<E, 4>(query + d / E::kDepth, rows, d, ahead, kEntries, sums);
  }
  for (; d < head_dim; d += kEntries) {
    add_products<E, 1>(query + d / E::kDepth, rows, d, ahead, head_dim - d, sums);
  }
  return sum_lanes<typename E::Real>(sums);
}

// m[i] becomes lane i of m[0], which is what transposing equal rows would give.
template <class T>
FA2_CPU_INLINE void spread_lanes(Vec<T> (&m)[kLanes<T>]) {
  T lanes[kLanes<T>];
  store(lanes, m[0]);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) m[i] = broadcast(lanes[i]);
}

// As multiply_keys in microkernel.h, for `num_queries` rows of queries and keys in their storage.
template <class E>
__attribute__((noinline)) void multiply_keys_few(typename E::Storage const* keys,
                                                 int64_t key_stride, int num_keys,
                                                 typename E::Operand const* queries,
                                                 int query_stride, int num_queries, int head_dim,
                                                 typename E::Real* scores,
                                                 typename E::Real* maxima) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  Vec<Real> top = load<Real>(maxima);
  for (int key = 0; key < num_keys; key += kSize) {
    typename E::Storage const* rows[kSize];
    for (int i = 0; i < kSize; ++i) {
      rows[i] = keys + smaller(key + i, num_keys - 1) * key_stride;
    }
    Vec<Real> block[kSize];
    for (int i = 0; i < num_queries; ++i) {
      block[i] = dot_products<E>(queries + i * query_stride, rows, kSize * key_stride, head_dim);
    }
    if (num_queries == 1) {
      spread_lanes<Real>(block);
    } else {
      for (int i = num_queries; i < kSize; ++i) block[i] = block[num_queries - 1];
      transpose<Real>(block);
    }
    for (int i = 0; i < kSize && key + i < num_keys; ++i) {
      store(scores + (key + i) * kSize, block[i]);
      top = max(block[i], top);
    }
  }
  store(maxima, top);
}

// As multiply_values in microkernel.h, for the first kQueries lanes and values in their storage.
template <class E, int kQueries>
__attribute__((noinline)) void multiply_values_few(typename E::Storage const* values,
                                                   int64_t value_stride, int num_keys,
                                                   typename E::Operand const* probs, int head_dim,
                                                   typename E::Real const* rescale,
                                                   typename E::Real* out) {
  using Real = typename E::Real;
  constexpr int kSize = kLanes<Real>;
  constexpr int kVectors = 4;
  constexpr int kKeysAhead = 8;
  for (int dim = 0; dim < head_dim; dim += kVectors * kSize) {
    Vec<Real> sums[kQueries][kVectors] = {};
    for (int key = 0; key < num_keys; key += E::kDepth) {
      typename E::Storage const* const row = values + key * value_stride + dim;
      typename E::Operand const* const weights = probs + key / E::kDepth * kSize;
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        __builtin_prefetch(row + kKeysAhead * value_stride + n * kSize);
        Vec<typename E::Operand> const v = load_values<E>(
            row + n * kSize, value_stride, key + 1 < num_keys, head_dim - dim - n * kSize);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
          sums[i][n] =
              E::multiply_add(sums[i][n], broadcast_from<typename E::Operand>(weights + i), v);
        }
      }
    }
    int const dims = smaller(kVectors * kSize, head_dim - dim);
    for (int i = 0; i < kQueries; ++i) {
      Real sum[kVectors * kSize];
      __builtin_memcpy(sum, sums[i], sizeof(sum));
      for (int d = 0; d < dims; ++d) {
        Real* const target = out + (dim + d) * kSize + i;
        *target = *target * rescale[i] + sum[d];
      }
    }
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
