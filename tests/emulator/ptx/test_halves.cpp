// Instructions on f16, bf16 and pairs of them: each rounds the exact result once.

#include "instruction.h"
#include "rounding.h"

namespace {

using namespace emu::ptx;
using namespace selftest;

// Products of halves are exact in long double, and sums but for bf16's of very different sizes.
template <class H>
H rounded(long double exact) {
  // To f64 by truncation with a sticky bit, so that it is rounded once.
  double near = double(exact);
  if (std::isfinite(near) && static_cast<long double>(near) != exact) {
    if (std::fabs(static_cast<long double>(near)) > std::fabs(exact))
      near = std::nextafter(near, 0);
    uint64_t bits;
    std::memcpy(&bits, &near, sizeof(bits));
    bits |= 1;
    std::memcpy(&near, &bits, sizeof(bits));
  }
  return round_to<H>(near, Mode::kNearest);
}
// The number next to a finite one.
template <class H>
H neighbour(H x, bool up) {
  bool const negative = x.bits >> 15;
  if ((x.bits & 0x7fff) == 0) return {uint16_t(up ? 0x0001 : 0x8001)};
  return {uint16_t(x.bits + (up != negative ? 1 : -1))};
}

// a + b where the sum itself may lose bits: what decides is on which side of the middle between two
// neighbours it lies, and there the larger operand minus the middle is exact.
template <class H>
H nearest_sum(long double a, long double b) {
  if (std::fabs(a) < std::fabs(b)) std::swap(a, b);
  H const guess = rounded<H>(a + b);
  if (!std::isfinite(wide(guess)) || (guess.bits & 0x7fff) == 0) return guess;
  for (bool up : {false, true}) {
    H const other = neighbour(guess, up);
    if (!std::isfinite(wide(other))) continue;
    long double const middle =
        (static_cast<long double>(wide(guess)) + static_cast<long double>(wide(other))) / 2;
    long double const rest = a - middle;
    if (rest == -b) return guess.bits % 2 == 0 ? guess : other;
    if (up == (rest > -b)) return other;
  }
  return guess;
}

template <class H>
H sum(H a, H b) {
  return nearest_sum<H>(wide(a), wide(b));
}
template <class H>
H difference(H a, H b) {
  return nearest_sum<H>(wide(a), -wide(b));
}
template <class H>
H product(H a, H b) {
  return rounded<H>(static_cast<long double>(wide(a)) * wide(b));
}
template <class H>
H fused(H a, H b, H c) {
  return nearest_sum<H>(static_cast<long double>(wide(a)) * wide(b), wide(c));
}
template <class H>
H larger_of(H a, H b) {
  if (std::isnan(wide(a))) return b;
  if (std::isnan(wide(b))) return a;
  if (wide(a) == wide(b)) return a.bits >> 15 ? b : a;
  return wide(a) > wide(b) ? a : b;
}
template <class H>
H smaller_of(H a, H b) {
  if (std::isnan(wide(a))) return b;
  if (std::isnan(wide(b))) return a;
  if (wide(a) == wide(b)) return a.bits >> 15 ? a : b;
  return wide(a) < wide(b) ? a : b;
}
template <class H>
H nan_or(H a, H b, H otherwise) {
  return std::isnan(wide(a)) || std::isnan(wide(b)) ? H{0x7fff} : otherwise;
}
template <class H>
H positive(H a) {
  return wide(a) < 0 || a.bits == 0x8000 ? H{0} : a;
}
f16 clamped(f16 a) { return !(wide(a) > 0) ? f16{0} : wide(a) > 1 ? f16{0x3c00} : a; }

INSTRUCTION("add.f16", f16, (f16 a, f16 b), sum(a, b))
INSTRUCTION("sub.f16", f16, (f16 a, f16 b), difference(a, b))
INSTRUCTION("mul.rn.f16", f16, (f16 a, f16 b), product(a, b))
INSTRUCTION("fma.rn.f16", f16, (f16 a, f16 b, f16 c), fused(a, b, c))
INSTRUCTION("add.sat.f16", f16, (f16 a, f16 b), clamped(sum(a, b)))
INSTRUCTION("fma.rn.relu.f16", f16, (f16 a, f16 b, f16 c), positive(fused(a, b, c)))
INSTRUCTION("add.f16x2", f16x2, (f16x2 a, f16x2 b), {sum(a.low, b.low), sum(a.high, b.high)})
INSTRUCTION("mul.f16x2", f16x2, (f16x2 a, f16x2 b),
            {product(a.low, b.low), product(a.high, b.high)})
INSTRUCTION("fma.rn.f16x2", f16x2, (f16x2 a, f16x2 b, f16x2 c),
            {fused(a.low, b.low, c.low), fused(a.high, b.high, c.high)})
INSTRUCTION("neg.f16x2", f16x2, (f16x2 a),
            {{uint16_t(a.low.bits ^ 0x8000)}, {uint16_t(a.high.bits ^ 0x8000)}})
INSTRUCTION("abs.f16", f16, (f16 a), {uint16_t(a.bits & 0x7fff)})
INSTRUCTION("max.f16", f16, (f16 a, f16 b), larger_of(a, b))
INSTRUCTION("min.f16x2", f16x2, (f16x2 a, f16x2 b),
            {smaller_of(a.low, b.low), smaller_of(a.high, b.high)})
INSTRUCTION("max.NaN.f16x2", f16x2, (f16x2 a, f16x2 b),
            {nan_or(a.low, b.low, larger_of(a.low, b.low)),
             nan_or(a.high, b.high, larger_of(a.high, b.high))})
INSTRUCTION("ex2.approx.f16", f16, (f16 a), rounded<f16>(std::exp2(double(wide(a)))))
INSTRUCTION("tanh.approx.f16x2", f16x2, (f16x2 a),
            {rounded<f16>(std::tanh(double(wide(a.low)))),
             rounded<f16>(std::tanh(double(wide(a.high))))})
INSTRUCTION("setp.lt.f16", bool, (f16 a, f16 b), wide(a) < wide(b))
INSTRUCTION("setp.neu.f16", bool, (f16 a, f16 b), !(wide(a) == wide(b)))

INSTRUCTION("add.bf16", bf16, (bf16 a, bf16 b), sum(a, b))
INSTRUCTION("sub.bf16x2", bf16x2, (bf16x2 a, bf16x2 b),
            {difference(a.low, b.low), difference(a.high, b.high)})
INSTRUCTION("mul.bf16x2", bf16x2, (bf16x2 a, bf16x2 b),
            {product(a.low, b.low), product(a.high, b.high)})
INSTRUCTION("fma.rn.bf16", bf16, (bf16 a, bf16 b, bf16 c), fused(a, b, c))
INSTRUCTION("fma.rn.bf16x2", bf16x2, (bf16x2 a, bf16x2 b, bf16x2 c),
            {fused(a.low, b.low, c.low), fused(a.high, b.high, c.high)})
INSTRUCTION("max.bf16x2", bf16x2, (bf16x2 a, bf16x2 b),
            {larger_of(a.low, b.low), larger_of(a.high, b.high)})
INSTRUCTION("min.NaN.bf16", bf16, (bf16 a, bf16 b), nan_or(a, b, smaller_of(a, b)))
INSTRUCTION("neg.bf16", bf16, (bf16 a), {uint16_t(a.bits ^ 0x8000)})
INSTRUCTION("setp.gt.bf16", bool, (bf16 a, bf16 b), wide(a) > wide(b))

}  // namespace
