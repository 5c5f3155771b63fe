#pragma once

// What one CTA of the split kernel computes: a block of rows of one KV head of one sequence, over a
// part of the keys. A row is a query and a query head: row r is query r / group of head
// head_kv * group + r % group, so that the heads of a group share the keys.

#include <cute/config.hpp>

#include "core/block_range.h"
#include "core/seq_info.h"
#include "sm80/split_args.h"

namespace fa2::sm80 {

struct SplitWorkTile {
  int32_t batch;
  int32_t head_kv;
  int32_t split;
  int32_t row_begin;
  int32_t num_rows;  // of the sequence
  int32_t seqlen_q;
  int32_t seqlen_k;
  Window window;
  BlockRange tiles;  // of this split
  int64_t first_row_q;
  int64_t first_row_k;
};

// An equal share of the tiles for each split, whatever else is in the batch.
CUTE_DEVICE BlockRange split_range(BlockRange const& tiles, int32_t split, int32_t num_splits) {
  int64_t const count = tiles.end - tiles.begin;
  int32_t const begin = tiles.begin + int32_t(count * split / num_splits);
  int32_t const end = tiles.begin + int32_t(count * (split + 1) / num_splits);
  auto const clamp = [&](int32_t n) { return max(begin, min(n, end)); };
  return {begin, clamp(tiles.full_begin), clamp(tiles.full_end), end};
}

// The splits of a block are neighbours, then come the KV heads of a sequence, whose keys lie side
// by side in memory.
CUTE_DEVICE SplitWorkTile split_work_tile(SplitArgs const& args, int32_t block, int block_m,
                                          int block_n) {
  FwdParams const& p = args.problem;
  SplitWorkTile work;
  work.split = block % args.partials.num_splits;
  block /= args.partials.num_splits;
  work.head_kv = block % p.num_heads_kv;
  block /= p.num_heads_kv;
  // The last blocks first, which are the heaviest ones under a causal mask.
  work.row_begin = (args.num_m_blocks - 1 - block % args.num_m_blocks) * block_m;
  work.batch = block / args.num_m_blocks;

  SeqInfo const q = seq_info(p.seqs_q, work.batch);
  SeqInfo const k = seq_info(p.seqs_k, work.batch);
  work.num_rows = q.length * args.group.divisor;
  work.seqlen_q = q.length;
  work.seqlen_k = k.length;
  work.window = p.window;
  work.first_row_q = q.first_row;
  work.first_row_k = k.first_row;
  int32_t const row_end = min(work.row_begin + block_m, work.num_rows);
  int32_t const query_begin = args.group.div(work.row_begin);
  int32_t const query_end =
      row_end > work.row_begin ? args.group.div(row_end - 1) + 1 : query_begin;
  work.tiles =
      split_range(block_range(query_begin, query_end, q.length, k.length, p.window, block_n),
                  work.split, args.partials.num_splits);
  return work;
}

}  // namespace fa2::sm80
