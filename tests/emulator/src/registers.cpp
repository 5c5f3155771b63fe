#include "registers.h"

#include <algorithm>

#include "collectives.h"
#include "machine.h"
#include "operations.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

constexpr int kOfMultiprocessor = 64 << 10;
constexpr int kLeast = 24, kMost = 256, kUnit = 8;

}  // namespace

void RegisterPool::open(int threads) {
  int const whole_warps = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
  of_thread_ = std::min(kMost, kOfMultiprocessor / whole_warps / kUnit * kUnit);
  free_ = 0;
}

bool RegisterPool::exchange(int threads, int held, int wanted) {
  int const more = threads * (wanted - held);
  if (more > free_) return false;
  free_ -= more;
  return true;
}

void set_registers(void const* site, int wanted, bool more) {
  if (wanted < kLeast || wanted > kMost || wanted % kUnit != 0) {
    fail(site, "setmaxnreg: %d registers; from %d to %d in steps of %d are possible", wanted,
         kLeast, kMost, kUnit);
  }
  Warp& warp = current_warp();
  auto const together = [=](auto execute) {
    converge(Operation::kRegisters, uint32_t(wanted), kAllLanes, {site, true}, [=](Warp& w) {
      execute(w);
      return true;
    });
  };
  together([=](Warp& w) {
    take_step_of_group({site});
    if (more ? wanted < w.registers : wanted > w.registers) {
      fail(site, "setmaxnreg: from %d to %d registers is not %s", w.registers, wanted,
           more ? "more" : "less");
    }
  });
  bool done = false;
  while (!done) {
    together([=](Warp& w) {
      w.barrier_result = w.cta->registers.exchange(kWarpSize, w.registers, wanted);
      if (w.barrier_result) w.registers = wanted;
    });
    done = warp.barrier_result != 0;
    if (!done) wait_for_write(Operation::kRegisters, uint32_t(wanted));
  }
  wake_pollers();
}

}  // namespace emu
