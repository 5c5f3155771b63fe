#pragma once

// The kinds of atomic operations.

#include <cstdint>

namespace emu {

enum class AtomicOp : uint8_t { kAdd, kMin, kMax, kInc, kDec, kExch, kCas, kAnd, kOr, kXor };

enum class AtomicType : uint8_t {
  kU32,
  kS32,
  kU64,
  kS64,
  kF32,
  kF64,
  kF16,
  kF16x2,
  kBf16,
  kBf16x2,
  kB16,
  kB32,
  kB64,
};

// Who is sure to see what a thread does: its CTA, or the whole device.
enum class Scope : uint8_t { kCta, kGpu };

enum class Order : uint8_t { kWeak, kVolatile, kRelaxed, kAcquire, kRelease, kAcquireRelease };

inline bool acquires(Order o) { return o == Order::kAcquire || o == Order::kAcquireRelease; }
inline bool releases(Order o) { return o == Order::kRelease || o == Order::kAcquireRelease; }

}  // namespace emu
