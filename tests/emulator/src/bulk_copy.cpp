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
#include "tensor_map.h"

namespace emu {

namespace {

constexpr uint32_t kUnit = 16;           // of sizes and addresses
constexpr uint32_t kBoxAlignment = 128;  // of a tensor's box in shared memory

void check_in_shared_memory(void const* site, uint64_t offset, uint32_t bytes) {
  if (offset + bytes > uint64_t(grid.shared_bytes)) {
    fail(site, "out of bounds: cp.async.bulk of %u bytes at shared memory + %zu, of %d", bytes,
         size_t(offset), grid.shared_bytes);
  }
}

void check_range(void const* site, uint64_t offset, void const* global, uint32_t bytes) {
  if (bytes % kUnit != 0) fail(site, "cp.async.bulk: %u bytes, no multiple of %u", bytes, kUnit);
  if (offset % kUnit != 0) {
    fail(site, "cp.async.bulk: shared memory + %zu is not %u-byte aligned", size_t(offset), kUnit);
  }
  if (uintptr_t(global) % kUnit != 0) {
    fail(site, "cp.async.bulk: %s is not %u-byte aligned", describe_address(global).text, kUnit);
  }
  check_in_shared_memory(site, offset, bytes);
}

BulkBox box_of(void const* site, TensorMap const& map, std::span<int const> first,
               uint64_t offset) {
  if (first.size() != map.rank) {
    fail(site, "cp.async.bulk.tensor: %zu coordinates of a tensor map of %d dimensions",
         first.size(), int(map.rank));
  }
  if (offset % kBoxAlignment != 0) {
    fail(site, "cp.async.bulk.tensor: shared memory + %zu is not %u-byte aligned", size_t(offset),
         kBoxAlignment);
  }
  BulkBox box = map.box_at(first);
  check_in_shared_memory(site, offset, box.bytes);
  return box;
}

// Every piece must be in bounds, and is ordered with what others do there.
void check_pieces(void const* site, BulkBox const& box, GlobalAccess access) {
  for (BulkPiece const& piece : box.pieces) check_global(piece.global, piece.bytes, access, site);
}

void count_pieces(void const* site, BulkBox const& box, GlobalAccess access, AccessKind kind) {
  ++totals.bulk_copies;
  bool is_first = true;
  for (BulkPiece const& piece : box.pieces) {
    int const buffer = check_global(piece.global, piece.bytes, access, site);
    count_bulk_piece(kind, buffer, piece.global, piece.bytes, is_first);
    is_first = false;
  }
}

bool moves_at_once() {
  AsyncMode const mode = grid.options.async;
  return mode == AsyncMode::kEarly || (mode == AsyncMode::kRandom && (grid.random.next() & 1));
}

void move_data(BulkLoad& load) {
  load.box.load_to(current_cta().shared, load.target);
  load.moved = true;
}

void land(BulkLoad load) {
  Cta& cta = current_cta();
  if (!load.moved) move_data(load);
  Mbarrier& m = cta.mbarriers[load.mbarrier];
  if (!m.is_live) fail(load.site, "cp.async.bulk: its mbarrier was invalidated before its end");
  if (grid.options.races) {
    cta.shadow.land_bulk_copy(load.target, load.box.bytes, load.mbarrier, m.phase);
  }
  complete_bytes(load.site, m, load.box.bytes);
}

void read_source(BulkStore& store) {
  if (store.data.empty()) {
    store.data = store.box.read_from(current_cta().shared, store.source);
  }
}

// From here on the source may be written, by those who come after the current thread.
void end_reading(BulkStore& store) {
  if (store.has_read) return;
  read_source(store);
  store.has_read = true;
  if (!grid.options.races) return;
  current_cta().shadow.end_unit_read(current_warp(), current->lane, store.source, store.box.bytes);
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
  for (BulkPiece const& piece : store.box.pieces) {
    char const* const data = store.data.data() + piece.offset;
    if (store.sum) {
      add_elements(*store.sum, piece.global, data, piece.bytes);
    } else {
      std::memcpy(piece.global, data, piece.bytes);
    }
  }
  store.moved = true;
}

void land(BulkStore& store) {
  end_reading(store);
  check_pieces(store.site, store.box, access_of(store));
  move_data(store);
  wake_pollers();
}

BulkPiece piece_of(void const* address, uint32_t bytes) {
  return {static_cast<char*>(const_cast<void*>(address)), 0, bytes};
}

void start_load(void const* site, BulkBox box, uint32_t target, uint64_t mbarrier) {
  Cta& cta = current_cta();
  uint32_t const number = cta.mbarriers.number_of(used_mbarrier(site, mbarrier));
  count_pieces(site, box, GlobalAccess::kLoad, AccessKind::kGlobalLoad);
  if (grid.options.races) {
    cta.shadow.check_mbarrier_is_shown(uint32_t(mbarrier), site);
    cta.shadow.issue_bulk_copy(current_warp(), current->lane, target, box.bytes, number, site);
  }
  BulkLoad load{site, std::move(box), target, number};
  if (moves_at_once()) {
    move_data(load);
    land(std::move(load));
    return;
  }
  if (grid.options.poison) std::memset(cta.shared + target, 0xff, load.box.bytes);
  cta.bulk_loads.push_back(std::move(load));
  wake_pollers();  // one that waits for the mbarrier lands it
}

void start_store(BulkStore store) {
  AccessKind const kind = store.sum ? AccessKind::kGlobalAtomic : AccessKind::kGlobalStore;
  count_pieces(store.site, store.box, access_of(store), kind);
  if (grid.options.races) {
    current_cta().shadow.begin_unit_read(current_warp(), current->lane, store.source,
                                         store.box.bytes, store.site);
  }
  if (moves_at_once()) move_data(store);
  current->bulk_stores.start(std::move(store));
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
  BulkLoad load = std::move(*chosen);
  loads.erase(chosen);
  land(std::move(load));
  return true;
}

void check_loads_have_landed() {
  for (BulkLoad const& load : current_cta().bulk_loads) {
    note(load.site, "cp.async.bulk: the CTA ends while a copy to its shared memory is in flight");
  }
}

void bulk_load(void const* site, uint64_t offset, void const* source, uint32_t bytes,
               uint64_t mbarrier) {
  check_range(site, offset, source, bytes);
  start_load(site, {{piece_of(source, bytes)}, bytes}, uint32_t(offset), mbarrier);
}

void bulk_load_box(void const* site, uint64_t offset, void const* map, std::span<int const> first,
                   uint64_t mbarrier) {
  BulkBox box = box_of(site, tensor_map_at(site, map), first, offset);
  start_load(site, std::move(box), uint32_t(offset), mbarrier);
}

void bulk_store(void const* site, void* target, uint64_t offset, uint32_t bytes,
                std::optional<AtomicType> sum) {
  check_range(site, offset, target, bytes);
  start_store({site, {{piece_of(target, bytes)}, bytes}, uint32_t(offset), sum});
}

void bulk_store_box(void const* site, void const* map, std::span<int const> first, uint64_t offset,
                    bool adds) {
  TensorMap const& tensor = tensor_map_at(site, map);
  std::optional<AtomicType> const sum = adds ? tensor.addition() : std::nullopt;
  if (adds && !sum) fail(site, "cp.reduce.async.bulk.tensor: elements that cannot be added to");
  start_store({site, box_of(site, tensor, first, offset), uint32_t(offset), sum});
}

void bulk_store_commit() { current->bulk_stores.commit(); }
void bulk_store_wait(int pending, bool reading_only) {
  current->bulk_stores.wait(pending, reading_only);
}

}  // namespace emu
