#pragma once

// What the pieces of a tile of queries leave under a block mask, and what adds them up.

#include "core/online_softmax.h"
#include "core/params.h"
#include "sm80/lists/rows.h"

namespace fa2::sm80 {

// A slot holds the results of a piece: outputs relative to the base of their row's state.
struct RowPieces {
  float* out = nullptr;        // (slots, block_m, head_dim_v)
  RowState* states = nullptr;  // (slots, block_m)
};

// Of a slot.
constexpr int64_t row_piece_bytes(int32_t block_m, int32_t head_dim_v) {
  return block_m * (head_dim_v * int64_t(sizeof(float)) + int64_t(sizeof(RowState)));
}

// Of the kernels before and after the forward kernel.
struct RowPiecesArgs {
  FwdParams problem;
  ListedSchedule listed;
  RowPieces pieces;
  int32_t block_m;
  float inv_keep_prob;

  FA2_HD WorkOrder<RowLists> work_order() const {
    return {RowLists(problem, block_m), listed.capacity, listed.order};
  }
  FA2_HD WorkItem* items() const { return listed.items; }
};

}  // namespace fa2::sm80
