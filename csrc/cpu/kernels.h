#pragma once

// What one instruction-set level offers to the rest of the family.

#include <cstddef>

#include "core/mask.h"
#include "core/params.h"
#include "core/seq_info.h"
#include "cpu/turns.h"

namespace fa2::cpu {

// Queries of one sequence that share a KV head, worked through together. Query heads of a group
// are packed side by side: packed query p is row p / group of head head_kv * group + p % group.
struct QueryChunk {
  int32_t batch;
  int32_t head_kv;
  int64_t first;
  int32_t count;
  SeqInfo q_seq;
  SeqInfo k_seq;
};

// Widths of heads.
struct HeadDims {
  int32_t qk;  // of queries and keys
  int32_t v;   // of values and outputs
};

inline HeadDims head_dims(FwdParams const& params) { return {params.head_dim, params.head_dim_v}; }

// A chunk of the forward pass. Where keys are cut into splits, each split leaves partial results of
// its own.
struct ForwardChunk {
  QueryChunk queries;
  int32_t num_heads;  // KV heads from queries.head_kv on
  int32_t key_begin;  // keys [key_begin, key_end), as far as the queries see them; key_begin is a
  int32_t key_end;    // multiple of 64
  void* partial;      // partial results, or null for the results
};

struct ForwardKernel {
  int32_t tile_queries;                         // of a full tile
  int32_t key_block;                            // keys that are worked through at a time
  int64_t (*tile_bytes)(HeadDims const& dims);  // of Q and O of a full tile
  // KV heads of a sequence that are best worked through together.
  int32_t (*heads_together)(FwdParams const& params, SeqInfo const& q_seq, SeqInfo const& k_seq);
  size_t (*workspace_bytes)(HeadDims const& dims, int32_t tiles);
  // `workspace` is aligned to 64 bytes and needs no initialisation.
  void (*run)(FwdParams const& params, ForwardChunk const& chunk, void* workspace);

  // Of one query of one head in one split.
  size_t (*partial_bytes)(int32_t head_dim_v);
  // Makes the results of a chunk from its partial results: split after split, at most kMaxSplits.
  void (*combine)(FwdParams const& params, ForwardChunk const& chunk, int32_t num_splits);
};

// A chunk of the backward pass, and where it adds what others add to as well. Where a block mask
// lists many keys, these are cut into splits.
struct BackwardChunk {
  QueryChunk queries;
  ColRange keys;      // of the split: from a multiple of key_block on
  void* key_sums;     // of this KV head of this sequence; the first chunk finds zeros
  double* sink_sums;  // (group,), written; or null
  Turn& turn;
  SplitTurn* split;  // null: there is only one
};

struct BackwardKernel {
  int32_t tile_queries;
  int32_t key_block;
  size_t (*workspace_bytes)(HeadDims const& dims, int32_t tiles);
  size_t (*key_sums_bytes)(HeadDims const& dims, int32_t seqlen_k);
  // What so many splits of a chunk share.
  size_t (*splits_bytes)(int32_t head_dim, int32_t tiles, int32_t splits);
  void (*run)(BwdParams const& params, BackwardChunk const& chunk, void* workspace);
  // Zeroes the sums of some keys, and turns them into rows of grad_k and grad_v in the end.
  void (*clear_key_sums)(BwdParams const& params, BackwardChunk const& chunk);
  void (*write_key_grads)(BwdParams const& params, BackwardChunk const& chunk);
};

// A chunk of the gradient of a bias: queries of one head, which is the KV head of its problem too,
// and what they add to the entries [begin, end) of `sums`, by keys or, where these go by key -
// query, by diagonals: 0 is the one of the last query and the first key.
struct BiasChunk {
  QueryChunk queries;
  Bias sums;
  bool by_diagonals;
  int32_t begin;
  int32_t end;
};

struct BiasKernel {
  int32_t chunk_queries;
  int32_t key_block;
  size_t (*workspace_bytes)(HeadDims const& dims);
  void (*run)(BiasBwdParams const& params, BiasChunk const& chunk, void* workspace);
};

inline constexpr int kNumDTypes = 4;
inline constexpr int kNumCodeTypes = 3;  // that there are kernels of

// By DType; run is null where the level has nothing to add.
struct LevelKernels {
  ForwardKernel forward[kNumDTypes];
  BackwardKernel backward[kNumDTypes];
  BiasKernel bias[kNumDTypes];
};

}  // namespace fa2::cpu
