#pragma once

// Biases as scores take them: those of tiles by vectors of queries, which are rows in memory, those
// of a handful of queries row by row.

#include "core/params.h"
#include "cpu/level/elements.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Of so many keys and one vector of queries.
template <class Real>
struct BiasBlock {
  alignas(kVectorBytes) Real keys[kLanes<Real>][kLanes<Real>];
};

// A storage type of biases as it is in memory, and as a Real.
template <class Real, class T>
struct PlainBias {
  using Storage = T;
  static FA2_CPU_INLINE Vec<Real> widen(T const* from) {
    if constexpr (sizeof(T) == sizeof(Real)) {
      return load<Real>(from);
    } else {
      typedef T Narrow __attribute__((vector_size(kVectorBytes / (sizeof(Real) / sizeof(T)))));
      Narrow narrow;
      __builtin_memcpy(&narrow, from, sizeof(narrow));
      return __builtin_convertvector(narrow, Vec<Real>);
    }
  }
};

// Entries of keys [0, num_keys) of a row; what comes after them is never read, and 0 here.
template <class Real, class Element>
FA2_CPU_INLINE Vec<Real> bias_row(typename Element::Storage const* row, int64_t col_stride,
                                  int num_keys) {
  using Storage = typename Element::Storage;
  if (num_keys >= kLanes<Real> && col_stride == 1) return Element::widen(row);
  Storage entries[kLanes<Real>] = {};
  int const count = num_keys < kLanes<Real> ? num_keys : kLanes<Real>;
  for (int j = 0; j < count; ++j) entries[j] = row[j * col_stride];
  return Element::widen(entries);
}

template <class Real, class Element>
FA2_CPU_INLINE void read_bias_rows(Bias const& bias, int64_t const* offsets, int32_t first,
                                   int num_keys, bool adds, BiasBlock<Real>& block) {
  constexpr int kSize = kLanes<Real>;
  using Storage = typename Element::Storage;
  Storage const* const data = static_cast<Storage const*>(bias.data) + first * bias.col_stride;
  Vec<Real> rows[kSize];
  for (int i = 0; i < kSize; ++i) {
    rows[i] = bias_row<Real, Element>(data + offsets[i], bias.col_stride, num_keys);
  }
  transpose<Real>(rows);
  for (int j = 0; j < kSize; ++j) {
    store(block.keys[j], adds ? load<Real>(block.keys[j]) + rows[j] : rows[j]);
  }
}

// Calls read.operator()<element type>() for the entries of a bias.
template <class Real, class Read>
FA2_CPU_INLINE void with_bias_element(Bias const& bias, Read const& read) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    bias.dtype == DType::kFloat64 ? read.template operator()<PlainBias<Real, double>>()
                                  : read.template operator()<PlainBias<Real, float>>();
  } else {
    switch (bias.dtype) {
      case DType::kFloat16: return read.template operator()<Float16>();
      case DType::kBFloat16: return read.template operator()<BFloat16>();
      default: return read.template operator()<PlainBias<Real, float>>();
    }
  }
}

// The entries of keys first, first + 1, ... of as many queries as a vector holds, whose rows begin
// at `offsets`; added to those that are there, or in their place.
template <class Real>
__attribute__((noinline)) void read_bias(Bias const& bias, int64_t const* offsets, int32_t first,
                                         int num_keys, bool adds, BiasBlock<Real>& block) {
  with_bias_element<Real>(bias, [&]<class Element>() FA2_CPU_INLINE_LAMBDA {
    read_bias_rows<Real, Element>(bias, offsets, first, num_keys, adds, block);
  });
}

// The same for `num_keys` keys of a single query, rounded up to whole vectors.
template <class Real>
__attribute__((noinline)) void read_bias_row(Bias const& bias, int64_t offset, int32_t first,
                                             int num_keys, bool adds, Real* entries) {
  with_bias_element<Real>(bias, [&]<class Element>() FA2_CPU_INLINE_LAMBDA {
    using Storage = typename Element::Storage;
    int64_t const at = offset + first * bias.col_stride;
    for (int j = 0; j < num_keys; j += kLanes<Real>) {
      Storage const* const from = static_cast<Storage const*>(bias.data) + at + j * bias.col_stride;
      Vec<Real> const row = bias_row<Real, Element>(from, bias.col_stride, num_keys - j);
      store(entries + j, adds ? load<Real>(entries + j) + row : row);
    }
  });
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
