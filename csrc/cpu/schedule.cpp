#include "cpu/schedule.h"

#include <algorithm>

#include "core/mask.h"

namespace fa2::cpu {

namespace {

// Chunks per thread that keep dynamic scheduling balanced.
constexpr int64_t kChunksPerThread = 8;

// Multiply-adds that take about as long as waking a thread.
constexpr int64_t kThreadWork = 1 << 19;

// Sequences of up to this many queries (of a group) have their keys cut into splits of this many
// blocks. Longer ones have chunks enough.
constexpr int64_t kMostSplitQueries = 128;
constexpr int32_t kBlocksPerSplit = 6;

int64_t packed_queries(FwdParams const& params, SeqInfo const& q_seq) {
  return int64_t(q_seq.length) * params.group();
}

// Scores that the rows [first, first + count) of packed queries are made of.
int64_t chunk_cost(FwdParams const& params, SeqInfo const& q_seq, SeqInfo const& k_seq,
                   int64_t first, int64_t count) {
  int32_t const middle = static_cast<int32_t>((first + count / 2) / params.group());
  ColRange const cols = visible_cols(middle, q_seq.length, k_seq.length, params.window);
  return count * std::max(1, cols.end - cols.begin);
}

}  // namespace

void cut_sequence(FwdParams const& params, int32_t batch, int64_t chunk_queries,
                  std::vector<ScheduledChunk>& chunks) {
  SeqInfo const q_seq = seq_info(params.seqs_q, batch);
  SeqInfo const k_seq = seq_info(params.seqs_k, batch);
  int64_t const queries = packed_queries(params, q_seq);
  for (int64_t first = 0; first < queries; first += chunk_queries) {
    int64_t const count = std::min(chunk_queries, queries - first);
    chunks.push_back({batch, static_cast<int32_t>(count), first,
                      chunk_cost(params, q_seq, k_seq, first, count), q_seq, k_seq});
  }
}

int64_t tiles_per_chunk(FwdParams const& params, int32_t tile_queries, int32_t most,
                        int num_threads) {
  int64_t tiles = 0;
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    int64_t const queries = packed_queries(params, seq_info(params.seqs_q, batch));
    tiles += (queries + tile_queries - 1) / tile_queries * params.num_heads_kv;
  }
  int64_t const balanced = num_threads == 1 ? tiles : tiles / (num_threads * kChunksPerThread);
  return std::clamp<int64_t>(balanced, 1, most);
}

void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks) {
  chunks.clear();
  int64_t const tiles = tiles_per_chunk(params, kernel.tile_queries,
                                        kernel.chunk_tiles(params.head_dim), num_threads);
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    cut_sequence(params, batch, tiles * kernel.tile_queries, chunks);
  }
  auto const dearer = [](ScheduledChunk const& a, ScheduledChunk const& b) {
    return a.cost > b.cost;
  };
  if (!std::is_sorted(chunks.begin(), chunks.end(), dearer)) {
    std::stable_sort(chunks.begin(), chunks.end(), dearer);
  }
}

KeySplits cut_keys(FwdParams const& params, ScheduledChunk const& chunk, int32_t key_block) {
  SeqInfo const& q_seq = chunk.q_seq;
  int32_t const seqlen_k = chunk.k_seq.length;
  KeySplits const whole = {0, seqlen_k, std::max(1, seqlen_k), 1};
  int32_t const short_enough = params.num_splits == 0 ? kBlocksPerSplit * key_block : key_block;
  if (params.num_splits == 1 || seqlen_k <= short_enough ||
      packed_queries(params, q_seq) > kMostSplitQueries) {
    return whole;
  }

  // The window of the first query starts first, that of the last one ends last.
  ColRange const first = visible_cols(0, q_seq.length, seqlen_k, params.window);
  ColRange const last = visible_cols(q_seq.length - 1, q_seq.length, seqlen_k, params.window);
  if (first.begin >= last.end) return whole;
  int32_t const begin = first.begin / key_block * key_block;
  auto in_blocks = [&](int64_t keys) { return (keys + key_block - 1) / key_block; };
  int64_t const blocks = in_blocks(last.end - begin);
  auto splits_of = [&](int64_t length) { return (blocks + length - 1) / length; };
  int64_t const length = params.num_splits > 1
                             ? splits_of(params.num_splits)
                             : std::max<int64_t>(kBlocksPerSplit, splits_of(kMaxSplits));
  return {begin, last.end, static_cast<int32_t>(length * key_block),
          static_cast<int32_t>(splits_of(length))};
}

int useful_threads(int64_t multiply_adds, int64_t tasks, int num_threads) {
  int64_t const useful = std::min({multiply_adds / kThreadWork, tasks, int64_t(num_threads)});
  return static_cast<int>(std::max<int64_t>(1, useful));
}

}  // namespace fa2::cpu
