#include "shared_windows.h"

#include <sys/mman.h>

#include <new>

#include "fiber.h"

namespace emu {

uintptr_t shared_windows_begin = 0;
size_t shared_windows_bytes = 0;

namespace {

// Address space only, until a CTA writes there.
void reserve() {
  size_t const bytes = StackArena::kMaxStacks * kSharedWindowBytes;
  void* const arena = mmap(nullptr, bytes + kSharedWindowBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) throw std::bad_alloc();
  uintptr_t const aligned = uintptr_t(arena) + kSharedWindowBytes - 1;
  shared_windows_begin = aligned / kSharedWindowBytes * kSharedWindowBytes;
  shared_windows_bytes = bytes;
}

}  // namespace

char* shared_window(int slot) {
  if (shared_windows_bytes == 0) reserve();
  return reinterpret_cast<char*>(shared_windows_begin + size_t(slot) * kSharedWindowBytes);
}

}  // namespace emu
