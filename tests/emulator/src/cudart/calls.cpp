#include "calls.h"

#include <mutex>
#include <utility>

#include "emu/api.h"

namespace emu {

namespace {

std::mutex mutex;
std::map<std::string, uint64_t> counts;

}  // namespace

void count_call(char const* function) {
  std::lock_guard const lock(mutex);
  ++counts[function];
}

std::map<std::string, uint64_t> take_runtime_calls() {
  std::lock_guard const lock(mutex);
  return std::exchange(counts, {});
}

}  // namespace emu
