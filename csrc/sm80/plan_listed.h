#pragma once

// What block masks add to a plan.

#include <algorithm>

#include "sm80/lists/schedule.h"
#include "sm80/plan_parts.h"

namespace fa2::sm80 {

// How the work on `Lists` comes, for pairs of a sequence and a head of which `section` are
// scheduled together.
template <class Lists>
ListedPlan plan_listed(Lists const& lists, PieceOrder order, int64_t pairs, int32_t section) {
  ListedPlan plan{.units = lists.units, .lists = lists.lists, .order = order};
  if (lists.units == 0) return plan;
  plan.copies = int32_t(pairs / lists.units);
  plan.section = std::clamp(section / lists.units, 1, std::max(1, plan.copies));
  if (pieces_of(lists.longest(), lists.least) > 1) {
    int64_t const masks = int64_t(lists.units) * lists.masks;
    int64_t const pieces =
        std::min<int64_t>(lists.most_entries() / lists.least, masks * most_pieces(lists.lists));
    plan.capacity = checked_grid("pieces of block masks", pieces * lists.heads);
  }
  return plan;
}

// CTAs of a launch.
inline int32_t listed_grid(ListedPlan const& plan, char const* what) {
  int64_t const length = int64_t(plan.units) * plan.lists + plan.capacity;
  return checked_grid(what, length * plan.copies);
}

// Memory for the order, and for what pieces leave, so many bytes each. Nothing where no list can be
// cut.
inline void take_pieces(ListedPlan& plan, int64_t slot_bytes, DeviceInfo const& device,
                        WorkspaceLayout& memory) {
  if (plan.capacity == 0) return;
  ListedSchedule const schedule = plan.schedule(nullptr);
  plan.items = memory.take(schedule.length() * int64_t(sizeof(WorkItem)));
  plan.slots = memory.take(plan.capacity * int64_t(plan.copies) * slot_bytes);
  constexpr int64_t kSumCtasPerSm = 8;
  plan.sum_grid = int32_t(std::min(int64_t(schedule.places()) * plan.copies,
                                   std::max(1, device.sm_count) * kSumCtasPerSm));
}

}  // namespace fa2::sm80
