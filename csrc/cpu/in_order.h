#pragma once

// Tasks of a parallel call, which its threads take in order.

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/float_environment.h"
#include "cpu/thread_scratch.h"
#include "host/error.h"

namespace fa2::cpu {

// Calls run(task, scratch) for tasks [0, num_tasks): each is started after all those before it. A
// thread without memory takes none.
template <class Run>
void run_in_order(int num_threads, int64_t num_tasks, size_t scratch_bytes, Run const& run) {
  std::atomic<int64_t> next_task = 0;
  std::atomic<bool> out_of_memory = false;
  FloatEnvironment const environment = FloatEnvironment::for_kernels();
#pragma omp parallel num_threads(num_threads)
  {
    FloatEnvironmentScope const scope(environment);
    void* const scratch = thread_scratch(scratch_bytes);
    if (scratch == nullptr) {
      out_of_memory = true;
    } else {
      for (int64_t task; (task = next_task++) < num_tasks;) run(task, scratch);
    }
  }
  FA2_CHECK(!out_of_memory, "no memory for {} bytes of scratch per thread", scratch_bytes);
}

}  // namespace fa2::cpu
