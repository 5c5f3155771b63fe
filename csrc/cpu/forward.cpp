#include <algorithm>
#include <atomic>
#include <span>

#include "cpu/family.h"
#include "cpu/float_environment.h"
#include "cpu/thread_scratch.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

using Unit = FwdPlan::Unit;
using Round = FwdPlan::Round;

// Runs the units of one round.
class Run {
 public:
  Run(FwdParams const& params, FwdPlan const& plan, Round const& round)
      : params_(params),
        kernel_(plan.kernel),
        units_(std::span(*plan.units).subspan(round.begin, round.end - round.begin)),
        round_(round) {
    if (round.num_results == 0) return;
    size_t const bytes = partial_bytes(round.num_results);
    partial_ = static_cast<char*>(shared_scratch(bytes));
    FA2_CHECK(partial_ != nullptr, "no memory for {} bytes of partial results", bytes);
    finished_->assign(units_.size() * params_.num_heads_kv, 0);
  }

  void operator()(int num_threads) {
    size_t const scratch_bytes = kernel_.workspace_bytes(
        head_dims(params_),
        (round_.most_queries + kernel_.tile_queries - 1) / kernel_.tile_queries);
    std::atomic<bool> out_of_memory = false;
    auto const work = [&](void* scratch, int64_t task) {
      if (scratch == nullptr) {
        out_of_memory = true;
      } else {
        run_task(task, scratch);
      }
    };
    num_threads = useful_threads(round_.multiply_adds, round_.num_tasks, num_threads);
    FloatEnvironment const environment = FloatEnvironment::for_kernels();
    if (num_threads == 1) {  // to a tiny problem, a parallel region is half a kernel
      FloatEnvironmentScope const scope(environment);
      void* const scratch = thread_scratch(scratch_bytes);
      for (int64_t task = 0; task < round_.num_tasks; ++task) work(scratch, task);
    } else {
#pragma omp parallel num_threads(num_threads)
      {
        FloatEnvironmentScope const scope(environment);
        void* const scratch = thread_scratch(scratch_bytes);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < round_.num_tasks; ++task) work(scratch, task);
      }
    }
    FA2_CHECK(!out_of_memory, "no memory for {} bytes of scratch per thread", scratch_bytes);
  }

 private:
  size_t partial_bytes(int64_t results) const {
    return kernel_.partial_bytes(params_.head_dim_v) * results;
  }

  Unit const& unit_of(int64_t task) const {
    if (round_.tasks_of_each != 0) return units_[task / round_.tasks_of_each];
    auto const next =
        std::upper_bound(units_.begin(), units_.end(), task,
                         [](int64_t index, Unit const& unit) { return index < unit.first_task; });
    return next[-1];
  }

  // Neighbouring tasks are neighbouring heads, whose keys lie beside each other in memory.
  void run_task(int64_t task, void* scratch) {
    Unit const& unit = unit_of(task);
    ScheduledChunk const& from = unit.chunk;
    KeySplits const& splits = unit.splits;
    int32_t const groups = head_groups(unit);
    auto const split = static_cast<int32_t>((task - unit.first_task) / groups);
    auto const group = static_cast<int32_t>((task - unit.first_task) % groups);
    int32_t const first_head = group * unit.heads;  // of the chunk's
    int32_t const heads = std::min(unit.heads, from.num_heads - first_head);
    int32_t const head_kv = from.first_head + first_head;
    int32_t const begin = splits.begin + split * splits.length;
    ForwardChunk chunk{{from.batch, head_kv, from.first, from.count, from.q_seq, from.k_seq},
                       heads,
                       begin,
                       std::min(begin + splits.length, splits.end),
                       nullptr};
    if (splits.count == 1) return kernel_.run(params_, chunk, scratch);

    char* const results = partial_ + partial_bytes(unit.first_result +
                                                   int64_t(first_head) * splits.count * from.count);
    chunk.partial = results + partial_bytes(int64_t(split) * heads * from.count);
    kernel_.run(params_, chunk, scratch);
    // The last one combines them all.
    int64_t const counter = (&unit - units_.data()) * params_.num_heads_kv + head_kv;
    std::atomic_ref<int32_t> finished((*finished_)[counter]);
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == splits.count) {
      chunk.partial = results;
      kernel_.combine(params_, chunk, splits.count);
    }
  }

  FwdParams const& params_;
  ForwardKernel const& kernel_;
  std::span<Unit const> const units_;
  Round const& round_;
  char* partial_ = nullptr;
  Kept<int32_t> finished_;  // splits, by unit and head
};

}  // namespace

void Family::run(FwdParams const& params, FwdPlan const& plan, Target const&) {
  for (Round const& round : *plan.rounds) Run(params, plan, round)(plan.num_threads);
}

}  // namespace fa2::cpu
