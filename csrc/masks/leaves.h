#pragma once

// Patterns that are known without the caller's help. Memory that they point to stays the caller's.

#include <cstdint>

#include "masks/node.h"

namespace fa2::masks {

// Keys within the window around the diagonal on which a query stands (core/mask.h).
NodePtr window(Lengths const& lengths, Window const& window);

// Ranges [begin, end) of each batch, ascending and apart.
struct Ranges {
  int32_t const* bounds = nullptr;   // (ranges, 2)
  int64_t const* offsets = nullptr;  // (batch + 1,) into them
  int32_t batch = 1;                 // 1: the same for all

  struct Range {
    int32_t begin, end;
  };
  Range const* begin(int32_t b) const { return data() + offsets[batch == 1 ? 0 : b]; }
  Range const* end(int32_t b) const { return data() + offsets[batch == 1 ? 1 : b + 1]; }

 private:
  Range const* data() const { return reinterpret_cast<Range const*>(bounds); }
};

// All queries see these keys; these queries see all keys.
NodePtr keys(Lengths const& lengths, Ranges const& ranges);
NodePtr queries(Lengths const& lengths, Ranges const& ranges);

// Each block of `block` queries sees per_row blocks of as many keys, or all if there are no more.
// Which ones is decided by (seed, head, row, number of key blocks) alone. A head modulo `heads`.
struct RandomBlocks {
  int32_t per_row = 0;
  int32_t block = kBlock;  // a multiple of kBlock
  uint64_t seed = 0;
  int32_t heads = 1;
};
NodePtr random_blocks(Lengths const& lengths, RandomBlocks const& blocks);

// A byte, 0 or 1, for each block of block_q queries and block_k keys, multiples of kBlock.
struct BlockTable {
  uint8_t const* data = nullptr;  // (batch, heads, rows, cols)
  int32_t batch = 1;              // 1: the same for all
  int32_t heads = 1;              // 1: the same for all
  int32_t block_q = kBlock;
  int32_t block_k = kBlock;
};
NodePtr blocks(Lengths const& lengths, BlockTable const& table);

}  // namespace fa2::masks
