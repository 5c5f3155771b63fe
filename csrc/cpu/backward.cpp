#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/family.h"
#include "cpu/in_order.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

// One call of the backward pass.
struct Run {
  BwdParams const& params;
  BwdPlan const& plan;
  std::vector<int32_t>& progress;  // of every task
  double* sink_sums;               // (chunks, num_heads), or null

  void task(size_t index, void* scratch) const {
    FwdParams const& problem = params.forward;
    BackwardKernel const& kernel = plan.kernel;
    BwdPlan::Task const& task = (*plan.tasks)[index];
    char* const key_sums = static_cast<char*>(params.workspace.data) + task.key_sums;
    Turn turn(progress[index], task.before < 0 ? nullptr : &progress[task.before]);
    BackwardChunk const chunk{
        {task.batch, task.head_kv, task.first, task.count, task.q_seq, task.k_seq},
        key_sums,
        sink_sums == nullptr
            ? nullptr
            : sink_sums + int64_t(task.chunk) * problem.num_heads + task.head_kv * problem.group(),
        turn};
    if (task.opens) {
      turn.wait_for(Turn::kSumsReleased);
      // Without keys there is no memory either.
      size_t const bytes = kernel.key_sums_bytes(problem.head_dim, chunk.queries.k_seq.length);
      if (bytes > 0) std::memset(key_sums, 0, bytes);
    }
    kernel.run(params, chunk, scratch);
    // A chunk that sees no keys has not waited for anyone yet.
    turn.wait_for(Turn::kAllKeysLeft);
    turn.leave(Turn::kAllKeysLeft);
    if (task.closes) {
      kernel.write_key_grads(params, chunk.queries, key_sums);
      turn.leave(Turn::kSumsReleased);
    }
  }
};

void write_sink_grads(BwdParams const& params, int32_t num_chunks, double const* sink_sums) {
  int32_t const num_heads = params.forward.num_heads;
  for (int32_t head = 0; head < num_heads; ++head) {
    double sum = 0;
    for (int32_t i = 0; i < num_chunks; ++i) sum += sink_sums[int64_t(i) * num_heads + head];
    params.grad_sink[head] = static_cast<float>(sum);
  }
}

}  // namespace

void Family::run(BwdParams const& params, BwdPlan const& plan, Target const&) {
  FA2_CHECK(params.workspace.holds(plan.workspace_bytes),
            "the plan needs a workspace of {} bytes, got {}", plan.workspace_bytes,
            params.workspace.bytes);
  FwdParams const& problem = params.forward;
  auto const num_tasks = static_cast<int64_t>(plan.tasks->size());
  Kept<int32_t> progress;
  progress->assign(num_tasks, Turn::kNothingLeft);
  Kept<double> sink_sums;
  if (params.grad_sink != nullptr) sink_sums->resize(int64_t(plan.num_chunks) * problem.num_heads);

  int32_t most_queries = 1;
  for (BwdPlan::Task const& task : *plan.tasks) most_queries = std::max(most_queries, task.count);
  size_t const scratch_bytes = plan.kernel.workspace_bytes(
      problem.head_dim, (most_queries + plan.kernel.tile_queries - 1) / plan.kernel.tile_queries);
  Run const run{params, plan, *progress, params.grad_sink == nullptr ? nullptr : sink_sums->data()};
  // The order is what keeps the head of every chain running.
  run_in_order(useful_threads(plan.multiply_adds, num_tasks, plan.num_threads), num_tasks,
               scratch_bytes, [&](int64_t task, void* scratch) { run.task(task, scratch); });
  // Without a chunk, the gradient is 0 all the same.
  if (params.grad_sink != nullptr) write_sink_grads(params, plan.num_chunks, sink_sums->data());
}

}  // namespace fa2::cpu
