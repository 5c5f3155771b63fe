// A launch from beginning to end.

#include <algorithm>
#include <mutex>

#include "cuda_limits.h"
#include "global_memory.h"
#include "report.h"
#include "scheduler.h"

extern __attribute__((visibility("hidden"))) uint3 emu_block_dim, emu_grid_dim;

// Where `extern __shared__` variables of kernels lie (include/emu/dynamic_shared.h).
extern "C" {
__attribute__((visibility("hidden"))) alignas(
    1024) thread_local char emu_dynamic_shared[emu::kSharedBytesMax];
}

namespace emu {

Grid grid;
Fiber* current = nullptr;
char* shared_base = nullptr;
Counters totals;

namespace {

std::mutex machine_mutex;

Options& next_options() {
  static Options options = [] {
    char const* const text = std::getenv("FLASH_ATTN2_EMULATOR");
    return parse_options(text == nullptr ? "" : text);
  }();
  return options;
}

std::vector<uint3> cta_order(dim3 dims, Options const& options, Random& random) {
  std::vector<uint3> order;
  for (unsigned z = 0; z < dims.z; ++z) {
    for (unsigned y = 0; y < dims.y; ++y) {
      for (unsigned x = 0; x < dims.x; ++x) order.push_back({x, y, z});
    }
  }
  if (options.random_order && !options.linear_ctas) {
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[random.below(uint32_t(i))]);
    }
  }
  return order;
}

// How often warps give way is itself drawn by the seed: coarse and fine schedules find different
// faults.
uint32_t switch_threshold(Options const& options) {
  constexpr uint32_t kThresholds[] = {16, 0, 64, 4};
  return kThresholds[options.seed % std::size(kThresholds)];
}

void set_up(cudaLaunchConfig_t const& config, Kernel const& kernel) {
  grid.options = next_options();
  grid.kernel = kernel;
  grid.grid_dim = config.gridDim;
  grid.block_dim = config.blockDim;
  emu_grid_dim = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
  emu_block_dim = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
  grid.shared_bytes = int(config.dynamicSmemBytes);
  grid.random.seed(grid.options.seed);
  grid.switch_threshold = switch_threshold(grid.options);
  grid.order = cta_order(config.gridDim, grid.options, grid.random);
  grid.started = 0;
  grid.resident = nullptr;
  grid.writes_seen = 0;
  size_t const threads = size_t(config.blockDim.x) * config.blockDim.y * config.blockDim.z;
  size_t const slots = std::min({size_t(std::max(1, grid.options.ctas_in_flight)),
                                 grid.order.size(), StackArena::kMaxStacks / threads});
  grid.slots.resize(slots);
  for (size_t i = 0; i < slots; ++i) grid.slots[i].slot = int(i);
  shared_base = emu_dynamic_shared;
  clear_flags();
  open_global_memory(kernel.function, kernel.arguments, kernel.arguments_bytes, grid.options.races);
}

}  // namespace

Options options() {
  std::lock_guard const lock(machine_mutex);
  return next_options();
}

void set_options(Options const& options) {
  std::lock_guard const lock(machine_mutex);
  next_options() = options;
}

Counters counters() {
  std::lock_guard const lock(machine_mutex);
  return totals;
}

void reset_counters() {
  std::lock_guard const lock(machine_mutex);
  totals = Counters();
}

cudaError_t launch(cudaLaunchConfig_t const& config, Kernel const& kernel) {
  cudaError_t const status = check_launch(config, kernel.function);
  if (status != cudaSuccess) return status;
  std::lock_guard const lock(machine_mutex);
  set_up(config, kernel);
  run_grid();
  ++totals.launches;
  close_global_memory();
  if (anything_reported()) throw Error(take_report());
  return cudaSuccess;
}

}  // namespace emu
