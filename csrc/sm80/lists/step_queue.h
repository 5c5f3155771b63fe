#pragma once

// The steps of a forward CTA under a block mask. Its queries are one or two blocks of the mask,
// each of which has a list; a step is for all of them, so their lists are merged, from the last
// block of keys to the first. One warp merges some dozens of entries at a time into a queue in
// shared memory, from which all warps read: a step costs them a few loads, whatever the lists look
// like. Nothing is derived before the kernel runs, and nothing is stored.

#include <cute/config.hpp>

#include <cstdint>
#include <limits>

#include "sm80/lists/args.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

// One block of a list.
struct ListedBlock {
  int32_t block;
  int32_t tile;  // index into BlockMask::bits, or kUnlisted
};

// Stands behind the last step.
inline constexpr int32_t kNoStep = -3;

// A step for the rows of one list.
struct alignas(16) ListedStep {
  int64_t k_jump;  // bytes from the first row of the K that was copied last to the last pass of
  int64_t v_jump;  // this one's (TileStream), and of V
  int32_t key_tile;
  int32_t tile;
  int32_t next;  // place of the step that follows
};

// Bytes between tiles and passes of a tensor.
struct TileJumps {
  int64_t tile_bytes;
  int64_t pass_bytes;

  CUTE_DEVICE int64_t operator()(int32_t from, int32_t to) const {
    return (to - from + 1) * tile_bytes - pass_bytes;
  }
};

struct KeyJumps {
  TileJumps k, v;
};

// Number of lanes whose value comes before x, of values that ascend.
CUTE_DEVICE int lanes_before(int32_t value, int32_t x) {
  int count = 0;
  CUTE_UNROLL
  for (int step = 16; step > 0; step /= 2) {
    if (__shfl_sync(0xffffffffu, value, count + step - 1) < x) count += step;
  }
  return count + (__shfl_sync(0xffffffffu, value, count) < x ? 1 : 0);
}

CUTE_DEVICE uint32_t lanes_below(int lane) { return lane >= 32 ? ~0u : (1u << lane) - 1; }

// In shared memory, in two halves, which are filled in turn while steps of the other are worked on.
template <int kLists_, int kStepsPerBlock_>
struct StepQueue {
  static constexpr int kLists = kLists_;
  static constexpr int kStepsPerBlock = kStepsPerBlock_;
  static constexpr int kHalf = 32 * kLists * kStepsPerBlock + 1;  // with one for kNoStep
  static_assert(kLists == 1 || kLists == 2);

  ListedEntries lists[kLists];  // what has not been merged yet
  int32_t blocks;               // that there are, at most
  int32_t edge;                 // tiles from here on are not simple, whatever their lists say
  int32_t last[kLists];         // rank of the block that was taken last of each list: ranks ascend
  int32_t last_tile;            // the key tile that was put in last, or -1
  int32_t half;                 // the one that is filled next
  ListedStep steps[kLists * 2 * kHalf];  // a step has a place for each list

  // Where the first step is, for the rows of a list.
  CUTE_DEVICE static int first(int list) { return list * 2 * kHalf; }

