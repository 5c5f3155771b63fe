// Plain loads and stores of kernels, as the compiler's thread-sanitizer instrumentation shows
// them. The library of that sanitizer is not linked; these are its entry points.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "access.h"
#include "global_memory.h"
#include "machine.h"
#include "report.h"

namespace emu {

namespace {

constexpr size_t kWidest = 16;  // bytes that one instruction moves

enum class Width { kNatural, kUnaligned };

bool on_stack(void const* address) {
  return uintptr_t(address) - stack_arena_begin < stack_arena_bytes;
}

// Whether the caller is a kernel's thread. Host code in the same files is instrumented too, and may
// run on other host threads in the meantime; so the question goes to the stack.
bool in_kernel() { return on_stack(__builtin_frame_address(0)) && !RuntimeSection::active; }

struct {
  uintptr_t begin = 0;
  size_t bytes = 0;
} host_constant;

__attribute__((noinline)) void access_memory(void const* address, size_t bytes, bool writes,
                                             Width width, void const* site) {
  if (!in_kernel()) return;
  if (uintptr_t(address) - host_constant.begin < host_constant.bytes) return;
  if (width == Width::kNatural && uintptr_t(address) % bytes != 0) {
    fail(site, "misaligned access of %zu bytes at %s", bytes, describe_address(address).text);
  }
  size_t const offset = size_t(static_cast<char const*>(address) - shared_base);
  if (offset < size_t(kSharedBytesMax)) {
    access_shared(site, offset, bytes, writes);
  } else {
    access_global(site, address, bytes, writes);
  }
}

__attribute__((noinline)) void access_volatile(void const* address, size_t bytes, bool writes,
                                               void const* site) {
  if (!in_kernel()) return;
  size_t const offset = size_t(static_cast<char const*>(address) - shared_base);
  if (offset < size_t(kSharedBytesMax)) {
    access_shared(site, offset, bytes, writes);
  } else {
    access_flag(site, address, bytes, writes);
  }
}

void access_range(char const* address, size_t bytes, bool writes, void const* site) {
  if (on_stack(address)) return;
  for (size_t done = 0; done < bytes; done += kWidest) {
    access_memory(address + done, std::min(kWidest, bytes - done), writes, Width::kUnaligned, site);
  }
}

}  // namespace

void declare_host_constant(void const* address, size_t bytes) {
  host_constant = {uintptr_t(address), bytes};
}

void copy_vector(void const* source, void* target, int bytes) {
  void const* const site = __builtin_return_address(0);
  if (!on_stack(source)) access_memory(source, size_t(bytes), false, Width::kNatural, site);
  if (!on_stack(target)) access_memory(target, size_t(bytes), true, Width::kNatural, site);
  std::memcpy(target, source, size_t(bytes));
}

}  // namespace emu

#define EMU_ACCESS(name, bytes, writes, width)                                                  \
  extern "C" void name(void* address) {                                                         \
    if (emu::on_stack(address)) return;                                                         \
    emu::access_memory(address, bytes, writes, emu::Width::width, __builtin_return_address(0)); \
  }
#define EMU_VOLATILE_ACCESS(name, bytes, writes)                               \
  extern "C" void name(void* address) {                                        \
    if (emu::on_stack(address)) return;                                        \
    emu::access_volatile(address, bytes, writes, __builtin_return_address(0)); \
  }
#define EMU_ACCESSES(bytes)                                                \
  EMU_ACCESS(__tsan_read##bytes, bytes, false, kNatural)                   \
  EMU_ACCESS(__tsan_write##bytes, bytes, true, kNatural)                   \
  EMU_ACCESS(__tsan_unaligned_read##bytes, bytes, false, kUnaligned)       \
  EMU_ACCESS(__tsan_unaligned_write##bytes, bytes, true, kUnaligned)       \
  EMU_VOLATILE_ACCESS(__tsan_volatile_read##bytes, bytes, false)           \
  EMU_VOLATILE_ACCESS(__tsan_volatile_write##bytes, bytes, true)           \
  EMU_VOLATILE_ACCESS(__tsan_unaligned_volatile_read##bytes, bytes, false) \
  EMU_VOLATILE_ACCESS(__tsan_unaligned_volatile_write##bytes, bytes, true)
EMU_ACCESSES(1)
EMU_ACCESSES(2)
EMU_ACCESSES(4)
EMU_ACCESSES(8)
EMU_ACCESSES(16)

extern "C" {
void __tsan_read_range(void* address, size_t bytes) {
  emu::access_range(static_cast<char*>(address), bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  emu::access_range(static_cast<char*>(address), bytes, true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}

// Atomics of the host's code in the same files: guards of static variables, reference counts.
#define EMU_HOST_ATOMICS(bits, type)                                                             \
  extern "C" type __tsan_atomic##bits##_load(type const volatile* p, int) {                      \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                 \
  }                                                                                              \
  extern "C" void __tsan_atomic##bits##_store(type volatile* p, type value, int) {               \
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                \
  }                                                                                              \
  extern "C" type __tsan_atomic##bits##_exchange(type volatile* p, type value, int) {            \
    return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                      \
  }                                                                                              \
  extern "C" type __tsan_atomic##bits##_fetch_add(type volatile* p, type value, int) {           \
    return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                              \
  extern "C" type __tsan_atomic##bits##_fetch_sub(type volatile* p, type value, int) {           \
    return __atomic_fetch_sub(p, value, __ATOMIC_SEQ_CST);                                       \
  }                                                                                              \
  extern "C" int __tsan_atomic##bits##_compare_exchange_strong(type volatile* p, type* expected, \
                                                               type value, int, int) {           \
    return __atomic_compare_exchange_n(p, expected, value, false, __ATOMIC_SEQ_CST,              \
                                       __ATOMIC_SEQ_CST);                                        \
  }
EMU_HOST_ATOMICS(8, uint8_t)
EMU_HOST_ATOMICS(32, uint32_t)
EMU_HOST_ATOMICS(64, uint64_t)
