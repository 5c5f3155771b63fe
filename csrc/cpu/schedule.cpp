#include "cpu/schedule.h"

#include <algorithm>

#include "core/mask.h"

namespace fa2::cpu {

namespace {

// Chunks per thread that keep dynamic scheduling balanced.
constexpr int64_t kChunksPerThread = 8;

// Multiply-adds that take about as long as waking a thread.
constexpr int64_t kThreadWork = 1 << 19;

int64_t packed_queries(FwdParams const& params, SeqInfo const& q_seq) {
  return int64_t(q_seq.length) * params.group();
}

// Tiles per chunk: as many as share a packed block of keys to advantage, unless threads would run
// out of chunks.
int64_t tiles_per_chunk(FwdParams const& params, ForwardKernel const& kernel, int num_threads) {
  int64_t tiles = 0;
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    int64_t const queries = packed_queries(params, seq_info(params.seqs_q, batch));
    tiles += (queries + kernel.tile_queries - 1) / kernel.tile_queries * params.num_heads_kv;
  }
  int64_t const balanced = num_threads == 1 ? tiles : tiles / (num_threads * kChunksPerThread);
  return std::clamp<int64_t>(balanced, 1, kernel.chunk_tiles(params.head_dim));
}

// Scores that the rows [first, first + count) of packed queries are made of.
int64_t chunk_cost(FwdParams const& params, SeqInfo const& q_seq, SeqInfo const& k_seq,
                   int64_t first, int64_t count) {
  int32_t const middle = static_cast<int32_t>((first + count / 2) / params.group());
  ColRange const cols = visible_cols(middle, q_seq.length, k_seq.length, params.window);
  return count * std::max(1, cols.end - cols.begin);
}

}  // namespace

void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks) {
  chunks.clear();
  int64_t const chunk_queries = tiles_per_chunk(params, kernel, num_threads) * kernel.tile_queries;
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    SeqInfo const q_seq = seq_info(params.seqs_q, batch);
    SeqInfo const k_seq = seq_info(params.seqs_k, batch);
    int64_t const queries = packed_queries(params, q_seq);
    for (int64_t first = 0; first < queries; first += chunk_queries) {
      int64_t const count = std::min(chunk_queries, queries - first);
      chunks.push_back({batch, static_cast<int32_t>(count), first,
                        chunk_cost(params, q_seq, k_seq, first, count)});
    }
  }
  auto const dearer = [](ScheduledChunk const& a, ScheduledChunk const& b) {
    return a.cost > b.cost;
  };
  if (!std::is_sorted(chunks.begin(), chunks.end(), dearer)) {
    std::stable_sort(chunks.begin(), chunks.end(), dearer);
  }
}

int useful_threads(FwdParams const& params, std::vector<ScheduledChunk> const& chunks,
                   int num_threads) {
  int64_t cost = 0;
  for (ScheduledChunk const& chunk : chunks) cost += chunk.cost;
  int64_t const work = cost * params.num_heads_kv * params.head_dim * 2;
  int64_t const tasks = static_cast<int64_t>(chunks.size()) * params.num_heads_kv;
  return static_cast<int>(
      std::clamp<int64_t>(work / kThreadWork, 1, std::min<int64_t>(num_threads, tasks)));
}

}  // namespace fa2::cpu
