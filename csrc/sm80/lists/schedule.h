#pragma once

// The order of the CTAs of a launch under a block mask, as the launch and its CTAs know it.

#include "sm80/lists/pieces.h"
#include "sm80/schedule.h"

namespace fa2::sm80 {

// A unit's work is done for `copies` pairs of a sequence and a head.
struct ListedSchedule {
  WorkItem* items = nullptr;  // (units * lists + capacity,); null: nothing can be cut
  int32_t units = 0;
  int32_t lists = 0;
  int32_t capacity = 0;  // pieces of all units
  int32_t copies = 0;
  int32_t section = 1;  // copies that are scheduled together
  PieceOrder order = PieceOrder::kFirst;

  FA2_HD int32_t length() const { return units * lists + capacity; }
  // Where pieces may stand among the items.
  FA2_HD int32_t places() const {
    return order == PieceOrder::kBesideTheList ? length() : capacity;
  }
  FA2_HD int64_t slot(int32_t copy, int32_t slot) const { return int64_t(copy) * capacity + slot; }
};

// A sequence and a head.
struct ListedPair {
  int32_t batch;
  int32_t head;
};

struct ScheduledItem {
  int32_t copy;
  WorkItem item;
};

FA2_HD ScheduledItem scheduled_item(ListedSchedule const& schedule, int32_t index) {
  ScheduledStep const at =
      scheduled_step(index, schedule.copies, schedule.section, schedule.length());
  if (schedule.items != nullptr) return {at.pair, schedule.items[at.step]};
  WorkItem item;
  item.unit = at.step / schedule.lists;
  int32_t const step = at.step % schedule.lists;
  item.list = schedule.order == PieceOrder::kFirst ? step : schedule.lists - 1 - step;
  return {at.pair, item};
}

}  // namespace fa2::sm80
