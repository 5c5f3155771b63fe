#include "cpu/thread_scratch.h"

#include <cstdlib>

namespace fa2::cpu {

namespace {

class Scratch {
 public:
  Scratch() = default;
  Scratch(Scratch const&) = delete;
  Scratch& operator=(Scratch const&) = delete;
  ~Scratch() { std::free(memory_); }

  void* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + kPage - 1) / kPage * kPage;
      memory_ = std::aligned_alloc(kPage, size_);
      if (memory_ == nullptr) size_ = 0;
    }
    return memory_;
  }

 private:
  static constexpr size_t kPage = 4096;
  void* memory_ = nullptr;
  size_t size_ = 0;
};

thread_local Scratch scratch;
thread_local Scratch shared;

}  // namespace

void* thread_scratch(size_t bytes) { return scratch.reserve(bytes); }
void* shared_scratch(size_t bytes) { return shared.reserve(bytes); }

}  // namespace fa2::cpu
