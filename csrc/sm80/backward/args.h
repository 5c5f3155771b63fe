#pragma once

#include "core/params.h"
#include "core/score_mod.h"
#include "sm80/backward/grad_q.h"
#include "sm80/lists/column_lists.h"

namespace fa2::sm80 {

// What the backward kernels hand over to each other. A tile is block_m queries of one sequence and
// head; (head, tile) counts up to num_heads * tiles_per_head.
struct BwdWorkspace {
  int32_t tiles_per_head;
  GradQLayout layout;
  float* row_stats;     // (head, tile, 2, block_m): see backward/rows.h
  float* grad_q;        // (head, tile, layout): sums
  int32_t* semaphores;  // (head, tile): key blocks that have added; null: in any order
  int32_t* ticket;      // with semaphores: CTAs that have started
  MaskColumns columns;  // of a block mask

  // Tiles of a sequence follow each other from here on. There are never more than tiles_per_head,
  // since a sequence takes at most one tile more than its rows fill.
  FA2_HD int32_t first_tile(SeqLens const& seqs, int32_t batch, int64_t first_row) const {
    return seqs.cu_seqlens != nullptr
               ? int32_t(first_row / layout.block_m) + batch
               : batch * ((seqs.max_seqlen + layout.block_m - 1) / layout.block_m);
  }
};

// What the pieces of a block of keys leave under a block mask: dK and dV, not scaled. Behind the
// slots of pieces are as many for what CTAs leave of all heads whose lists are not cut.
struct ColumnPieces {
  float* grads = nullptr;  // (slots, dK (block_n, head_dim) and dV (block_n, head_dim_v))
  int32_t block_n = 0;

  // Of a slot, and what of it dK takes, which comes first.
  FA2_HD int64_t size(FwdParams const& p) const {
    return int64_t(block_n) * (p.head_dim + p.head_dim_v);
  }
  FA2_HD int64_t grad_k_size(FwdParams const& p) const { return int64_t(block_n) * p.head_dim; }
};

// The argument of the backward kernels: the problem, and what the host derives from it once.
struct BwdArgs {
  BwdParams problem;
  BwdWorkspace workspace;
  ScoreScales scales;
  bool is_modified;             // whether scores become anything but scaled ones,
  bool adds_to_scores;          // and by additions
  int64_t q_tile_bytes;         // distance in memory of one tile of Q
  int64_t q_pass_bytes;         // and of one pass of its copy
  int64_t grad_out_tile_bytes;  // the same of dO
  int64_t grad_out_pass_bytes;
  int32_t num_m_blocks;  // of the longest sequence: query tiles
  int32_t num_n_blocks;  // and key blocks
  int32_t section;       // (batch, KV head) pairs that are scheduled together
  float grad_scale;      // factor of dQ and dK
  uint32_t keep_below;   // dropout_keep_below
  float keep_prob;
  float inv_keep_prob;
  ListedSchedule listed;  // under a block mask
  ColumnPieces pieces;

  FA2_HD ColumnLists lists() const { return {problem.forward, workspace.columns, pieces.block_n}; }
  FA2_HD WorkOrder<ColumnLists> work_order() const {
    return {lists(), listed.capacity, listed.order};
  }
  FA2_HD WorkItem* items() const { return listed.items; }
};

}  // namespace fa2::sm80
