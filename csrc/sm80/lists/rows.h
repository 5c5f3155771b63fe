#pragma once

// The lists of a block mask by rows of queries, as the forward kernel takes them: a tile of queries
// has one or two.

#include "sm80/lists/args.h"
#include "sm80/lists/schedule.h"

namespace fa2::sm80 {

struct RowLists {
  FwdParams const& p;
  int32_t rows_per_list;
  int32_t units;
  int32_t lists;
  int32_t masks = 1;
  int32_t heads = 1;
  int32_t least = kLeastEntries;

  static constexpr int32_t kLeastEntries = 64;

  FA2_HD RowLists(FwdParams const& params, int32_t block_m)
      : p(params), rows_per_list(block_m / BlockMask::kBlock), units(masks_of(params)) {
    lists = (rows() + rows_per_list - 1) / rows_per_list;
  }

  FA2_HD static int32_t masks_of(FwdParams const& p) {
    return p.block_mask.heads * (p.block_mask.batch_stride == 0 ? 1 : p.batch);
  }
  FA2_HD int32_t rows() const { return mask_blocks(p.seqs_q.max_seqlen); }

  // Upper bounds, of a list and of all.
  int64_t longest() const { return int64_t(rows_per_list) * mask_blocks(p.seqs_k.max_seqlen); }
  int64_t most_entries() const { return p.block_mask.num_entries; }

  FA2_HD ListSpan mask(int32_t m) const { return rows_of(m, 0, rows()); }
  FA2_HD ListSpan list(int32_t m, int32_t i) const {
    int32_t const first = i * rows_per_list, left = rows() - first;
    return rows_of(m, first, first + (rows_per_list < left ? rows_per_list : left));
  }
  FA2_HD bool in_order(int32_t m, int32_t i) const {
    int32_t const first = i * rows_per_list;
    for (int32_t row = first; row < first + rows_per_list && row + 1 < rows(); ++row) {
      if (entries(m, row).end != entries(m, row + 1).begin) return false;
    }
    return true;
  }

 private:
  FA2_HD ListedEntries entries(int32_t m, int32_t row) const {
    int32_t const heads_of_mask = p.block_mask.heads;
    return row_entries(p, m / heads_of_mask, m % heads_of_mask, row);
  }
  FA2_HD ListSpan rows_of(int32_t m, int32_t first, int32_t end) const {
    int64_t const begin = entries(m, first).begin, size = entries(m, end - 1).end - begin;
    return {begin, size < 0 ? 0 : size};
  }
};

// The pair of a unit's copy: a sequence and a query head.
FA2_HD ListedPair listed_pair(FwdParams const& p, int32_t unit, int32_t copy) {
  int32_t const heads = p.block_mask.heads, sharing = p.num_heads / heads;
  return {unit / heads + copy / sharing, unit % heads * sharing + copy % sharing};
}

}  // namespace fa2::sm80
