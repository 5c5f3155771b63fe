#pragma once

// What a tile of queries sees by a block mask: the key blocks that its queries list, walked in
// groups that fit a block of keys of the kernels, and for each lane the keys that it sees there.

#include "core/block_mask.h"
#include "core/mask.h"
#include "cpu/level/query_lanes.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Key blocks of a mask that are met together, at most, and those of one group as bits.
inline constexpr int kGroupBlocks = kKeyBlock / BlockMask::kBlock;
static_assert(kKeyBlock % BlockMask::kBlock == 0);

// A run of neighbouring key blocks: bits [begin, end) of a group.
struct BlockRun {
  int begin;
  int end;

  uint32_t bits() const { return (1u << end) - (1u << begin); }
};

// Calls step(run) for the runs of bits that are set, in order.
template <Order kOrder, class Step>
void for_block_runs(uint32_t blocks, Step const& step) {
  if constexpr (kOrder == Order::kUp) {
    while (blocks != 0) {
      int const begin = __builtin_ctz(blocks);
      BlockRun const run = {begin, begin + __builtin_ctz(~(blocks >> begin))};
      step(run);
      blocks &= ~run.bits();
    }
  } else {
    while (blocks != 0) {
      int const end = 32 - __builtin_clz(blocks);
      uint32_t const gaps = ~blocks & ((1u << end) - 1);
      BlockRun const run = {gaps == 0 ? 0 : 32 - __builtin_clz(gaps), end};
      step(run);
      blocks &= ~run.bits();
    }
  }
}

// Which keys of a run of blocks the lanes of a tile see.
template <class E>
struct RunMask {
  using Word = Uint<typename E::Real>;
  static constexpr int kCapacity = LanesOf<E>::kCapacity;
  static constexpr int kBits = 8 * int(sizeof(Word));
  static constexpr int kWords = BlockMask::kBlock / kBits;

  int32_t first_key;
  bool full[kGroupBlocks];  // every lane sees the whole block
  alignas(kVectorBytes) Word words[kGroupBlocks][kWords][kCapacity];

  int block_of(int32_t key) const { return (key - first_key) / BlockMask::kBlock; }
};

// A tile's walk over its lists.
template <class E, Order kOrder>
class TileLists {
  using Word = typename RunMask<E>::Word;

 public:
  static constexpr int32_t kNoGroup = -1;

  // What the lanes of `tile` list of `keys`; lane i is a query of heads[i].
  void start(FwdParams const& params, int32_t batch, LanesOf<E> const& tile, int const* heads,
             ColRange keys) {
    int32_t const first_block = keys.begin / BlockMask::kBlock;
    int32_t const last_block = mask_blocks(keys.end);
    num_sources_ = 0;
    int32_t last_row = -1, last_head = -1;
    for (int lane = 0; lane < tile.num_queries; ++lane) {
      int32_t const row = int32_t(tile.row[lane]) / BlockMask::kBlock;
      int32_t const head = mask_head(params, heads[lane]);
      if (row != last_row || head != last_head) {
        ListedEntries const entries = listed_entries(params, batch, head, row);
        sources_[num_sources_++] = {{entries, first_block, last_block}, lane, 0, {}};
        last_row = row;
        last_head = head;
      }
      sources_[num_sources_ - 1].lane_end = lane + 1;
    }
    // A tile that is not full repeats its last query.
    if (num_sources_ > 0) sources_[num_sources_ - 1].lane_end = tile.vectors * kLanes<Word>;
    next_group(params.block_mask);
  }

  // The group that comes next, kNoGroup at the end, and which of its blocks some lane lists.
  int32_t group() const { return group_; }
  static int32_t sooner(int32_t a, int32_t b) {
    if (a == kNoGroup || b == kNoGroup) return a == kNoGroup ? b : a;
    return (kOrder == Order::kUp) == (a < b) ? a : b;
  }
  uint32_t blocks() const { return blocks_; }

