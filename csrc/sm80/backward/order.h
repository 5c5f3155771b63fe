#pragma once

// In which order a backward CTA takes the query tiles that see its keys, for one query head of its
// group after the other: a range of tiles, or those that a block mask lists. The main loop moves on
// while a step is still at hand, so that the copies of the next one are on their way.

#include "sm80/backward/config.h"

namespace fa2::sm80 {

// Both forms have the same members. Key blocks add to a query tile from the last that sees it to
// the first: turn() says how many additions come before the one of this step, turns_taken() for how
// many it counts.
template <class Config>
class QueryTileRange {
  static constexpr BwdTile kTile = Config::kTile;

 public:
  static constexpr bool kListed = false;
  static constexpr bool kRereads = false;

  CUTE_DEVICE QueryTileRange(BwdArgs const& args, typename Config::Smem& smem)
      : args_(args), work_(smem.work) {}

  CUTE_DEVICE void begin() {
    m_ = work_.tiles.begin;
    head_ = work_.head_kv * args_.problem.forward.group();
  }

  CUTE_DEVICE int tile() const { return m_; }
  CUTE_DEVICE int head() const { return head_; }
  CUTE_DEVICE int tile_at_hand() const { return m_; }
  CUTE_DEVICE int head_at_hand() const { return head_; }
  CUTE_DEVICE bool is_first_of_run() const { return m_ == work_.tiles.begin; }

  // Moves on from tile m; false if it was the last.
  CUTE_DEVICE bool advance(int m) {
    m_ = m + 1;
    if (m_ == work_.tiles.end) {
      m_ = work_.tiles.begin;
      ++head_;
    }
    return head_ < (work_.head_kv + 1) * args_.problem.forward.group();
  }
  CUTE_DEVICE static void fetch() {}
  CUTE_DEVICE static void finish() {}

  // Whether the step at hand is for the keys of the CTA from `first_key` on: all of those up to the
  // next multiple of a mask's block are alike.
  CUTE_DEVICE static bool has_keys(int) { return true; }

  CUTE_DEVICE int turn(int m) const {
    int const row_begin = m * kTile.block_m;
    // As of so many queries that the last one stands on the last key. Numbered by the keys that
    // they stand on, they take a register more.
    int const seqlen_q = work_.seqlen_k - work_.diagonal;
    BlockRange const blocks =
        block_range(row_begin, min(row_begin + kTile.block_m, work_.seqlen_q), seqlen_q,
                    work_.seqlen_k, args_.problem.forward.window, kTile.block_n);
    return blocks.end - 1 - work_.block;
  }
  CUTE_DEVICE static int turns_taken() { return 1; }

 private:
  BwdArgs const& args_;
  BwdWorkTile const& work_;
  int m_, head_;
};

template <class Config>
class ListedQueryTiles {
  using Warps = typename Config::Warps;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr int kStepsPerBlock = BlockMask::kBlock / kTile.block_m;

 public:
  static constexpr bool kListed = true;
  // Whether tile() and head() are those at hand until the step is finished, read anew where they
  // are used. They occupy no registers between.
  static constexpr bool kRereads = kStepsPerBlock == 1;

  CUTE_DEVICE ListedQueryTiles(BwdArgs const& args, typename Config::Smem& smem)
      : args_(args), smem_(smem) {}

  CUTE_DEVICE void begin() {
    slot_ = 0;
    look_at_block(0);
  }

  CUTE_DEVICE int tile_at_hand() const { return kRereads ? listed().block : m_; }
  CUTE_DEVICE int head_at_hand() const { return kRereads ? smem_.steps[0].heads[slot_] : head_; }
  CUTE_DEVICE int tile() const { return m_; }
  CUTE_DEVICE int head() const { return head_; }
  CUTE_DEVICE static bool is_first_of_run() { return true; }

  // Behind a barrier. Where it is true, `fetch` follows.
  CUTE_DEVICE bool advance(int m) {
    is_new_block_ =
        !(kStepsPerBlock > 1 && begins_block(m) && (m + 1) * kTile.block_m < smem_.work.seqlen_q);
    if (is_new_block_) {
      look_at_block(slot_after(1));
    } else {
      m_ = m + 1;
    }
    return head_ >= 0;
  }
  // What is fetched here has landed at the next barrier.
  CUTE_DEVICE void fetch() const {
    if (is_new_block_ && thread_index() == 0) {
      smem_.steps[0].fetch(args_, smem_.work, slot_after(ListedSteps::kAhead));
    }
  }
  // The step at hand is the one that was moved on to.
  CUTE_DEVICE void finish() {
    if (kStepsPerBlock == 1 || is_new_block_) slot_ = slot_after(1);
  }

  // What the step at hand is to this warp's keys: a tile of the mask, or kUnlisted.
  CUTE_DEVICE int mask_tile() const { return listed().tile[block_of(Warps::key_begin())]; }
  CUTE_DEVICE bool has_keys(int first_key) const {
    return kTile.block_n <= BlockMask::kBlock || listed().tile[block_of(first_key)] != kUnlisted;
  }

  // Counted in blocks of the mask, or in halves of them where these are the CTA's.
  CUTE_DEVICE int turn(int) const {
    int const later = listed().later;
    if constexpr (kTile.block_n >= BlockMask::kBlock) return later;
    return 2 * later + int(has_second_half());
  }
  CUTE_DEVICE int turns_taken() const {
    if constexpr (kTile.block_n < BlockMask::kBlock) {
      return smem_.work.block % 2 == 0 && !has_second_half() ? 2 : 1;
    } else {
      return int(listed().tile[0] != kUnlisted) + int(listed().tile[1] != kUnlisted);
    }
  }

 private:
  static_assert(kStepsPerBlock == 1 || kStepsPerBlock == 2);
  CUTE_DEVICE static bool begins_block(int m) {
    return kStepsPerBlock == 1 || m % kStepsPerBlock == 0;
  }

  // Which of the CTA's blocks of keys has one of them.
  CUTE_DEVICE static int block_of(int key) {
    return kTile.block_n > BlockMask::kBlock ? key / BlockMask::kBlock : 0;
  }

  CUTE_DEVICE void look_at_block(int slot) {
    m_ = smem_.steps[0].queries[slot].block * kStepsPerBlock;
    head_ = smem_.steps[0].heads[slot];
  }

  CUTE_DEVICE int slot_after(int blocks) const { return (slot_ + blocks) % ListedSteps::kSlots; }

  CUTE_DEVICE ListedQueries const& listed() const { return smem_.steps[0].queries[slot_]; }

  // Whether this is the first half of a block, and another CTA has the second.
  CUTE_DEVICE bool has_second_half() const {
    BwdWorkTile const& work = smem_.work;
    return work.block % 2 == 0 && work.col_begin + kTile.block_n < work.seqlen_k;
  }

  BwdArgs const& args_;
  typename Config::Smem& smem_;
  int m_, head_;
  int slot_;  // of the block of queries of the step at hand
  bool is_new_block_;
};

}  // namespace fa2::sm80
