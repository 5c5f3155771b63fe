#pragma once

// The small backward kernels, which go over queries: what the main kernel needs to know of each
// row, the end of dQ, and the gradient of the sink.

#include <cute/tensor.hpp>

#include "core/online_softmax.h"
#include "core/seq_info.h"
#include "sm80/backward/args.h"
#include "sm80/backward/row_stats.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

// A tile of queries, one to a CTA.
struct QueryTile {
  int32_t batch;
  int32_t head;
  int32_t row_begin;
  int32_t rows;  // not above block_m; none where the sequence is shorter
  int64_t first_row_q;
  int64_t index;  // (head, tile) in the workspace

  CUTE_DEVICE static QueryTile of(BwdArgs const& args, int32_t block) {
    FwdParams const& p = args.problem.forward;
    int32_t const pair = block / args.num_m_blocks, m = block % args.num_m_blocks;
    int32_t const block_m = args.workspace.layout.block_m;
    QueryTile tile;
    tile.batch = pair / p.num_heads;
    tile.head = pair % p.num_heads;
    tile.row_begin = m * block_m;
    SeqInfo const q = seq_info(p.seqs_q, tile.batch);
    tile.rows = min(block_m, q.length - tile.row_begin);
    tile.first_row_q = q.first_row;
    tile.index = int64_t(tile.head) * args.workspace.tiles_per_head +
                 args.workspace.first_tile(p.seqs_q, tile.batch, q.first_row) + m;
    return tile;
  }
};

// Of each row its RowStats, in two arrays of a tile; past the end those of no row. Also clears the
// sums of dQ and the semaphores.
template <class Element>
struct RowStatsKernel {
  using Args = BwdArgs;
  using Stats = RowStats<Element>;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    BwdWorkspace const& workspace = args.workspace;
    if (workspace.ticket != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *workspace.ticket = 0;
    QueryTile const tile = QueryTile::of(args, blockIdx.x);
    if (tile.rows <= 0) return;
    if (workspace.semaphores != nullptr && threadIdx.x == 0) workspace.semaphores[tile.index] = 0;

    int const block_m = workspace.layout.block_m;
    float* const stats = workspace.row_stats + tile.index * 2 * block_m;
    int const lane = threadIdx.x % Stats::kLanes;
    for (int row = threadIdx.x / Stats::kLanes; row < block_m; row += kThreads / Stats::kLanes) {
      Stats const of_row =
          Stats::of({args.problem.forward, args.problem.grad_out, args.problem.grad_lse,
                     args.keep_prob, tile.batch, tile.head, tile.first_row_q},
                    tile.row_begin + row, row < tile.rows, lane);
      if (lane == 0) {
        stats[row] = of_row.lse;
        stats[block_m + row] = of_row.minus_delta;
      }
    }
    auto* const sums =
        reinterpret_cast<uint128_t*>(workspace.grad_q + tile.index * workspace.layout.size());
    for (int i = threadIdx.x; i < workspace.layout.size() / 4; i += kThreads) sums[i] = uint128_t{};
  }
};

// The sums of dQ, scaled and rounded, or added to those of other calls. A warp takes 8 rows of 32
// columns at a time: whole lines of the sums, two sectors of each row.
template <class Element>
struct GradQKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    QueryTile const tile = QueryTile::of(args, blockIdx.x);
    if (tile.rows <= 0) return;
    FwdParams const& p = args.problem.forward;
    GradQLayout const layout = args.workspace.layout;
    float const* const sums = args.workspace.grad_q + tile.index * layout.size();
    int const lane = threadIdx.x % 32;
    int const row_blocks = layout.block_m / 8;
    for (int i = threadIdx.x / 32; i < row_blocks * (layout.head_dim / 32); i += kThreads / 32) {
      int const row = i % row_blocks * 8 + lane / 4;
      int const col = i / row_blocks * 32 + lane % 4 * 8;
      if (row >= tile.rows || col >= p.head_dim) continue;
      float const* const from = sums + layout.offset(row, col);
      auto const even = *reinterpret_cast<cutlass::AlignedArray<float, 4> const*>(from);
      auto const odd = *reinterpret_cast<cutlass::AlignedArray<float, 4> const*>(from + 32);
      if (args.problem.accumulates) {
        add(place<float>(args, tile, row, col), even, odd, args.grad_scale);
      } else {
        store(place<Element>(args, tile, row, col), even, odd, args.grad_scale);
      }
    }
  }

 private:
  using Columns = cutlass::AlignedArray<float, 4>;  // every second one of eight

  template <class T>
  CUTE_DEVICE static T* place(BwdArgs const& args, QueryTile const& tile, int row, int col) {
    TensorRef const& grad_q = args.problem.grad_q;
    return head_ptr<T>(grad_q, tile.batch, tile.first_row_q, tile.head) +
           (tile.row_begin + row) * grad_q.row_stride + col;
  }

  CUTE_DEVICE static void store(Element* to, Columns const& even, Columns const& odd,
                                float factor) {
    cutlass::AlignedArray<uint32_t, 4> pairs;
    CUTE_UNROLL
    for (int j = 0; j < 4; ++j) pairs[j] = pack<Element>(even[j] * factor, odd[j] * factor);
    *reinterpret_cast<uint128_t*>(to) = reinterpret_cast<uint128_t const&>(pairs);
  }

  CUTE_DEVICE static void add(float* to, Columns const& even, Columns const& odd, float factor) {
    CUTE_UNROLL
    for (int j = 0; j < 4; ++j) {
      auto& pair = reinterpret_cast<float2&>(to[2 * j]);
      pair = make_float2(fmaf(even[j], factor, pair.x), fmaf(odd[j], factor, pair.y));
    }
  }
};

// d sink = -sum over all rows of a head of exp(sink - lse) * D, in a fixed order. One CTA a head.
struct GradSinkKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kSmemBytes = kWarps * sizeof(float);

  CUTE_DEVICE void operator()(BwdArgs const& args, char* smem) const {
    FwdParams const& p = args.problem.forward;
    int const head = blockIdx.x;
    float const logit = p.sink[head];
    float sum = 0.f;
    for (int batch = 0; batch < p.batch; ++batch) {
      sum += sequence_sum(args, head, batch, seq_info(p.seqs_q, batch), logit);
    }
    CUTE_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    float* const warp_sums = reinterpret_cast<float*>(smem);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float total = 0.f;
    for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[warp];
    args.problem.grad_sink[head] = total * args.inv_keep_prob;
  }

 private:
  // This thread's rows of a sequence.
  CUTE_DEVICE static float sequence_sum(BwdArgs const& args, int head, int batch, SeqInfo const& q,
                                        float logit) {
    BwdWorkspace const& workspace = args.workspace;
    int const block_m = workspace.layout.block_m;
    int64_t const tile = int64_t(head) * workspace.tiles_per_head +
                         workspace.first_tile(args.problem.forward.seqs_q, batch, q.first_row);
    float const* const stats = workspace.row_stats + tile * 2 * block_m;
    float const* const lse =
        args.problem.forward.lse + lse_index(args.problem.forward, batch, q.first_row, head);
    float sum = 0.f;
    for (int row = threadIdx.x; row < q.length; row += kThreads) {
      if (lse[row] == -INFINITY) continue;
      float const* const of_tile = stats + int64_t(row / block_m) * 2 * block_m;
      float const minus_delta = of_tile[block_m + row % block_m];
      sum += fminf(1.f, exp2_approx((logit - lse[row]) * kLog2e)) * minus_delta;
    }
    return sum;
  }
};

}  // namespace fa2::sm80
