#pragma once

// Accesses to memory. Each is checked and counted, and gives a pointer to move the data through.

#include "emu/atomics.h"
#include "ptx/module.h"

namespace emu::ptx {

using emu::AtomicOp;
using emu::AtomicType;
using emu::Order;
using emu::Scope;
enum class Space : u8 { kGeneric, kGlobal, kShared, kLocal, kParam, kConst };

#define EMU_PTX_ACCESS(space)                                         \
  void const* read_##space(Site const* site, u64 address, u32 bytes); \
  void* write_##space(Site const* site, u64 address, u32 bytes);
EMU_PTX_ACCESS(generic)
EMU_PTX_ACCESS(global)
EMU_PTX_ACCESS(shared)  // by offset
EMU_PTX_ACCESS(local)
EMU_PTX_ACCESS(param)
#undef EMU_PTX_ACCESS
inline void const* read_const(Site const* site, u64 address, u32 bytes) {
  return read_global(site, address, bytes);
}

#define EMU_PTX_ORDERED(space)                                                              \
  void const* read_##space##_ordered(Site const* site, u64 address, u32 bytes, Order order, \
                                     Scope scope);                                          \
  void* write_##space##_ordered(Site const* site, u64 address, u32 bytes, Order order, Scope scope);
EMU_PTX_ORDERED(generic)
EMU_PTX_ORDERED(global)
EMU_PTX_ORDERED(shared)
#undef EMU_PTX_ORDERED

// Generic addresses are the host's; the shared memory of each CTA lies in a window of them.
u64 shared_window();
bool is_shared(u64 address);
bool is_local(u64 address);
bool is_global(u64 address);
bool is_const(u64 address);
bool is_param(u64 address);
u32 dynamic_shared_start();
u32 dynamic_shared_bytes();
u32 total_shared_bytes();

// An array of the present function in local memory.
class LocalMemory {
 public:
  LocalMemory(u8* data, u32 bytes);
  ~LocalMemory();
  LocalMemory(LocalMemory const&) = delete;
  LocalMemory& operator=(LocalMemory const&) = delete;

  u8* const data;
  u32 const bytes;
  LocalMemory const* const before;  // of this function, then of its callers
};

// cp.async; what its source does not give is zero.
void copy_async(Site const* site, u64 to, u64 from, u32 bytes, u32 source_bytes);
void copy_async_commit();
void copy_async_wait_group(u32 pending);
void copy_async_wait_all();

// The old value; `compare` is for kCas.
u64 atomic(Site const* site, Space space, u64 address, AtomicOp op, AtomicType type, u64 operand,
           u64 compare, Order order, Scope scope, bool has_result);

void fence(Scope scope);

}  // namespace emu::ptx
