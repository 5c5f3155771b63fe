#pragma once

// The forward kernel of one element.

#include "cpu/level/few_forward.h"
#include "cpu/level/forward_tile.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

template <class E>
struct Forward {
  static int64_t tile_bytes(HeadDims const& dims) {
    constexpr int64_t kQueryBytes = sizeof(typename E::Operand) / E::kDepth;
    constexpr int64_t kOutBytes = sizeof(typename E::Real);
    return Tile<E>::kCapacity * (dims.qk * kQueryBytes + dims.v * kOutBytes);
  }
  static int32_t heads_together(FwdParams const& params, SeqInfo const& q_seq,
                                SeqInfo const& k_seq) {
    bool const few = FewForward<E>::takes(params, q_seq, k_seq);
    return few ? FewForward<E>::heads_together(params, q_seq.length) : 1;
  }
  static size_t workspace_bytes(HeadDims const& dims, int32_t tiles) {
    size_t const few = FewWorkspace<E>(nullptr, dims, 1).bytes;
    size_t const many = Workspace<E>(nullptr, dims, tiles).bytes;
    return few > many ? few : many;
  }
  static void run(FwdParams const& params, ForwardChunk const& chunk, void* workspace) {
    if (FewForward<E>::takes(params, chunk.queries.q_seq, chunk.queries.k_seq)) {
      FewForward<E>(params, chunk, workspace).run();
    } else {
      ChunkForward<E>(params, chunk, workspace).run();
    }
  }
  static size_t partial_bytes(int32_t head_dim_v) {
    return SplitResult<E>::length(head_dim_v) * sizeof(typename E::Real);
  }
  static void combine(FwdParams const& params, ForwardChunk const& chunk, int32_t num_splits) {
    CombineSplits<E>(params, chunk, num_splits).run();
  }
  static constexpr ForwardKernel kernel() {
    return {Tile<E>::kCapacity, kKeyBlock, tile_bytes,    heads_together,
            workspace_bytes,    run,       partial_bytes, combine};
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
