#include "ptx/mbarrier.h"

#include "memory_order.h"
#include "operations.h"
#include "report.h"

namespace emu::ptx {

namespace {

std::span<int const> coordinates(TensorBox const& box) { return {box.first, size_t(box.rank)}; }

void const* map_of(TensorBox const& box) { return reinterpret_cast<void const*>(box.map); }

}  // namespace

void mbarrier_init(Site const* site, u64 mbarrier, u32 arrivals) {
  emu::mbarrier_init(site, mbarrier, arrivals);
}
void mbarrier_invalidate(Site const* site, u64 mbarrier) {
  emu::mbarrier_invalidate(site, mbarrier);
}
void mbarrier_expect(Site const* site, u64 mbarrier, u32 bytes) {
  emu::mbarrier_expect(site, mbarrier, bytes);
}
u64 mbarrier_arrive(Site const* site, u64 mbarrier, u32 count, u32 bytes, bool releases,
                    bool drops) {
  return emu::mbarrier_arrive(site, mbarrier, {count, bytes, releases, drops});
}
bool mbarrier_test_state(Site const* site, u64 mbarrier, u64 state, bool acquires) {
  return emu::mbarrier_test(site, mbarrier, {u32(state), false, acquires});
}
bool mbarrier_test_parity(Site const* site, u64 mbarrier, u32 parity, bool acquires) {
  return emu::mbarrier_test(site, mbarrier, {parity, true, acquires});
}

u32 map_address(Site const* site, u32 address, u32 cta) {
  if (cta != 0) fail(site, "mapa: CTA %u of a cluster of one", cta);
  return address;
}

void bulk_load(Site const* site, u64 to, u64 from, u32 bytes, u64 mbarrier) {
  emu::bulk_load(site, to, reinterpret_cast<void const*>(from), bytes, mbarrier);
}
void bulk_store(Site const* site, u64 to, u64 from, u32 bytes) {
  emu::bulk_store(site, reinterpret_cast<void*>(to), from, bytes);
}
void bulk_add(Site const* site, AtomicType type, u64 to, u64 from, u32 bytes) {
  emu::bulk_store(site, reinterpret_cast<void*>(to), from, bytes, type);
}
void bulk_load_box(Site const* site, u64 to, TensorBox const& from, u64 mbarrier) {
  emu::bulk_load_box(site, to, map_of(from), coordinates(from), mbarrier);
}
void bulk_store_box(Site const* site, TensorBox const& to, u64 from) {
  emu::bulk_store_box(site, map_of(to), coordinates(to), from, false);
}
void bulk_add_box(Site const* site, TensorBox const& to, u64 from) {
  emu::bulk_store_box(site, map_of(to), coordinates(to), from, true);
}
void bulk_store_commit() { emu::bulk_store_commit(); }
void bulk_store_wait(u32 pending) { emu::bulk_store_wait(int(pending), false); }
void bulk_store_wait_read(u32 pending) { emu::bulk_store_wait(int(pending), true); }

void fence_proxy_async() { show_to_bulk_copies(clock_key::kShown); }
void fence_mbarrier_init() { show_to_bulk_copies(clock_key::kMbarriersShown); }

}  // namespace emu::ptx
