// The kernels of one instruction-set level. The build compiles this file once per level, each time
// with that level's flags and FA2_CPU_LEVEL as the namespace of everything in it.

#include "cpu/forward_tile.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

namespace {

template <class E>
int32_t chunk_tiles(int32_t head_dim) {
  int const tile_bytes = head_dim * Tile<E>::kCapacity *
                         int(sizeof(typename E::Operand) / E::kDepth + sizeof(typename E::Real));
  return larger(1, smaller(kMaxChunkTiles, kChunkBytes / tile_bytes));
}

template <class E>
size_t workspace_bytes(int32_t head_dim, int32_t tiles) {
  return Workspace<E>(nullptr, head_dim, tiles).bytes;
}

template <class E>
void run(FwdParams const& params, QueryChunk const& chunk, void* workspace) {
  ChunkForward<E>(params, chunk, workspace).run();
}

template <class E>
constexpr ForwardKernel kernel() {
  return {Tile<E>::kCapacity, chunk_tiles<E>, workspace_bytes<E>, run<E>};
}

}  // namespace

// In the order of DType. Where bf16 has instructions of its own, they are all that changes, and
// the level below serves the other types.
extern LevelKernels const kKernels;
#if defined(__AVX512BF16__)
LevelKernels const kKernels = {{{}, kernel<BFloat16Pairs>(), {}, {}}};
#else
LevelKernels const kKernels = {
    {kernel<Float16>(), kernel<BFloat16>(), kernel<Float32>(), kernel<Float64>()}};
#endif

}  // namespace fa2::cpu::FA2_CPU_LEVEL
