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
  std::vector<int32_t>& progress;       // of every task
  std::vector<SplitTurn::State>& cuts;  // of every chunk with its keys cut
  double* sink_sums;                    // (chunks, num_heads), or null

  void task(size_t index, void* scratch) const {
    BwdPlan::Task const& task = (*plan.tasks)[index];
    Turn turn(progress_of(task.link), task.split, progress_of(task.before));
    if (task.cut < 0) return work(task, turn, nullptr, scratch);
    SplitTurn split = split_of(task);
    work(task, turn, &split, scratch);
  }

 private:
  void work(BwdPlan::Task const& task, Turn& turn, SplitTurn* split, void* scratch) const {
    BackwardKernel const& kernel = plan.kernel;
    LinkProgress const own = progress_of(task.link);
    BackwardChunk const chunk{
        {task.batch, task.head_kv, task.first, task.count, task.q_seq, task.k_seq},
        {own.begin_of(task.split), own.end_of(task.split)},
        memory(task.key_sums),
        task.split == 0 ? sink_sums_of(task) : nullptr,
        turn,
        split};
    if (task.opens) {
      turn.wait_for_release();
      kernel.clear_key_sums(params, chunk);
    }
    kernel.run(params, chunk, scratch);
    turn.leave_all();
    if (task.closes) {
      kernel.write_key_grads(params, chunk);
      turn.release();
    }
  }

  void* memory(int64_t offset) const { return static_cast<char*>(params.workspace.data) + offset; }
  LinkProgress progress_of(BwdPlan::Link const& link) const {
    if (link.first_task < 0) return {};
    return {&progress[link.first_task], link.splits, link.split_keys};
  }
  SplitTurn split_of(BwdPlan::Task const& task) const {
    return {cuts[task.cut], task.cut_before < 0 ? nullptr : &cuts[task.cut_before], task.split,
            task.link.splits, memory(task.splits_memory)};
  }
  double* sink_sums_of(BwdPlan::Task const& task) const {
    FwdParams const& problem = params.forward;
    if (sink_sums == nullptr) return nullptr;
    return sink_sums + int64_t(task.chunk) * problem.num_heads + task.head_kv * problem.group();
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
  progress->assign(num_tasks, LinkProgress::kNothingLeft);
  Kept<SplitTurn::State> cuts;
  cuts->assign(plan.num_cuts, {});
  Kept<double> sink_sums;  // zeros where a head has fewer chunks
  if (params.grad_sink != nullptr) {
    sink_sums->assign(int64_t(plan.num_chunks) * problem.num_heads, 0);
  }

  int32_t most_queries = 1;
  for (BwdPlan::Task const& task : *plan.tasks) most_queries = std::max(most_queries, task.count);
  size_t const scratch_bytes =
      plan.kernel.workspace_bytes(head_dims(problem), tiles_of(plan.kernel, most_queries));
  Run const run{params, plan, *progress, *cuts,
                params.grad_sink == nullptr ? nullptr : sink_sums->data()};
  // The order is what keeps the head of every chain running.
  run_in_order(useful_threads(plan.multiply_adds, num_tasks, plan.num_threads), num_tasks,
               scratch_bytes, [&](int64_t task, void* scratch) { run.task(task, scratch); });
  // Without a chunk, the gradient is 0 all the same.
  if (params.grad_sink != nullptr) write_sink_grads(params, plan.num_chunks, sink_sums->data());
}

}  // namespace fa2::cpu
