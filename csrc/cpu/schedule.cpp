#include "cpu/schedule.h"

#include <algorithm>

#include "core/mask.h"
#include "cpu/listed.h"

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

// Tiles of queries that list more blocks of keys than this have splits of so many blocks of the
// kernel: global tokens, which would keep one thread busy long after the others are done.
constexpr int64_t kMostListed = 256;
constexpr int32_t kBlocksPerListedSplit = 48;

int64_t packed_queries(FwdParams const& params, SeqInfo const& q_seq) {
  return int64_t(q_seq.length) * params.group();
}

bool has_lists(FwdParams const& params) { return params.block_mask.row_offsets != nullptr; }

ListedQueries listed_queries(ScheduledChunk const& chunk) {
  return {chunk.batch, chunk.first_head, chunk.first_head + chunk.num_heads, chunk.first,
          chunk.count};
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of the kernel in a split of the keys of a tile that lists many.
int64_t blocks_of_listed_split(int32_t seqlen_k, int32_t key_block) {
  return std::max<int64_t>(kBlocksPerListedSplit,
                           divide_up(divide_up(seqlen_k, key_block), kMaxSplits));
}

// Cuts a sequence by what its tiles list, for some of its KV heads.
class CutByLists {
 public:
  CutByLists(FwdParams const& params, ForwardKernel const& kernel, ScheduledChunk const& heads)
      : params_(params), kernel_(kernel), heads_(heads) {}

  // Appends chunks of up to `most` tiles. One ends, too, where tiles that list many begin or end.
  void operator()(int64_t most, std::vector<ScheduledChunk>& chunks) const {
    int64_t const queries = packed_queries(params_, heads_.q_seq);
    for (int64_t first = 0; first < queries;) {
      ScheduledChunk chunk = tile_at(first);
      int64_t const tiles = chunk.lists_many ? std::min(most, most_with_splits()) : most;
      for (first += chunk.count; first < queries && chunk.count < tiles * kernel_.tile_queries;) {
        ScheduledChunk const next = tile_at(first);
        if (next.lists_many != chunk.lists_many) break;
        chunk.count += next.count;
        first += next.count;
      }
      chunk.cost = chunk_cost(params_, chunk);
      chunks.push_back(chunk);
    }
  }

 private:
  ScheduledChunk tile_at(int64_t first) const {
    int64_t const queries = packed_queries(params_, heads_.q_seq);
    ScheduledChunk tile = heads_;
    tile.first = first;
    tile.count = static_cast<int32_t>(std::min<int64_t>(kernel_.tile_queries, queries - first));
    tile.lists_many = params_.num_splits == 0 && queries > kMostSplitQueries &&
                      most_listed(params_, listed_queries(tile)) > kMostListed;
    return tile;
  }

  // Tiles whose partial results are not too many.
  int64_t most_with_splits() const {
    int64_t const length = blocks_of_listed_split(heads_.k_seq.length, kernel_.key_block);
    int64_t const splits = divide_up(heads_.k_seq.length, length * kernel_.key_block);
    int64_t const results = splits * heads_.num_heads * kernel_.tile_queries;
    int64_t const bytes = results * static_cast<int64_t>(kernel_.partial_bytes(params_.head_dim));
    return std::max<int64_t>(1, kPartialBytes / bytes);
  }

  FwdParams const& params_;
  ForwardKernel const& kernel_;
  ScheduledChunk const heads_;
};

// The chunks of one sequence of the forward pass.
void cut_forward(FwdParams const& params, ForwardKernel const& kernel, int32_t batch, int64_t tiles,
                 std::vector<ScheduledChunk>& chunks) {
  if (!has_lists(params)) {
    return cut_sequence(params, batch, tiles * kernel.tile_queries, chunks);
  }
  ScheduledChunk heads = {.batch = batch,
                          .count = 0,
                          .first = 0,
                          .cost = 0,
                          .q_seq = seq_info(params.seqs_q, batch),
                          .k_seq = seq_info(params.seqs_k, batch),
                          .num_heads = params.block_mask.heads == 1 ? params.num_heads_kv : 1};
  for (; heads.first_head < params.num_heads_kv; heads.first_head += heads.num_heads) {
    CutByLists(params, kernel, heads)(tiles, chunks);
  }
}

}  // namespace

int64_t chunk_cost(FwdParams const& params, ScheduledChunk const& chunk) {
  if (has_lists(params)) {
    return std::max<int64_t>(chunk.count, listed_scores(params, listed_queries(chunk)));
  }
  int32_t const middle = static_cast<int32_t>((chunk.first + chunk.count / 2) / params.group());
  ColRange const cols = visible_cols(middle, chunk.q_seq.length, chunk.k_seq.length, params.window);
  return int64_t(chunk.count) * std::max(1, cols.end - cols.begin);
}

void cut_sequence(FwdParams const& params, int32_t batch, int64_t chunk_queries,
                  std::vector<ScheduledChunk>& chunks) {
  SeqInfo const q_seq = seq_info(params.seqs_q, batch);
  SeqInfo const k_seq = seq_info(params.seqs_k, batch);
  int64_t const queries = packed_queries(params, q_seq);
  for (int64_t first = 0; first < queries; first += chunk_queries) {
    int64_t const count = std::min(chunk_queries, queries - first);
    ScheduledChunk chunk = {.batch = batch,
                            .count = static_cast<int32_t>(count),
                            .first = first,
                            .cost = 0,
                            .q_seq = q_seq,
                            .k_seq = k_seq,
                            .num_heads = params.num_heads_kv};
    chunk.cost = chunk_cost(params, chunk);
    chunks.push_back(chunk);
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
    cut_forward(params, kernel, batch, tiles, chunks);
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
  if (chunk.lists_many) {
    int64_t const length = blocks_of_listed_split(seqlen_k, key_block) * key_block;
    return {0, seqlen_k, static_cast<int32_t>(length),
            static_cast<int32_t>(divide_up(seqlen_k, length))};
  }
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
  int64_t const blocks = divide_up(last.end - begin, key_block);
  auto splits_of = [&](int64_t length) { return divide_up(blocks, length); };
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
