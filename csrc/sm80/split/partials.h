#pragma once

// What the splits of a sequence leave, how they are shared out, and what adds them up.

#include "core/online_softmax.h"
#include "core/params.h"
#include "sm80/sequence_rule.h"

namespace fa2::sm80 {

// Results of splits for the combine kernel: outputs relative to the base of their row's state. A
// row of all heads of a group has a place for each KV head and slot (Sharing::slot).
struct Partials {
  float* out = nullptr;        // (slots, num_heads_kv, rows, head_dim_v)
  RowState* states = nullptr;  // (slots, num_heads_kv, rows)
  int64_t rows = 0;            // of all sequences
  int32_t sequence_rows = 0;   // places of each sequence; 0: as many as it has packed rows

  FA2_HD int64_t index(int32_t slot, int32_t heads_kv, int32_t head_kv, int64_t row) const {
    return (int64_t(slot) * heads_kv + head_kv) * rows + row;
  }
  FA2_HD int64_t first_row(int32_t batch, int64_t first_row_q, int32_t group) const {
    return sequence_rows > 0 ? int64_t(batch) * sequence_rows : first_row_q * group;
  }
};

// How a launch of the split kernel goes over its sequences.
struct SplitSchedule {
  SequenceRule rule;
  TileKind kind;
  bool selects;  // other launches of the call take other sequences
  int32_t block_m;
  int32_t block_n;
  int32_t ctas;  // for each KV head of a sequence: no sequence needs more
};

struct CombineArgs {
  FwdParams problem;
  SplitSchedule schedule;
  Partials partials;
  int32_t queries;  // most that a sequence of the launch has
};

}  // namespace fa2::sm80
