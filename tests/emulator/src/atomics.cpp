// Atomic operations of kernels.

#include <algorithm>
#include <cstring>

#include "global_memory.h"
#include "machine.h"
#include "memory_order.h"
#include "report.h"
#include "scheduler.h"

namespace emu {

namespace {

template <class T>
T bits_to(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T combine(AtomicOp op, T old, T operand, T compare) {
  switch (op) {
    case AtomicOp::kAdd: return old + operand;
    case AtomicOp::kMin: return std::min(old, operand);
    case AtomicOp::kMax: return std::max(old, operand);
    case AtomicOp::kExchange: return operand;
    case AtomicOp::kCompareExchange: return old == compare ? operand : old;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == AtomicOp::kAnd) return old & operand;
    if (op == AtomicOp::kOr) return old | operand;
    if (op == AtomicOp::kXor) return old ^ operand;
  }
  fail(nullptr, "a bitwise atomic on a floating-point number");
}

// The old value; true in `changed` where memory has another one now.
template <class T>
uint64_t apply(void* address, AtomicOp op, uint64_t operand, uint64_t compare, bool& changed) {
  T old;
  std::memcpy(&old, address, sizeof(T));
  T const value = combine(op, old, bits_to<T>(operand), bits_to<T>(compare));
  changed = std::memcmp(&old, &value, sizeof(T)) != 0;
  std::memcpy(address, &value, sizeof(T));
  uint64_t bits = 0;
  std::memcpy(&bits, &old, sizeof(T));
  return bits;
}

uint64_t apply(void* address, AtomicOp op, AtomicType type, uint64_t operand, uint64_t compare,
               bool& changed) {
  switch (type) {
    case AtomicType::kInt32: return apply<int32_t>(address, op, operand, compare, changed);
    case AtomicType::kUInt32: return apply<uint32_t>(address, op, operand, compare, changed);
    case AtomicType::kUInt64: return apply<uint64_t>(address, op, operand, compare, changed);
    case AtomicType::kFloat: return apply<float>(address, op, operand, compare, changed);
    case AtomicType::kDouble: return apply<double>(address, op, operand, compare, changed);
  }
  return 0;
}

size_t size_of(AtomicType type) {
  return type == AtomicType::kUInt64 || type == AtomicType::kDouble ? 8 : 4;
}

}  // namespace

uint64_t atomic(void* address, AtomicOp op, AtomicType type, uint64_t operand, uint64_t compare) {
  void const* const site = __builtin_return_address(0);
  size_t const bytes = size_of(type);
  if (uintptr_t(address) % bytes != 0) {
    fail(site, "misaligned atomic at %s", describe_address(address).text);
  }
  size_t const offset = size_t(static_cast<char*>(address) - shared_base);
  bool const shared = offset < size_t(kSharedBytesMax);
  if (shared) fail(site, "atomics on shared memory are not emulated");
  check_global(address, bytes, GlobalAccess::kAtomic, site);
  ++totals.atomics;
  give_way();
  bool changed = false;
  observe_flag(address);
  uint64_t const old = apply(address, op, type, operand, compare, changed);
  if (changed) {
    publish_flag(address, true);
    wake_pollers();
  } else {
    poll_flag(address);
    observe_flag(address);
  }
  return old;
}

}  // namespace emu
