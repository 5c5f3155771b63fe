#include "memory_order.h"

#include <unordered_map>

#include "emu/device.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

std::unordered_map<void const*, ForeignClock> flags;  // what each flag hands over

}  // namespace

void ForeignClock::raise(uint32_t warp, uint32_t tick, uint32_t lanes) {
  for (Entry& e : entries_) {
    if (e.warp != warp) continue;
    if (e.tick < tick) {
      e.tick = tick;
      e.lanes = lanes;
    } else if (e.tick == tick) {
      e.lanes |= lanes;
    }
    return;
  }
  entries_.push_back({warp, tick, lanes});
}

void ForeignClock::merge(ForeignClock const& other) {
  for (Entry const& e : other.entries_) raise(e.warp, e.tick, e.lanes);
}

void observe_flag(void const* flag) {
  RuntimeSection const section;
  auto const found = flags.find(flag);
  if (found != flags.end()) current->order.observed.merge(found->second);
}

void publish_flag(void const* flag, bool is_atomic) {
  RuntimeSection const section;
  ForeignClock& handed_over = flags[flag];
  if (!is_atomic) handed_over.clear();
  handed_over.merge(current->order.fenced);
}

void poll_flag(void const* flag) {
  ThreadOrder& order = current->order;
  if (order.polled == flag && order.polled_at == grid.writes_seen) {
    wait_for_write();
  } else {
    give_way();
  }
  order.polled = flag;
  order.polled_at = grid.writes_seen;
}

void clear_flags() { flags.clear(); }

void order_lanes(Warp& warp) {
  ++warp.tick;
  if (!warp.has_acquired) return;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    warp.foreign.merge(warp.lanes[l].order.acquired);
    warp.lanes[l].order.acquired.clear();
  }
  warp.has_acquired = false;
}

void fence() {
  Warp& warp = current_warp();
  ThreadOrder& order = current->order;
  order.acquired.merge(order.observed);
  warp.has_acquired |= !order.acquired.empty();
  order.fenced = warp.foreign;
  order.fenced.merge(order.acquired);
  uint32_t const first_warp = warp.global_index - uint32_t(warp.index);
  for (int w = 0; w < warp.cta->num_warps; ++w) {
    if (warp.known[w] > 0) order.fenced.raise(first_warp + uint32_t(w), warp.known[w], 0);
  }
  order.fenced.raise(warp.global_index, warp.tick, 1u << current->lane);
}

void fence_block() {}

void pause() { give_way(); }

}  // namespace emu
