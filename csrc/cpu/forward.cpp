#include "cpu/forward.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/isa.h"
#include "cpu/schedule.h"
#include "cpu/thread_scratch.h"
#include "host/error.h"

namespace fa2::cpu {

namespace {

thread_local std::vector<ScheduledChunk> thread_schedule;

void run_chunk(FwdParams const& params, ForwardKernel const& kernel, ScheduledChunk const& chunk,
               int32_t head_kv, void* scratch) {
  kernel.run(params,
             {chunk.batch, head_kv, chunk.first, chunk.count, seq_info(params.seqs_q, chunk.batch),
              seq_info(params.seqs_k, chunk.batch)},
             scratch);
}

}  // namespace

void forward(FwdParams const& params, int num_threads) {
  FA2_CHECK(params.head_dim >= 1 && params.head_dim <= 256, "head_dim {} is not in 1 ... 256",
            params.head_dim);
  FA2_CHECK(num_threads >= 1, "num_threads is {}", num_threads);
  ForwardKernel const& kernel = forward_kernel(params.dtype);
  std::vector<ScheduledChunk>& chunks = thread_schedule;
  schedule_forward(params, kernel, num_threads, chunks);
  if (chunks.empty()) return;

  int32_t most_queries = 0;
  for (ScheduledChunk const& chunk : chunks) most_queries = std::max(most_queries, chunk.count);
  size_t const scratch_bytes = kernel.workspace_bytes(
      params.head_dim, (most_queries + kernel.tile_queries - 1) / kernel.tile_queries);
  int64_t const num_tasks = static_cast<int64_t>(chunks.size()) * params.num_heads_kv;
  int64_t multiply_adds = 0;
  for (ScheduledChunk const& chunk : chunks) {
    multiply_adds += chunk.cost * params.num_heads_kv * params.head_dim * 2;
  }
  std::atomic<bool> out_of_memory = false;

#pragma omp parallel num_threads(useful_threads(multiply_adds, num_tasks, num_threads))
  {
    void* const scratch = thread_scratch(scratch_bytes);
    if (scratch == nullptr) out_of_memory = true;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; ++task) {
      if (scratch == nullptr) continue;
      run_chunk(params, kernel, chunks[task / params.num_heads_kv],
                static_cast<int32_t>(task % params.num_heads_kv), scratch);
    }
  }
  FA2_CHECK(!out_of_memory, "no memory for {} bytes of scratch per thread", scratch_bytes);
}

}  // namespace fa2::cpu
