// Operations that round toward zero, down or up. Compiled with -frounding-math.

#include <cfenv>
#include <cmath>

#include "ptx/conversions.h"
#include "ptx/floats.h"

namespace emu::ptx {

namespace {

constexpr int kRz = FE_TOWARDZERO, kRm = FE_DOWNWARD, kRp = FE_UPWARD;

class Rounding {
 public:
  explicit Rounding(int mode) : before_(std::fegetround()) { std::fesetround(mode); }
  ~Rounding() { std::fesetround(before_); }

 private:
  int before_;
};

// Computed where the mode is set, not before.
template <class T, class F, class... A>
T rounded(int mode, F f, A... operands) {
  Rounding const rounding(mode);
  T const volatile result = f(static_cast<A const volatile&>(operands)...);
  return result;
}

}  // namespace

#define EMU_ROUNDED(mode, constant)                                                                \
  f32 add_##mode(f32 a, f32 b) {                                                                   \
    return rounded<f32>(constant, [](f32 x, f32 y) { return x + y; }, a, b);                       \
  }                                                                                                \
  f64 add_##mode(f64 a, f64 b) {                                                                   \
    return rounded<f64>(constant, [](f64 x, f64 y) { return x + y; }, a, b);                       \
  }                                                                                                \
  f32 sub_##mode(f32 a, f32 b) {                                                                   \
    return rounded<f32>(constant, [](f32 x, f32 y) { return x - y; }, a, b);                       \
  }                                                                                                \
  f64 sub_##mode(f64 a, f64 b) {                                                                   \
    return rounded<f64>(constant, [](f64 x, f64 y) { return x - y; }, a, b);                       \
  }                                                                                                \
  f32 mul_##mode(f32 a, f32 b) {                                                                   \
    return rounded<f32>(constant, [](f32 x, f32 y) { return x * y; }, a, b);                       \
  }                                                                                                \
  f64 mul_##mode(f64 a, f64 b) {                                                                   \
    return rounded<f64>(constant, [](f64 x, f64 y) { return x * y; }, a, b);                       \
  }                                                                                                \
  f32 div_##mode(f32 a, f32 b) {                                                                   \
    return rounded<f32>(constant, [](f32 x, f32 y) { return x / y; }, a, b);                       \
  }                                                                                                \
  f32 fma_##mode(f32 a, f32 b, f32 c) {                                                            \
    return rounded<f32>(constant, [](f32 x, f32 y, f32 z) { return std::fma(x, y, z); }, a, b, c); \
  }                                                                                                \
  f64 fma_##mode(f64 a, f64 b, f64 c) {                                                            \
    return rounded<f64>(constant, [](f64 x, f64 y, f64 z) { return std::fma(x, y, z); }, a, b, c); \
  }                                                                                                \
  f32 to_f32_##mode(f64 x) {                                                                       \
    return rounded<f32>(constant, [](f64 v) { return f32(v); }, x);                                \
  }                                                                                                \
  f32 to_f32_##mode(s64 x) {                                                                       \
    return rounded<f32>(constant, [](s64 v) { return f32(v); }, x);                                \
  }                                                                                                \
  f32 to_f32_##mode(u64 x) {                                                                       \
    return rounded<f32>(constant, [](u64 v) { return f32(v); }, x);                                \
  }                                                                                                \
  f64 to_f64_##mode(s64 x) {                                                                       \
    return rounded<f64>(constant, [](s64 v) { return f64(v); }, x);                                \
  }                                                                                                \
  f64 to_f64_##mode(u64 x) {                                                                       \
    return rounded<f64>(constant, [](u64 v) { return f64(v); }, x);                                \
  }
EMU_ROUNDED(rz, kRz)
EMU_ROUNDED(rm, kRm)
EMU_ROUNDED(rp, kRp)
#undef EMU_ROUNDED

}  // namespace emu::ptx
