#pragma once

// How floating point behaves in a thread: rounding, and whether subnormal numbers count as zero.
// The calling thread's own settings are to hold in all threads of a call, or its results would
// depend on which thread does what.

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
  // Leaves the flags of exceptions as they are.
  void use() const { _mm_setcsr(control_ | (_mm_getcsr() & kFlags)); }
  bool operator==(FloatEnvironment const&) const = default;

 private:
  static constexpr uint32_t kFlags = 0x3f;

  explicit FloatEnvironment(uint32_t control) : control_(control) {}
  uint32_t control_;
};

#elif defined(__aarch64__)

class FloatEnvironment {
 public:
  static FloatEnvironment current() { return FloatEnvironment(__builtin_aarch64_get_fpcr()); }
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
