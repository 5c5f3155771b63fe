#pragma once

#include "core/params.h"
#include "core/score_mod.h"
#include "sm80/bias_backward/pass.h"

namespace fa2::sm80 {

// The argument of the kernels of a pass: the problem, and what the host derives from it once.
struct BiasBwdArgs {
  BiasBwdParams problem;
  BiasPass pass;
  ScoreScales scales;
  float* row_lse;          // (batch, num_heads, seqlen_q): see RowStats in backward/row_stats.h
  float* row_minus_delta;  // as row_lse
  float* partials;         // (unit, split, entry): sums that are still to be added up
  uint32_t keep_below;     // dropout_keep_below
  float keep_prob;
  float inv_keep_prob;
};

// Whether CTAs leave sums for another kernel: a diagonal lies in two bands.
FA2_HD bool has_partials(BiasPass const& pass) { return pass.by_diagonals || pass.splits > 1; }

FA2_HD int64_t partial_index(BiasPass const& pass, int64_t unit, int32_t split) {
  return (unit * pass.splits + split) * pass.entries();
}

}  // namespace fa2::sm80
