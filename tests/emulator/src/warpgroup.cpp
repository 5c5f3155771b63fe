#include "warpgroup.h"

#include <algorithm>

#include "machine.h"
#include "report.h"

namespace emu {

void Warpgroup::take(Step const& step) {
  int const warp = current_warp().index;
  size_t const number = next_[warp % kWarpsOfGroup]++ - first_;
  if (number == open_.size()) open_.push_back({step, 0});
  Taken& taken = open_[number];
  if (taken.step.site != step.site) {
    fail(step.site, "the warps of a group of four part: another than warp %d is at %s", warp,
         describe_site(taken.step.site).c_str());
  }
  if (taken.step.matrices != step.matrices) {
    fail(step.site, "wgmma: warp %d has other descriptors than its group of four", warp);
  }
  if (++taken.warps < kWarpsOfGroup) return;
  open_.pop_front();  // whoever comes to a step has come to those before it
  ++first_;
}

void Warpgroup::end() const {
  if (open_.empty()) return;
  note(open_.front().step.site, "only %d warps of a group of four have come here",
       open_.front().warps);
}

void Warpgroup::clear() {
  open_.clear();
  first_ = 0;
  std::ranges::fill(next_, 0u);
}

void take_step_of_group(Warpgroup::Step const& step) {
  Warp& warp = current_warp();
  size_t const group = size_t(warp.index / kWarpsOfGroup);
  if (group >= warp.cta->warpgroups.size()) {
    fail(step.site, "warp %d is in no group of four", warp.index);
  }
  warp.cta->warpgroups[group].take(step);
}

}  // namespace emu
