#pragma once

// Which steps the main backward kernel takes under a block mask: for each query head of the group
// the query tiles that list its keys, from the first to the last.

#include <cute/tensor.hpp>

#include "sm80/backward/work_tile.h"

namespace fa2::sm80 {

// What of a block of keys a CTA goes through.
struct ListedColumn {
  WorkItem item;
  int64_t slot;  // where its results go; negative: they are all there is

  CUTE_DEVICE bool is_stored() const { return slot < 0; }
};

// Sets what the CTA of an index computes; false: nothing.
template <int kBlockN, int kBlockM>
CUTE_DEVICE bool schedule_listed(BwdArgs const& args, int32_t index, BwdWorkTile& work,
                                 ListedColumn& column) {
  ScheduledItem const at = scheduled_item(args.listed, index);
  WorkItem const& item = at.item;
  if (!item.exists()) return false;
  ListedPair const pair = listed_kv_pair(args.problem.forward, item.unit, at.copy);
  work = bwd_work_tile(args, pair.batch, pair.head, item.list, kBlockN, kBlockM);
  column = {item, -1};
  if (!item.is_stored()) column.slot = args.listed.slot(at.copy, item.slot);
  if (!item.is_stored() && !item.is_piece()) column.slot += args.listed.slot(args.listed.copies, 0);
  return true;
}

// In shared memory: the blocks of queries that are worked on now and next. One thread brings them
// there, two ahead, so that nobody waits for a list.
struct ListedSteps {
  static constexpr int kSlots = 4;
  static constexpr int kAhead = 2;

  ListedQueries queries[kSlots];
  int32_t heads[kSlots];  // negative: all is done
  ListedColumn column;

  // What comes next, for that thread.
  ListedQueries const* rest;
  int32_t left;  // of the head
  int32_t head;

  // The first ones, to be seen after a barrier.
  CUTE_DEVICE void start(BwdArgs const& args, BwdWorkTile const& work,
                         ListedColumn const& column_) {
    column = column_;
    seek(args, work, work.head_kv * args.problem.forward.group() + column.item.head);
    for (int i = 0; i < kAhead; ++i) {
      if (left > 0) queries[i] = *rest;
      move_on(args, work, i);
    }
  }

  // Starts the copy of the block that comes next, over all heads.
  CUTE_DEVICE void fetch(BwdArgs const& args, BwdWorkTile const& work, int slot) {
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
    left = 0;
    int const end_head = column.item.is_piece() ? work.head_kv * p.group() + column.item.head + 1
                                                : (work.head_kv + 1) * p.group();
    for (head = first_head; head < end_head; ++head) {
      ListedEntries const list = own_entries(args, work);
      if (list.begin >= list.end) continue;
      rest = args.workspace.columns.entries + list.begin;
      left = int32_t(list.end - list.begin);
      return;
    }
  }

  // What of the list of `head` is for this CTA: a piece, or all unless it is cut.
  CUTE_DEVICE ListedEntries own_entries(BwdArgs const& args, BwdWorkTile const& work) const {
    WorkItem const& item = column.item;
    ListedEntries const list =
        args.workspace.columns.column(args.problem.forward, work.batch, head, work.list);
    int64_t const size = list.end - list.begin;
    if (item.is_piece()) {
      return {list.begin + piece_begin(size, item.piece, item.pieces),
              list.begin + piece_begin(size, item.piece + 1, item.pieces)};
    }
    if (item.is_stored()) return list;
    ColumnLists const lists = args.lists();
    int32_t const in_unit = (head - work.head_kv * args.problem.forward.group()) / lists.heads;
    bool const cut = pieces_of_list(lists, item.unit * lists.masks + in_unit, item.list) > 1;
    return cut ? ListedEntries{0, 0} : list;
  }
};

}  // namespace fa2::sm80
