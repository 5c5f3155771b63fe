#pragma once

// How floating point behaves in a thread: rounding, and whether subnormal numbers count as zero.
// The calling thread's own settings are to hold in all threads of a call, or its results would
// depend on which thread does what. With one exception: results that are subnormal become zero in
// kernels. Probabilities of keys far away pass through that range, as do the sums and products that
// they begin or end, and x86 processors take some 150 cycles for each vector with such a number in
// it: attention with steep ALiBi slopes took three times as long.

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <cfenv>
#endif

namespace fa2::cpu {

#if defined(__x86_64__)

class FloatEnvironment {
 public:
  static FloatEnvironment current() { return FloatEnvironment(_mm_getcsr() & ~kFlags); }
  static FloatEnvironment for_kernels() {
    return FloatEnvironment((_mm_getcsr() & ~kFlags) | kFlushesResults);
  }
  // Leaves the flags of exceptions as they are.
  void use() const { _mm_setcsr(control_ | (_mm_getcsr() & kFlags)); }
  bool operator==(FloatEnvironment const&) const = default;

 private:
  static constexpr uint32_t kFlags = 0x3f;
  static constexpr uint32_t kFlushesResults = _MM_FLUSH_ZERO_ON;

  explicit FloatEnvironment(uint32_t control) : control_(control) {}
  uint32_t control_;
};

#elif defined(__aarch64__)

class FloatEnvironment {
 public:
  static FloatEnvironment current() { return FloatEnvironment(__builtin_aarch64_get_fpcr()); }
  // These processors take no longer for subnormal numbers, and flush them as operands, too, or not.
  static FloatEnvironment for_kernels() { return current(); }
  void use() const { __builtin_aarch64_set_fpcr(control_); }
  bool operator==(FloatEnvironment const&) const = default;

 private:
  explicit FloatEnvironment(uint32_t control) : control_(control) {}
  uint32_t control_;
};

#else

class FloatEnvironment {
 public:
  static FloatEnvironment current() { return {}; }
  static FloatEnvironment for_kernels() { return {}; }
  void use() const { std::fesetround(rounding_); }
  bool operator==(FloatEnvironment const&) const = default;

 private:
  int rounding_ = std::fegetround();
};

#endif

// Until its end, the thread computes as the one did whose environment this is.
class FloatEnvironmentScope {
 public:
  explicit FloatEnvironmentScope(FloatEnvironment const& environment)
      : differs_(!(own_ == environment)) {
    if (differs_) environment.use();
  }
  ~FloatEnvironmentScope() {
    if (differs_) own_.use();
  }
  FloatEnvironmentScope(FloatEnvironmentScope const&) = delete;
  FloatEnvironmentScope& operator=(FloatEnvironmentScope const&) = delete;

 private:
  FloatEnvironment const own_ = FloatEnvironment::current();
  bool const differs_;
};

}  // namespace fa2::cpu
