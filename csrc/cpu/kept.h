#pragma once

#include <utility>
#include <vector>

namespace fa2::cpu {

// A vector whose memory its thread keeps for the next one: in a tiny call, allocations would take
// a noticeable time. One at a time has it; others, of a call inside of a call, start without.
template <class T>
class Kept {
 public:
  Kept() : items_(std::exchange(memory(), {})) { items_.clear(); }
  Kept(Kept&&) noexcept = default;
  Kept& operator=(Kept&&) = delete;
  ~Kept() {
    if (items_.capacity() > memory().capacity()) memory() = std::move(items_);
  }

  std::vector<T>& operator*() { return items_; }
  std::vector<T> const& operator*() const { return items_; }
  std::vector<T>* operator->() { return &items_; }
  std::vector<T> const* operator->() const { return &items_; }

 private:
  static std::vector<T>& memory() {
    thread_local std::vector<T> memory;
    return memory;
  }

  std::vector<T> items_;
};

}  // namespace fa2::cpu
