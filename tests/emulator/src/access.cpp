#include "access.h"

#include "global_memory.h"
#include "machine.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

void order_flag(void const* flag, bool writes, Order order, Scope scope) {
  if (writes) {
    if (releases(order)) {
      release_flag(flag, false, scope);
    } else {
      publish_flag(flag, false, scope);
    }
    wake_pollers();
    return;
  }
  poll_flag(flag);
  if (acquires(order)) {
    acquire_flag(flag, scope);
  } else {
    observe_flag(flag, scope);
  }
}

void check_shared(void const* site, size_t offset, size_t bytes) {
  if (offset + bytes <= size_t(grid.shared_bytes)) return;
  fail(site, "out of bounds: %zu bytes at shared memory + %zu, of %d", bytes, offset,
       grid.shared_bytes);
}

void log_shared(void const* site, size_t offset, size_t bytes, bool writes) {
  AccessKind const kind = writes ? AccessKind::kSharedStore : AccessKind::kSharedLoad;
  log_access({site, uintptr_t(offset), 0, kind, uint8_t(bytes), 0, -1});
}

}  // namespace

void access_shared(void const* site, size_t offset, size_t bytes, bool writes) {
  check_shared(site, offset, bytes);
  log_shared(site, offset, bytes, writes);
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

void access_flag(void const* site, void const* address, size_t bytes, bool writes, Order order,
                 Scope scope) {
  check_global(address, bytes, atomic_access(scope), site);
  order_flag(address, writes, order, scope);
}

void access_shared_flag(void const* site, size_t offset, size_t bytes, bool writes, Order order,
                        Scope scope) {
  check_shared(site, offset, bytes);
  log_shared(site, offset, bytes, writes);
  order_flag(shared_flag(offset), writes, order, scope);
  if (!grid.options.races) return;
  SharedShadow& shadow = current_cta().shadow;
  if (writes) {
    shadow.update(current_warp(), current->lane, uint32_t(offset), uint32_t(bytes), site);
  } else {
    shadow.read(current_warp(), current->lane, SharedShadow::Reader::kFlag, uint32_t(offset),
                uint32_t(bytes), site);
  }
}

}  // namespace emu
