#pragma once

// Plain accesses of the current thread to memory: bounds, races, counts. `site` is the instruction.

#include <cstddef>

#include "emu/atomics.h"

namespace emu {

// Of `bytes` at an offset into shared memory.
void access_shared(void const* site, size_t offset, size_t bytes, bool writes);
void access_global(void const* site, void const* address, size_t bytes, bool writes);

// A flag: threads talk through it, so it takes part in the order of things but is no race itself.
void access_flag(void const* site, void const* address, size_t bytes, bool writes,
                 Order order = Order::kRelaxed, Scope scope = Scope::kGpu);
void access_shared_flag(void const* site, size_t offset, size_t bytes, bool writes, Order order,
                        Scope scope);

}  // namespace emu
