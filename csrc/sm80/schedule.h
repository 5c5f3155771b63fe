#pragma once

// CTAs come in the order of their index, so what an index stands for is the schedule.

#include "core/macros.h"

namespace fa2::sm80 {

struct ScheduledStep {
  int32_t pair;
  int32_t step;
};

// Pairs, of a sequence and a head, are taken in sections whose tensors fit the L2 cache. Inside a
// section all first steps come first, then all second ones.
FA2_HD ScheduledStep scheduled_step(int32_t index, int32_t pairs, int32_t section, int32_t steps) {
  int32_t const first_pair = index / (section * steps) * section;
  int32_t const left = pairs - first_pair;
  int32_t const in_section = index - first_pair * steps;
  int32_t const together = section < left ? section : left;
  return {first_pair + in_section % together, in_section / together};
}

}  // namespace fa2::sm80
