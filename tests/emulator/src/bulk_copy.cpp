#include "bulk_copy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "access_log.h"
#include "global_memory.h"
#include "machine.h"
#include "operations.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

constexpr uint32_t kUnit = 16;  // of sizes and addresses

void check_places(void const* site, uint64_t offset, void const* global, uint32_t bytes) {
  if (bytes % kUnit != 0) fail(site, "cp.async.bulk: %u bytes, no multiple of %u", bytes, kUnit);
  if (offset % kUnit != 0) {
    fail(site, "cp.async.bulk: shared memory + %zu is not %u-byte aligned", size_t(offset), kUnit);
  }
  if (uintptr_t(global) % kUnit != 0) {
    fail(site, "cp.async.bulk: %s is not %u-byte aligned", describe_address(global).text, kUnit);
  }
  if (offset + bytes > uint64_t(grid.shared_bytes)) {
    fail(site, "out of bounds: cp.async.bulk of %u bytes at shared memory + %zu, of %d", bytes,
         size_t(offset), grid.shared_bytes);
  }
}

bool moves_at_once() {
  AsyncMode const mode = grid.options.async;
  return mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && (grid.random.next() & 1));
}

void move_data(BulkLoad& load) {
  std::memcpy(current_cta().shared + load.target, load.source, load.bytes);
  load.moved = true;
}

void land(BulkLoad load) {
  Cta& cta = current_cta();
  if (!load.moved) move_data(load);
  Mbarrier& m = cta.mbarriers[load.mbarrier];
  if (!m.is_live) fail(load.site, "cp.async.bulk: its mbarrier was invalidated before its end");
  if (grid.options.races) {
    cta.shadow.land_bulk_copy(load.target, load.bytes, load.mbarrier, m.phase);
  }
  complete_bytes(load.site, m, load.bytes);
}

void read_source(BulkStore& store) {
  if (!store.data.empty() || store.bytes == 0) return;
  char const* const from = current_cta().shared + store.source;
  store.data.assign(from, from + store.bytes);
}

// From here on the source may be written, by those who come after the current thread.
void end_reading(BulkStore& store) {
  if (store.has_read) return;
  read_source(store);
  store.has_read = true;
  if (!grid.options.races) return;
  current_cta().shadow.end_unit_read(current_warp(), current->lane, store.source, store.bytes);
}

// As the detector of races sees it: additions race with each other where their order matters.
GlobalAccess access_of(BulkStore const& store) {
  if (!store.sum || (grid.options.ordered_sums && is_float(*store.sum))) {
    return GlobalAccess::kStore;
  }
  return GlobalAccess::kAtomic;
}

void move_data(BulkStore& store) {
  if (store.moved) return;
  read_source(store);
  if (store.sum) {
    add_elements(*store.sum, store.target, store.data.data(), store.bytes);
  } else {
    std::memcpy(store.target, store.data.data(), store.bytes);
  }
  store.moved = true;
}

void land(BulkStore& store) {
  end_reading(store);
  check_global(store.target, store.bytes, access_of(store), store.site);
  move_data(store);
  wake_pollers();
}

}  // namespace

void BulkStoreQueue::wait(int pending, bool reading_only) {
  uint32_t const done_groups = groups_ - std::min(groups_, uint32_t(pending));
  auto const end = std::ranges::find_if(
      stores_, [done_groups](BulkStore const& store) { return store.group >= done_groups; });
  for (auto store = stores_.begin(); store != end; ++store) {
    reading_only ? end_reading(*store) : land(*store);
  }
  if (!reading_only) stores_.erase(stores_.begin(), end);
}

void BulkStoreQueue::end() {
  for (BulkStore& store : stores_) {
    if (!store.has_read) {
      note(store.site, "cp.async.bulk: the thread ends without a wait for the end of its reading");
    }
    land(store);
  }
  stores_.clear();
}

bool land_a_load(uint32_t mbarrier) {
  std::vector<BulkLoad>& loads = current_cta().bulk_loads;
  auto const is_counted = [mbarrier](BulkLoad const& load) { return load.mbarrier == mbarrier; };
  auto const count = uint32_t(std::ranges::count_if(loads, is_counted));
  if (count == 0) return false;
  uint32_t skip = grid.options.random_order ? grid.random.below(count) : 0;
  auto const chosen = std::ranges::find_if(
      loads, [&](BulkLoad const& load) { return is_counted(load) && skip-- == 0; });
  BulkLoad const load = *chosen;
  loads.erase(chosen);
  land(load);
  return true;
}

void check_loads_have_landed() {
  for (BulkLoad const& load : current_cta().bulk_loads) {
    note(load.site, "cp.async.bulk: the CTA ends while a copy to its shared memory is in flight");
  }
}

void bulk_load(void const* site, uint64_t offset, void const* source, uint32_t bytes,
               uint64_t mbarrier) {
  check_places(site, offset, source, bytes);
  Cta& cta = current_cta();
  uint32_t const number = cta.mbarriers.number_of(used_mbarrier(site, mbarrier));
  int const buffer = check_global(source, bytes, GlobalAccess::kLoad, site);
  count_bulk_copy(AccessKind::kGlobalLoad, buffer, source, bytes);
  if (grid.options.races) {
    cta.shadow.check_mbarrier_is_shown(uint32_t(mbarrier), site);
    cta.shadow.issue_bulk_copy(current_warp(), current->lane, uint32_t(offset), bytes, number,
                               site);
  }
  BulkLoad load{site, static_cast<char const*>(source), uint32_t(offset), bytes, number, false};
  if (moves_at_once()) {
    move_data(load);
    land(load);
    return;
  }
  if (grid.options.poison) std::memset(cta.shared + offset, 0xff, bytes);
  cta.bulk_loads.push_back(load);
  wake_pollers();  // one that waits for the mbarrier lands it
}

void bulk_store(void const* site, void* target, uint64_t offset, uint32_t bytes,
                std::optional<AtomicType> sum) {
  check_places(site, offset, target, bytes);
  BulkStore store{site, static_cast<char*>(target), uint32_t(offset), bytes, 0, sum};
  int const buffer = check_global(target, bytes, access_of(store), site);
  count_bulk_copy(sum ? AccessKind::kGlobalAtomic : AccessKind::kGlobalStore, buffer, target,
                  bytes);
  if (grid.options.races) {
    current_cta().shadow.begin_unit_read(current_warp(), current->lane, uint32_t(offset), bytes,
                                         site);
  }
  if (moves_at_once()) move_data(store);
  current->bulk_stores.start(std::move(store));
}

void bulk_store_commit() { current->bulk_stores.commit(); }
void bulk_store_wait(int pending, bool reading_only) {
  current->bulk_stores.wait(pending, reading_only);
}

}  // namespace emu
