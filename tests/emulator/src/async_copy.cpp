#include "async_copy.h"

#include <algorithm>
#include <cstring>

#include "global_memory.h"
#include "machine.h"
#include "report.h"

namespace emu {

namespace {

void move_data(CopyInFlight& copy) {
  std::memcpy(copy.target, copy.source, copy.source_bytes);
  std::memset(copy.target + copy.source_bytes, 0, size_t(copy.bytes - copy.source_bytes));
  copy.moved = true;
}

void land(CopyInFlight& copy) {
  if (!copy.moved) move_data(copy);
  if (grid.options.races) {
    current_cta().shadow.land_copy(current_warp(), current->lane,
                                   uint32_t(copy.target - shared_base), copy.bytes);
  }
}

bool moves_at_once() {
  switch (grid.options.async) {
    case AsyncMode::kLate: return false;
    case AsyncMode::kEarly: return true;
    case AsyncMode::kRandom: return grid.random.next() & 1;
  }
  return false;
}

}  // namespace

void CopyQueue::wait(int pending) {
  uint32_t const landed_groups = groups_ - std::min(groups_, uint32_t(pending));
  size_t count = 0;
  while (count < copies_.size() && copies_[count].group < landed_groups) land(copies_[count++]);
  copies_.erase(copies_.begin(), copies_.begin() + std::ptrdiff_t(count));
}

void CopyQueue::wait_all() {
  for (CopyInFlight& copy : copies_) land(copy);
  copies_.clear();
}

void copy_async(void const* source, void* target, int bytes, bool predicate) {
  void const* const site = __builtin_return_address(0);
  size_t const offset = size_t(static_cast<char*>(target) - shared_base);
  if (offset + size_t(bytes) > size_t(grid.shared_bytes)) {
    fail(site, "cp.async: the target is %td bytes into %d bytes of shared memory",
         ptrdiff_t(offset), grid.shared_bytes);
  }
  if (offset % size_t(bytes) != 0) {
    fail(site, "cp.async: the target at shared memory + %zu is not %d-byte aligned", offset, bytes);
  }
  if (uintptr_t(source) % uintptr_t(bytes) != 0) {
    fail(site, "cp.async: the source %s is not %d-byte aligned", describe_address(source).text,
         bytes);
  }
  int buffer = -1;
  if (predicate) {
    buffer = check_global(source, size_t(bytes), GlobalAccess::kLoad, site);
    totals.cp_async_bytes += uint64_t(bytes);
  }
  log_access({site, uintptr_t(source), uintptr_t(offset), AccessKind::kCopyAsync,
              uint8_t(predicate ? bytes : 0), int16_t(buffer)});
  if (grid.options.races) {
    current_cta().shadow.issue_copy(current_warp(), current->lane, uint32_t(offset),
                                    uint32_t(bytes), site);
  }
  CopyInFlight copy{static_cast<char const*>(source),
                    static_cast<char*>(target),
                    0,
                    uint8_t(bytes),
                    uint8_t(predicate ? bytes : 0),
                    false};
  if (moves_at_once()) {
    move_data(copy);
  } else if (grid.options.poison) {
    std::memset(target, 0xff, size_t(bytes));
  }
  current->copies.start(copy);
}

void copy_async_commit() { current->copies.commit(); }
void copy_async_wait_group(int pending) { current->copies.wait(pending); }
void copy_async_wait_all() { current->copies.wait_all(); }

}  // namespace emu
