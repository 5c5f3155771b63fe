#pragma once

// The only reader of a BlockMask. Lists on a device cannot be checked before the launch, so they
// are bounded here: whatever they hold, nothing outside their tensors or those of the problem is
// addressed, and a walk ends.

#include "core/macros.h"
#include "core/params.h"

namespace fa2 {

FA2_HD int32_t mask_blocks(int32_t seqlen) {
  return (seqlen + BlockMask::kBlock - 1) / BlockMask::kBlock;
}

// What a host can see to be wrong with a mask without looking at its lists; null if nothing is.
inline char const* wrong_block_mask(FwdParams const& p) {
  BlockMask const& mask = p.block_mask;
  if (mask.row_offsets == nullptr) return nullptr;
  bool const dense = p.seqs_q.cu_seqlens == nullptr && p.seqs_k.cu_seqlens == nullptr &&
                     p.pages.block_table == nullptr;
  if (!dense) return "a block mask is for dense queries and keys";
  if (mask.heads < 1 || p.num_heads % mask.heads != 0) {
    return "the heads of a block mask do not divide those of the queries";
  }
  if (mask.num_entries < 0 || mask.num_tiles < 0 || mask.batch_stride < 0) {
    return "a size of a block mask is negative";
  }
  bool const listed = mask.cols != nullptr && mask.tiles != nullptr;
  if (mask.num_entries > 0 && !listed) return "the block mask has entries but no memory";
  if (mask.num_tiles > 0 && mask.bits == nullptr) return "the block mask has tiles but no memory";
  return nullptr;
}

// Entries [begin, end) of a mask: those of one block of queries. Aligned, so that devices load it
// at once.
struct alignas(16) ListedEntries {
  int64_t begin;
  int64_t end;
};

// The head of the mask that is for a query head.
FA2_HD int32_t mask_head(FwdParams const& p, int32_t head) {
  return head / (p.num_heads / p.block_mask.heads);
}

// Of the queries from row * kBlock on, in a head of the mask.
FA2_HD ListedEntries listed_entries(FwdParams const& p, int32_t batch, int32_t head, int32_t row) {
  BlockMask const& mask = p.block_mask;
  int32_t const rows =
      mask_blocks(p.positions.seqlen_q != 0 ? p.positions.seqlen_q : p.seqs_q.max_seqlen);
  int64_t const* const offsets =
      mask.row_offsets + batch * mask.batch_stride + int64_t(head) * (rows + 1) + row;
  auto const bounded = [&](int64_t entry, int64_t least) {
    return entry < least ? least : (entry < mask.num_entries ? entry : mask.num_entries);
  };
  int64_t const begin = bounded(offsets[0], 0);
  return {begin, bounded(offsets[1], begin)};
}

// Index into the bits; 0: every pair is visible.
FA2_HD int32_t listed_tile(BlockMask const& mask, int64_t entry) {
  int32_t const tile = mask.tiles[entry];
  return tile <= 0 || tile >= mask.num_tiles ? 0 : tile;
}

// A word for each query of the block, a bit for each key; null: every pair is visible.
FA2_HD uint64_t const* tile_words(BlockMask const& mask, int32_t tile) {
  return tile == 0 ? nullptr : mask.bits + int64_t(tile) * BlockMask::kBlock;
}
FA2_HD uint64_t const* listed_words(BlockMask const& mask, int64_t entry) {
  return tile_words(mask, listed_tile(mask, entry));
}

enum class Order { kUp, kDown };

// A walk over the key blocks that entries list, in ascending or descending order. Blocks outside
// [first_block, last_block) and entries that are out of order are passed over.
template <Order kOrder>
struct ListWalk {
  ListedEntries left;
  int32_t first_block;
  int32_t last_block;

  // The entry that comes next. Needs one to be left.
  FA2_HD int64_t entry() const { return kOrder == Order::kUp ? left.begin : left.end - 1; }

  // Its key block, or -1 if none is left.
  FA2_HD int32_t block(BlockMask const& mask) {
    for (; left.begin < left.end; drop()) {
      int32_t const col = mask.cols[entry()];
      if (col >= first_block && col < last_block) return col;
    }
    return -1;
  }

  // Passes over the entry of `block`, and over all up to it.
  FA2_HD void take(int32_t block) {
    drop();
    if constexpr (kOrder == Order::kUp) {
      first_block = block + 1;
    } else {
      last_block = block;
    }
  }

 private:
  FA2_HD void drop() {
    if constexpr (kOrder == Order::kUp) {
      ++left.begin;
    } else {
      --left.end;
    }
  }
};

}  // namespace fa2
