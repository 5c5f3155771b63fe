#pragma once

// Writes dK and dV of a CTA's keys.

#include "sm80/backward/mainloop.h"

namespace fa2::sm80 {

template <class Config>
struct BwdEpilogue {
  using Element = typename Config::Element;
  using Mainloop = BwdMainloop<Config>;
  using Smem = typename Config::Smem;
  using SmemKV = typename Config::SmemKV;
  static constexpr BwdTile kTile = Config::kTile;

  CUTE_DEVICE static void store(BwdArgs const& args, Smem& smem, Mainloop& mainloop) {
    __syncthreads();  // K is read, and dS where V was, until the last dQ
    stage(mainloop.grad_k, args.grad_scale, smem.k);
    stage(mainloop.grad_v, Config::kDropout ? args.inv_keep_prob : 1.f, smem.v);
    __syncthreads();
    store_rows(args, smem.work, args.problem.grad_k, smem.k);
    store_rows(args, smem.work, args.problem.grad_v, smem.v);
  }

  // Of a piece of a block's lists, for others to add up.
  CUTE_DEVICE static void store_piece(BwdArgs const& args, int64_t slot, Mainloop& mainloop) {
    int const head_dim = args.problem.forward.head_dim;
    float* const grads = args.pieces.grads + slot * args.pieces.size(head_dim);
    store_sums(mainloop.grad_k, grads, head_dim);
    store_sums(mainloop.grad_v, grads + kTile.block_n * head_dim, head_dim);
  }

 private:
  CUTE_DEVICE static void store_sums(typename Mainloop::GradKV const& grad, float* tile,
                                     int head_dim) {
    int const lane = lane_index();
    int const first_row = Config::Warps::key_begin() + lane_row(lane);
    int const first_col = Config::Warps::query_warp() * Config::kNumKV * 8 + lane_col(lane);
    auto const sums = row_col_view(grad);
    CUTE_UNROLL
    for (int i = 0; i < size<0>(sums); ++i) {
      float* const to = tile + (first_row + RowCoord<Config::kM>{}(i)) * head_dim + first_col;
      CUTE_UNROLL
      for (int j = 0; j < size<1>(sums); j += 2) {
        int const col = ColCoord<Config::kNumKV>{}(j);
        if (first_col + col >= head_dim) continue;
        *reinterpret_cast<float2*>(to + col) = make_float2(sums(i, j), sums(i, j + 1));
      }
    }
  }

  // Rounds a gradient and puts it where its keys or values were, so that whole rows can be stored.
  CUTE_DEVICE static void stage(typename Mainloop::GradKV& grad, float factor, Element* tile) {
    CUTE_UNROLL
    for (int i = 0; i < size(grad); ++i) grad(i) *= factor;
    auto rounded = make_tensor<Element>(OperandLayout<Config::kM, Config::kNumKV / 2>{});
    round_to_operand(grad, rounded);
    store_operand<SmemKV>(
        rounded, tile + Config::Warps::query_warp() * (Config::kNumKV / 2) * SmemKV::kSubTile,
        operand_offset<SmemKV>(Config::Warps::key_begin(), lane_index()));
  }

  CUTE_DEVICE static void store_rows(BwdArgs const& args, BwdWorkTile const& work,
                                     TensorRef const& grad, Element const* tile) {
    using Copies = typename Config::CopiesKV;
    int const thread = thread_index();
    int const row = Copies::row(thread), col = Copies::col(thread);
    Element* const to = head_ptr<Element>(grad, work.batch, work.first_row_k, work.head_kv) +
                        (work.col_begin + row) * grad.row_stride + col;
    store_tile<Copies, SmemKV, Copies::kPasses>(tile, row, col, to, grad.row_stride,
                                                work.seqlen_k - work.col_begin,
                                                args.problem.forward.head_dim);
  }
};

}  // namespace fa2::sm80
