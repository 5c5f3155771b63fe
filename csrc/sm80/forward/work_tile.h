#pragma once

// What one CTA computes: a block of queries of one head of one sequence.

#include <cute/config.hpp>

#include "core/block_range.h"
#include "core/dropout.h"
#include "core/positions.h"
#include "core/score_mod.h"
#include "core/seq_info.h"
#include "sm80/forward/args.h"
#include "sm80/schedule.h"

namespace fa2::sm80 {

// Kept in shared memory: only edges and the epilogue read it, so it must not occupy registers
// across the main loop.
struct WorkTile {
  int32_t batch;
  int32_t head;
  int32_t row_begin;
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t diagonal;  // the key that the first query of the call stands on (core/positions.h)
  Window window;
  BlockRange tiles;
  int64_t first_row_q;
  int64_t first_row_k;
  float alibi_slope;  // 0 without ALiBi
  int64_t rng_seed;   // with dropout
  int64_t rng_offset;
  uint32_t rng_batch_head;
};

CUTE_DEVICE WorkTile work_tile(FwdArgs const& args, int32_t batch, int32_t head, int32_t tile,
                               int block_m, int block_n) {
  FwdParams const& p = args.problem;
  WorkTile work;
  work.batch = batch;
  work.head = head;
  work.row_begin = tile * block_m;
  SeqInfo const q = seq_info(p.seqs_q, work.batch);
  SeqInfo const k = seq_info(p.seqs_k, work.batch);
  bool const others = args.selects && kernel_of(args.rule, q.length, k.length) != args.rule.unsplit;
  work.seqlen_q = others ? 0 : q.length;
  work.seqlen_k = k.length;
  work.first_row_q = q.first_row;
  work.first_row_k = k.first_row;
  work.window = p.window;
  work.diagonal = first_diagonal(p, q, k);
  // Queries are numbered here by the keys that they stand on.
  work.tiles = block_range(work.row_begin + work.diagonal,
                           min(work.row_begin + block_m, q.length) + work.diagonal, k.length,
                           k.length, p.window, block_n);
  work.alibi_slope = alibi_slope(p.score_mod, work.batch, work.head);
  if (p.dropout.drop_prob > 0) {
    work.rng_seed = p.dropout.rng_state[0];
    work.rng_offset = p.dropout.rng_state[1];
    work.rng_batch_head = dropout_batch_head(p, work.batch, work.head);
  }
  return work;
}

// All last query blocks come first, which are the heaviest ones under a causal mask, so that no
// long one is left for the end.
CUTE_DEVICE WorkTile work_tile(FwdArgs const& args, int32_t index, int block_m, int block_n) {
  FwdParams const& p = args.problem;
  ScheduledStep const at =
      scheduled_step(index, p.batch * p.num_heads, args.section, args.num_m_blocks);
  return work_tile(args, at.pair / p.num_heads, at.pair % p.num_heads,
                   args.num_m_blocks - 1 - at.step, block_m, block_n);
}

}  // namespace fa2::sm80
