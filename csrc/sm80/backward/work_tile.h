#pragma once

// What one CTA of the main backward kernel computes: dK and dV of a block of keys of one KV head,
// and its share of dQ of the queries that see them.

#include <cute/config.hpp>

#include "core/block_range.h"
#include "core/dropout.h"
#include "core/positions.h"
#include "core/seq_info.h"
#include "sm80/backward/args.h"

namespace fa2::sm80 {

// Kept in shared memory, like the forward's WorkTile.
struct BwdWorkTile {
  int32_t batch;
  int32_t head_kv;
  int32_t block;
  int32_t list;  // of a block mask, for the block
  int32_t col_begin;
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t diagonal;  // as in WorkTile
  BlockRange tiles;  // of queries
  int32_t first_tile;
  int64_t first_row_q;
  int64_t first_row_k;
  int64_t rng_seed;  // with dropout
  int64_t rng_offset;
  uint32_t rng_batch_head;  // of head 0
};

CUTE_DEVICE BwdWorkTile bwd_work_tile(BwdArgs const& args, int32_t batch, int32_t head_kv,
                                      int32_t block, int block_n, int block_m) {
  FwdParams const& p = args.problem.forward;
  BwdWorkTile work;
  work.batch = batch;
  work.head_kv = head_kv;
  work.block = block;
  work.list = block_n < BlockMask::kBlock ? work.block * block_n / BlockMask::kBlock : work.block;
  work.col_begin = work.block * block_n;
  SeqInfo const q = seq_info(p.seqs_q, work.batch);
  SeqInfo const k = seq_info(p.seqs_k, work.batch);
  work.seqlen_q = q.length;
  work.seqlen_k = k.length;
  work.first_row_q = q.first_row;
  work.first_row_k = k.first_row;
  work.first_tile = args.workspace.first_tile(p.seqs_q, work.batch, q.first_row);
  int32_t const col_end = min(work.col_begin + block_n, k.length);
  work.diagonal = first_diagonal(p, q, k);
  // Keys are numbered here by the queries that stand on them.
  work.tiles = query_block_range(work.col_begin - work.diagonal, col_end - work.diagonal, q.length,
                                 q.length, p.window, block_m);
  // Keys past the end are in no query's sight: the last block masks all of its tiles.
  if (col_end < work.col_begin + block_n) {
    work.tiles.full_begin = work.tiles.full_end = work.tiles.begin;
  }
  if (p.dropout.drop_prob > 0) {
    work.rng_seed = p.dropout.rng_state[0];
    work.rng_offset = p.dropout.rng_state[1];
    work.rng_batch_head = dropout_batch_head(p, work.batch, 0);
  }
  return work;
}

// Where the workspace has query tile m of a head.
CUTE_DEVICE int workspace_tile(BwdArgs const& args, BwdWorkTile const& work, int m, int head) {
  return head * args.workspace.tiles_per_head + work.first_tile + m;
}

// All first key blocks come first, which are the heaviest ones under a causal mask. In a fixed
// order of summation they come last: every key block waits for the later ones of its pair, and
// under a causal mask those have then just passed.
CUTE_DEVICE BwdWorkTile bwd_work_tile(BwdArgs const& args, int32_t index, int block_n,
                                      int block_m) {
  FwdParams const& p = args.problem.forward;
  ScheduledStep const at =
      scheduled_step(index, p.batch * p.num_heads_kv, args.section, args.num_n_blocks);
  int32_t const block =
      args.workspace.semaphores == nullptr ? at.step : args.num_n_blocks - 1 - at.step;
  return bwd_work_tile(args, at.pair / p.num_heads_kv, at.pair % p.num_heads_kv, block, block_n,
                       block_m);
}

}  // namespace fa2::sm80
