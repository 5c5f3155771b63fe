#pragma once

// Finishes the softmax and writes the output and the log-sum-exp, or merges them into those of
// other calls.

#include "sm80/forward/merge.h"

namespace fa2::sm80 {

template <class Config>
struct FwdEpilogue {
  using Element = typename Config::Element;
  using Mainloop = FwdMainloop<Config>;
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  using SmemO = typename Config::SmemO;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;

  CUTE_DEVICE static void store(FwdArgs const& args, Smem& smem, Mainloop& mainloop) {
    if constexpr (!Config::kListed) {
      if (args.problem.partial_lse != nullptr) {
        sum_rows(mainloop);
        return FwdMerge<Config>::store(args, smem, mainloop);
      }
    }
    finish_rows(args, smem, mainloop);
    if constexpr (kTile.whole_scores) __syncthreads();  // others may still read Q
    stage_output(smem, mainloop);
    if constexpr (kTile.column_warps > 1) {
      __syncthreads();
    } else {
      __syncwarp();  // a warp stages and stores its own rows
    }
    store_output(args, smem);
  }

  // Of a piece of a tile, for others to add up.
  CUTE_DEVICE static void store_piece(FwdArgs const& args, Smem& smem, Mainloop& mainloop) {
    sum_rows(mainloop);
    int const lane = lane_index();
    int const first_row = Warps::row_begin() + lane_row(lane);
    int const first_col = Warps::column_warp() * Config::kNumO * 8 + lane_col(lane);
    int const head_dim_v = args.problem.head_dim_v;
    int64_t const slot_row = smem.listed[0].slot * kTile.block_m + first_row;
    auto const& softmax = mainloop.softmax;
    auto const o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) {
      int64_t const row = slot_row + RowCoord<kM>{}(i);
      if (lane % 4 == 0 && Warps::column_warp() == 0) {
        args.pieces.states[row] = {softmax.base(i), softmax.sum(i)};
      }
      float* const to = args.pieces.out + row * head_dim_v + first_col;
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); j += 2) {
        int const col = ColCoord<Config::kNumO>{}(j);
        if (first_col + col >= head_dim_v) continue;
        *reinterpret_cast<float2*>(to + col) = make_float2(o(i, j), o(i, j + 1));
      }
    }
  }

 private:
  // Sums over the lanes and warps of a row.
  CUTE_DEVICE static void sum_rows(Mainloop& mainloop) {
    auto& softmax = mainloop.softmax;
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) softmax.sum(i) = quad_sum(softmax.sum(i));
    if constexpr (Config::kPairs) {
      __syncthreads();  // the last rescale may still read what the exchange overwrites
      mainloop.exchange_rows(softmax.sum, [](float own, float other) { return own + other; });
    }
  }

  // Normalises the output; stores lse.
  CUTE_DEVICE static void finish_rows(FwdArgs const& args, Smem& smem, Mainloop& mainloop) {
    FwdParams const& p = args.problem;
    WorkTile const& work = smem.work;
    auto& softmax = mainloop.softmax;
    sum_rows(mainloop);

    int const lane = lane_index();
    int const first_row = work.row_begin + Warps::row_begin() + lane_row(lane);
    float* const lse = p.lse + lse_index(p, work.batch, work.first_row_q, work.head);
    auto o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) {
      RowState row{softmax.base(i), softmax.sum(i)};
      if (p.sink != nullptr) row = merge_sink(row, p.sink[work.head], DeviceExp2{});
      // The sink may have raised the base, which the output is relative to.
      float const scale = row_scale(row) * exp2_approx(softmax.base(i) - row.base) *
                          (Config::kDropout ? args.inv_keep_prob : 1.f);
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); ++j) o(i, j) *= scale;
      int const row_index = first_row + RowCoord<kM>{}(i);
      if (lane % 4 == 0 && Warps::column_warp() == 0 && row_index < work.seqlen_q) {
        lse[row_index] = row_lse(row);
      }
    }
  }

  // Rounds the output and puts it where Q was, so that whole rows can be stored.
  CUTE_DEVICE static void stage_output(Smem& smem, Mainloop& mainloop) {
    auto rounded = make_tensor<Element>(OperandLayout<kM, Config::kNumO / 2>{});
    round_to_operand(mainloop.output, rounded);
    store_operand<SmemO>(rounded,
                         smem.out + Warps::column_warp() * (Config::kNumO / 2) * SmemO::kSubTile,
                         operand_offset<SmemO>(Warps::row_begin(), lane_index()));
  }

  // Each warp stores its share of the rows that it and its partner staged.
  CUTE_DEVICE static void store_output(FwdArgs const& args, Smem const& smem) {
    using Copies = CopyShape<32, kTile.head_dim_v, 32>;  // 32 lanes
    constexpr int kRows = 16 * kM / kTile.column_warps;
    FwdParams const& p = args.problem;
    WorkTile const& work = smem.work;
    int const lane = lane_index();
    int const col = Copies::col(lane);
    int const row = Warps::row_begin() + Warps::column_warp() * kRows + Copies::row(lane);
    Element* const to = head_ptr<Element>(p.out, work.batch, work.first_row_q, work.head) +
                        (work.row_begin + row) * p.out.row_stride + col;
    store_tile<Copies, SmemO, kRows / Copies::kRowsPerPass>(
        smem.out, row, col, to, p.out.row_stride, work.seqlen_q - work.row_begin, p.head_dim_v);
  }
};

}  // namespace fa2::sm80
