#pragma once

// The lists of a block mask by keys, as the plans of both families' backward passes have them:
// where they lie in the workspace, and how many CTAs derive them.

#include "sm80/lists/args.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {

template <class Plan>
void take_mask_columns(MaskColumns const& columns, Plan& plan, WorkspaceLayout& memory) {
  int64_t const masks = columns.masks;
  auto& w = plan.workspace;
  w.mask_by_row = memory.take(masks * columns.rows * int64_t(sizeof(ListedEntries)));
  w.mask_counts = memory.take(masks * columns.cols * int64_t(sizeof(int32_t)));
  w.mask_sums = memory.take(masks * columns.groups * int64_t(sizeof(int64_t)));
  w.mask_by_col = memory.take(masks * columns.cols * int64_t(sizeof(ListedEntries)));
  w.mask_entries = memory.take(columns.capacity * int64_t(sizeof(ListedQueries)));
  plan.mask_rows_grid = checked_grid(
      "rows of block masks", (masks * columns.rows + kMaskRowsPerCta - 1) / kMaskRowsPerCta);
  plan.mask_columns_grid = checked_grid("key blocks of block masks", masks * columns.groups);
}

template <class Plan>
MaskColumns mask_columns_of(BwdParams const& params, Plan const& plan) {
  auto at = [&](int64_t offset) { return static_cast<char*>(params.workspace.data) + offset; };
  auto const& w = plan.workspace;
  MaskColumns columns = MaskColumns::of(params.forward, plan.tile.block_n);
  columns.by_row = reinterpret_cast<ListedEntries*>(at(w.mask_by_row));
  columns.counts = reinterpret_cast<int32_t*>(at(w.mask_counts));
  columns.sums = reinterpret_cast<int64_t*>(at(w.mask_sums));
  columns.by_col = reinterpret_cast<ListedEntries*>(at(w.mask_by_col));
  columns.entries = reinterpret_cast<ListedQueries*>(at(w.mask_entries));
  return columns;
}

}  // namespace fa2::sm80
