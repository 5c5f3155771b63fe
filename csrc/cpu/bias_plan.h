#pragma once

// How the gradients of biases are divided. A unit owns entries of one bias: of one sequence, one
// head, a block of queries and a range of keys, as far as the bias has these dimensions, or of one
// head and a range of diagonals. It goes through whatever adds to them in a fixed order. How
// entries are divided may depend on the number of threads, since no sum does.

#include <array>
#include <cstdint>
#include <string>

#include "cpu/kernels.h"

namespace fa2::cpu {

struct BiasBwdPlan {
  // Of one of the biases; without units where its gradient is not wanted.
  struct Pass {
    Bias sums;
    bool by_diagonals = false;
    int32_t batches = 0;  // that are told apart; 1 where the bias is for all of the batch
    int32_t heads = 0;
    int32_t row_blocks = 0;
    int32_t ranges = 0;
    int32_t range_length = 0;
    int32_t length = 0;  // keys or diagonals

    int64_t units() const { return int64_t(batches) * heads * row_blocks * ranges; }
  };

  BiasKernel const& kernel;
  int num_threads;
  std::array<Pass, 2> passes;
  int64_t multiply_adds = 0;    // of a pass
  int64_t workspace_bytes = 0;  // threads have scratch of their own
};

// Throws Error for what nobody could mean.
BiasBwdPlan plan_bias_backward(BiasBwdParams const& params, int num_threads);

std::string to_string(BiasBwdPlan const& plan);

}  // namespace fa2::cpu
