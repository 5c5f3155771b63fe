#pragma once

// Where the lists of a tile of queries are cut: a piece has its share of the entries of all, in the
// order of steps, from the last block of keys to the first. Entries of one block stay together.

#include <cute/config.hpp>

#include "core/block_mask.h"
#include "sm80/lists/pieces.h"

namespace fa2::sm80 {

// How many of the first `count` entries each of two lists has. By one warp, whose lanes look at 32
// places at a time. Lists out of order are cut somewhere.
CUTE_DEVICE void take_first(ListedEntries const (&lists)[2], int32_t const* cols, int64_t count,
                            int64_t (&taken)[2]) {
  int const lane = threadIdx.x % 32;
  int64_t const size[2] = {lists[0].end - lists[0].begin, lists[1].end - lists[1].begin};
  // Entry i of list 0 is among them unless count - i entries of the other come before it.
  int64_t low = count > size[1] ? count - size[1] : 0;
  int64_t high = count < size[0] ? count : size[0];
  while (low < high) {
    int64_t const step = (high - low + 31) / 32, i = low + lane * step;
    bool const taken_too =
        i < high && cols[lists[0].end - 1 - i] >= cols[lists[1].end - (count - i)];
    int const lanes = __popc(__ballot_sync(0xffffffffu, taken_too));
    int64_t const beyond = low + lanes * step;
    if (beyond < high) high = beyond;
    if (lanes > 0) low = beyond - step + 1;
  }
  taken[0] = low;
  taken[1] = count - low;
  bool const both = low > 0 && taken[1] < size[1] &&
                    cols[lists[0].end - low] == cols[lists[1].end - 1 - taken[1]];
  if (both) ++taken[1];
}

CUTE_DEVICE void take_first(ListedEntries const (&)[1], int32_t const*, int64_t count,
                            int64_t (&taken)[1]) {
  taken[0] = count;
}

// Leaves of the lists what is a piece's. By one warp.
template <int kLists>
CUTE_DEVICE void cut(ListedEntries (&lists)[kLists], int32_t const* cols, int32_t piece,
                     int32_t pieces) {
  int64_t entries = 0;
  for (ListedEntries const& list : lists) entries += list.end - list.begin;
  int64_t before[kLists], with[kLists];
  take_first(lists, cols, piece_begin(entries, piece, pieces), before);
  take_first(lists, cols, piece_begin(entries, piece + 1, pieces), with);
  CUTE_UNROLL
  for (int i = 0; i < kLists; ++i) {
    int64_t const end = lists[i].end;
    lists[i] = {end - (with[i] < before[i] ? before[i] : with[i]), end - before[i]};
  }
}

}  // namespace fa2::sm80
