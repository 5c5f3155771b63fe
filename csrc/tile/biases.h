#pragma once

// Biases of the scores that a lane holds, read where they lie (core/params.h).

#include <cute/tensor.hpp>

#include "core/score_mod.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2 {

// A sequence and head, and which side of its scores is in rows.
struct BiasPlace {
  int32_t batch;
  int32_t head;
  int32_t seqlen_q;
  int32_t seqlen_k;
};

// Distances between entries in memory, and how many there are behind the lane's first score; fewer
// than none where that one itself does not exist.
struct BiasSide {
  int64_t stride;
  int last;
};

// scores(i, j) += entry(i, j). Rows and columns behind the last have its entries: their scores are
// masked, or in rows that nobody reads.
template <int kM, int kN, class Entry, class Scores>
CUTE_DEVICE void add_entries(Scores& scores, Entry const* first, BiasSide const& rows,
                             BiasSide const& cols) {
  auto s = row_col_view(scores);
  int last_col = cols.last;
  CUTE_UNROLL
  for (int i = 0; i < 2 * kM; ++i) {
    Entry const* row = first + min(int(RowCoord<kM>{}(i)), rows.last) * rows.stride;
    opaque(row);  // one live address at a time
    opaque(last_col);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kN; ++j) {
      s(i, j) += float(row[min(int(ColCoord<kN>{}(j)), last_col) * cols.stride]);
    }
  }
}

// The same two columns at a time, where pairs can be read: neighbours in memory, all of which
// exist.
template <int kM, int kN, class Entry, class Scores>
CUTE_DEVICE void add_pairs(Scores& scores, Entry const* first, BiasSide const& rows) {
  auto s = row_col_view(scores);
  CUTE_UNROLL
  for (int i = 0; i < 2 * kM; ++i) {
    Entry const* row = first + min(int(RowCoord<kM>{}(i)), rows.last) * rows.stride;
    opaque(row);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kN; j += 2) {
      auto const pair =
          reinterpret_cast<cutlass::AlignedArray<Entry, 2> const&>(row[int(ColCoord<kN>{}(j))]);
      s(i, j) += float(pair[0]);
      s(i, j + 1) += float(pair[1]);
    }
  }
}

template <int kN, class Entry>
CUTE_DEVICE bool has_pairs(Entry const* first, BiasSide const& rows, BiasSide const& cols) {
  return cols.stride == 1 && cols.last >= int(ColCoord<kN>{}(2 * kN - 1)) && rows.stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(first) % (2 * sizeof(Entry)) == 0;
}

enum class BiasReads {
  kSingle,
  kPairs,       // where there are any
  kTransposed,  // keys are in rows, and a lane has no neighbours of a query
};

// A bias of scores whose first one, of this lane, is that of (first_query, first_key).
template <class Element, int kM, int kN, BiasReads kReads, class Scores>
CUTE_DEVICE void add_bias(Scores& scores, Bias const& bias, BiasPlace const& place, int first_query,
                          int first_key) {
  if (bias.data == nullptr) return;
  int64_t const offset =
      bias_offset(bias, place.batch, place.head, first_query) + first_key * bias.col_stride;
  BiasSide const queries = {bias.row_stride, place.seqlen_q - 1 - first_query};
  BiasSide const keys = {bias.col_stride, place.seqlen_k - 1 - first_key};
  auto const add = [&](auto const* data) {
    auto const* const first = data + offset;
    if constexpr (kReads == BiasReads::kTransposed) {
      add_entries<kM, kN>(scores, first, keys, queries);
    } else {
      if constexpr (kReads == BiasReads::kPairs) {
        if (has_pairs<kN>(first, queries, keys)) return add_pairs<kM, kN>(scores, first, queries);
      }
      add_entries<kM, kN>(scores, first, queries, keys);
    }
  };
  if (bias.dtype == DType::kFloat32) {
    add(static_cast<float const*>(bias.data));
  } else {
    add(static_cast<Element const*>(bias.data));
  }
}

// Both of them: one after the other, so that strides need no registers, or in a loop, which keeps
// ptxas from moving the many entries of a forward tile. Either spills in place of the other.
template <class Element, int kM, int kN, BiasReads kReads, class Scores>
CUTE_DEVICE void add_biases(Scores& scores, ScoreMod const& mod, BiasPlace const& place,
                            int first_query, int first_key) {
  auto const add = [&](Bias const& bias) {
    add_bias<Element, kM, kN, kReads>(scores, bias, place, first_query, first_key);
  };
  if constexpr (kReads == BiasReads::kTransposed) {
    add(mod.bias);
    add(mod.relative_bias);
  } else {
    CUTE_NO_UNROLL
    for (int i = 0; i < 2; ++i) add(i == 0 ? mod.bias : mod.relative_bias);
  }
}

}  // namespace fa2
