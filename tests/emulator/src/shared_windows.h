#pragma once

// Shared memory in the space of generic addresses: a window for each CTA in flight. Windows lie
// side by side, in the order of the slots, so that the address of a place in another one is that of
// the same place in the own one, plus a multiple of the windows' size.

#include <cstddef>
#include <cstdint>

namespace emu {

inline constexpr size_t kSharedWindowBytes = 256 << 10;  // more than any device's CTA can have

// Zero-sized until the first window is asked for.
extern uintptr_t shared_windows_begin;
extern size_t shared_windows_bytes;

// The window of the CTA in a slot.
char* shared_window(int slot);

inline bool in_shared_windows(uintptr_t address) {
  return address - shared_windows_begin < shared_windows_bytes;
}

}  // namespace emu
