#pragma once

// Writes dK and dV of a CTA's keys, or adds them to what other calls have left.

#include "sm80/backward/mainloop.h"

namespace fa2::sm80 {

template <class Config>
struct BwdEpilogue {
  using Element = typename Config::Element;
  using Mainloop = BwdMainloop<Config>;
  using Smem = typename Config::Smem;
  using OfScores = typename Config::OfScores;
  using OfValues = typename Config::OfValues;
  template <class Side>
  using Grad = typename Mainloop::template Grad<Side>;
  static constexpr BwdTile kTile = Config::kTile;

  CUTE_DEVICE static void store(BwdArgs const& args, Smem& smem, Mainloop& mainloop) {
    FwdParams const& p = args.problem.forward;
    float const factor_v = Config::kDropout ? args.inv_keep_prob : 1.f;
    if (args.problem.accumulates) {
      add_rows<OfScores>(smem.work, args.problem.grad_k, p.head_dim, mainloop.grad_k,
                         args.grad_scale);
      add_rows<OfValues>(smem.work, args.problem.grad_v, p.head_dim_v, mainloop.grad_v, factor_v);
      return;
    }
    __syncthreads();  // K is read, and dS where V was, until the last dQ
    stage<OfScores>(mainloop.grad_k, args.grad_scale, smem.k);
    stage<OfValues>(mainloop.grad_v, factor_v, smem.v);
    __syncthreads();
    store_rows<OfScores>(smem.work, args.problem.grad_k, p.head_dim, smem.k);
    store_rows<OfValues>(smem.work, args.problem.grad_v, p.head_dim_v, smem.v);
  }

  // Of a piece of a block's lists, for others to add up.
  CUTE_DEVICE static void store_piece(BwdArgs const& args, int64_t slot, Mainloop& mainloop) {
    FwdParams const& p = args.problem.forward;
    float* const grads = args.pieces.grads + slot * args.pieces.size(p);
    store_sums<OfScores>(mainloop.grad_k, grads, p.head_dim);
    store_sums<OfValues>(mainloop.grad_v, grads + args.pieces.grad_k_size(p), p.head_dim_v);
  }

 private:
  // Calls put(pair of neighbours in memory, pair of sums) for all that this lane has of `rows` rows
  // in float32.
  template <class Side, class Put>
  CUTE_DEVICE static void for_pairs(Grad<Side> const& grad, float* tile, int64_t row_stride,
                                    int rows, int width, Put const& put) {
    int const lane = lane_index();
    int const first_row = Config::Warps::grad_key_begin() + lane_row(lane);
    int const first_col = Config::Warps::column_warp() * Side::kNum * 8 + lane_col(lane);
    auto const sums = row_col_view(grad);
    CUTE_UNROLL
    for (int i = 0; i < size<0>(sums); ++i) {
      int const row = first_row + RowCoord<Config::kGradM>{}(i);
      if (row >= rows) continue;
      float* const to = tile + row * row_stride + first_col;
      CUTE_UNROLL
      for (int j = 0; j < size<1>(sums); j += 2) {
        int const col = ColCoord<Side::kNum>{}(j);
        if (first_col + col >= width) continue;
        put(*reinterpret_cast<float2*>(to + col), make_float2(sums(i, j), sums(i, j + 1)));
      }
    }
  }

  template <class Side>
  CUTE_DEVICE static void store_sums(Grad<Side> const& grad, float* tile, int width) {
    for_pairs<Side>(grad, tile, width, kTile.block_n, width,
                    [](float2& to, float2 sums) { to = sums; });
  }

  template <class Side>
  CUTE_DEVICE static void add_rows(BwdWorkTile const& work, TensorRef const& to, int width,
                                   Grad<Side> const& grad, float factor) {
    float* const tile = head_ptr<float>(to, work.batch, work.first_row_k, work.head_kv) +
                        work.col_begin * to.row_stride;
    for_pairs<Side>(grad, tile, to.row_stride, work.seqlen_k - work.col_begin, width,
                    [&](float2& there, float2 sums) {
                      there =
                          make_float2(fmaf(sums.x, factor, there.x), fmaf(sums.y, factor, there.y));
                    });
  }

  // Rounds a gradient and puts it where its keys or values were, so that whole rows can be stored.
  template <class Side>
  CUTE_DEVICE static void stage(Grad<Side>& grad, float factor, Element* tile) {
    using SmemKeys = typename Side::SmemKeys;
    CUTE_UNROLL
    for (int i = 0; i < size(grad); ++i) grad(i) *= factor;
    auto rounded = make_tensor<Element>(OperandLayout<Config::kGradM, Side::kNum / 2>{});
    round_to_operand(grad, rounded);
    store_operand<SmemKeys>(
        rounded, tile + Config::Warps::column_warp() * (Side::kNum / 2) * SmemKeys::kSubTile,
        operand_offset<SmemKeys>(Config::Warps::grad_key_begin(), lane_index()));
  }

  template <class Side>
  CUTE_DEVICE static void store_rows(BwdWorkTile const& work, TensorRef const& grad, int width,
                                     Element const* tile) {
    using Copies = typename Side::CopiesKeys;
    int const thread = thread_index();
    int const row = Copies::row(thread), col = Copies::col(thread);
    Element* const to = head_ptr<Element>(grad, work.batch, work.first_row_k, work.head_kv) +
                        (work.col_begin + row) * grad.row_stride + col;
    store_tile<Copies, typename Side::SmemKeys, Copies::kPasses>(
        tile, row, col, to, grad.row_stride, work.seqlen_k - work.col_begin, width);
  }
};

}  // namespace fa2::sm80
