#pragma once

// Global memory of the tests.

#include <vector>

#include "emu/api.h"

namespace selftest {

// Zeros, 256-byte aligned as from cudaMalloc, and far enough from the next array that running over
// the end is out of bounds.
template <class T>
class Array {
 public:
  explicit Array(int size) : size_(size), storage_(size_t(size) * sizeof(T) / 256 + kMargin) {}

  T* data() { return reinterpret_cast<T*>(storage_.data()); }
  T& operator[](int i) { return data()[i]; }
  int size() const { return size_; }

  emu::Buffer read_only(char const* name) { return {data(), bytes(), name, false}; }
  emu::Buffer writable(char const* name) { return {data(), bytes(), name, true}; }

 private:
  struct alignas(256) Line {
    char bytes[256];
  };
  static constexpr size_t kMargin = 64;

  size_t bytes() const { return size_t(size_) * sizeof(T); }

  int size_;
  std::vector<Line> storage_;
};

}  // namespace selftest
