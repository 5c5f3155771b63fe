#pragma once

// The lists of a block mask by keys, which a backward pass derives in its workspace from those by
// queries.

#include <cstdint>

#include "core/block_mask.h"

namespace fa2::sm80 {

// What stands for a block of pairs that is not listed; otherwise there is an index into
// BlockMask::bits, 0 where all pairs are visible.
inline constexpr int32_t kUnlisted = -1;

// Blocks with index 0 are simple, and what warps spend their time on: all pairs are visible and
// nothing else needs to be looked at. In the lists that kernels make for themselves a block has
// this number where something does: keys end, scores are modified, or a list has to be read on.
inline constexpr int32_t kAllVisible = -2;

// A block of queries that sees the keys of a CTA, which are up to two blocks of the mask.
struct alignas(16) ListedQueries {
  int32_t block;
  int32_t later;    // blocks of keys, behind those of the CTA, that the queries list too: the turn
                    // of the CTA in a fixed order of summation
  int32_t tile[2];  // of each block of keys
};

// What a block of the call's queries lists, which may be a part of those of the mask.
FA2_HD ListedEntries row_entries(FwdParams const& p, int32_t batch, int32_t head, int32_t row) {
  return listed_entries(p, batch, head, p.positions.q_start / BlockMask::kBlock + row);
}

// Rows of masks that a CTA of the first of these kernels takes.
inline constexpr int32_t kMaskRowsPerCta = 8;

// A mask is one of those for (batch or 1, heads).
struct MaskColumns {
  int32_t masks = 0;
  int32_t rows = 0;        // blocks of queries
  int32_t key_blocks = 0;  // of the mask; `pack` of them, 1 or 2, make one column
  int32_t pack = 1;
  int32_t cols = 0;
  int32_t groups = 0;  // of kGroup blocks of keys
  int64_t capacity = 0;

  ListedEntries* by_row = nullptr;   // (masks, rows) entries that count: ascending, in the mask
  int32_t* counts = nullptr;         // (masks, cols) blocks of queries that a column lists
  int64_t* sums = nullptr;           // (masks, groups) of counts
  ListedEntries* by_col = nullptr;   // (masks, cols) places in `entries`
  ListedQueries* entries = nullptr;  // (capacity,) ascending

  static constexpr int32_t kGroup = 64;

  // Of a problem, all but the memory, for CTAs of so many keys.
  static MaskColumns of(FwdParams const& p, int32_t block_n) {
    BlockMask const& mask = p.block_mask;
    if (mask.row_offsets == nullptr) return {};
    MaskColumns columns;
    columns.masks = p.batch == 0 ? 0 : mask.heads * (mask.batch_stride == 0 ? 1 : p.batch);
    columns.rows = mask_blocks(p.seqs_q.max_seqlen);
    columns.key_blocks = mask_blocks(p.seqs_k.max_seqlen);
    columns.pack = block_n > BlockMask::kBlock ? block_n / BlockMask::kBlock : 1;
    columns.cols = (columns.key_blocks + columns.pack - 1) / columns.pack;
    columns.groups = (columns.key_blocks + kGroup - 1) / kGroup;
    columns.capacity = mask.num_entries;
    return columns;
  }

  // What a column lists for a query head.
  FA2_HD ListedEntries column(FwdParams const& p, int32_t batch, int32_t head, int32_t col) const {
    BlockMask const& mask = p.block_mask;
    int64_t const sequence = mask.batch_stride == 0 ? 0 : batch;
    return by_col[(sequence * mask.heads + mask_head(p, head)) * cols + col];
  }
};

}  // namespace fa2::sm80