  void next_group(BlockMask const& mask) {
    group_ = kNoGroup;
    blocks_ = 0;
    for (int i = 0; i < num_sources_; ++i) {
      int32_t const block = sources_[i].walk.block(mask);
      if (block >= 0) group_ = sooner(group_, block / kGroupBlocks);
    }
    if (group_ == kNoGroup) return;
    for (int i = 0; i < num_sources_; ++i) take_group(mask, sources_[i]);
  }

  // What the lanes see of a run of blocks of the group. A block that all see as a whole has words
  // too, for scores that are modified anyway.
  void read(BlockMask const& mask, LanesOf<E> const& tile, BlockRun run, RunMask<E>& seen) const {
    seen.first_key = (group_ * kGroupBlocks + run.begin) * BlockMask::kBlock;
    for (int block = run.begin; block < run.end; ++block) {
      bool full = true;
      for (int i = 0; i < num_sources_; ++i) {
        full &= read(mask, tile, sources_[i], block, seen.words[block - run.begin]);
      }
      seen.full[block - run.begin] = full;
    }
  }

 private:
  // A row of the mask, and the lanes that it is for.
  struct Source {
    ListWalk<kOrder> walk;
    int lane_begin;
    int lane_end;
    int64_t entries[kGroupBlocks];  // of the blocks of the group, or -1
  };

  void take_group(BlockMask const& mask, Source& source) {
    for (int64_t& entry : source.entries) entry = -1;
    for (int32_t block; (block = source.walk.block(mask)) >= 0 && block / kGroupBlocks == group_;) {
      source.entries[block % kGroupBlocks] = source.walk.entry();
      blocks_ |= 1u << block % kGroupBlocks;
      source.walk.take(block);
    }
  }

  // True if all lanes of the source see the whole block.
  bool read(BlockMask const& mask, LanesOf<E> const& tile, Source const& source, int block,
            Word (&words)[RunMask<E>::kWords][RunMask<E>::kCapacity]) const {
    int64_t const entry = source.entries[block];
    uint64_t const* const bits = entry < 0 ? nullptr : listed_words(mask, entry);
    for (int lane = source.lane_begin; lane < source.lane_end; ++lane) {
      uint64_t const keys = bits != nullptr ? bits[uint64_t(tile.row[lane]) % BlockMask::kBlock]
                                            : (entry < 0 ? 0 : ~uint64_t(0));
      for (int w = 0; w < RunMask<E>::kWords; ++w) {
        words[w][lane] = Word(keys >> w * RunMask<E>::kBits);
      }
    }
    return entry >= 0 && bits == nullptr;
  }

  int num_sources_;
  int32_t group_;
  uint32_t blocks_;
  Source sources_[LanesOf<E>::kCapacity];
};

struct TileRange {
  int begin;
  int end;
};

// The walk of a chunk over what its tiles list.
template <class E, Order kOrder>
struct ChunkLists {
  TileLists<E, kOrder>* tiles;
  int num_tiles;

  // Calls step(group, run) for the runs of key blocks that some tile lists.
  template <class Step>
  void for_runs(BlockMask const& mask, Step const& step) const {
    using Tile = TileLists<E, kOrder>;
    while (true) {
      int32_t group = Tile::kNoGroup;
      for (int t = 0; t < num_tiles; ++t) group = Tile::sooner(group, tiles[t].group());
      if (group == Tile::kNoGroup) return;
      uint32_t blocks = 0;
      for (int t = 0; t < num_tiles; ++t) blocks |= blocks_of(t, group);
      for_block_runs<kOrder>(blocks, [&](BlockRun run) { step(group, run); });
      for (int t = 0; t < num_tiles; ++t) {
        if (tiles[t].group() == group) tiles[t].next_group(mask);
      }
    }
  }

  // The tiles between the first and the last that list something of a run.
  TileRange tiles_with(int32_t group, BlockRun run) const {
    TileRange range = {num_tiles, 0};
    for (int t = 0; t < num_tiles; ++t) {
      if ((blocks_of(t, group) & run.bits()) == 0) continue;
      if (range.end == 0) range.begin = t;
      range.end = t + 1;
    }
    return range;
  }

  // What tile t lists of a group.
  uint32_t blocks_of(int t, int32_t group) const {
    return tiles[t].group() == group ? tiles[t].blocks() : 0;
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
