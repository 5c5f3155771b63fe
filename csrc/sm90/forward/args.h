#pragma once

#include <cuda.h>

#include "core/params.h"
#include "core/score_mod.h"
#include "sm80/sequence_rule.h"

namespace fa2::sm90 {

// A tensor as copies of boxes see it: (col, head, row, outer, batch). Row i of a sequence of
// `length` rows, whose first one is `first_row`, is
//
//   row = i,                   outer = 0                       dense
//   row = shift - length + i,  outer = first_row + length      ragged: `shift` is not 0
//
// where a ragged map begins `shift` rows before the tensor. Either way row i is outside of the map,
// and read as zeros, exactly from i = length on; nothing in front of the tensor is ever read. Pages
// are a ragged batch, each of as many rows as a sequence has on it.
struct TensorMap {
  CUtensorMap map;
  int32_t shift;
  int32_t batch_step;  // 0: all sequences lie in one batch entry
};

// Query heads side by side in a tile, 1 or those of a group: row r of it is query r / heads of its
// head r % heads. Tiles have fewer than 256 rows, so that a product of 16 bits is the quotient.
struct HeadPack {
  int32_t heads;
  uint32_t reciprocal;

  static constexpr HeadPack of(int32_t heads) {
    return {heads, ((1u << 16) + uint32_t(heads) - 1) / uint32_t(heads)};
  }
  FA2_HD int32_t query(int32_t row) const { return int32_t(uint32_t(row) * reciprocal >> 16); }
  FA2_HD int32_t head(int32_t row) const { return row - query(row) * heads; }
};

// A kernel's argument: the problem, and what the host derives from it once for all CTAs.
struct FwdArgs {
  TensorMap q, k, v;
  FwdParams problem;
  ScoreScales scales;
  // Flags in the place of several questions: whether anything is added to scores, whether they
  // become anything but scaled ones, and whether that or dropout asks for each one of them.
  bool adds_to_scores;
  bool modifies_scores;
  bool adjusts_scores;
  uint32_t keep_below;  // dropout_keep_below
  float inv_keep_prob;
  HeadPack pack;
  int32_t queries;       // of a tile: block_m / pack.heads
  int32_t num_m_blocks;  // of the longest sequence
  int32_t section;       // (sequence, pack of heads) pairs that are scheduled together
  int32_t num_tiles;     // of work
  int32_t* next_tile;    // counts those that were handed out beyond the first of every CTA;
                         // null: every CTA takes each gridDim-th one

  // Over pages. Boxes of K and V have so many rows, which lie on one page wherever a box begins.
  // Where `selects`, sequences that the rule does not leave unsplit are not for this kernel.
  int32_t page_box;
  bool selects;
  sm80::SequenceRule rule;
};

}  // namespace fa2::sm90
