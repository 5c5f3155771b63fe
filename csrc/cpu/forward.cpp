#include "cpu/forward.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <vector>

#include "cpu/checks.h"
#include "cpu/float_environment.h"
#include "cpu/isa.h"
#include "cpu/schedule.h"
#include "cpu/thread_scratch.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

// Partial results that are kept at a time, unless those of a single chunk are larger.
constexpr size_t kPartialBytes = 8 << 20;

// Tasks per thread that keep dynamic scheduling balanced.
constexpr int64_t kTasksPerThread = 8;

// A chunk and the parts of its keys, to be run for every `heads` KV heads.
struct Unit {
  ScheduledChunk chunk;
  KeyParts parts;
  int32_t heads;
  int64_t first_task = 0;    // of those that are run together
  int64_t first_result = 0;  // among their partial results; not used for a single part
};

// What the calling thread keeps from call to call.
thread_local std::vector<ScheduledChunk> thread_schedule;
thread_local std::vector<Unit> thread_units;
thread_local std::vector<int32_t> thread_finished;

class Run {
 public:
  Run(FwdParams const& params, int num_threads)
      : params_(params), kernel_(forward_kernel(params.dtype)), num_threads_(num_threads) {}

  void all() {
    schedule_forward(params_, kernel_, num_threads_, thread_schedule);
    thread_units.clear();
    int64_t single_heads = 0;
    for (ScheduledChunk const& chunk : thread_schedule) {
      thread_units.push_back(
          {chunk, cut_keys(params_, chunk, kernel_.key_block),
           kernel_.heads_together(params_, chunk.q_seq.length, chunk.k_seq.length)});
      single_heads += int64_t(thread_units.back().parts.count) * params_.num_heads_kv;
    }
    // Threads without work are worse than heads apart.
    int64_t const most_heads =
        std::max<int64_t>(1, single_heads / (num_threads_ * kTasksPerThread));
    for (Unit& unit : thread_units) {
      if (num_threads_ == 1) break;
      unit.heads = static_cast<int32_t>(std::min<int64_t>(unit.heads, most_heads));
    }
    std::span<Unit> rest(thread_units);
    while (!rest.empty()) {
      size_t const count = place(rest);
      units_ = rest.first(count);
      run_units();
      rest = rest.subspan(count);
    }
  }

 private:
  // Numbers the tasks and partial results of the first units, as many as have room; returns how
  // many.
  size_t place(std::span<Unit> units) {
    num_tasks_ = 0;
    num_results_ = 0;
    size_t count = 0;
    for (Unit& unit : units) {
      int64_t const tasks = int64_t(unit.parts.count) * head_groups(unit);
      int64_t const results = unit.parts.count == 1 ? 0
                                                    : int64_t(unit.parts.count) *
                                                          params_.num_heads_kv * unit.chunk.count;
      if (count > 0 && partial_bytes(num_results_ + results) > kPartialBytes) break;
      tasks_of_each_ = count == 0 || tasks == tasks_of_each_ ? tasks : 0;
      unit.first_task = num_tasks_;
      unit.first_result = num_results_;
      num_tasks_ += tasks;
      num_results_ += results;
      ++count;
    }
    return count;
  }

  int32_t head_groups(Unit const& unit) const {
    return (params_.num_heads_kv + unit.heads - 1) / unit.heads;
  }
  size_t partial_bytes(int64_t results) const {
    return kernel_.partial_bytes(params_.head_dim) * results;
  }

  void run_units() {
    int32_t most_queries = 0;
    int64_t multiply_adds = 0;
    for (Unit const& unit : units_) {
      most_queries = std::max(most_queries, unit.chunk.count);
      multiply_adds += unit.chunk.cost * params_.num_heads_kv * params_.head_dim * 2;
    }
    size_t const scratch_bytes = kernel_.workspace_bytes(
        params_.head_dim, (most_queries + kernel_.tile_queries - 1) / kernel_.tile_queries);
    if (num_results_ > 0) {
      size_t const bytes = partial_bytes(num_results_);
      partial_ = static_cast<char*>(shared_scratch(bytes));
      FA2_CHECK(partial_ != nullptr, "no memory for {} bytes of partial results", bytes);
      thread_finished.assign(units_.size() * params_.num_heads_kv, 0);
      finished_ = thread_finished.data();
    }
    run_tasks(scratch_bytes, useful_threads(multiply_adds, num_tasks_, num_threads_));
  }

