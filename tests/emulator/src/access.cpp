#include "access.h"

#include "global_memory.h"
#include "machine.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

void access_shared(void const* site, size_t offset, size_t bytes, bool writes) {
  if (offset + bytes > size_t(grid.shared_bytes)) {
    fail(site, "out of bounds: %zu bytes at shared memory + %zu, of %d", bytes, offset,
         grid.shared_bytes);
  }
  AccessKind const kind = writes ? AccessKind::kSharedStore : AccessKind::kSharedLoad;
  log_access({site, uintptr_t(offset), 0, kind, uint8_t(bytes), 0, -1});
  if (!grid.options.races) return;
  SharedShadow& shadow = current_cta().shadow;
  if (writes) {
    shadow.write(current_warp(), current->lane, uint32_t(offset), uint32_t(bytes), site);
  } else {
    shadow.read(current_warp(), current->lane, SharedShadow::Reader::kLane, uint32_t(offset),
                uint32_t(bytes), site);
  }
}

void access_global(void const* site, void const* address, size_t bytes, bool writes) {
  GlobalAccess const access = writes ? GlobalAccess::kStore : GlobalAccess::kLoad;
  int const buffer = check_global(address, bytes, access, site);
  if (buffer < 0) return;
  AccessKind const kind = writes ? AccessKind::kGlobalStore : AccessKind::kGlobalLoad;
  log_access({site, uintptr_t(address), 0, kind, uint8_t(bytes), 0, int16_t(buffer)});
  if (writes) wake_pollers();
}

void access_flag(void const* site, void const* address, size_t bytes, bool writes) {
  check_global(address, bytes, GlobalAccess::kAtomic, site);
  if (writes) {
    publish_flag(address, false);
    wake_pollers();
  } else {
    poll_flag(address);
    observe_flag(address);
  }
}

}  // namespace emu
