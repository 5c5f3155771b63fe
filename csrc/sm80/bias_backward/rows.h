#pragma once

// The small kernels of a pass: what the main one needs to know of each row, and the end of sums
// that it leaves.

#include "sm80/backward/row_stats.h"
#include "sm80/bias_backward/args.h"

namespace fa2::sm80 {

// The RowStats of kRows queries of a (batch, head), of those that count.
template <class Element>
struct BiasRowStatsKernel {
  using Args = BiasBwdArgs;
  using Stats = RowStats<Element>;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(BiasBwdArgs const& args, char*) const {
    FwdParams const& p = args.problem.forward;
    int32_t const blocks = args.pass.row_blocks();
    int32_t const pair = blockIdx.x / blocks, first = blockIdx.x % blocks * BiasPass::kBlock;
    int32_t const batch = pair / p.num_heads, head = pair % p.num_heads;
    SeqInfo const q = seq_info(p.seqs_q, batch);
    int64_t const at = lse_index(p, batch, q.first_row, head);
    int const lane = threadIdx.x % Stats::kLanes;
    for (int i = threadIdx.x / Stats::kLanes; i < BiasPass::kBlock; i += kThreads / Stats::kLanes) {
      int32_t const row = first + i;
      bool const exists = row < q.length;
      Stats const stats = Stats::of({p, args.problem.grad_out, args.problem.grad_lse,
                                     args.keep_prob, batch, head, q.first_row},
                                    row, exists, lane);
      if (lane != 0 || !exists) continue;
      args.row_lse[at + row] = stats.lse;
      args.row_minus_delta[at + row] = stats.minus_delta;
    }
  }
};

// Adds up what the splits of a unit have left, and adds that to what is there. A unit to a CTA; by
// diagonals it is for those that begin in its band's tiles at the left edge, of which all but the
// first reach into the band behind. Bands begin one before the first that has tiles.
struct BiasSumKernel {
  using Args = BiasBwdArgs;
  static constexpr int kThreads = 128;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;
  static constexpr int kBlock = BiasPass::kBlock;

  CUTE_DEVICE void operator()(BiasBwdArgs const& args, char*) const {
    if (args.pass.by_diagonals) {
      sum_diagonals(args);
    } else {
      sum_entries(args);
    }
  }

 private:
  CUTE_DEVICE static float sum_splits(BiasBwdArgs const& args, int64_t unit, int32_t entry) {
    float sum = 0.f;
    for (int32_t split = 0; split < args.pass.splits; ++split) {
      sum += args.partials[partial_index(args.pass, unit, split) + entry];
    }
    return sum;
  }

  CUTE_DEVICE static void sum_entries(BiasBwdArgs const& args) {
    BiasPass const& pass = args.pass;
    BiasUnit const unit = pass.unit(blockIdx.x);
    for (int32_t entry = threadIdx.x; entry < pass.entries(); entry += kThreads) {
      float* const to = pass.place(unit, entry);
      if (to != nullptr) *to += sum_splits(args, blockIdx.x, entry);
    }
  }

  CUTE_DEVICE static void sum_diagonals(BiasBwdArgs const& args) {
    BiasPass const& pass = args.pass;
    int32_t const per_head = pass.bands() + 1, offset = threadIdx.x;
    if (offset >= kBlock) return;
    BiasUnit unit = pass.unit(int64_t(blockIdx.x / per_head) * pass.bands());
    unit.col = blockIdx.x % per_head - pass.row_blocks();
    float* const to = pass.place_of_diagonal(unit, unit.col * kBlock + offset);
    if (to == nullptr) return;
    float sum = 0.f;
    if (unit.col > -pass.row_blocks()) {
      sum = sum_splits(args, pass.index_of(unit), kBlock - 1 + offset);
    }
    ++unit.col;
    if (offset > 0 && unit.col < pass.col_blocks()) {
      sum += sum_splits(args, pass.index_of(unit), offset - 1);
    }
    *to += sum;
  }
};

}  // namespace fa2::sm80
