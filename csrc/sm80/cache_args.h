#pragma once

// Arguments of the small kernels that a KV cache needs.

#include "core/params.h"

namespace fa2::sm80 {

inline constexpr int kMaxSplits = 128;

// What the splits of a row leave for the combine kernel, indexed by split and lse_index: outputs
// that are normalised over the keys of their split, and its log-sum-exp; -inf where the split has
// no key, and then there is no output.
struct Partials {
  float* out = nullptr;  // (num_splits, rows, head_dim)
  float* lse = nullptr;  // (num_splits, rows)
  int64_t rows = 0;      // of lse, in all heads
  int32_t num_splits = 1;
};

struct CombineArgs {
  FwdParams problem;
  Partials partials;
};

struct AppendArgs {
  AppendParams problem;
  int32_t rows;  // most that a sequence appends or rotates
};

}  // namespace fa2::sm80
