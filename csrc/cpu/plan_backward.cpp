#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

// Multiply-adds for each pair of a query and a key: of S, dQ and dK, and of dP and dV.
int64_t pair_cost(FwdParams const& params) {
  return 3 * int64_t(params.head_dim) + 2 * int64_t(params.head_dim_v);
}

// Chains per thread that are worked through at a time. With a single one, a thread that was held up
// would soon hold up the others.
constexpr size_t kSlotsPerThread = 2;

// Chunks of a chain with their keys cut that may be worked on at a time.
constexpr int32_t kCutsAtATime = 4;

// One KV head of one sequence and its chunks, [begin, end) of all chunks.
struct Chain {
  int32_t batch;
  int32_t head_kv;
  size_t begin;
  size_t end;
  int32_t first_number;  // of its chunks among those of its KV head
  int64_t cost;

  size_t length() const { return end - begin; }
};

// Where a chain keeps its sums, as offsets in the workspace, and whose turn it is there.
struct Slot {
  int64_t key_sums = 0;
  int64_t key_sums_bytes = 0;
  int64_t splits_memory = 0;
  int64_t splits_bytes = 0;  // of a chunk
  int32_t most_cuts = 0;     // that there is memory for
  BwdPlan::Link newest = {};
  int32_t num_cuts = 0;                           // so far
  std::array<int32_t, kCutsAtATime> newest_cuts;  // of those with the same memory
};

// Cuts all sequences and lists their chains, the most expensive first. A sequence without queries
// has gradients of keys, too: it gets an empty chunk.
std::vector<Chain> make_chains(BwdParams const& grads, BackwardKernel const& kernel,
                               int64_t most_tiles, std::vector<ScheduledChunk>& chunks) {
  FwdParams const& params = grads.forward;
  std::vector<Chain> chains;
  std::vector<int32_t> numbers(params.num_heads_kv, 0);
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    SeqInfo const k_seq = seq_info(params.seqs_k, batch);
    int64_t const tiles = std::min(most_tiles, backward_chunk_tiles(grads, kernel, k_seq.length));
    for (int32_t first_head = 0; first_head < params.num_heads_kv;) {
      ScheduledHeads const heads = heads_from(params, first_head);
      first_head += heads.num_heads;
      size_t const begin = chunks.size();
      cut_backward(params, kernel.tile_queries, tiles, batch, heads, chunks);
      if (chunks.size() == begin) {
        if (k_seq.length == 0) continue;
        chunks.push_back({.batch = batch, .k_seq = k_seq});
      }
      int64_t cost = 0;
      for (size_t i = begin; i < chunks.size(); ++i) cost += chunks[i].cost;
      for (int32_t head = heads.first_head; head < first_head; ++head) {
        chains.push_back({batch, head, begin, chunks.size(), numbers[head], cost});
        numbers[head] += static_cast<int32_t>(chains.back().length());
      }
    }
  }
  std::stable_sort(chains.begin(), chains.end(),
                   [](Chain const& a, Chain const& b) { return a.cost > b.cost; });
  return chains;
}

// Makes the tasks of all chains.
class TaskMaker {
 public:
  TaskMaker(FwdParams const& params, std::vector<Chain> const& chains,
            std::vector<ScheduledChunk> const& chunks, BwdPlan& plan)
      : params_(params), chains_(chains), chunks_(chunks), plan_(plan), slots_(plan.num_slots) {}

  // Chain i owns slot i % num_slots. A slot is as large as the largest of its chains, so that the
  // sums of all slots are never larger than the gradients of all chains.
  void place_slots() {
    for (size_t i = 0; i < chains_.size(); ++i) fit(slots_[i % slots_.size()], chains_[i]);
    int64_t total = 0;
    for (Slot& slot : slots_) {
      slot.newest_cuts.fill(-1);
      slot.key_sums = total;
      slot.splits_memory = total + slot.key_sums_bytes;
      total = slot.splits_memory + slot.splits_bytes * slot.most_cuts;
    }
    plan_.workspace_bytes = total;
  }

  // In the order in which tasks must be started. Returns their cost.
  int64_t add_tasks() {
    int64_t cost = 0;
    for (size_t first = 0; first < chains_.size(); first += slots_.size()) {
      size_t const count = std::min(slots_.size(), chains_.size() - first);
      size_t steps = 0;
      for (size_t slot = 0; slot < count; ++slot) {
        steps = std::max(steps, chains_[first + slot].length());
      }
      for (size_t step = 0; step < steps; ++step) {
        for (size_t slot = 0; slot < count; ++slot) {
          Chain const& chain = chains_[first + slot];
          if (step < chain.length()) cost += add_link(chain, step, slots_[slot]);
        }
      }
    }
    return cost;
  }

