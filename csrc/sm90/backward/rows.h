#pragma once

// The end of dQ. The other kernels that go over queries are those of sm80 (sm80/backward/rows.h).

#include "sm80/backward/rows.h"
#include "sm90/backward/args.h"
#include "tile/quad_words.h"

namespace fa2::sm90 {

// The sums of dQ, scaled and rounded, or added to those of other calls. One CTA a query tile; a
// warp takes 16 rows of 32 columns at a time, in whole lines of the sums.
template <class Element>
struct GradQKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kSmemBytes = 0;
  static constexpr int kBlocks = 4;  // of 8 columns

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    sm80::QueryTile const tile = sm80::QueryTile::of(args.common, blockIdx.x);
    if (tile.rows <= 0) return;
    int const rows = GradQLayout::kRows / 16;
    int const cols = args.grad_q.head_dim / (8 * kBlocks);
    for (int i = int(threadIdx.x) / 32; i < rows * cols; i += kThreads / 32) {
      finish(args, tile, i % rows * 16, i / rows * 8 * kBlocks);
    }
  }

 private:
  CUTE_DEVICE static void finish(BwdArgs const& args, sm80::QueryTile const& tile, int row,
                                 int col) {
    GradQLayout const layout = args.grad_q;
    int const lane = threadIdx.x % 32;
    float const* const sums = args.common.workspace.grad_q + tile.index * layout.size();
    float4 parts[kBlocks];
    CUTE_UNROLL
    for (int j = 0; j < kBlocks; ++j) {
      int const at = layout.offset(col + 8 * j, row / 16 * 32 + lane);
      int const step = layout.step();
      parts[j] = step == 1 ? reinterpret_cast<float4 const&>(sums[at])
                           : make_float4(sums[at], sums[at + step], sums[at + 2 * step],
                                         sums[at + 3 * step]);
    }
    row += lane_row(lane);
    put(args.common, tile, row, col, [&](int j) { return make_float2(parts[j].x, parts[j].y); });
    put(args.common, tile, row + 8, col,
        [&](int j) { return make_float2(parts[j].z, parts[j].w); });
  }

  // Of a row that four lanes share, of which each has two columns of block j: pair(j).
  template <class Pair>
  CUTE_DEVICE static void put(sm80::BwdArgs const& args, sm80::QueryTile const& tile, int row,
                              int col, Pair const& pair) {
    bool const exists = row < tile.rows;
    int const lane = threadIdx.x % 32, width = args.problem.forward.head_dim;
    if (args.problem.accumulates) {
      float* const to = place<float>(args, tile, row, col) + lane_col(lane);
      CUTE_UNROLL
      for (int j = 0; j < kBlocks; ++j) {
        if (exists && col + 8 * j < width) add(to + 8 * j, pair(j), args.grad_scale);
      }
      return;
    }
    uint32_t words[kBlocks];
    CUTE_UNROLL
    for (int j = 0; j < kBlocks; ++j) {
      words[j] = pack<Element>(pair(j).x * args.grad_scale, pair(j).y * args.grad_scale);
    }
    transpose_in_quad(words, lane);
    int const own_col = col + 8 * (lane % 4);
    if (exists && own_col < width) store_words(place<Element>(args, tile, row, own_col), words);
  }

  CUTE_DEVICE static void add(float* to, float2 pair, float factor) {
    auto& there = reinterpret_cast<float2&>(*to);
    there = make_float2(fmaf(pair.x, factor, there.x), fmaf(pair.y, factor, there.y));
  }

  template <class T>
  CUTE_DEVICE static T* place(sm80::BwdArgs const& args, sm80::QueryTile const& tile, int row,
                              int col) {
    TensorRef const& grad_q = args.problem.grad_q;
    return head_ptr<T>(grad_q, tile.batch, tile.first_row_q, tile.head) +
           (tile.row_begin + row) * grad_q.row_stride + col;
  }
};

}  // namespace fa2::sm90
