#pragma once

// Merges what a CTA has found for its rows into the results of other calls: FwdParams::partial_lse,
// and `out` in float32. In doubles as far as rows are concerned, since lse may be large, and what
// is added up next is relative to it.

#include "sm80/forward/mainloop.h"

namespace fa2::sm80 {

// The natural logarithm of a row's normaliser.
CUTE_DEVICE double exact_lse(RowState row) {
  double const power = row.base;
  double const natural = fabs(power) > 0x1p127
                             ? (power - copysign(0x1p126, power)) * (2 * kLn2Double)  // folded
                             : power * kLn2Double;
  return natural + log(double(row.sum));
}

// Merges the row's normaliser into the one that is there.
CUTE_DEVICE MergeFactors merge_row(RowState row, double& lse) {
  if (row.sum == 0.f) return {0.f, 1.f};
  double const own = exact_lse(row), there = lse;
  double const larger = own > there ? own : there, smaller = own > there ? there : own;
  double const total = larger + log1p(exp(smaller - larger));
  lse = total;
  return {float(exp(own - total)) / row.sum, float(exp(there - total))};
}

template <class Config>
struct FwdMerge {
  using Mainloop = FwdMainloop<Config>;
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;

  // Needs the sums of rows over all of their columns.
  CUTE_DEVICE static void store(FwdArgs const& args, Smem& smem, Mainloop const& mainloop) {
    __syncthreads();  // Q is read, where states go
    stage_states(smem, mainloop);
    __syncthreads();
    merge_rows(args, smem);
    __syncthreads();
    add_outputs(args, smem, mainloop);
  }

 private:
  // Of the lane's first row in the tile.
  CUTE_DEVICE static int first_row() { return Warps::row_begin() + lane_row(lane_index()); }

  CUTE_DEVICE static void stage_states(Smem& smem, Mainloop const& mainloop) {
    auto const& softmax = mainloop.softmax;
    if (lane_index() % 4 != 0 || Warps::column_warp() != 0) return;
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) {
      smem.states[first_row() + RowCoord<kM>{}(i)] = {softmax.base(i), softmax.sum(i)};
    }
  }

  CUTE_DEVICE static void merge_rows(FwdArgs const& args, Smem& smem) {
    static_assert(kTile.threads() >= kTile.block_m, "a thread has one row");
    FwdParams const& p = args.problem;
    WorkTile const& work = smem.work;
    int const row = threadIdx.x;
    if (row >= min(kTile.block_m, work.seqlen_q - work.row_begin)) return;
    double* const lse = p.partial_lse + lse_index(p, work.batch, work.first_row_q, work.head);
    smem.factors[row] = merge_row(smem.states[row], lse[work.row_begin + row]);
  }

  CUTE_DEVICE static void add_outputs(FwdArgs const& args, Smem const& smem,
                                      Mainloop const& mainloop) {
    FwdParams const& p = args.problem;
    WorkTile const& work = smem.work;
    int const first_col = Warps::column_warp() * Config::kNumO * 8 + lane_col(lane_index());
    float* const out = head_ptr<float>(p.out, work.batch, work.first_row_q, work.head) +
                       work.row_begin * p.out.row_stride + first_col;
    auto const o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < size<0>(o); ++i) {
      int const row = first_row() + RowCoord<kM>{}(i);
      if (row >= work.seqlen_q - work.row_begin) continue;
      MergeFactors const factors = smem.factors[row];
      if (factors.own == 0.f) continue;  // what is there stays
      float const own = factors.own * (Config::kDropout ? args.inv_keep_prob : 1.f);
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); j += 2) {
        int const col = ColCoord<Config::kNumO>{}(j);
        if (first_col + col >= p.head_dim_v) continue;
        auto& there = reinterpret_cast<float2&>(out[row * p.out.row_stride + col]);
        there = make_float2(fmaf(there.x, factors.there, o(i, j) * own),
                            fmaf(there.y, factors.there, o(i, j + 1) * own));
      }
    }
  }
};

}  // namespace fa2::sm80
