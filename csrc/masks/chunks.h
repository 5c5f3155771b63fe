#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

namespace fa2::masks {

// An array that grows without a copy, and gives its memory back while it is copied away.
template <class T>
class Chunks {
 public:
  size_t size() const { return size_; }
  T const& operator[](size_t i) const { return chunks_[i / kLength][i % kLength]; }

  void push_back(T const& value) {
    if (size_ == chunks_.size() * kLength) {
      chunks_.push_back(std::make_unique_for_overwrite<T[]>(kLength));
    }
    chunks_[size_ / kLength][size_ % kLength] = value;
    ++size_;
  }

  // visit(elements, count) for one piece after the other; nothing is left.
  template <class Visit>
  void drain(Visit const& visit) {
    for (auto& chunk : chunks_) {
      size_t const count = std::min(size_, kLength);
      visit(chunk.get(), count);
      chunk.reset();
      size_ -= count;
    }
    chunks_.clear();
  }

 private:
  static constexpr size_t kBytes = 256 * 1024;  // so many go back to the system at once
  static constexpr size_t kLength = kBytes / sizeof(T);

  std::vector<std::unique_ptr<T[]>> chunks_;
  size_t size_ = 0;
};

}  // namespace fa2::masks
