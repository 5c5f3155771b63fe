#pragma once

// What a thread's registers are to its wgmmas: until the group of a product is complete, its sums
// and its fragments of A are used by nothing else, and between another use and a product comes a
// wgmma.fence (PTX ISA, "Asynchronous wgmma instructions").

#include "ptx/module.h"

namespace emu::ptx {

// How far the thread is with them.
struct Wgmmas {
  u32 fences = 1;  // the next one
  u32 committed = 0, complete = 0;

  void fence() { ++fences; }
  void commit() { ++committed; }
  void wait(u32 pending) {
    u32 const others = committed > pending ? committed - pending : 0;
    if (others > complete) complete = others;
  }
};

// Registers that products have together.
struct WgmmaRegisters {
  u32 group = 0;   // of the last product
  u32 needed = 1;  // the fence that comes after the last use, or the first of all
};

[[noreturn]] void registers_in_flight(Site const* site, char const* name);
[[noreturn]] void registers_without_fence(Site const* site);

// Something else than their products comes to them.
inline void use(Site const* site, char const* name, Wgmmas const& wgmmas,
                WgmmaRegisters& registers) {
  if (registers.group > wgmmas.complete) registers_in_flight(site, name);
  registers.needed = wgmmas.fences;
}

inline void issue(Site const* site, Wgmmas const& wgmmas, WgmmaRegisters& registers) {
  if (registers.needed == wgmmas.fences) registers_without_fence(site);
  registers.group = wgmmas.committed + 1;
}

}  // namespace emu::ptx
