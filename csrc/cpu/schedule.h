#pragma once

// How the queries of a problem are cut into chunks, and in which order they are worked off.

#include <vector>

#include "cpu/kernels.h"

namespace fa2::cpu {

// A chunk of queries, to be run once for every KV head. Lengths are read once, here: whatever
// another thread does to the caller's tensors meanwhile, plan and work agree.
struct ScheduledChunk {
  int32_t batch;
  int32_t count;
  int64_t first;
  int64_t cost;  // multiply-adds per head dim
  SeqInfo q_seq;
  SeqInfo k_seq;
};

// Fills `chunks`, the most expensive first: short ones at the end even out the threads.
void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks);

// How the keys of a sequence are cut: split i is [begin + i * length, begin + (i + 1) * length), up
// to `end`. Depends on nothing but the sequence, and so do its results.
struct KeySplits {
  int32_t begin;
  int32_t end;
  int32_t length;
  int32_t count;
};

// Of the sequence of a chunk. Splits that would be empty are left out.
KeySplits cut_keys(FwdParams const& params, ScheduledChunk const& chunk, int32_t key_block);

// Appends the chunks of `chunk_queries` queries of one sequence, first to last.
void cut_sequence(FwdParams const& params, int32_t batch, int64_t chunk_queries,
                  std::vector<ScheduledChunk>& chunks);

// Tiles per chunk: `most`, unless threads would run out of chunks.
int64_t tiles_per_chunk(FwdParams const& params, int32_t tile_queries, int32_t most,
                        int num_threads);

// Threads worth waking for so many multiply-adds and tasks.
int useful_threads(int64_t multiply_adds, int64_t tasks, int num_threads);

}  // namespace fa2::cpu
