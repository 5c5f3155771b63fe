#include "mbarrier.h"

#include <algorithm>

#include "bulk_copy.h"
#include "machine.h"
#include "operations.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

constexpr uint32_t kMbarrierBytes = 8;
constexpr size_t kMaxMbarriers = 1 << 16;  // see SharedShadow::Cell
constexpr uint32_t kMaxArrivals = (1u << 20) - 1;
constexpr int64_t kMaxBytes = (1 << 20) - 1;

void check_place(void const* site, uint64_t offset) {
  if (offset % kMbarrierBytes != 0) {
    fail(site, "misaligned mbarrier at shared memory + %zu", size_t(offset));
  }
  if (offset + kMbarrierBytes > uint64_t(grid.shared_bytes)) {
    fail(site, "out of bounds: an mbarrier at shared memory + %zu, of %d", size_t(offset),
         grid.shared_bytes);
  }
}

void complete_phase(Mbarrier& m) {
  // What copies brought in this phase goes by the mbarrier's own clock.
  m.arrived.raise(m.key, m.phase + 1, 0);
  m.completed.merge(m.arrived);
  m.arrived.clear();
  ++m.phase;
  m.missing_arrivals = m.arrivals;
  m.missing_bytes = 0;
  wake_pollers();
}

void complete_if_done(void const* site, Mbarrier& m) {
  if (m.missing_arrivals != 0 || m.missing_bytes > 0) return;
  if (m.missing_bytes < 0) {
    fail(site, "mbarrier at shared memory + %u: %lld bytes more than it was told to expect",
         m.offset, static_cast<long long>(-m.missing_bytes));
  }
  complete_phase(m);
}

void expect(void const* site, Mbarrier& m, uint32_t bytes) {
  if (bytes > kMaxBytes || m.missing_bytes + bytes > kMaxBytes) {
    fail(site, "mbarrier at shared memory + %u: it cannot expect %u bytes more", m.offset, bytes);
  }
  m.missing_bytes += bytes;
}

bool is_complete(Mbarrier const& m, MbarrierPhase wanted) {
  return wanted.by_parity ? (m.phase & 1) != (wanted.phase & 1) : m.phase != wanted.phase;
}

}  // namespace

Mbarrier* Mbarriers::find(uint32_t offset) {
  auto const at = std::ranges::find_if(
      all_, [offset](Mbarrier const& m) { return m.is_live && m.offset == offset; });
  return at == all_.end() ? nullptr : &*at;
}

void Mbarriers::make(uint32_t offset, uint32_t arrivals) {
  uint32_t const key = clock_key::kMbarrier | grid.mbarriers_made++;
  all_.push_back({offset, key, true, arrivals, 0, arrivals, 0, {}, {}});
}

Mbarrier& used_mbarrier(void const* site, uint64_t offset) {
  check_place(site, offset);
  Cta& cta = current_cta();
  Mbarrier* const m = cta.mbarriers.find(uint32_t(offset));
  if (m == nullptr) {
    fail(site, "mbarrier at shared memory + %zu: not initialised, or invalidated", size_t(offset));
  }
  if (grid.options.races) {
    cta.shadow.use_mbarrier(current_warp(), current->lane, uint32_t(offset), site);
  }
  return *m;
}

void complete_bytes(void const* site, Mbarrier& m, uint32_t bytes) {
  m.missing_bytes -= bytes;
  complete_if_done(site, m);
}

std::string describe_mbarrier(Mbarrier const& m) {
  return "mbarrier at shared memory + " + std::to_string(m.offset) + ": phase " +
         std::to_string(m.phase) + ", of which " + std::to_string(m.missing_arrivals) + " of " +
         std::to_string(m.arrivals) + " arrivals and " + std::to_string(m.missing_bytes) +
         " bytes are missing";
}

void mbarrier_init(void const* site, uint64_t offset, uint32_t arrivals) {
  check_place(site, offset);
  if (arrivals < 1 || arrivals > kMaxArrivals) {
    fail(site, "mbarrier at shared memory + %zu: %u arrivals", size_t(offset), arrivals);
  }
  Cta& cta = current_cta();
  if (cta.mbarriers.find(uint32_t(offset)) != nullptr) {
    fail(site, "mbarrier at shared memory + %zu: initialised twice", size_t(offset));
  }
  if (cta.mbarriers.count() == kMaxMbarriers) {
    fail(site, "mbarriers: the emulator knows %zu of a CTA", kMaxMbarriers);
  }
  cta.mbarriers.make(uint32_t(offset), arrivals);
  if (grid.options.races) {
    cta.shadow.make_mbarrier(current_warp(), current->lane, uint32_t(offset), site);
  }
}

void mbarrier_invalidate(void const* site, uint64_t offset) {
  Mbarrier& m = used_mbarrier(site, offset);
  if (m.missing_bytes != 0) fail(site, "invalidated: %s", describe_mbarrier(m).c_str());
  m.is_live = false;
  if (grid.options.races) {
    current_cta().shadow.end_mbarrier(current_warp(), current->lane, uint32_t(offset), site);
  }
}

void mbarrier_expect(void const* site, uint64_t offset, uint32_t bytes) {
  Mbarrier& m = used_mbarrier(site, offset);
  expect(site, m, bytes);
}

uint64_t mbarrier_arrive(void const* site, uint64_t offset, MbarrierArrival const& arrival) {
  give_way_sometimes();
  Mbarrier& m = used_mbarrier(site, offset);
  uint64_t const phase = m.phase;
  expect(site, m, arrival.bytes);
  if (arrival.count < 1 || arrival.count > m.missing_arrivals) {
    fail(site, "%u arrivals at the %s", arrival.count, describe_mbarrier(m).c_str());
  }
  if (arrival.releases) m.arrived.merge(hand_over_past());
  m.missing_arrivals -= arrival.count;
  if (arrival.drops) m.arrivals -= arrival.count;
  complete_if_done(site, m);
  return phase;
}

bool mbarrier_test(void const* site, uint64_t offset, MbarrierPhase wanted) {
  Mbarrier* m = &used_mbarrier(site, offset);
  uint32_t const number = current_cta().mbarriers.number_of(*m);
  if (!is_complete(*m, wanted)) {
    poll(shared_flag(offset), Operation::kMbarrier, number);
    m = &current_cta().mbarriers[number];  // others may have made more of them
    if (!m->is_live)
      fail(site, "invalidated under a thread that waits: %s", describe_mbarrier(*m).c_str());
    land_loads_of(number, [=] { return is_complete(*m, wanted); });
  }
  if (!is_complete(*m, wanted)) return false;
  if (wanted.acquires) learn(m->completed);
  return true;
}

}  // namespace emu
