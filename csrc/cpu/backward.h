#pragma once

#include <cstdint>

#include "core/params.h"

namespace fa2::cpu {

// Bytes of BwdParams::workspace for this problem.
int64_t backward_workspace(BwdParams const& params, int num_threads);

// Gradients of exact attention on at most `num_threads` threads.
void backward(BwdParams const& params, int num_threads);

}  // namespace fa2::cpu
