#include <algorithm>

#include "cpu/checks.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

using Unit = FwdPlan::Unit;
using Round = FwdPlan::Round;

// Tasks per thread that keep dynamic scheduling balanced, whatever they cost. Fewer will do where
// threads get nearly the same number: keys of heads apart are read more slowly.
constexpr int64_t kTasksPerThread = 8;
constexpr double kBalance = 0.85;

bool keep_busy(int64_t tasks, int64_t num_threads) {
  int64_t const rounds = (tasks + num_threads - 1) / num_threads;
  bool const even = double(tasks) >= kBalance * double(rounds * num_threads);
  return even || tasks >= num_threads * kTasksPerThread;
}

int64_t tasks_of(Unit const& unit) { return int64_t(unit.splits.count) * head_groups(unit); }

int64_t tasks_of(std::vector<Unit> const& units) {
  int64_t tasks = 0;
  for (Unit const& unit : units) tasks += tasks_of(unit);
  return tasks;
}

// Takes heads apart as far as threads would be without work otherwise.
void share_heads(std::vector<Unit>& units, int num_threads) {
  int32_t most_heads = 1;
  for (Unit const& unit : units) most_heads = std::max(most_heads, unit.heads);
  while (most_heads > 1 && !keep_busy(tasks_of(units), num_threads)) {
    most_heads /= 2;
    for (Unit& unit : units) unit.heads = std::min(unit.heads, most_heads);
  }
}

void add_units(FwdParams const& params, FwdPlan& plan) {
  Kept<ScheduledChunk> chunks;
  schedule_forward(params, plan.kernel, plan.num_threads, *chunks);
  for (ScheduledChunk const& chunk : *chunks) {
    plan.units->push_back({.chunk = chunk,
                           .splits = cut_keys(params, chunk, plan.kernel.key_block),
                           .heads = plan.kernel.heads_together(params, chunk.q_seq, chunk.k_seq)});
  }
  if (plan.num_threads > 1) share_heads(*plan.units, plan.num_threads);
}

// Numbers the tasks and partial results of the units from `begin` on, as many as have room.
Round next_round(FwdParams const& params, FwdPlan& plan, size_t begin) {
  Round round{.begin = begin, .end = begin};
  auto const result_bytes = static_cast<int64_t>(plan.kernel.partial_bytes(params.head_dim_v));
  for (; round.end < plan.units->size(); ++round.end) {
    Unit& unit = (*plan.units)[round.end];
    int64_t const tasks = tasks_of(unit);
    int64_t const results = unit.splits.count == 1 ? 0
                                                   : int64_t(unit.splits.count) *
                                                         unit.chunk.num_heads * unit.chunk.count;
    bool const first = round.end == begin;
    if (!first && result_bytes * (round.num_results + results) > kPartialBytes) break;
    round.tasks_of_each = first || tasks == round.tasks_of_each ? tasks : 0;
    unit.first_task = round.num_tasks;
    unit.first_result = round.num_results;
    round.num_tasks += tasks;
    round.num_results += results;
    round.most_queries = std::max(round.most_queries, unit.chunk.count);
    round.multiply_adds +=
        unit.chunk.cost * unit.chunk.num_heads * (params.head_dim + params.head_dim_v);
  }
  return round;
}

}  // namespace

int32_t head_groups(Unit const& unit) {
  return (unit.chunk.num_heads + unit.heads - 1) / unit.heads;
}

FwdPlan plan_forward(FwdParams const& params, int num_threads) {
  check_problem(params, num_threads);
  FA2_CHECK(params.num_splits >= 0 && params.num_splits <= kMaxSplits,
            "num_splits {} is not in 0 ... {}", params.num_splits, kMaxSplits);
  FwdPlan plan{.kernel = forward_kernel(params), .num_threads = num_threads};
  add_units(params, plan);
  for (size_t begin = 0; begin < plan.units->size(); begin = plan.rounds->back().end) {
    plan.rounds->push_back(next_round(params, plan, begin));
  }
  return plan;
}

std::string to_string(FwdPlan const& plan) {
  int64_t tasks = 0, results = 0;
  int32_t most_splits = 0;
  for (Round const& round : *plan.rounds) {
    tasks += round.num_tasks;
    results = std::max(results, round.num_results);
  }
  for (Unit const& unit : *plan.units) most_splits = std::max(most_splits, unit.splits.count);
  return message(
      "forward {}: {} chunks of queries, keys in up to {} splits, {} tasks, up to {} partial "
      "results at a time, {} threads",
      isa_name(), plan.units->size(), most_splits, tasks, results, plan.num_threads);
}

}  // namespace fa2::cpu
