#pragma once

// How the backward pass is cut into chunks of queries, in which order they are started, and where
// they keep sums.
//
// The chunks of one KV head of one sequence form a chain (turns.h). Several chains are worked
// through at a time, which keeps threads out of each other's way; each of these owns a slot of the
// workspace, in which chain follows chain. Of all this, results depend on the size of the chunks
// alone.

#include <vector>

#include "cpu/kernels.h"

namespace fa2::cpu {

struct BackwardTask {
  int32_t batch;
  int32_t head_kv;
  int64_t first;  // packed queries [first, first + count)
  int32_t count;
  SeqInfo q_seq;
  SeqInfo k_seq;
  int32_t chunk;     // its number among the chunks of all sequences; KV heads share it
  int32_t before;    // the task whose progress this one follows, or -1
  bool opens;        // first of its chain: `before` is the last one of the slot's previous chain
  bool closes;       // last of its chain
  int64_t key_sums;  // offset of the slot in the workspace
};

struct BackwardSchedule {
  std::vector<BackwardTask> tasks;  // in the order in which they must be started
  int32_t num_chunks;
  int64_t workspace_bytes;
  int64_t multiply_adds;  // of all products
};

// Chunks depend on num_threads unless params.deterministic.
void schedule_backward(BwdParams const& params, BackwardKernel const& kernel, int num_threads,
                       BackwardSchedule& schedule);

}  // namespace fa2::cpu
