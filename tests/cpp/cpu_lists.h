#pragma once

// Block masks for tests of plans.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "core/params.h"

namespace fa2::testing {

using ListedRows = std::vector<std::vector<int>>;  // key blocks of each row of blocks

// Rows that list the first so many key blocks.
inline ListedRows rows_of_first(std::vector<int> const& counts) {
  ListedRows rows;
  for (int const count : counts) {
    rows.emplace_back(size_t(count));
    std::iota(rows.back().begin(), rows.back().end(), 0);
  }
  return rows;
}

// Neighbours, some at random, and a block of global tokens: its row and its column are full.
inline ListedRows bigbird_rows(int blocks, int global, int neighbours = 1, int random_blocks = 7) {
  std::mt19937 random(5);
  ListedRows rows;
  for (int row = 0; row < blocks; ++row) {
    std::vector<bool> listed(size_t(blocks), row == global);
    listed[size_t(global)] = true;
    for (int i = std::max(0, row - neighbours); i <= std::min(blocks - 1, row + neighbours); ++i) {
      listed[size_t(i)] = true;
    }
    for (int i = 0; i < random_blocks; ++i) listed[random() % size_t(blocks)] = true;
    rows.emplace_back();
    for (int i = 0; i < blocks; ++i) {
      if (listed[size_t(i)]) rows.back().push_back(i);
    }
  }
  return rows;
}

// A mask, of whole blocks.
struct Lists {
  std::vector<int64_t> offsets;
  std::vector<int32_t> cols;
  std::vector<int32_t> tiles;

  // Rows of each head in turn.
  Lists(std::vector<ListedRows> const& heads, FwdParams& params) {
    for (ListedRows const& rows : heads) {
      offsets.push_back(int64_t(cols.size()));
      for (std::vector<int> const& row : rows) {
        cols.insert(cols.end(), row.begin(), row.end());
        offsets.push_back(int64_t(cols.size()));
      }
    }
    tiles.assign(cols.size(), 0);
    params.block_mask = {.row_offsets = offsets.data(),
                         .batch_stride = 0,
                         .heads = int32_t(heads.size()),
                         .cols = cols.data(),
                         .tiles = tiles.data(),
                         .bits = nullptr,
                         .num_entries = int64_t(cols.size()),
                         .num_tiles = 0};
  }
};

}  // namespace fa2::testing
