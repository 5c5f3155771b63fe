#pragma once

// Writes dK and dV of a CTA's keys.

#include "sm80/bwd_mainloop.h"

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

 private:
  // Rounds a gradient and puts it where its keys or values were, so that whole rows can be stored.
  CUTE_DEVICE static void stage(typename Mainloop::GradKV& grad, float factor, Element* tile) {
    CUTE_UNROLL
    for (int i = 0; i < size(grad); ++i) grad(i) *= factor;
    auto rounded = make_tensor<Element>(OperandLayout<Config::kM, Config::kNumKV / 2>{});
    round_to_operand(grad, rounded);
    store_operand<SmemKV>(rounded,
                          tile + Mainloop::query_warp() * (Config::kNumKV / 2) * SmemKV::kSubTile,
                          operand_offset<SmemKV>(Mainloop::warp_key_begin(), lane_index()));
  }

  CUTE_DEVICE static void store_rows(BwdArgs const& args, BwdWorkTile const& work,
                                     TensorRef const& grad, Element const* tile) {
    using Copies = typename Config::CopiesKV;
    int const thread = thread_index();
    int const col = Copies::col(thread);
    int row = Copies::row(thread);
    Element* to = head_ptr<Element>(grad, work.batch, work.first_row_k, work.head_kv) +
                  (work.col_begin + row) * grad.row_stride + col;
    CUTE_UNROLL
    for (int pass = 0; pass < Copies::kPasses; ++pass) {
      CUTE_UNROLL
      for (int c = 0; c < Copies::kChunks; ++c) {
        int const chunk = c * Copies::kThreadsPerRow * 8;
        if (work.col_begin + row < work.seqlen_k && col + chunk < args.problem.forward.head_dim) {
          *reinterpret_cast<uint128_t*>(to + chunk) =
              *reinterpret_cast<uint128_t const*>(tile + SmemKV::offset(row, col + chunk));
        }
      }
      row += Copies::kRowsPerPass;
      to += Copies::kRowsPerPass * grad.row_stride;
    }
  }
};

}  // namespace fa2::sm80