 private:
  KeySplits splits_of(ScheduledChunk const& chunk) const {
    return cut_keys_backward(chunk, plan_.kernel.key_block);
  }

  void fit(Slot& slot, Chain const& chain) const {
    BackwardKernel const& kernel = plan_.kernel;
    int32_t const seqlen_k = chunks_[chain.begin].k_seq.length;
    int64_t const bytes = kernel.key_sums_bytes(head_dims(params_), seqlen_k);
    slot.key_sums_bytes = std::max(slot.key_sums_bytes, bytes);
    int32_t cuts = 0;
    for (size_t i = chain.begin; i < chain.end; ++i) {
      int32_t const splits = splits_of(chunks_[i]).count;
      if (splits == 1) continue;
      int64_t const shared =
          kernel.splits_bytes(params_.head_dim, tiles_of(kernel, chunks_[i].count), splits);
      slot.splits_bytes = std::max(slot.splits_bytes, shared);
      if (++cuts == kCutsAtATime) break;
    }
    slot.most_cuts = std::max(slot.most_cuts, cuts);
  }

  // The tasks of a chunk.
  int64_t add_link(Chain const& chain, size_t step, Slot& slot) {
    size_t const index = chain.end - 1 - step;
    ScheduledChunk const& chunk = chunks_[index];
    KeySplits const splits = splits_of(chunk);
    BwdPlan::Task task = {
        .batch = chain.batch,
        .head_kv = chain.head_kv,
        .first = chunk.first,
        .count = chunk.count,
        .q_seq = chunk.q_seq,
        .k_seq = chunk.k_seq,
        .chunk = chain.first_number + static_cast<int32_t>(index - chain.begin),
        .split = 0,
        .link = {static_cast<int32_t>(plan_.tasks->size()), splits.count, splits.length},
        .before = slot.newest,
        .opens = step == 0,
        .closes = step + 1 == chain.length(),
        .key_sums = slot.key_sums};
    if (splits.count > 1) {
      int32_t const place = slot.num_cuts++ % slot.most_cuts;
      task.cut = plan_.num_cuts++;
      task.cut_before = std::exchange(slot.newest_cuts[place], task.cut);
      task.splits_memory = slot.splits_memory + slot.splits_bytes * place;
    }
    slot.newest = task.link;
    plan_.num_chunks = std::max(plan_.num_chunks, task.chunk + 1);
    for (; task.split < splits.count; ++task.split) plan_.tasks->push_back(task);
    return chunk.cost;
  }

  FwdParams const& params_;
  std::vector<Chain> const& chains_;
  std::vector<ScheduledChunk> const& chunks_;
  BwdPlan& plan_;
  std::vector<Slot> slots_;
};

}  // namespace

int32_t tiles_of(BackwardKernel const& kernel, int32_t queries) {
  return (queries + kernel.tile_queries - 1) / kernel.tile_queries;
}

BwdPlan plan_backward(BwdParams const& params, int num_threads) {
  check_problem(params, num_threads);
  FwdParams const& problem = params.forward;
  BwdPlan plan{.kernel = backward_kernel(problem.dtype), .num_threads = num_threads};
  BackwardKernel const& kernel = plan.kernel;
  int64_t const most_tiles =
      params.deterministic ? INT64_MAX : balanced_tiles(problem, kernel.tile_queries, num_threads);
  Kept<ScheduledChunk> chunks;
  std::vector<Chain> const chains = make_chains(params, kernel, most_tiles, *chunks);
  size_t const num_slots =
      std::min(chains.size(), num_threads == 1 ? 1 : num_threads * kSlotsPerThread);
  plan.num_slots = static_cast<int32_t>(num_slots);
  TaskMaker tasks(problem, chains, *chunks, plan);
  tasks.place_slots();
  plan.multiply_adds = tasks.add_tasks() * pair_cost(problem);
  return plan;
}

std::string to_string(BwdPlan const& plan) {
  return message(
      "backward {}: {} chunks of queries, {} of a KV head with keys in splits, {} tasks, {} chains "
      "at a time, {} threads, workspace {} bytes",
      isa_name(), plan.num_chunks, plan.num_cuts, plan.tasks->size(), plan.num_slots,
      plan.num_threads, plan.workspace_bytes);
}

}  // namespace fa2::cpu
