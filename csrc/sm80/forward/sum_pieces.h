#pragma once

// Adds up what the pieces of a tile of queries have left, in the order of its steps, and finishes
// its rows.

#include <cute/tensor.hpp>

#include "core/seq_info.h"
#include "sm80/forward/pieces.h"
#include "sm80/lists/piece_shares.h"
#include "sm80/split/sum.h"

namespace fa2::sm80 {

template <class Element>
struct SumPiecesKernel {
  using Args = RowPiecesArgs;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;
  static constexpr int kLoadsInFlight = 4;

  CUTE_DEVICE void operator()(Args const& args, char*) const {
    for_each_piece(args.listed,
                   [&](int32_t copy, WorkItem const& item) { finish_share(args, copy, item); });
  }

 private:
  CUTE_DEVICE static void finish_share(Args const& args, int32_t copy, WorkItem const& item) {
    FwdParams const& p = args.problem;
    ListedPair const pair = listed_pair(p, item.unit, copy);
    SeqInfo const q = seq_info(p.seqs_q, pair.batch);
    int32_t const first_row = item.list * args.block_m;
    int32_t const rows = min(args.block_m, q.length - first_row);
    int64_t const slot = args.listed.slot(copy, item.slot - item.part);

    for_share<kThreads>(item, rows, p.head_dim_v, [&](int32_t row, int32_t col) {
      ShareChunk out;
      RowState const state = sum(args, slot, item.parts, row, col, out);
      FinishedRow const finished =
          finish_row(state, p.sink != nullptr ? p.sink + pair.head : nullptr);
      store_scaled(head_ptr<Element>(p.out, pair.batch, q.first_row, pair.head) +
                       (first_row + row) * p.out.row_stride + col,
                   out, finished.scale * args.inv_keep_prob);
      if (col == 0) {
        p.lse[lse_index(p, pair.batch, q.first_row, pair.head) + first_row + row] = finished.lse;
      }
    });
  }

  CUTE_DEVICE static RowState sum(Args const& args, int64_t slot, int32_t parts, int32_t row,
                                  int32_t col, ShareChunk& out) {
    int64_t const head_dim_v = args.problem.head_dim_v;
    RowState total = empty_row();
    CUTE_UNROLL
    for (int i = 0; i < kShareColumns; ++i) out[i] = 0.f;
    CUTE_NO_UNROLL
    for (int32_t first = 0; first < parts; first += kLoadsInFlight) {
      RowState states[kLoadsInFlight];
      ShareChunk outs[kLoadsInFlight];
      CUTE_UNROLL
      for (int j = 0; j < kLoadsInFlight; ++j) {
        if (first + j >= parts) continue;
        int64_t const at = (slot + first + j) * args.block_m + row;
        states[j] = args.pieces.states[at];
        outs[j] = *reinterpret_cast<ShareChunk const*>(args.pieces.out + at * head_dim_v + col);
      }
      CUTE_UNROLL
      for (int j = 0; j < kLoadsInFlight; ++j) {
        if (first + j >= parts) continue;
        float const base = fmaxf(total.base, states[j].base);
        SumFactors const factors = sum_factors(total.base, states[j].base, base);
        total = {base, added(total.sum, states[j].sum, factors)};
        CUTE_UNROLL
        for (int i = 0; i < kShareColumns; ++i) out[i] = added(out[i], outs[j][i], factors);
      }
    }
    return total;
  }
};

}  // namespace fa2::sm80
