#pragma once

// What one CTA of the split kernel computes: a block of rows of one KV head of one sequence, over
// some of the splits of its keys.

#include <cute/config.hpp>

#include "sm80/row_block.h"
#include "sm80/split/args.h"

namespace fa2::sm80 {

// Kept in shared memory, like the forward's WorkTile.
struct SplitWorkTile {
  int32_t batch;
  int32_t head_kv;
  int32_t row_begin;
  int32_t num_rows;  // of the sequence; 0: nothing to do
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t diagonal;  // as in WorkTile
  Window window;
  BlockRange tiles;  // of the current split
  int64_t first_row_q;
  int64_t first_row_k;
  BlockRange all_tiles;
  int32_t tiles_each;
  Sharing sharing;
  int32_t cta;  // of those that share the block
};

// The CTAs of a sequence and KV head are neighbours, then come the other KV heads, whose keys lie
// side by side in memory.
CUTE_DEVICE SplitWorkTile split_work_tile(SplitArgs const& args, int32_t block) {
  FwdParams const& p = args.problem;
  SplitSchedule const& schedule = args.schedule;
  SplitWorkTile work;
  int32_t const in_sequence = block % schedule.ctas;
  block /= schedule.ctas;
  work.head_kv = block % p.num_heads_kv;
  work.batch = block / p.num_heads_kv;
  SeqInfo const q = seq_info(p.seqs_q, work.batch);
  SeqInfo const k = seq_info(p.seqs_k, work.batch);
  int32_t const blocks = row_blocks(schedule, q, k);
  work.num_rows = 0;
  if (blocks == 0) return work;

  // The last blocks first, which are the heaviest ones under a causal mask.
  work.cta = in_sequence / blocks;
  RowBlock const rows = row_block(schedule, q, k, blocks, blocks - 1 - in_sequence % blocks);
  int32_t const begin = rows.sharing.begin(work.cta);
  bool const idle = work.cta > 0 && begin >= rows.sharing.begin(work.cta + 1);
  if (idle || work.cta >= rows.sharing.ctas) return work;
  work.row_begin = rows.row_begin;
  work.num_rows = rows.num_rows;
  work.seqlen_q = q.length;
  work.seqlen_k = k.length;
  work.diagonal = k.length - q.length;
  work.window = p.window;
  work.first_row_q = q.first_row;
  work.first_row_k = k.first_row;
  work.all_tiles = rows.tiles;
  work.tiles_each = rows.tiles_each;
  work.sharing = rows.sharing;
  work.tiles = tiles_of_split(rows.tiles, rows.tiles_each, begin);
  return work;
}

}  // namespace fa2::sm80
