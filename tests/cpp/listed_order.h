#pragma once

// Block masks, the order of a launch's work under them as the kernel places it, and how long a
// device takes for such an order.

#include <algorithm>
#include <functional>
#include <queue>
#include <random>
#include <set>
#include <vector>

#include "sm80/lists/column_lists.h"
#include "sm80/lists/rows.h"

namespace fa2::testing {

using Rows = std::vector<std::set<int>>;  // the key blocks that each block of queries lists

// A window, global blocks at the beginning and random blocks, as BigBird has.
inline Rows bigbird(int blocks, int window, int global, int random) {
  std::mt19937 bits(1);
  Rows rows(static_cast<size_t>(blocks));
  for (int row = 0; row < blocks; ++row) {
    auto& listed = rows[size_t(row)];
    for (int col = 0; col < blocks; ++col) {
      bool const near = std::abs(row - col) <= window;
      if (row < global || col < global || near) listed.insert(col);
    }
    for (int i = 0; i < random; ++i) listed.insert(int(bits() % unsigned(blocks)));
  }
  return rows;
}

// A problem with such a mask for each of `masks.size() / mask_heads` sequences.
struct MaskedProblem {
  std::vector<int64_t> offsets;
  std::vector<int32_t> cols;
  FwdParams p;

  MaskedProblem(std::vector<Rows> const& masks, int mask_heads, int num_heads, int num_heads_kv,
                int blocks_k) {
    for (Rows const& rows : masks) {
      offsets.push_back(int64_t(cols.size()));
      for (auto const& row : rows) {
        cols.insert(cols.end(), row.begin(), row.end());
        offsets.push_back(int64_t(cols.size()));
      }
    }
    int const rows = int(masks[0].size()), batch = int(masks.size()) / mask_heads;
    p.batch = batch;
    p.num_heads = num_heads;
    p.num_heads_kv = num_heads_kv;
    p.seqs_q.max_seqlen = 64 * rows;
    p.seqs_k.max_seqlen = 64 * blocks_k;
    p.block_mask = {.row_offsets = offsets.data(),
                    .batch_stride = batch == 1 ? 0 : int64_t(mask_heads) * (rows + 1),
                    .heads = mask_heads,
                    .cols = cols.data(),
                    .tiles = nullptr,
                    .bits = nullptr,
                    .num_entries = int64_t(cols.size()),
                    .num_tiles = 0};
  }
};

// The lists by keys, as the kernels of lists/columns.h make them.
struct Columns {
  std::vector<ListedEntries> by_col;
  sm80::MaskColumns columns;

  Columns(std::vector<Rows> const& masks, FwdParams const& p, int block_n)
      : columns(sm80::MaskColumns::of(p, block_n)) {
    int64_t place = 0;
    for (Rows const& rows : masks) {
      for (int col = 0; col < columns.cols; ++col) {
        int64_t const begin = place;
        for (auto const& row : rows) {
          auto const first = row.lower_bound(col * columns.pack);
          place += first != row.end() && *first < (col + 1) * columns.pack;
        }
        by_col.push_back({begin, place});
      }
    }
    columns.by_col = by_col.data();
  }
};

// Calls put(place, item) as the kernel does.
template <class Lists, class Put>
void place_all(sm80::WorkOrder<Lists> const& order, Put const& put) {
  int64_t used = 0;
  for (int m = 0; m < order.lists.units * order.lists.masks; ++m) used += order.places_of_mask(m);
  bool const fits = used <= order.capacity;
  if (!fits) used = 0;
  int64_t first = 0;
  for (int unit = 0; unit < order.lists.units; ++unit) {
    int64_t own = 0;
    bool cut = fits;
    for (int i = 0; fits && i < order.lists.masks; ++i) {
      own += order.places_of_mask(unit * order.lists.masks + i);
    }
    for (int list = 0; list < order.lists.lists; ++list) cut = cut && order.in_order(unit, list);
    for (int list = 0; list < order.lists.lists; ++list) {
      order.place({unit, first, own, cut}, list, put);
    }
    first += own;
  }
  for (int64_t i = order.unused_begin(used); i < order.unused_end(); ++i) put(i, sm80::WorkItem{});
}

// CTAs go to the slot that is free first, in their order. Returns when all are done.
inline double play(std::vector<double> const& costs, int slots) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free_at;
  for (int i = 0; i < slots; ++i) free_at.push(0);
  double end = 0;
  for (double const cost : costs) {
    double const done = free_at.top() + cost;
    free_at.pop();
    free_at.push(done);
    end = std::max(end, done);
  }
  return end;
}

}  // namespace fa2::testing
