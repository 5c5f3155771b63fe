#pragma once

// A tile of scores that a CTA works on, and which tiles of its walk have scores at all.

#include "core/block_mask.h"
#include "core/block_range.h"
#include "core/positions.h"
#include "core/seq_info.h"
#include "sm80/bias_backward/args.h"
#include "sm80/lists/args.h"

namespace fa2::sm80 {

struct BiasWorkTile {
  int32_t batch;
  int32_t head;
  int32_t row_begin;
  int32_t col_begin;
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t diagonal;  // as in WorkTile
  int64_t first_row_q;
  int64_t first_row_k;
  int32_t mask_tile;  // index into BlockMask::bits; kUnlisted: nothing is visible

  FA2_HD bool exists() const { return mask_tile != kUnlisted; }
};

// The entry of a block of keys in the list of a block of queries. Lists of a mask ascend; whatever
// they hold, the search ends.
FA2_HD int32_t mask_tile_of(FwdParams const& p, ScoreTile const& tile) {
  if (p.block_mask.row_offsets == nullptr) return 0;
  ListedEntries list = row_entries(p, tile.batch, mask_head(p, tile.head), tile.row);
  while (list.begin < list.end) {
    int64_t const middle = list.begin + (list.end - list.begin) / 2;
    int32_t const col = p.block_mask.cols[middle];
    if (col == tile.col) return listed_tile(p.block_mask, middle);
    if (col < tile.col) {
      list.begin = middle + 1;
    } else {
      list.end = middle;
    }
  }
  return kUnlisted;
}

FA2_HD BiasWorkTile bias_work_tile(FwdParams const& p, ScoreTile const& tile) {
  constexpr int32_t kBlock = BiasPass::kBlock;
  SeqInfo const q = seq_info(p.seqs_q, tile.batch), k = seq_info(p.seqs_k, tile.batch);
  int32_t const row_begin = tile.row * kBlock, rows_left = q.length - row_begin;
  int32_t const diagonal = first_diagonal(p, q, k), first = row_begin + diagonal;
  BlockRange const visible = block_range(first, first + (rows_left < kBlock ? rows_left : kBlock),
                                         k.length, k.length, p.window, kBlock);
  bool const sees = tile.col >= visible.begin && tile.col < visible.end;
  return {.batch = tile.batch,
          .head = tile.head,
          .row_begin = row_begin,
          .col_begin = tile.col * kBlock,
          .seqlen_q = q.length,
          .seqlen_k = k.length,
          .diagonal = diagonal,
          .first_row_q = q.first_row,
          .first_row_k = k.first_row,
          .mask_tile = sees ? mask_tile_of(p, tile) : kUnlisted};
}

// What a CTA works on now and next. In shared memory, where one thread puts it.
struct BiasSteps {
  TileWalk walk;
  int64_t next;
  int64_t end;
  BiasWorkTile tiles[2];

  // The steps of one split of a walk, and the first tile.
  FA2_HD void start(BiasBwdArgs const& args, BiasUnit const& unit, int32_t split) {
    walk = args.pass.walk(unit);
    int64_t const steps = walk.steps(), each = (steps + args.pass.splits - 1) / args.pass.splits;
    auto const bounded = [&](int64_t step) { return step < steps ? step : steps; };
    next = bounded(split * each);
    end = bounded(next + each);
    seek(args.problem.forward, 0);
  }

  // Moves on to the next tile that has scores, or to one that does not exist.
  FA2_HD void seek(FwdParams const& p, int slot) {
    tiles[slot].mask_tile = kUnlisted;
    while (next < end && !tiles[slot].exists()) tiles[slot] = bias_work_tile(p, walk.at(next++));
  }
};

}  // namespace fa2::sm80
