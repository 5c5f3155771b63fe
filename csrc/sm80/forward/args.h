#pragma once

#include "core/params.h"
#include "core/score_mod.h"
#include "sm80/forward/pieces.h"
#include "sm80/sequence_rule.h"

namespace fa2::sm80 {

// A kernel's argument: the problem, and what the host derives from it once for all CTAs.
struct FwdArgs {
  FwdParams problem;
  ScoreScales scales;
  bool adds_to_scores;   // one flag in the place of several pointers
  int64_t k_pass_bytes;  // distance in memory of one pass of the K copy
  int64_t v_pass_bytes;
  int32_t num_m_blocks;  // of the longest sequence
  int32_t section;       // (batch, head) pairs that are scheduled together
  uint32_t keep_below;   // dropout_keep_below
  float inv_keep_prob;
  SequenceRule rule;
  bool selects;           // other launches of the call take other sequences
  ListedSchedule listed;  // under a block mask
  RowPieces pieces;
};

}  // namespace fa2::sm80
