// The kernels of one instruction-set level. The build compiles this file once per level, each time
// with that level's flags and FA2_CPU_LEVEL as the namespace of everything in it.

#include "cpu/level/backward_tile.h"
#include "cpu/level/bias_backward_tile.h"
#include "cpu/level/forward.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

namespace {

template <class E>
struct Backward {
  using Real = typename E::Real;
  using Storage = typename E::Storage;

  static size_t workspace_bytes(HeadDims const& dims, int32_t tiles) {
    return GradRowsWorkspace<E>(nullptr, dims, tiles).bytes +
           GradWorkspace<E>(nullptr, dims, tiles).bytes;
  }
  static size_t key_sums_bytes(HeadDims const& dims, int32_t seqlen_k) {
    return KeyGradSums<E>::bytes(seqlen_k, dims);
  }
  static size_t splits_bytes(int32_t head_dim, int32_t tiles, int32_t splits) {
    return SplitGrads<E>(nullptr, head_dim, tiles, splits).bytes;
  }
  static void run(BwdParams const& params, BackwardChunk const& chunk, void* workspace) {
    ChunkBackward<E>(params, chunk, workspace).run();
  }
  static void clear_key_sums(BwdParams const& params, BackwardChunk const& chunk) {
    sums_of(params, chunk).clear(keys_of(chunk));
  }
  static void write_key_grads(BwdParams const& params, BackwardChunk const& chunk) {
    FwdParams const& problem = params.forward;
    QueryChunk const& queries = chunk.queries;
    KeyGradSums<E> const sums = sums_of(params, chunk);
    ColRange const keys = keys_of(chunk);
    auto write = [&](TensorRef const& to, int32_t head_dim, Real const* from, int64_t stride,
                     Real factor) {
      int64_t const first = queries.k_seq.first_row + int64_t(keys.begin);
      Real const* const sums = from + keys.begin * stride;
      int32_t const num_keys = keys.end - keys.begin;
      if (params.accumulates) {
        add_key_rows<Real>(head_ptr<Real>(to, queries.batch, first, queries.head_kv), to.row_stride,
                           sums, stride, factor, num_keys, head_dim);
      } else {
        write_rows<E>(head_ptr<Storage>(to, queries.batch, first, queries.head_kv), to.row_stride,
                      sums, stride, factor, num_keys, head_dim);
      }
    };
    write(params.grad_k, problem.head_dim, sums.grad_k, sums.stride_k, Real(problem.softmax_scale));
    write(params.grad_v, problem.head_dim_v, sums.grad_v, sums.stride_v,
          Real(1 / (1 - problem.dropout.drop_prob)));
  }
  static constexpr BackwardKernel kernel() {
    return {GradTile<E>::kCapacity, kKeyBlock, workspace_bytes, key_sums_bytes,
            splits_bytes,           run,       clear_key_sums,  write_key_grads};
  }

 private:
  static KeyGradSums<E> sums_of(BwdParams const& params, BackwardChunk const& chunk) {
    return {chunk.key_sums, chunk.queries.k_seq.length, head_dims(params.forward)};
  }
  static ColRange keys_of(BackwardChunk const& chunk) {
    return {chunk.keys.begin, smaller(chunk.keys.end, chunk.queries.k_seq.length)};
  }
};

template <class E>
struct BiasBackward {
  static constexpr int kTiles = kBiasChunkQueries / GradTile<E>::kCapacity;

  static size_t workspace_bytes(HeadDims const& dims) {
    return GradRowsWorkspace<E>(nullptr, dims, kTiles).bytes;
  }
  static void run(BiasBwdParams const& params, BiasChunk const& chunk, void* workspace) {
    ChunkBiasBackward<E>(params, chunk, workspace).run();
  }
  static constexpr BiasKernel kernel() {
    return {kBiasChunkQueries, kKeyBlock, workspace_bytes, run};
  }
};

}  // namespace

// In the order of DType. Where bf16 has instructions of its own, they are all that
// changes, and the level below serves the other types.
extern LevelKernels const kKernels;
#if defined(__AVX512BF16__)
LevelKernels const kKernels = {.forward = {{}, Forward<BFloat16Pairs>::kernel(), {}, {}},
                               .backward = {{}, Backward<BFloat16Pairs>::kernel(), {}, {}},
                               .bias = {{}, BiasBackward<BFloat16Pairs>::kernel(), {}, {}}};
#else
LevelKernels const kKernels = {
    .forward = {Forward<Float16>::kernel(), Forward<BFloat16>::kernel(), Forward<Float32>::kernel(),
                Forward<Float64>::kernel()},
    .backward = {Backward<Float16>::kernel(), Backward<BFloat16>::kernel(),
                 Backward<Float32>::kernel(), Backward<Float64>::kernel()},
    .bias = {BiasBackward<Float16>::kernel(), BiasBackward<BFloat16>::kernel(),
             BiasBackward<Float32>::kernel(), BiasBackward<Float64>::kernel()}};
#endif

}  // namespace fa2::cpu::FA2_CPU_LEVEL
