#pragma once

// How the queries of a problem are cut into chunks, and in which order they are worked off.

#include <vector>

#include "cpu/kernels.h"

namespace fa2::cpu {

// Partial results that are kept at a time, unless those of a single chunk are larger.
inline constexpr int64_t kPartialBytes = 8 << 20;

// A chunk of queries, to be run once for each of its KV heads: of all of them, unless a block mask
// has lists for each. Lengths are read once, here: whatever another thread does to the caller's
// tensors meanwhile, plan and work agree.
struct ScheduledChunk {
  int32_t batch;
  int32_t count;
  int64_t first;
  int64_t cost;  // pairs of a query and a key, of one KV head
  SeqInfo q_seq;
  SeqInfo k_seq;
  int32_t first_head = 0;
  int32_t num_heads = 0;
  bool lists_many = false;  // every tile lists so many blocks of keys that they are cut into splits
};

// Fills `chunks`, the most expensive first: short ones at the end even out the threads.
void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks);

// How the keys of a sequence are cut: split i is [begin + i * length, begin + (i + 1) * length), up
// to `end`. Depends on nothing but the sequence and, with a block mask, on what a tile of queries
// lists itself; and so do their results.
struct KeySplits {
  int32_t begin;
  int32_t end;
  int32_t length;
  int32_t count;
};

// Of the sequence of a chunk. Splits that would be empty are left out.
KeySplits cut_keys(FwdParams const& params, ScheduledChunk const& chunk, int32_t key_block);

// KV heads of a sequence that are cut into chunks alike.
struct ScheduledHeads {
  int32_t first_head;
  int32_t num_heads;
};
ScheduledHeads heads_from(FwdParams const& params, int32_t first_head);

// Appends the chunks of up to `tiles` tiles of the backward pass of one sequence, first to last.
// With a block mask they depend, beside that, on what each tile lists.
void cut_backward(FwdParams const& params, int32_t tile_queries, int64_t tiles, int32_t batch,
                  ScheduledHeads heads, std::vector<ScheduledChunk>& chunks);

// How the keys of a chunk of the backward pass are cut. Depends on nothing but the length of the
// sequence and whether the chunk lists many.
KeySplits cut_keys_backward(ScheduledChunk const& chunk, int32_t key_block);

// Most tiles of a chunk of the backward pass of a sequence.
int64_t backward_chunk_tiles(BwdParams const& params, BackwardKernel const& kernel,
                             int32_t seqlen_k);

// Most tiles of a chunk for which threads do not run out of chunks.
int64_t balanced_tiles(FwdParams const& params, int32_t tile_queries, int num_threads);

// Threads worth waking for so many multiply-adds and tasks.
int useful_threads(int64_t multiply_adds, int64_t tasks, int num_threads);

}  // namespace fa2::cpu
