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

namespace fa2::sm80 {

// One block of a list, and of all lists of a CTA.
struct ListedBlock {
  int32_t block;
  int32_t tile;  // index into BlockMask::bits, or kUnlisted
};

template <int kLists>
struct ListedStep {
  int32_t block;
  int32_t tile[kLists];
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

// In shared memory. A step stays where it is until a whole capacity of others has come.
template <int kLists_>
struct StepQueue {
  static constexpr int kLists = kLists_;
  static constexpr int kCapacity = 128;
  static_assert(kLists == 1 || kLists == 2);
  using Step = ListedStep<kLists>;

  ListedEntries lists[kLists];  // what has not been merged yet
  int32_t blocks;               // that there are, at most
  int32_t last[kLists];         // rank of the block that was taken last of each list: ranks ascend
  int32_t size;                 // steps that have been put in, all together
  Step steps[kCapacity];

  CUTE_DEVICE Step const& operator[](int step) const { return steps[step % kCapacity]; }

  // By one warp: empties the queue. These lists come next, of a sequence with so many blocks.
  CUTE_DEVICE void start(ListedEntries const (&rest)[kLists], int num_blocks) {
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kLists; ++i) {
        lists[i] = rest[i];
        last[i] = std::numeric_limits<int32_t>::min();
      }
      size = 0;
      blocks = num_blocks;
    }
    __syncwarp();
  }

  // By one warp, when no more than half of the capacity is ahead: puts in the steps that come next.
  // None are left when it puts none. `read(i)` is entry i of the mask.
  template <class Read>
  CUTE_DEVICE void fill(Read const& read) {
    int const lane = threadIdx.x % 32;
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
    int const put = merge(entry, rank, taken, lane);
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
      size += put;
    }
    __syncwarp();
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

  // Puts in what was taken; returns how many steps that makes.
  CUTE_DEVICE int merge(ListedBlock const (&entry)[kLists], int32_t const (&rank)[kLists],
                        int const (&taken)[kLists], int lane) {
    int const first = size;
    if constexpr (kLists == 1) {
      if (lane < taken[0]) {
        at(first + lane) = {entry[0].block, {entry[0].tile}};
      }
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
        int const place = first + lane + before0 - __popc(common & lanes_below(lane));
        at(place) = {entry[0].block, {entry[0].tile, both0 ? tile1 : kUnlisted}};
      }
      if (lane < taken[1] && !both1) {
        int const place = first + lane + before1 - __popc(common & lanes_below(before1));
        at(place) = {entry[1].block, {kUnlisted, entry[1].tile}};
      }
      return taken[0] + taken[1] - __popc(common);
    }
  }

  CUTE_DEVICE Step& at(int step) { return steps[step % kCapacity]; }
};

}  // namespace fa2::sm80
