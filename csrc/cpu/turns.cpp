#include "cpu/turns.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace fa2::cpu {

void Turn::wait_for(int32_t key) const {
  if (before_ == nullptr) return;
  // The previous link is at work already, most often well ahead. A thread that does have to wait
  // hands its core to others before long: there may be fewer cores than threads.
  constexpr int kSpins = 2000;
  std::atomic_ref<int32_t> const before(*before_);
  for (int spins = 0; before.load(std::memory_order_acquire) > key; ++spins) {
    if (spins >= kSpins) std::this_thread::yield();
  }
}

void Turn::leave(int32_t key) {
  std::atomic_ref<int32_t>(own_).store(key, std::memory_order_release);
}

void Turn::pass(int32_t key) {
  if (before_ != nullptr) {
    // The next link waits for this one alone.
    std::atomic_ref<int32_t> const before(*before_);
    key = std::max(key, before.load(std::memory_order_acquire));
  }
  leave(key);
}

}  // namespace fa2::cpu
