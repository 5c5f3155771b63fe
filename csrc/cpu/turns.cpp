#include "cpu/turns.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace fa2::cpu {

namespace {

int32_t read(int32_t& number) {
  return std::atomic_ref<int32_t>(number).load(std::memory_order_acquire);
}

void write(int32_t& number, int32_t value) {
  std::atomic_ref<int32_t>(number).store(value, std::memory_order_release);
}

// Returns when reached(number). Whoever is waited for is at work already, most often well ahead. A
// thread that does have to wait hands its core to others before long: there may be fewer cores than
// threads.
template <class Reached>
void wait_until(int32_t& number, Reached const& reached) {
  constexpr int kSpins = 2000;
  for (int spins = 0; !reached(read(number)); ++spins) {
    if (spins >= kSpins) std::this_thread::yield();
  }
}

}  // namespace

int32_t LinkProgress::split_of(int32_t key) const {
  return splits == 1 ? 0 : splits - 1 - std::min(key / split_keys, splits - 1);
}

int32_t LinkProgress::left_below(int32_t end) const {
  if (left == nullptr) return kAllKeysLeft;
  for (int32_t split = split_of(end - 1); split < splits; ++split) {
    int32_t const key = read(left[split]);
    if (key > begin_of(split)) return std::min(key, end_of(split));
  }
  return kAllKeysLeft;
}

void LinkProgress::wait_for(int32_t split, int32_t key) const {
  if (left == nullptr) return;
  wait_until(left[split], [key](int32_t at) { return at <= key; });
}

void Turn::report(int32_t key) { write(own_.left[split_], key); }

void Turn::leave(int32_t key) {
  // To wait for the keys of one of its splits says nothing of the others of the link before.
  report(std::max(key, before_.left_below(own_.end_of(split_))));
}

void Turn::leave_all() {
  if (own_.splits == 1) {
    wait_for_all(LinkProgress::kAllKeysLeft);
  } else {
    wait_for(own_.begin_of(split_));
  }
  report(LinkProgress::kAllKeysLeft);
}

void Turn::wait_for_all(int32_t key) const {
  for (int32_t split = 0; split < before_.splits; ++split) before_.wait_for(split, key);
}

void SplitTurn::wait_for_memory() const {
  if (before_ == nullptr) return;
  wait_until(before_->finished, [](int32_t finished) { return finished == kReleased; });
}

void SplitTurn::prepared() { write(own_.prepared, 1); }

void SplitTurn::wait_until_prepared() const {
  wait_until(own_.prepared, [](int32_t prepared) { return prepared != 0; });
}

bool SplitTurn::finish() {
  std::atomic_ref<int32_t> const finished(own_.finished);
  return finished.fetch_add(1, std::memory_order_acq_rel) + 1 == num_splits_;
}

void SplitTurn::release() { write(own_.finished, kReleased); }

}  // namespace fa2::cpu