  // By one warp: empties the queue. These lists come next, of a sequence with so many blocks.
  CUTE_DEVICE void start(ListedEntries const (&rest)[kLists], int num_blocks, int edge_tile) {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kLists; ++i) {
        lists[i] = rest[i];
        last[i] = std::numeric_limits<int32_t>::min();
      }
      blocks = num_blocks;
      edge = edge_tile;
      last_tile = -1;
      half = 0;
    }
    __syncwarp();
  }

  // By one warp: fills the half that comes next. `read(i)` is entry i of the mask.
  template <class Read>
  CUTE_DEVICE void fill(Read const& read, KeyJumps const& jumps) {
    int const lane = lane_index();  // nothing of it is kept for the next time
    ListedBlock entry[kLists];
    int32_t rank[kLists];
    int count[kLists];
    int32_t limit = kNone;  // up to where all lists are known
    CUTE_UNROLL
    for (int i = 0; i < kLists; ++i) {
      count[i] = look_at(i, lane, read, entry[i], rank[i]);
      int32_t const last_known = __shfl_sync(0xffffffffu, rank[i], 31);
      if (count[i] == 32 && lists[i].end - lists[i].begin > 32 && last_known < limit)
        limit = last_known;
    }
    int taken[kLists];
    CUTE_UNROLL
    for (int i = 0; i < kLists; ++i) {
      taken[i] = __popc(__ballot_sync(0xffffffffu, lane < count[i] && rank[i] <= limit));
    }
    int const put = merge(entry, rank, taken, lane) * kStepsPerBlock;
    int32_t next_last[kLists];
    CUTE_UNROLL
    for (int i = 0; i < kLists; ++i) {
      next_last[i] = __shfl_sync(0xffffffffu, rank[i], taken[i] > 0 ? taken[i] - 1 : 0);
    }
    __syncwarp();
    if (lane == 0) {
      CUTE_UNROLL
      for (int i = 0; i < kLists; ++i) {
        drop(lists[i], taken[i], count[i]);
        if (taken[i] > 0) last[i] = next_last[i];
      }
    }
    __syncwarp();
    finish(put, jumps, lane);
  }

 private:
  static constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

  // Reads the next 32 entries of a list, one to a lane; returns how many are there. A list ends
  // where it is out of order.
  template <class Read>
  CUTE_DEVICE int look_at(int i, int lane, Read const& read, ListedBlock& entry,
                          int32_t& rank) const {
    ListedEntries const& rest = lists[i];
    bool const exists = lane < rest.end - rest.begin;
    entry = {0, kUnlisted};
    rank = kNone;
    if (exists) entry = read(rest.end - 1 - lane);
    if (exists && entry.block >= 0 && entry.block < blocks) rank = -entry.block;
    int32_t before = __shfl_up_sync(0xffffffffu, rank, 1);
    if (lane == 0) before = last[i];
    uint32_t const wrong = __ballot_sync(0xffffffffu, rank == kNone || rank <= before);
    int const count = wrong == 0 ? 32 : __ffs(int(wrong)) - 1;
    if (lane >= count) rank = kNone;
    return count;
  }

  // Of `count` entries that could be seen; where they are fewer than 32, nothing follows them.
  CUTE_DEVICE static void drop(ListedEntries& rest, int taken, int count) {
    if (count < 32) rest.begin = rest.end - count;
    rest.end -= taken;
  }

  // Puts in what was taken; returns how many blocks that makes.
  CUTE_DEVICE int merge(ListedBlock const (&entry)[kLists], int32_t const (&rank)[kLists],
                        int const (&taken)[kLists], int lane) {
    if constexpr (kLists == 1) {
      if (lane < taken[0]) put(lane, entry[0].block, {entry[0].tile});
      return taken[0];
    } else {
      // Where each entry falls among those of the other list, and which of them are in both.
      int const before0 = lanes_before(rank[1], rank[0]);
      int const before1 = lanes_before(rank[0], rank[1]);
      bool const both0 = __shfl_sync(0xffffffffu, rank[1], before0 % 32) == rank[0];
      bool const both1 = __shfl_sync(0xffffffffu, rank[0], before1 % 32) == rank[1];
      int32_t const tile1 = __shfl_sync(0xffffffffu, entry[1].tile, before0 % 32);
      uint32_t const common = __ballot_sync(0xffffffffu, lane < taken[0] && both0);
      if (lane < taken[0]) {
        put(lane + before0 - __popc(common & lanes_below(lane)), entry[0].block,
            {entry[0].tile, both0 ? tile1 : kUnlisted});
      }
      if (lane < taken[1] && !both1) {
        put(lane + before1 - __popc(common & lanes_below(before1)), entry[1].block,
            {kUnlisted, entry[1].tile});
      }
      return taken[0] + taken[1] - __popc(common);
    }
  }

  // Puts the steps of block i of the half into their places.
  CUTE_DEVICE void put(int i, int32_t block, int32_t const (&tile)[kLists]) {
    CUTE_UNROLL
    for (int step = 0; step < kStepsPerBlock; ++step) {
      CUTE_UNROLL
      for (int list = 0; list < kLists; ++list) {
        ListedStep& to = steps[begin(list, half) + i * kStepsPerBlock + step];
        to.key_tile = block * kStepsPerBlock + kStepsPerBlock - 1 - step;
        to.tile = tile[list];
      }
    }
  }

  // Of the first `put` steps of a half, all that follows from others.
  CUTE_DEVICE void finish(int put, KeyJumps const& jumps, int lane) {
    ListedStep const* const first = steps + begin(0, half);
    bool more = false;
    CUTE_UNROLL
    for (int list = 0; list < kLists; ++list) more |= lists[list].begin < lists[list].end;
    // What is copied first finds the tensors pointed at the tile behind it.
    int32_t const before = last_tile < 0 && put > 0 ? first->key_tile + 1 : last_tile;
    int32_t const final = put > 0 ? first[put - 1].key_tile : before;
    // Needs no __syncwarp: up to the next one, lanes write other fields than those read so far.
    for (int i = lane; i < put; i += 32) {
      int32_t const from = i > 0 ? first[i - 1].key_tile : before, to = first[i].key_tile;
      bool const refills = more && i == put - 1;
      CUTE_UNROLL
      for (int list = 0; list < kLists; ++list) {
        int const place = begin(list, half) + i;
        ListedStep& step = steps[place];
        step.k_jump = jumps.k(from, to);
        step.v_jump = jumps.v(from, to);
        step.next = refills ? begin(list, 1 - half) : place + 1;
        if (step.tile == 0 && (refills || to >= edge)) step.tile = kAllVisible;
      }
    }
    if (lane < kLists) steps[begin(lane, half) + put].tile = kNoStep;
    __syncwarp();
    if (lane == 0) {
      last_tile = final;
      half = 1 - half;
    }
    __syncwarp();
  }

  CUTE_DEVICE static int begin(int list, int half) { return first(list) + half * kHalf; }
};

}  // namespace fa2::sm80
