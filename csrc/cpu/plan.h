#pragma once

// How a problem will run: a pure function of the problem, the number of threads and the
// instruction set, to be printed and tested. Lengths of sequences are read here and nowhere else:
// whatever another thread does to the caller's tensors meanwhile, plan and work agree.

#include <string>
#include <vector>

#include "cpu/kept.h"
#include "cpu/kernels.h"
#include "cpu/schedule.h"

namespace fa2::cpu {

struct FwdPlan {
  // A chunk and the splits of its keys, to be run for every `heads` of its KV heads.
  struct Unit {
    ScheduledChunk chunk;
    KeySplits splits;
    int32_t heads;
    int64_t first_task;    // of those of its round
    int64_t first_result;  // among the round's partial results; not used for a single split
  };

  // Units that are run together: as many as their partial results have room for.
  struct Round {
    size_t begin;  // units [begin, end)
    size_t end;
    int64_t num_tasks;
    int64_t tasks_of_each;  // 0 where they differ
    int64_t num_results;
    int32_t most_queries;
    int64_t multiply_adds;
  };

  ForwardKernel const& kernel;
  int num_threads;
  Kept<Unit> units;  // the most expensive first
  Kept<Round> rounds;
  static constexpr int64_t workspace_bytes = 0;
};

// How many groups of `heads` KV heads a unit is run for.
int32_t head_groups(FwdPlan::Unit const& unit);

// Throws Error for what nobody could mean (checks.h).
FwdPlan plan_forward(FwdParams const& params, int num_threads);

std::string to_string(FwdPlan const& plan);

// How the backward pass is cut into chunks of queries, in which order they are started, and where
// they keep sums.
//
// The chunks of one KV head of one sequence form a chain (turns.h). Several chains are worked
// through at a time, which keeps threads out of each other's way; each of these owns a slot of the
// workspace, in which chain follows chain. Chunks that list many keys of a block mask are several
// tasks, which keep their dQ apart. Of all this, results depend on the size of the chunks and on
// where keys are cut alone.
struct BwdPlan {
  // The tasks of a chunk, the one of its last keys first.
  struct Link {
    int32_t first_task = -1;  // -1: there is no such chunk
    int32_t splits = 1;
    int32_t split_keys = 0;  // of a split, if there are several
  };

  struct Task {
    int32_t batch;
    int32_t head_kv;
    int64_t first;  // packed queries [first, first + count)
    int32_t count;
    SeqInfo q_seq;
    SeqInfo k_seq;
    int32_t chunk;     // its number among the chunks of its KV head, in all sequences
    int32_t split;     // its number in its link
    Link link;         // which it is of
    Link before;       // the one whose progress this one follows
    bool opens;        // first of its chain: `before` is the last one of the slot's previous chain
    bool closes;       // last of its chain
    int64_t key_sums;  // offset of the slot in the workspace

    // Of links that are cut:
    int32_t cut = -1;           // number of the link among them
    int32_t cut_before = -1;    // whose memory it takes over, or -1
    int64_t splits_memory = 0;  // offset in the workspace of what the splits share
  };

  BackwardKernel const& kernel;
  int num_threads;
  Kept<Task> tasks;        // in the order in which they must be started
  int32_t num_chunks = 0;  // most of a KV head
  int32_t num_slots = 0;
  int32_t num_cuts = 0;
  int64_t multiply_adds = 0;  // of all products
  int64_t workspace_bytes = 0;
};

// Of so many queries.
int32_t tiles_of(BackwardKernel const& kernel, int32_t queries);

// Chunks depend on num_threads unless params.deterministic. Throws Error for what nobody could
// mean.
BwdPlan plan_backward(BwdParams const& params, int num_threads);

std::string to_string(BwdPlan const& plan);

struct AppendPlan {
  int64_t num_tasks;  // so many rows of a sequence each
  int64_t tasks_of_sequence;
  int num_threads;
};

AppendPlan plan_append(AppendParams const& params, int num_threads);

}  // namespace fa2::cpu
