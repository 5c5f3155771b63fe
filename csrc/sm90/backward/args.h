#pragma once

#include "sm80/backward/args.h"
#include "sm90/backward/grad_q.h"
#include "sm90/forward/args.h"

namespace fa2::sm90 {

// The argument of the backward kernels: the tensors that boxes are copied of, and what those of
// sm80 take, since the kernels around the main one, the schedule and the workspace are theirs, but
// for how the sums of dQ are laid out.
struct BwdArgs {
  TensorMap q, k, v, grad_out;
  sm80::BwdArgs common;
  GradQLayout grad_q;
};

}  // namespace fa2::sm90
