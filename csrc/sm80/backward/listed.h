#pragma once

// Which steps the main backward kernel takes under a block mask: for each query head of the group
// the query tiles that list its keys, from the first to the last.

#include <cute/tensor.hpp>

#include "sm80/backward/work_tile.h"

namespace fa2::sm80 {

// In shared memory: the blocks of queries that are worked on now and next. One thread brings them
// there, two ahead, so that nobody waits for a list.
struct ListedSteps {
  static constexpr int kSlots = 4;
  static constexpr int kAhead = 2;

  ListedQueries queries[kSlots];
  int32_t heads[kSlots];  // negative: all is done

  // What comes next, for that thread.
  ListedQueries const* rest;
  int32_t left;  // of the head
  int32_t head;

  // The first ones, to be seen after a barrier.
  CUTE_DEVICE void start(BwdArgs const& args, BwdWorkTile const& work) {
    seek(args, work, work.head_kv * args.problem.forward.group());
    for (int i = 0; i < kAhead; ++i) {
      if (left > 0) queries[i] = *rest;
      move_on(args, work, i);
    }
  }

  // Starts the copy of block `entry`, counted over all heads.
  CUTE_DEVICE void fetch(BwdArgs const& args, BwdWorkTile const& work, int entry) {
    int const slot = entry % kSlots;
    if (left > 0) {
      cute::SM80_CP_ASYNC_CACHEGLOBAL<cute::uint128_t>::copy(
          reinterpret_cast<cute::uint128_t const&>(*rest),
          reinterpret_cast<cute::uint128_t&>(queries[slot]));
    }
    move_on(args, work, slot);
  }

 private:
  CUTE_DEVICE void move_on(BwdArgs const& args, BwdWorkTile const& work, int slot) {
    heads[slot] = left > 0 ? head : -1;
    if (left == 0) return;
    ++rest;
    if (--left == 0) seek(args, work, head + 1);
  }

  // Goes to `first_head`, or to the next head that has steps.
  CUTE_DEVICE void seek(BwdArgs const& args, BwdWorkTile const& work, int first_head) {
    FwdParams const& p = args.problem.forward;
    MaskColumns const& columns = args.workspace.columns;
    left = 0;
    for (head = first_head; head < (work.head_kv + 1) * p.group(); ++head) {
      ListedEntries const list = columns.column(p, work.batch, head, work.list);
      if (list.begin >= list.end) continue;
      rest = columns.entries + list.begin;
      left = int32_t(list.end - list.begin);
      return;
    }
  }
};

}  // namespace fa2::sm80
