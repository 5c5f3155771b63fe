#include "cpu/schedule.h"

#include <algorithm>

#include "core/block_mask.h"
#include "core/mask.h"
#include "core/positions.h"
#include "cpu/listed.h"
#include "cpu/processor.h"

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
// Lengths of splits are multiples of this.
constexpr int64_t kSplitStep = 64;

// Tiles of queries that list more blocks of keys than this have splits of so many blocks of the
// kernel: global tokens, which would keep one thread busy long after the others are done.
constexpr int64_t kMostListed = 256;
constexpr int32_t kBlocksPerListedSplit = 48;

// Most splits of a chunk in the backward pass, each of which keeps a dQ of its own.
constexpr int64_t kMostSplitsBackward = 16;

int64_t packed_queries(FwdParams const& params, SeqInfo const& q_seq) {
  return int64_t(q_seq.length) * params.group();
}

// Of the sequence that these are a part of, by which its keys are cut.
int64_t whole_packed_queries(FwdParams const& params, SeqInfo const& q_seq) {
  return int64_t(whole_seqlen_q(params, q_seq)) * params.group();
}

bool has_lists(FwdParams const& params) { return params.block_mask.row_offsets != nullptr; }

ListedQueries listed_queries(ScheduledChunk const& chunk) {
  return {chunk.batch, chunk.first_head, chunk.first_head + chunk.num_heads, chunk.first,
          chunk.count};
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t chunk_cost(FwdParams const& params, ScheduledChunk const& chunk) {
  if (has_lists(params)) {
    return std::max<int64_t>(chunk.count, listed_scores(params, listed_queries(chunk)));
  }
  int32_t const middle = static_cast<int32_t>((chunk.first + chunk.count / 2) / params.group());
  int32_t const diagonal = first_diagonal(params, chunk.q_seq, chunk.k_seq) + middle;
  ColRange const cols = cols_around(diagonal, chunk.k_seq.length, params.window);
  return int64_t(chunk.count) * std::max(1, cols.end - cols.begin);
}

// Blocks of the kernel in a split of the keys of a tile that lists many.
int64_t blocks_of_listed_split(int32_t seqlen_k, int32_t key_block, int64_t most_splits) {
  return std::max<int64_t>(kBlocksPerListedSplit,
                           divide_up(divide_up(seqlen_k, key_block), most_splits));
}

// Cuts a sequence by what its tiles list, for some of its KV heads.
class CutByLists {
 public:
  // `tells_many`: chunks of tiles that list many are told apart.
  CutByLists(FwdParams const& params, int32_t tile_queries, bool tells_many,
             ScheduledChunk const& heads)
      : params_(params),
        tile_queries_(tile_queries),
        tells_many_(tells_many && mask_blocks(heads.k_seq.length) > kMostListed),
        heads_(heads) {}

  // Appends chunks of up to `most` tiles, or `most_of_many` where they list many. One ends, too,
  // where tiles that list many begin or end.
  void operator()(int64_t most, int64_t most_of_many, std::vector<ScheduledChunk>& chunks) const {
    int64_t const queries = packed_queries(params_, heads_.q_seq);
    for (int64_t first = 0; first < queries;) {
      ScheduledChunk chunk = tile_at(first);
      int64_t const tiles = chunk.lists_many ? most_of_many : most;
      for (first += chunk.count; first < queries && chunk.count < tiles * tile_queries_;) {
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
    tile.count = static_cast<int32_t>(std::min<int64_t>(tile_queries_, queries - first));
    tile.lists_many = tells_many_ && most_listed(params_, listed_queries(tile)) > kMostListed;
    return tile;
  }

  FwdParams const& params_;
  int32_t const tile_queries_;
  bool const tells_many_;
  ScheduledChunk const heads_;
};

int64_t forward_chunk_tiles(FwdParams const& params, ForwardKernel const& kernel) {
  constexpr int64_t kMostQueries = 1024;
  int64_t const bytes = kernel.tile_bytes(head_dims(params));
  return std::clamp<int64_t>(forward_chunk_bytes(active_processor()) / bytes, 1,
                             kMostQueries / kernel.tile_queries);
}

// Tiles of the forward pass whose partial results are not too many.
int64_t most_with_splits(FwdParams const& params, ForwardKernel const& kernel,
                         ScheduledChunk const& heads) {
  int64_t const length =
      blocks_of_listed_split(heads.k_seq.length, kernel.key_block, kMaxSplits) * kernel.key_block;
  int64_t const splits = std::max<int64_t>(1, divide_up(heads.k_seq.length, length));
  int64_t const results = splits * heads.num_heads * kernel.tile_queries;
  int64_t const bytes = results * static_cast<int64_t>(kernel.partial_bytes(params.head_dim_v));
  return std::max<int64_t>(1, kPartialBytes / bytes);
}

// Without any queries yet.
ScheduledChunk heads_of(FwdParams const& params, int32_t batch, ScheduledHeads heads) {
  return {.batch = batch,
          .count = 0,
          .first = 0,
          .cost = 0,
          .q_seq = seq_info(params.seqs_q, batch),
          .k_seq = seq_info(params.seqs_k, batch),
          .first_head = heads.first_head,
          .num_heads = heads.num_heads};
}

// Appends the chunks of `chunk_queries` queries of one sequence, first to last.
void cut_sequence(FwdParams const& params, ScheduledChunk const& heads, int64_t chunk_queries,
                  std::vector<ScheduledChunk>& chunks) {
  int64_t const queries = packed_queries(params, heads.q_seq);
  for (int64_t first = 0; first < queries; first += chunk_queries) {
    ScheduledChunk chunk = heads;
    chunk.first = first;
    chunk.count = static_cast<int32_t>(std::min(chunk_queries, queries - first));
    chunk.cost = chunk_cost(params, chunk);
    chunks.push_back(chunk);
  }
}

// The chunks of one sequence of the forward pass.
void cut_forward(FwdParams const& params, ForwardKernel const& kernel, int32_t batch, int64_t tiles,
                 std::vector<ScheduledChunk>& chunks) {
  for (int32_t head = 0; head < params.num_heads_kv;) {
    ScheduledChunk const heads = heads_of(params, batch, heads_from(params, head));
    if (has_lists(params)) {
      bool const cuts =
          params.num_splits == 0 && whole_packed_queries(params, heads.q_seq) > kMostSplitQueries;
      int64_t const of_many = std::min(tiles, most_with_splits(params, kernel, heads));
      CutByLists(params, kernel.tile_queries, cuts, heads)(tiles, of_many, chunks);
    } else {
      cut_sequence(params, heads, tiles * kernel.tile_queries, chunks);
    }
    head += heads.num_heads;
  }
}

}  // namespace

ScheduledHeads heads_from(FwdParams const& params, int32_t first_head) {
  bool const apart = has_lists(params) && params.block_mask.heads > 1;
  return {first_head, apart ? 1 : params.num_heads_kv - first_head};
}

void cut_backward(FwdParams const& params, int32_t tile_queries, int64_t tiles, int32_t batch,
                  ScheduledHeads scheduled, std::vector<ScheduledChunk>& chunks) {
  ScheduledChunk const heads = heads_of(params, batch, scheduled);
  if (has_lists(params)) {
    CutByLists(params, tile_queries, true, heads)(tiles, tiles, chunks);
  } else {
    cut_sequence(params, heads, tiles * tile_queries, chunks);
  }
}

int64_t backward_chunk_tiles(BwdParams const& params, BackwardKernel const& kernel,
                             int32_t seqlen_k) {
  // Sums that shall be the same everywhere are not after the processor at hand. And neighbours
  // under a block mask list different keys: the more of them, the less they share.
  bool const fewest = params.deterministic || has_lists(params.forward);
  int64_t const key_sums = fewest ? 0 : kernel.key_sums_bytes(head_dims(params.forward), seqlen_k);
  int32_t const queries = backward_chunk_queries(active_processor(), key_sums);
  return std::max(1, queries / kernel.tile_queries);
}

int64_t balanced_tiles(FwdParams const& params, int32_t tile_queries, int num_threads) {
  int64_t tiles = 0;
  for (int32_t batch = 0; batch < params.batch; ++batch) {
    int64_t const queries = packed_queries(params, seq_info(params.seqs_q, batch));
    tiles += (queries + tile_queries - 1) / tile_queries * params.num_heads_kv;
  }
  return std::max<int64_t>(1, num_threads == 1 ? tiles : tiles / (num_threads * kChunksPerThread));
}

void schedule_forward(FwdParams const& params, ForwardKernel const& kernel, int num_threads,
                      std::vector<ScheduledChunk>& chunks) {
  chunks.clear();
  int64_t const tiles = std::min(forward_chunk_tiles(params, kernel),
                                 balanced_tiles(params, kernel.tile_queries, num_threads));
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
    int64_t const length = blocks_of_listed_split(seqlen_k, key_block, kMaxSplits) * key_block;
    return {0, seqlen_k, static_cast<int32_t>(length),
            static_cast<int32_t>(divide_up(seqlen_k, length))};
  }
  int32_t const short_enough = params.num_splits == 0 ? kBlocksPerSplit * key_block : key_block;
  if (params.num_splits == 1 || seqlen_k <= short_enough ||
      whole_packed_queries(params, q_seq) > kMostSplitQueries) {
    return whole;
  }

  // The window of the first query of all starts first, that of the last one ends last.
  int32_t const first_row = first_diagonal(params, q_seq, chunk.k_seq) - params.positions.q_start;
  int32_t const last_row = first_row + whole_seqlen_q(params, q_seq) - 1;
  ColRange const first = cols_around(first_row, seqlen_k, params.window);
  ColRange const last = cols_around(last_row, seqlen_k, params.window);
  if (first.begin >= last.end) return whole;
  int32_t const begin = first.begin / key_block * key_block;
  int64_t const keys = last.end - begin;
  int64_t const most = std::min<int64_t>(kMaxSplits, divide_up(keys, kBlocksPerSplit * key_block));
  // Of equal length, as nearly as steps allow.
  int64_t const length =
      divide_up(divide_up(keys, params.num_splits > 1 ? params.num_splits : most), kSplitStep) *
      kSplitStep;
  return {begin, last.end, static_cast<int32_t>(length),
          static_cast<int32_t>(divide_up(keys, length))};
}

KeySplits cut_keys_backward(ScheduledChunk const& chunk, int32_t key_block) {
  int32_t const seqlen_k = chunk.k_seq.length;
  if (!chunk.lists_many) return {0, seqlen_k, std::max(1, seqlen_k), 1};
  int64_t const length =
      blocks_of_listed_split(seqlen_k, key_block, kMostSplitsBackward) * key_block;
  return {0, seqlen_k, static_cast<int32_t>(length),
          static_cast<int32_t>(divide_up(seqlen_k, length))};
}

int useful_threads(int64_t multiply_adds, int64_t tasks, int num_threads) {
  int64_t const useful = std::min({multiply_adds / kThreadWork, tasks, int64_t(num_threads)});
  return static_cast<int>(std::max<int64_t>(1, useful));
}

}  // namespace fa2::cpu
