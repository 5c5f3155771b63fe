#include "scheduler.h"

#include <cstring>

#include "collectives.h"
#include "report.h"

// The built-in variables, which kernels see as constants.
__attribute__((visibility("hidden"))) uint3 emu_thread_index, emu_block_index;
__attribute__((visibility("hidden"))) uint3 emu_block_dim, emu_grid_dim;

namespace emu {

namespace {

// Polling threads are woken this often without any write in between before it is a deadlock.
constexpr int kMaxIdleWakes = 1000;

bool launch_abandoned = false;
std::vector<Fiber*> pollers;
int idle_wakes = 0;

void make_resident(Cta& cta) {
  if (grid.resident == &cta) return;
  size_t const bytes = size_t(grid.shared_bytes);
  if (grid.resident != nullptr && grid.resident->active) {
    std::memcpy(grid.resident->saved_shared.data(), shared_base, bytes);
  }
  std::memcpy(shared_base, cta.saved_shared.data(), bytes);
  grid.resident = &cta;
  emu_block_index = cta.index;
}

void enter(Fiber* fiber) {
  make_resident(*fiber->warp->cta);
  current = fiber;
  emu_thread_index = fiber->thread_index;
}

void switch_to(Fiber* next) {
  Fiber* const self = current;
  if (next == self) return;
  enter(next);
  ++totals.thread_switches;
  emu_switch_stack(&self->stack_pointer, next->stack_pointer);
}

void switch_to_host() {
  Fiber* const self = current;
  current = nullptr;
  emu_switch_stack(&self->stack_pointer, grid.host_stack_pointer);
}

Fiber* next_lane(Warp& warp) {
  while (true) {
    uint32_t const lane = warp.next_lane;
    warp.next_lane = (lane + warp.lane_stride) % kWarpSize;
    if (warp.runnable >> lane & 1) return &warp.lanes[lane];
  }
}

// The index of a random (or of the first) set bit.
int pick_bit(uint32_t bits) {
  int skip = grid.options.random_order ? int(grid.random.below(__builtin_popcount(bits))) : 0;
  for (; skip > 0; --skip) bits &= bits - 1;
  return __builtin_ctz(bits);
}

Fiber* pick_in(Cta& cta) {
  if (cta.runnable_warps == 0) return nullptr;
  return next_lane(cta.warps[pick_bit(cta.runnable_warps)]);
}

Fiber* pick_anywhere() {
  int const slots = int(grid.slots.size());
  int const first = grid.options.random_order ? int(grid.random.below(slots)) : 0;
  for (int i = 0; i < slots; ++i) {
    Cta& cta = grid.slots[(first + i) % slots];
    if (!cta.active) continue;
    if (Fiber* const fiber = pick_in(cta)) return fiber;
  }
  return nullptr;
}

void thread_main() {
  grid.kernel.run(grid.kernel.arguments);
  Cta& cta = current_cta();
  exit_thread();
  if (cta.live_threads == 0) switch_to_host();
  block();
  __builtin_unreachable();
}

void start_cta(Cta& cta) {
  int const threads = grid.block_dim.x * grid.block_dim.y * grid.block_dim.z;
  cta.active = true;
  cta.index = grid.order[grid.started++];
  cta.linear = (cta.index.z * grid.grid_dim.y + cta.index.y) * grid.grid_dim.x + cta.index.x;
  cta.num_warps = (threads + kWarpSize - 1) / kWarpSize;
  cta.live_threads = threads;
  cta.runnable_warps = 0;
  cta.warps.resize(cta.num_warps);
  for (Barrier& barrier : cta.barriers) barrier.threads = 0;
  if (grid.options.races) cta.shadow.reset(grid.shared_bytes, cta.num_warps);
  cta.saved_shared.resize(grid.shared_bytes);
  if (grid.options.poison) std::memset(cta.saved_shared.data(), 0xff, grid.shared_bytes);
  if (grid.resident == &cta) grid.resident = nullptr;

  for (int w = 0; w < cta.num_warps; ++w) {
    Warp& warp = cta.warps[w];
    warp.cta = &cta;
    warp.index = w;
    warp.global_index = cta.linear * uint32_t(cta.num_warps) + uint32_t(w);
    warp.exists = warp.runnable = warp.waiting = warp.exited = 0;
    warp.next_lane = 0;
    warp.lane_stride = 1;
    warp.tick = 1;
    std::memset(warp.known, 0, sizeof(warp.known));
    warp.foreign.clear();
    warp.has_acquired = warp.has_log = false;
    shuffle_lane_order(warp);
    for (int l = 0; l < kWarpSize; ++l) {
      int const thread = w * kWarpSize + l;
      if (thread >= threads) break;
      Fiber& fiber = warp.lanes[l];
      fiber.warp = &warp;
      fiber.lane = l;
      int const x = grid.block_dim.x, y = grid.block_dim.y;
      fiber.thread_index = {unsigned(thread % x), unsigned(thread / x % y),
                            unsigned(thread / (x * y))};
      fiber.copies.clear();
      fiber.log.clear();
      fiber.order = ThreadOrder();
      fiber.stack_pointer = grid.stacks.prepare(cta.slot * threads + thread, thread_main);
      warp.operation[l] = Operation::kNone;
      warp.exists |= 1u << l;
      set_runnable(warp, 1u << l);
    }
  }
  ++totals.ctas;
}

// Frees the slots of CTAs that have ended, and starts others there. False when all are done.
bool refill_slots() {
  bool any = false;
  for (Cta& cta : grid.slots) {
    if (cta.active && cta.live_threads == 0) cta.active = false;
    if (!cta.active && grid.started < grid.order.size()) start_cta(cta);
    any |= cta.active;
  }
  return any;
}

}  // namespace

void block() {
  Warp& warp = current_warp();
  Fiber* next = warp.runnable != 0 ? next_lane(warp) : pick_in(*warp.cta);
  if (next == nullptr) next = pick_anywhere();
  if (next != nullptr) {
    switch_to(next);
  } else {
    switch_to_host();  // it finds out what is left to do
  }
}

void give_way_sometimes() {
  if (!grid.options.random_order) return;
  uint32_t const dice = grid.random.next();
  if ((dice & 255) >= grid.switch_threshold) return;
  constexpr uint32_t kOtherCta = 16;  // one time in this many
  bool const anywhere = grid.slots.size() > 1 && (dice >> 8) % kOtherCta == 0;
  switch_to(anywhere ? pick_anywhere() : pick_in(current_cta()));
}

void give_way() {
  if (!grid.options.random_order) return;
  switch_to(pick_anywhere());
}

void wait_for_write() {
  Warp& warp = current_warp();
  pollers.push_back(current);
  warp.operation[current->lane] = Operation::kPoll;
  clear_runnable(warp, 1u << current->lane);
  block();
  warp.operation[current->lane] = Operation::kNone;
}

void wake_pollers() {
  ++grid.writes_seen;
  idle_wakes = 0;
  for (Fiber* fiber : pollers) set_runnable(*fiber->warp, 1u << fiber->lane);
  pollers.clear();
}

void abandon_launch() {
  launch_abandoned = true;
  switch_to_host();
  __builtin_unreachable();
}

void run_grid() {
  launch_abandoned = false;
  RuntimeSection::active = false;
  pollers.clear();
  idle_wakes = 0;
  while (!launch_abandoned && refill_slots()) {
    Fiber* next = pick_anywhere();
    if (next == nullptr && !pollers.empty() && ++idle_wakes < kMaxIdleWakes) {
      for (Fiber* fiber : pollers) set_runnable(*fiber->warp, 1u << fiber->lane);
      pollers.clear();
      next = pick_anywhere();
    }
    if (next == nullptr) {
      note_about_launch("deadlock: no thread can go on\n" + describe_waiting());
      break;
    }
    enter(next);
    emu_switch_stack(&grid.host_stack_pointer, next->stack_pointer);
  }
  current = nullptr;
  for (Cta& cta : grid.slots) cta.active = false;
}

}  // namespace emu