  void run_tasks(size_t scratch_bytes, int num_threads) const {
    std::atomic<bool> out_of_memory = false;
    auto const work = [&](void* scratch, int64_t task) {
      if (scratch == nullptr) {
        out_of_memory = true;
      } else {
        run_task(task, scratch);
      }
    };
    if (num_threads == 1) {  // to a tiny problem, a parallel region is half a kernel
      void* const scratch = thread_scratch(scratch_bytes);
      for (int64_t task = 0; task < num_tasks_; ++task) work(scratch, task);
    } else {
      FloatEnvironment const environment = FloatEnvironment::current();
#pragma omp parallel num_threads(num_threads)
      {
        FloatEnvironmentScope const scope(environment);
        void* const scratch = thread_scratch(scratch_bytes);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_tasks_; ++task) work(scratch, task);
      }
    }
    FA2_CHECK(!out_of_memory, "no memory for {} bytes of scratch per thread", scratch_bytes);
  }

  Unit const& unit_of(int64_t task) const {
    if (tasks_of_each_ != 0) return units_[task / tasks_of_each_];
    auto const next =
        std::upper_bound(units_.begin(), units_.end(), task,
                         [](int64_t index, Unit const& unit) { return index < unit.first_task; });
    return next[-1];
  }

  // Neighbouring tasks are neighbouring heads, whose keys lie beside each other in memory.
  void run_task(int64_t task, void* scratch) const {
    Unit const& unit = unit_of(task);
    auto const& [batch, count, first, cost, q_seq, k_seq] = unit.chunk;
    KeyParts const& parts = unit.parts;
    int32_t const groups = head_groups(unit);
    auto const part = static_cast<int32_t>((task - unit.first_task) / groups);
    auto const group = static_cast<int32_t>((task - unit.first_task) % groups);
    int32_t const head_kv = group * unit.heads;
    int32_t const heads = std::min(unit.heads, params_.num_heads_kv - head_kv);
    int32_t const begin = parts.begin + part * parts.length;
    ForwardChunk chunk{{batch, head_kv, first, count, q_seq, k_seq},
                       heads,
                       begin,
                       std::min(begin + parts.length, parts.end),
                       nullptr};
    if (parts.count == 1) return kernel_.run(params_, chunk, scratch);

    char* const results =
        partial_ + partial_bytes(unit.first_result + int64_t(head_kv) * parts.count * count);
    chunk.partial = results + partial_bytes(int64_t(part) * heads * count);
    kernel_.run(params_, chunk, scratch);
    // The last one merges them all.
    int64_t const counter = (&unit - units_.data()) * params_.num_heads_kv + head_kv;
    std::atomic_ref<int32_t> finished(finished_[counter]);
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == parts.count) {
      chunk.partial = results;
      kernel_.merge(params_, chunk, parts.count);
    }
  }

  FwdParams const& params_;
  ForwardKernel const& kernel_;
  int const num_threads_;
  std::span<Unit const> units_;
  int64_t num_tasks_ = 0;
  int64_t tasks_of_each_ = 0;  // 0 where they differ
  int64_t num_results_ = 0;
  char* partial_ = nullptr;
  int32_t* finished_ = nullptr;  // parts, by unit and head
};

}  // namespace

void forward(FwdParams const& params, int num_threads) {
  check_problem(params, num_threads);
  FA2_CHECK(params.num_splits >= 0 && params.num_splits <= kMaxParts,
            "num_splits {} is not in 0 ... {}", params.num_splits, kMaxParts);
  Run(params, num_threads).all();
}

}  // namespace fa2::cpu
