#pragma once

// What one instruction-set level offers to the rest of the family.

#include <cstddef>

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

struct ForwardKernel {
  int32_t tile_queries;                      // of a full tile
  int32_t (*chunk_tiles)(int32_t head_dim);  // most tiles of a chunk
  size_t (*workspace_bytes)(int32_t head_dim, int32_t tiles);
  // `workspace` is aligned to 64 bytes and needs no initialisation.
  void (*run)(FwdParams const& params, QueryChunk const& chunk, void* workspace);
};

// A chunk of the backward pass, and where it adds what others add to as well.
struct BackwardChunk {
  QueryChunk queries;
  void* key_sums;     // of this KV head of this sequence; the first chunk finds zeros
  double* sink_sums;  // (group,), written; or null
  Turn& turn;
};

struct BackwardKernel {
  int32_t tile_queries;
  int32_t chunk_tiles;
  size_t (*workspace_bytes)(int32_t head_dim, int32_t tiles);
  size_t (*key_sums_bytes)(int32_t head_dim, int32_t seqlen_k);
  void (*run)(BwdParams const& params, BackwardChunk const& chunk, void* workspace);
  // Turns the sums of a finished sequence into its rows of grad_k and grad_v.
  void (*write_key_grads)(BwdParams const& params, QueryChunk const& chunk, void* key_sums);
};

inline constexpr int kNumDTypes = 4;

// By DType; run is null where the level has nothing to add.
struct LevelKernels {
  ForwardKernel forward[kNumDTypes];
  BackwardKernel backward[kNumDTypes];
};

}  // namespace fa2::cpu
