#pragma once

// What patterns are evaluated on: blocks of kBlock queries and kBlock keys.

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/block_mask.h"

namespace fa2::masks {

inline constexpr int32_t kBlock = BlockMask::kBlock;
inline constexpr uint64_t kAllBits = ~uint64_t(0);

// The pairs of a block: a word for each query, in it a bit for each key.
using Tile = std::array<uint64_t, kBlock>;

struct Lengths {
  int32_t seqlen_q = 0;
  int32_t seqlen_k = 0;

  int32_t rows() const { return mask_blocks(seqlen_q); }
  int32_t cols() const { return mask_blocks(seqlen_k); }

  // The key on whose diagonal a query stands; below 0: on none.
  int32_t diagonal(int32_t query) const { return query + seqlen_k - seqlen_q; }
};

// A block of queries.
struct Place {
  int32_t batch = 0;
  int32_t head = 0;
  int32_t row = 0;

  bool operator==(Place const&) const = default;
};

// Bits [begin, end) of a word; what lies outside of it does not count.
inline uint64_t bits_between(int64_t begin, int64_t end) {
  begin = std::max<int64_t>(begin, 0);
  end = std::min<int64_t>(end, kBlock);
  if (begin >= end) return 0;
  return (kAllBits >> (kBlock - (end - begin))) << begin;
}

inline bool all_words_are(Tile const& tile, uint64_t word) {
  return std::all_of(tile.begin(), tile.end(), [=](uint64_t x) { return x == word; });
}

}  // namespace fa2::masks
