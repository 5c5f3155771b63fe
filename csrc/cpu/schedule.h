#pragma once

// How the queries of a problem are cut into chunks, and in which order they are worked off.

#include <vector>

#include "cpu/kernels.h"

namespace fa2::cpu {

// A chunk of queries, to be run once for every KV head.
struct ScheduledChunk {
  int32_t batch;
  int32_t count;
  int64_t first;
  int64_t cost;  // multiply-adds per head dim
};

// Fills `chunks`, the most expensive first: short ones at the end even out the threads.
void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks);

// Threads worth waking for a problem of this size.
int useful_threads(FwdParams const& params, std::vector<ScheduledChunk> const& chunks,
                   int num_threads);

}  // namespace fa2::cpu
