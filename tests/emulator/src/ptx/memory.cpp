// Loads and stores of translated kernels, and where their memory lies.

#include "ptx/memory.h"

#include <cstring>

#include "access.h"
#include "global_memory.h"
#include "machine.h"
#include "modules.h"
#include "operations.h"
#include "report.h"
#include "scheduler.h"
#include "shared_windows.h"

namespace emu::ptx {

namespace {

void check_alignment(Site const* site, char const* space, u64 address, u32 bytes) {
  if (address % bytes == 0) return;
  fail(site, "misaligned access of %u bytes at %s + %zu", bytes, space, size_t(address));
}

void* to_pointer(u64 address) { return reinterpret_cast<void*>(address); }

void* access_shared_at(Site const* site, u64 offset, u32 bytes, bool writes) {
  check_alignment(site, "shared memory", offset, bytes);
  access_shared(site, offset, bytes, writes);
  return shared_base + offset;
}

void* access_global_at(Site const* site, u64 address, u32 bytes, bool writes) {
  void* const data = to_pointer(address);
  if (address % bytes != 0) {
    fail(site, "misaligned access of %u bytes at %s", bytes, describe_address(data).text);
  }
  access_global(site, data, bytes, writes);
  return data;
}

// Arrays of the thread's functions that are running.
void* access_local_at(Site const* site, u64 address, u32 bytes) {
  for (LocalMemory const* m = current->local_memory; m != nullptr; m = m->before) {
    if (address - u64(m->data) > u64(m->bytes) || address + bytes > u64(m->data) + m->bytes)
      continue;
    check_alignment(site, "local memory", address - u64(m->data), bytes);
    return to_pointer(address);
  }
  LocalMemory const* const last = current->local_memory;
  if (last == nullptr) fail(site, "out of bounds: local memory, of which the thread has none");
  fail(site, "out of bounds: %u bytes at local memory + %zd, of %u", bytes,
       ssize_t(address - u64(last->data)), last->bytes);
}

// Of a generic address in some window, which must be that of the thread's CTA.
u64 shared_offset(Site const* site, u64 address) {
  if (is_shared(address)) return address - shared_window();
  u64 const at = address - shared_windows_begin;
  u64 const slot = at / kSharedWindowBytes, offset = at % kSharedWindowBytes;
  if (slot >= grid.slots.size()) fail(site, "out of bounds: shared memory of no CTA");
  uint3 const owner = grid.slots[slot].index;
  fail(site, "out of bounds: shared memory + %zu of another CTA, (%u,%u,%u)", size_t(offset),
       owner.x, owner.y, owner.z);
}

void* access_generic_at(Site const* site, u64 address, u32 bytes, bool writes) {
  if (in_shared_windows(address)) {
    return access_shared_at(site, shared_offset(site, address), bytes, writes);
  }
  if (is_local(address)) return access_local_at(site, address, bytes);
  return access_global_at(site, address, bytes, writes);
}

bool is_argument(u64 address, u32 bytes) {
  u64 const begin = u64(grid.kernel.arguments);
  return address >= begin && address + bytes <= begin + grid.kernel.arguments_bytes;
}

void* access_flag_at(Site const* site, u64 address, u32 bytes, bool writes, Order order,
                     Scope scope) {
  void* const flag = to_pointer(address);
  if (address % bytes != 0) {
    fail(site, "misaligned access of %u bytes at %s", bytes, describe_address(flag).text);
  }
  access_flag(site, flag, bytes, writes, order, scope);
  return flag;
}

// A volatile access to shared memory is a plain one to the detector of races.
void* access_shared_flag_at(Site const* site, u64 offset, u32 bytes, bool writes, Order order,
                            Scope scope) {
  if (order == Order::kVolatile) return access_shared_at(site, offset, bytes, writes);
  check_alignment(site, "shared memory", offset, bytes);
  access_shared_flag(site, offset, bytes, writes, order, scope);
  return shared_base + offset;
}

void* access_generic_flag_at(Site const* site, u64 address, u32 bytes, bool writes, Order order,
                             Scope scope) {
  if (is_local(address)) return access_local_at(site, address, bytes);
  if (!in_shared_windows(address)) {
    return access_flag_at(site, address, bytes, writes, order, scope);
  }
  u64 const offset = shared_offset(site, address);
  return access_shared_flag_at(site, offset, bytes, writes, order, scope);
}

Entry const& running_entry() { return *grid.kernel.entry; }

}  // namespace

void const* read_shared(Site const* site, u64 offset, u32 bytes) {
  return access_shared_at(site, offset, bytes, false);
}
void* write_shared(Site const* site, u64 offset, u32 bytes) {
  return access_shared_at(site, offset, bytes, true);
}
void const* read_global(Site const* site, u64 address, u32 bytes) {
  return access_global_at(site, address, bytes, false);
}
void* write_global(Site const* site, u64 address, u32 bytes) {
  return access_global_at(site, address, bytes, true);
}
void const* read_generic(Site const* site, u64 address, u32 bytes) {
  return access_generic_at(site, address, bytes, false);
}
void* write_generic(Site const* site, u64 address, u32 bytes) {
  return access_generic_at(site, address, bytes, true);
}
void const* read_local(Site const* site, u64 address, u32 bytes) {
  return access_local_at(site, address, bytes);
}
void* write_local(Site const* site, u64 address, u32 bytes) {
  return access_local_at(site, address, bytes);
}
void const* read_param(Site const* site, u64 address, u32 bytes) {
  if (is_argument(address, bytes)) return to_pointer(address);
  fail(site, "out of bounds: %u bytes at the kernel's parameters + %zd, of %zu", bytes,
       ssize_t(address - u64(grid.kernel.arguments)), grid.kernel.arguments_bytes);
}
void* write_param(Site const* site, u64, u32) { fail(site, "writes to a kernel's parameters"); }

void const* read_shared_ordered(Site const* site, u64 offset, u32 bytes, Order order, Scope scope) {
  return access_shared_flag_at(site, offset, bytes, false, order, scope);
}
void* write_shared_ordered(Site const* site, u64 offset, u32 bytes, Order order, Scope scope) {
  return access_shared_flag_at(site, offset, bytes, true, order, scope);
}
void const* read_global_ordered(Site const* site, u64 address, u32 bytes, Order order,
                                Scope scope) {
  return access_flag_at(site, address, bytes, false, order, scope);
}
void* write_global_ordered(Site const* site, u64 address, u32 bytes, Order order, Scope scope) {
  return access_flag_at(site, address, bytes, true, order, scope);
}
void const* read_generic_ordered(Site const* site, u64 address, u32 bytes, Order order,
                                 Scope scope) {
  return access_generic_flag_at(site, address, bytes, false, order, scope);
}
void* write_generic_ordered(Site const* site, u64 address, u32 bytes, Order order, Scope scope) {
  return access_generic_flag_at(site, address, bytes, true, order, scope);
}

u64 shared_window() { return u64(shared_base); }
bool is_shared(u64 address) { return address - shared_window() < kSharedWindowBytes; }
bool is_local(u64 address) { return address - stack_arena_begin < stack_arena_bytes; }
bool is_param(u64 address) { return is_argument(address, 1); }
bool is_const(u64 address) {
  for (Module const* m : modules()) {
    for (u32 i = 0; i < m->num_variables; ++i) {
      Variable const& v = m->variables[i];
      if (!v.writable && v.name != nullptr && address - u64(v.data) < v.bytes) return true;
    }
  }
  return false;
}
bool is_global(u64 address) {
  return !in_shared_windows(address) && !is_local(address) && !is_param(address) &&
         !is_const(address);
}

u32 dynamic_shared_start() { return running_entry().shared_bytes; }
u32 dynamic_shared_bytes() { return u32(grid.shared_bytes) - running_entry().shared_bytes; }
u32 total_shared_bytes() { return u32(grid.shared_bytes); }

LocalMemory::LocalMemory(u8* data, u32 bytes)
    : data(data), bytes(bytes), before(current->local_memory) {
  current->local_memory = this;
  if (grid.options.poison) std::memset(data, 0xff, bytes);
}
LocalMemory::~LocalMemory() { current->local_memory = before; }

void copy_async(Site const* site, u64 to, u64 from, u32 bytes, u32 source_bytes) {
  emu::copy_async(site, to_pointer(from), to, bytes, source_bytes);
}
void copy_async_commit() { emu::copy_async_commit(); }
void copy_async_wait_group(u32 pending) { emu::copy_async_wait_group(int(pending)); }
void copy_async_wait_all() { emu::copy_async_wait_all(); }

u64 atomic(Site const* site, Space space, u64 address, AtomicOp op, AtomicType type, u64 operand,
           u64 compare, Order order, Scope scope, bool has_result) {
  emu::Atomic const what{op, type, operand, compare, order, scope, has_result};
  if (space == Space::kShared) return emu::atomic_shared(site, address, what);
  if (space == Space::kGeneric && in_shared_windows(address)) {
    return emu::atomic_shared(site, shared_offset(site, address), what);
  }
  if (space == Space::kGeneric && is_local(address)) fail(site, "an atomic in local memory");
  return emu::atomic(site, to_pointer(address), what);
}

void fence(Scope scope) { emu::fence(scope); }

}  // namespace emu::ptx
