#pragma once

// Which key tiles a tile of queries visits, and which of them need a mask.

#include "core/macros.h"
#include "core/mask.h"

namespace fa2 {

// Key tiles [begin, end). Tiles in [full_begin, full_end) are visible to every query of the tile;
// [begin, full_begin) and [full_end, end) are edges and need a mask. Ordered:
// begin <= full_begin <= full_end <= end.
struct BlockRange {
  int32_t begin;
  int32_t full_begin;
  int32_t full_end;
  int32_t end;
};

FA2_HD bool is_edge(BlockRange const& tiles, int32_t n) {
  return n >= tiles.full_end || n < tiles.full_begin;
}

// Queries [row_begin, row_end) of one sequence against key tiles of `block_n` keys. A window moves
// right with its query, so the first query bounds the tile on one side and the last on the other.
FA2_HD BlockRange block_range(int32_t row_begin, int32_t row_end, int32_t seqlen_q,
                              int32_t seqlen_k, Window const& window, int32_t block_n) {
  ColRange const first = visible_cols(row_begin, seqlen_q, seqlen_k, window);
  ColRange const last = visible_cols(row_end - 1, seqlen_q, seqlen_k, window);
  if (row_begin >= row_end || last.end <= first.begin) return {0, 0, 0, 0};

  auto clamp = [](int32_t x, int32_t lo, int32_t hi) { return x < lo ? lo : (x > hi ? hi : x); };
  int32_t const begin = first.begin / block_n;
  int32_t const end = (last.end + block_n - 1) / block_n;
  int32_t const seen_by_all_end = first.end < 0 ? 0 : first.end / block_n;
  int32_t const seen_by_all_begin = (last.begin + block_n - 1) / block_n;
  int32_t const full_begin = clamp(seen_by_all_begin, begin, end);
  int32_t const full_end = clamp(seen_by_all_end, full_begin, end);
  return {begin, full_begin, full_end, end};
}

}  // namespace fa2
