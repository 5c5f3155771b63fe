#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

// S, dP, dQ, dK and dV.
constexpr int kProducts = 5;

// Chains per thread that are worked through at a time. With a single one, a thread that was held up
// would soon hold up the others.
constexpr size_t kSlotsPerThread = 2;

// One KV head of one sequence and its chunks, [begin, end) of all chunks.
struct Chain {
  int32_t batch;
  int32_t head_kv;
  size_t begin;
  size_t end;
  int64_t cost;

  size_t length() const { return end - begin; }
};

// Of the chunks from `begin` on, in one KV head. Those of a block mask may differ from the mean.
int64_t chain_cost(FwdParams const& params, std::vector<ScheduledChunk> const& chunks, size_t begin,
                   int32_t head) {
  bool const differs = params.block_mask.row_offsets != nullptr && params.block_mask.heads > 1;
  int64_t cost = 0;
  for (size_t i = begin; i < chunks.size(); ++i) {
    ScheduledChunk chunk = chunks[i];
    chunk.first_head = head;
    chunk.num_heads = 1;
    cost += differs ? chunk_cost(params, chunk) : chunk.cost;
  }
  return cost;
}

// Cuts all sequences and lists their chains, the most expensive first. A sequence without queries
// has gradients of keys, too: it gets an empty chunk.
std::vector<Chain> make_chains(FwdParams const& params, int64_t chunk_queries,
                               std::vector<ScheduledChunk>& chunks) {
  std::vector<Chain> chains;
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    size_t const begin = chunks.size();
    cut_sequence(params, batch, chunk_queries, chunks);
    if (chunks.size() == begin) {
      SeqInfo const k_seq = seq_info(params.seqs_k, batch);
      if (k_seq.length == 0) continue;
      chunks.push_back({.batch = batch, .k_seq = k_seq});
    }
    for (int32_t head = 0; head < params.num_heads_kv; ++head) {
      int64_t const cost = chain_cost(params, chunks, begin, head);
      chains.push_back({batch, head, begin, chunks.size(), cost});
    }
  }
  std::stable_sort(chains.begin(), chains.end(),
                   [](Chain const& a, Chain const& b) { return a.cost > b.cost; });
  return chains;
}

// Offsets of the slots and their end; chain i owns slot i % num_slots. A slot is as large as the
// largest of its chains, so that all of them are never larger than the gradients of all chains.
std::vector<int64_t> place_slots(FwdParams const& params, BackwardKernel const& kernel,
                                 std::vector<Chain> const& chains,
                                 std::vector<ScheduledChunk> const& chunks, size_t num_slots) {
  std::vector<int64_t> slots(num_slots + 1, 0);
  for (size_t i = 0; i < chains.size(); ++i) {
    int32_t const seqlen_k = chunks[chains[i].begin].k_seq.length;
    int64_t const bytes = kernel.key_sums_bytes(params.head_dim, seqlen_k);
    slots[i % num_slots] = std::max(slots[i % num_slots], bytes);
  }
  int64_t total = 0;
  for (int64_t& slot : slots) total += std::exchange(slot, total);
  return slots;
}

// Adds the tasks of all chains in the order in which they must be started, and returns their cost.
int64_t add_tasks(std::vector<Chain> const& chains, std::vector<ScheduledChunk> const& chunks,
                  std::vector<int64_t> const& slots, BwdPlan& plan) {
  size_t const num_slots = plan.num_slots;
  int64_t cost = 0;
  std::vector<int32_t> newest(num_slots, -1);  // task of each slot
  auto add = [&](Chain const& chain, size_t step, size_t slot) {
    size_t const index = chain.end - 1 - step;
    plan.tasks->push_back({.batch = chain.batch,
                           .head_kv = chain.head_kv,
                           .first = chunks[index].first,
                           .count = chunks[index].count,
                           .q_seq = chunks[index].q_seq,
                           .k_seq = chunks[index].k_seq,
                           .chunk = static_cast<int32_t>(index),
                           .before = newest[slot],
                           .opens = step == 0,
                           .closes = step + 1 == chain.length(),
                           .key_sums = slots[slot]});
    newest[slot] = static_cast<int32_t>(plan.tasks->size()) - 1;
    cost += chunks[index].cost;
  };
  for (size_t first = 0; first < chains.size(); first += num_slots) {
    size_t const count = std::min(num_slots, chains.size() - first);
    size_t steps = 0;
    for (size_t slot = 0; slot < count; ++slot) {
      steps = std::max(steps, chains[first + slot].length());
    }
    for (size_t step = 0; step < steps; ++step) {
      for (size_t slot = 0; slot < count; ++slot) {
        Chain const& chain = chains[first + slot];
        if (step < chain.length()) add(chain, step, slot);
      }
    }
  }
  return cost;
}

}  // namespace

BwdPlan plan_backward(BwdParams const& params, int num_threads) {
  check_problem(params, num_threads);
  FwdParams const& problem = params.forward;
  BwdPlan plan{.kernel = backward_kernel(problem.dtype), .num_threads = num_threads};
  BackwardKernel const& kernel = plan.kernel;
  int64_t const tiles = params.deterministic ? kernel.chunk_tiles
                                             : tiles_per_chunk(problem, kernel.tile_queries,
                                                               kernel.chunk_tiles, num_threads);
  Kept<ScheduledChunk> chunks;
  std::vector<Chain> const chains = make_chains(problem, tiles * kernel.tile_queries, *chunks);
  size_t const num_slots =
      std::min(chains.size(), num_threads == 1 ? 1 : num_threads * kSlotsPerThread);
  std::vector<int64_t> const slots = num_slots == 0
                                         ? std::vector<int64_t>{0}
                                         : place_slots(problem, kernel, chains, *chunks, num_slots);
  plan.num_chunks = static_cast<int32_t>(chunks->size());
  plan.num_slots = static_cast<int32_t>(num_slots);
  plan.workspace_bytes = slots.back();
  plan.multiply_adds = add_tasks(chains, *chunks, slots, plan) * problem.head_dim * kProducts;
  return plan;
}

std::string to_string(BwdPlan const& plan) {
  return message(
      "backward {}: {} chunks of queries, {} tasks, {} chains at a time, {} threads, "
      "workspace {} bytes",
      isa_name(), plan.num_chunks, plan.tasks->size(), plan.num_slots, plan.num_threads,
      plan.workspace_bytes);
}

}  // namespace fa2::cpu
