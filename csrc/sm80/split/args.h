#pragma once

#include <cutlass/fast_math.h>

#include "core/score_mod.h"
#include "sm80/split/partials.h"

namespace fa2::sm80 {

// A split kernel's argument: the problem, and what the host derives from it once for all CTAs.
struct SplitArgs {
  FwdParams problem;
  ScoreScales scales;
  cutlass::FastDivmod group;
  cutlass::FastDivmod page_size;
  SplitSchedule schedule;
  Partials partials;
};

}  // namespace fa2::sm80
