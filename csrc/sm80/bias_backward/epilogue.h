#pragma once

// The end of a CTA's sums: what lies in its tile and has the same entry is added up, in the order
// of rows and then of columns, and added to what is there, or stored for others to add up.

#include "sm80/bias_backward/mainloop.h"

namespace fa2::sm80 {

template <class Config>
struct BiasBwdEpilogue {
  using Mainloop = BiasBwdMainloop<Config>;
  using Smem = typename Config::Smem;
  static constexpr int kBlock = Config::kBlock;
  static constexpr int kThreads = Config::kThreads;

  CUTE_DEVICE static void store(BiasBwdArgs const& args, Smem& smem, Mainloop& mainloop,
                                int64_t unit_index, int32_t split) {
    BiasPass const& pass = args.pass;
    __syncthreads();  // nobody reads the last chunk any longer
    stage(mainloop.sums, args.inv_keep_prob, smem);
    __syncthreads();
    if (!pass.by_diagonals && !pass.has_rows()) add_rows(smem);
    if (!pass.by_diagonals && !pass.has_cols()) add_cols(smem, pass.unit_rows());
    BiasUnit const unit = pass.unit(unit_index);
    float* const partials = args.partials + partial_index(pass, unit_index, split);
    for (int entry = threadIdx.x; entry < pass.entries(); entry += kThreads) {
      if (pass.by_diagonals) {
        partials[entry] = diagonal(smem, entry);
        continue;
      }
      float const sum = smem.sums[entry / pass.unit_cols()][entry % pass.unit_cols()];
      if (has_partials(pass)) {
        partials[entry] = sum;
      } else if (float* const to = pass.place(unit, entry)) {
        *to += sum;
      }
    }
  }

 private:
  CUTE_DEVICE static void stage(typename Mainloop::Scores& sums, float factor, Smem& smem) {
    auto const s = row_col_view(sums);
    int const row = BiasScores<Config>::warp_row_begin() + lane_row(lane_index());
    int const col = lane_col(lane_index());
    CUTE_UNROLL
    for (int i = 0; i < size<0>(s); ++i) {
      CUTE_UNROLL
      for (int j = 0; j < size<1>(s); ++j) {
        smem.sums[row + RowCoord<Config::kM>{}(i)][col + ColCoord<Config::kN>{}(j)] =
            s(i, j) * factor;
      }
    }
  }

  // All rows into the first one, and all columns of the first `rows` rows.
  CUTE_DEVICE static void add_rows(Smem& smem) {
    int const col = threadIdx.x;
    if (col < kBlock) {
      for (int row = 1; row < kBlock; ++row) smem.sums[0][col] += smem.sums[row][col];
    }
    __syncthreads();
  }
  CUTE_DEVICE static void add_cols(Smem& smem, int rows) {
    int const row = threadIdx.x;
    if (row < rows) {
      for (int col = 1; col < kBlock; ++col) smem.sums[row][0] += smem.sums[row][col];
    }
    __syncthreads();
  }

  // That which number kBlock - 1 is of the corner.
  CUTE_DEVICE static float diagonal(Smem const& smem, int number) {
    int const distance = number - (kBlock - 1);
    float sum = 0.f;
    for (int row = max(0, -distance); row < min(kBlock, kBlock - distance); ++row) {
      sum += smem.sums[row][row + distance];
    }
    return sum;
  }
};

}  // namespace fa2::sm80
