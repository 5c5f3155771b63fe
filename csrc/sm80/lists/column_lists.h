#pragma once

// The lists of a block mask by keys, as the main backward kernel takes them: a CTA has a list of
// each query head of its KV head.

#include "sm80/lists/args.h"
#include "sm80/lists/schedule.h"

namespace fa2::sm80 {

// Lists of a CTA's keys, which may be half a block of the mask: then each half has its list.
struct ColumnLists {
  MaskColumns const& columns;
  int32_t units = 0;  // a KV head of a sequence has one, or all do
  int32_t lists;
  int32_t masks = 1;
  int32_t heads = 1;
  int32_t halves;
  int32_t least = kLeastEntries;

  static constexpr int32_t kLeastEntries = 64;

  FA2_HD ColumnLists(FwdParams const& p, MaskColumns const& columns_, int32_t block_n)
      : columns(columns_),
        lists((p.seqs_k.max_seqlen + block_n - 1) / block_n),
        halves(block_n < BlockMask::kBlock ? BlockMask::kBlock / block_n : 1) {
    if (columns.masks == 0 || p.num_heads_kv == 0) return;
    masks = p.block_mask.heads / unit_heads(p);
    heads = p.group() / masks;
    units = columns.masks / masks;
  }

  FA2_HD static int32_t unit_heads(FwdParams const& p) {
    return p.block_mask.heads < p.num_heads_kv ? p.block_mask.heads : p.num_heads_kv;
  }

  // Upper bounds, of a list and of all.
  int64_t longest() const { return columns.rows; }
  int64_t most_entries() const { return columns.capacity * halves; }

  FA2_HD ListSpan mask(int32_t m) const {
    if (columns.cols == 0) return {0, 0};
    int64_t const begin = column(m, 0).begin;
    return {begin * halves, (column(m, columns.cols - 1).end - begin) * halves};
  }
  FA2_HD ListSpan list(int32_t m, int32_t i) const {
    ListedEntries const entries = column(m, i / halves);
    int64_t const size = entries.end - entries.begin;
    return {entries.begin * halves + i % halves * size, size};
  }
  FA2_HD bool in_order(int32_t, int32_t) const { return true; }  // columns.h has made them

 private:
  FA2_HD ListedEntries column(int32_t m, int32_t i) const {
    return columns.by_col[int64_t(m) * columns.cols + i];
  }
};

// The pair of a unit's copy: a sequence and a KV head.
FA2_HD ListedPair listed_kv_pair(FwdParams const& p, int32_t unit, int32_t copy) {
  int32_t const heads = ColumnLists::unit_heads(p), sharing = p.num_heads_kv / heads;
  return {unit / heads + copy / sharing, unit % heads * sharing + copy % sharing};
}

}  // namespace fa2::sm80
