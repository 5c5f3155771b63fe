#pragma once

// What one CTA computes at a time: a block of queries of one sequence, of one head or of the heads
// of a group side by side.

#include <cute/config.hpp>

#include "core/block_range.h"
#include "core/positions.h"
#include "core/seq_info.h"
#include "sm90/forward/args.h"

namespace fa2::sm90 {

// Handed from the producer to the consumers in shared memory.
struct WorkTile {
  int32_t batch;  // negative: there is no more work
  int32_t head;   // the first one
  int32_t query_begin;
  int32_t seqlen_q;
  int32_t seqlen_k;
  int32_t diagonal;  // the key that the first query of the call stands on (core/positions.h)
  Window window;
  BlockRange tiles;
  int64_t first_row_q;
  int64_t first_row_k;
};

struct WorkPlace {
  int32_t batch;
  int32_t head;
  int32_t query_begin;
};

// Pairs are taken in sections whose keys and values fit the L2 cache. Inside a section all last
// query blocks come first, which are the heaviest ones under a causal mask.
CUTE_DEVICE WorkPlace work_place(FwdArgs const& args, int32_t index) {
  FwdParams const& p = args.problem;
  int32_t const num_packs = p.num_heads / args.pack.heads;
  int32_t const first_pair = index / (args.section * args.num_m_blocks) * args.section;
  int32_t const together = min(args.section, p.batch * num_packs - first_pair);
  int32_t const in_section = index - first_pair * args.num_m_blocks;
  int32_t const pair = first_pair + in_section % together;
  return {pair / num_packs, pair % num_packs * args.pack.heads,
          (args.num_m_blocks - 1 - in_section / together) * args.queries};
}

// Whether a sequence is one of this kernel. Asked before more is known of the work, which the
// producer has no registers for beside divisions.
CUTE_DEVICE bool takes_sequence(FwdArgs const& args, int32_t batch) {
  if (!args.selects) return true;
  int32_t const seqlen_q = seq_info(args.problem.seqs_q, batch).length;
  int32_t const seqlen_k = seq_info(args.problem.seqs_k, batch).length;
  return sm80::kernel_of(args.rule, seqlen_q, seqlen_k) == args.rule.unsplit;
}

CUTE_DEVICE WorkTile work_tile(FwdArgs const& args, WorkPlace const& place, int block_n) {
  FwdParams const& p = args.problem;
  SeqInfo const q = seq_info(p.seqs_q, place.batch);
  SeqInfo const k = seq_info(p.seqs_k, place.batch);
  WorkTile work;
  work.batch = place.batch;
  work.head = place.head;
  work.query_begin = place.query_begin;
  work.seqlen_q = q.length;
  work.seqlen_k = k.length;
  work.first_row_q = q.first_row;
  work.first_row_k = k.first_row;
  work.window = p.window;
  work.diagonal = first_diagonal(p, q, k);
  // Queries are numbered here by the keys that they stand on.
  work.tiles = block_range(work.query_begin + work.diagonal,
                           min(work.query_begin + args.queries, q.length) + work.diagonal, k.length,
                           k.length, p.window, block_n);
  return work;
}

}  // namespace fa2::sm90
