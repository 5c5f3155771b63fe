#pragma once

// Blocks of rows in the split kernel. A row is a query and a query head: row r is query r / group
// of head head_kv * group + r % group, so that the heads of a group share the keys.

#include "core/block_range.h"
#include "core/seq_info.h"
#include "sm80/split/partials.h"

namespace fa2::sm80 {

struct RowBlock {
  int32_t row_begin;
  int32_t num_rows;  // of the sequence; 0: the launch has nothing to do with it
  int32_t tiles_each;
  BlockRange tiles;
  Sharing sharing;
};

// Row blocks of a sequence; none where another launch takes it.
FA2_HD int32_t row_blocks(SplitSchedule const& s, SeqInfo const& q, SeqInfo const& k) {
  if (s.selects && kernel_of(s.rule, q.length, k.length) != s.kind) return 0;
  return ceil_div(int64_t(q.length) * s.rule.group, s.block_m);
}

// Block m of `blocks`.
FA2_HD RowBlock row_block(SplitSchedule const& s, SeqInfo const& q, SeqInfo const& k,
                          int32_t blocks, int32_t m) {
  int32_t const group = s.rule.group;
  RowBlock block;
  block.row_begin = m * s.block_m;
  block.num_rows = q.length * group;
  int32_t const left = block.num_rows - block.row_begin;
  int32_t const row_end = block.row_begin + (left < s.block_m ? left : s.block_m);
  block.tiles = block_range(block.row_begin / group, (row_end - 1) / group + 1, q.length, k.length,
                            s.rule.window, s.block_n);
  int32_t const tiles = block.tiles.end - block.tiles.begin;
  Splits const splits = splits_of(s.rule, s.kind, block.num_rows, tiles);
  block.tiles_each = splits.tiles_each;
  // Few rows are one block, and any number of CTAs share it; with many, every split is a CTA's.
  int32_t const ctas = s.kind == TileKind::kFewRows ? s.ctas / blocks : splits.count;
  block.sharing = {splits.count, ctas > 1 ? ctas : 1};
  return block;
}

// The tiles of a split: the first one has the last keys.
FA2_HD BlockRange tiles_of_split(BlockRange const& tiles, int32_t tiles_each, int32_t split) {
  int32_t const end = tiles.end - split * tiles_each;
  int32_t const begin = end - tiles_each > tiles.begin ? end - tiles_each : tiles.begin;
  auto const clamp = [&](int32_t n) { return n < begin ? begin : (n > end ? end : n); };
  return {begin, clamp(tiles.full_begin), clamp(tiles.full_end), end};
}

}  // namespace fa2::sm80
