#pragma once

// Which kernel computes a sequence, and into how many splits its keys are cut. The bits of a result
// follow from these. So they depend on the sequence's own lengths, on what a call says of all
// sequences (heads, options, layout) and on the device, and on nothing else: not on the batch, on
// upper bounds of lengths, on the capacity of a cache or on the grid. Lengths may lie on the
// device, so the kernels ask here too: each of a call's launches takes the sequences that are its
// own.

#include <cstdint>

#include "core/params.h"
#include "sm80/tiles.h"

namespace fa2::sm80 {

struct SequenceRule {
  TileKind unsplit = TileKind::kRegular;  // of the forward kernel, which splits nothing
  bool unsplit_only = false;  // dropout, block masks, biases, and whatever a part may lack of keys
  bool split_only = false;    // pages, codes, or several splits were asked for
  bool packed_q = false;
  bool packed_k = false;
  int32_t group = 1;
  int32_t num_splits = 0;        // as asked for; 0: the rule decides
  int32_t slots = 1;             // CTAs with many rows that the device holds, for each KV head
  int32_t most_many_splits = 1;  // what their memory allows, see most_many_splits()
  int32_t unsplit_block_m = 1;
  int32_t many_block_m = 1;
  int32_t many_block_n = 1;
  int32_t few_block_n = 1;
  Window window;
};

FA2_HD int32_t ceil_div(int64_t a, int64_t b) { return int32_t((a + b - 1) / b); }

// Splits of `tiles_each` key tiles, counted from the last keys on; the last split may be shorter.
struct Splits {
  int32_t tiles_each;
  int32_t count;
};

// With few rows, keys are what takes time: splits are as short as their results, which go through
// memory, allow, so that one sequence can occupy the whole device. What one CTA goes through is
// another matter: it may take many splits.
inline constexpr int32_t kFewSplitKeys = 128;  // for every kRowsPerSplitKeys rows
inline constexpr int32_t kRowsPerSplitKeys = 4;

// With many rows a split is a CTA of its own, and its results are large. Of packed queries, whose
// number nothing else bounds, those of up to so many rows are split, and single ones.
inline constexpr int32_t kManySplitKeys = 1024;
inline constexpr int32_t kMostPackedRows = 64;

FA2_HD int32_t most_packed_rows(int32_t group) {
  return group > kMostPackedRows ? group : kMostPackedRows;
}

FA2_HD int32_t few_split_tiles(SequenceRule const& rule, int32_t rows) {
  int32_t const keys = kFewSplitKeys * ceil_div(rows, kRowsPerSplitKeys);
  return ceil_div(keys, rule.few_block_n);
}

FA2_HD int32_t many_split_tiles(SequenceRule const& rule) {
  return ceil_div(kManySplitKeys, rule.many_block_n);
}

// How many splits a sequence with many rows may have: as many as fill the device.
FA2_HD int32_t most_many_splits(SequenceRule const& rule, int32_t rows) {
  if (rule.packed_q && rows > most_packed_rows(rule.group)) return 1;
  int32_t const fitting = rule.slots / ceil_div(rows, rule.many_block_m);
  return fitting < 1 ? 1 : (fitting < rule.most_many_splits ? fitting : rule.most_many_splits);
}

// Of a block of rows of a sequence with so many `rows`, which sees `tiles` key tiles.
FA2_HD Splits splits_of(SequenceRule const& rule, TileKind kind, int32_t rows, int32_t tiles) {
  if (tiles <= 0) return {1, 0};
  int32_t least = 1, most = rule.num_splits;
  if (most == 0) {
    bool const few = kind == TileKind::kFewRows;
    least = few ? few_split_tiles(rule, rows) : many_split_tiles(rule);
    most = few ? kMaxSplits : most_many_splits(rule, rows);
  }
  int32_t const share = ceil_div(tiles, most);
  int32_t const each = share > least ? share : least;
  return {each, ceil_div(tiles, each)};
}

// Keys that a sequence's queries can see, all together.
FA2_HD int32_t visible_keys(Window const& window, int32_t seqlen_q, int32_t seqlen_k) {
  int64_t const most = int64_t(window.left) + window.right + seqlen_q;
  return most < seqlen_k ? int32_t(most) : seqlen_k;
}

inline constexpr int64_t kMaxPackedRows = (int64_t(1) << 31) - 257;

// Blocks of queries of one head waste rows when there are few, and fewer still are too few CTAs for
// long keys. The split kernels take some more instructions, so either must pay.
FA2_HD TileKind kernel_of(SequenceRule const& rule, int32_t seqlen_q, int32_t seqlen_k) {
  if (rule.unsplit_only) return rule.unsplit;
  int64_t const rows = int64_t(seqlen_q) * rule.group;
  if (rows <= kFewRows) return TileKind::kFewRows;
  if (rule.split_only) return TileKind::kManyRows;
  if (rule.packed_k || rows > kMaxPackedRows) return rule.unsplit;

  int64_t const packed = int64_t(ceil_div(rows, rule.many_block_m)) * rule.many_block_m;
  int64_t const unpacked =
      int64_t(ceil_div(seqlen_q, rule.unsplit_block_m)) * rule.unsplit_block_m * rule.group;
  if (rule.group > 1 && 5 * packed <= 4 * unpacked) return TileKind::kManyRows;
  if (seqlen_q > rule.unsplit_block_m) return rule.unsplit;
  int32_t const tiles = ceil_div(visible_keys(rule.window, seqlen_q, seqlen_k), rule.many_block_n);
  bool const splits = splits_of(rule, TileKind::kManyRows, int32_t(rows), tiles).count > 1;
  return splits ? TileKind::kManyRows : rule.unsplit;
}

// How CTAs share the splits of a block of rows. Results do not depend on it: a split is computed on
// its own, and results are added in the order of the splits. The first CTA adds up what it has; of
// the others each split is stored.
struct Sharing {
  int32_t splits;
  int32_t ctas;

  // Splits [begin(i), begin(i + 1)) are those of CTA i.
  FA2_HD int32_t begin(int32_t cta) const { return ceil_div(int64_t(splits) * cta, ctas); }
  // Results for the combine kernel; up to one: the first CTA has them all and finishes.
  FA2_HD int32_t stored() const { return splits - begin(1) + 1; }
  FA2_HD int32_t slot(int32_t split) const { return split - begin(1) + 1; }
};

}  // namespace fa2::sm80
