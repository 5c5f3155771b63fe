#pragma once

// How CTAs share the adding up of what pieces have left: for each piece one takes a share of the
// rows of its list, a few columns a thread.

#include <cute/config.hpp>
#include <cutlass/array.h>

#include "sm80/lists/schedule.h"
#include "tile/fragments.h"

namespace fa2::sm80 {

inline constexpr int kShareColumns = 4;  // of a thread
using ShareChunk = cutlass::AlignedArray<float, kShareColumns>;

// Calls f(copy, item) for each piece of a launch. There are more places than pieces, so CTAs, of
// any number, go from place to place.
template <class F>
CUTE_DEVICE void for_each_piece(ListedSchedule const& listed, F const& f) {
  int32_t const places = listed.places();
  int64_t const all = int64_t(places) * listed.copies;
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    WorkItem const item = listed.items[i % places];
    if (item.exists() && item.is_piece()) f(int32_t(i / places), item);
  }
}

// Calls f(row, col) for what this thread has of a piece's share.
template <int kThreads, class F>
CUTE_DEVICE void for_share(WorkItem const& item, int32_t rows, int32_t head_dim, F const& f) {
  int32_t const chunks = head_dim / kShareColumns;
  int32_t const begin = rows * item.part / item.parts, end = rows * (item.part + 1) / item.parts;
  for (int32_t i = begin * chunks + threadIdx.x; i < end * chunks; i += kThreads) {
    f(i / chunks, i % chunks * kShareColumns);
  }
}

template <class Element>
CUTE_DEVICE void store_scaled(Element* to, ShareChunk const& values, float factor) {
  auto* const packed = reinterpret_cast<uint32_t*>(to);
  packed[0] = pack<Element>(values[0] * factor, values[1] * factor);
  packed[1] = pack<Element>(values[2] * factor, values[3] * factor);
}

CUTE_DEVICE void add_scaled(float* to, ShareChunk const& values, float factor) {
  CUTE_UNROLL
  for (int i = 0; i < kShareColumns; i += 2) {
    auto& pair = reinterpret_cast<float2&>(to[i]);
    pair = make_float2(fmaf(values[i], factor, pair.x), fmaf(values[i + 1], factor, pair.y));
  }
}

}  // namespace fa2::sm80
