#pragma once

// What one instruction-set level offers to the rest of the family.

#include <cstddef>

#include "core/params.h"
#include "core/seq_info.h"

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

inline constexpr int kNumDTypes = 4;

struct LevelKernels {
  ForwardKernel forward[kNumDTypes];  // by DType; run is null where the level has nothing to add
};

}  // namespace fa2::cpu
