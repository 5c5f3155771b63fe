#pragma once

// The buffers that kernels may access, and who has accessed them during a launch.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "emu/api.h"

namespace emu {

class GlobalBuffer {
 public:
  GlobalBuffer(Buffer const& buffer, bool track_order);
  ~GlobalBuffer();
  GlobalBuffer(GlobalBuffer&& other) noexcept;
  GlobalBuffer(GlobalBuffer const&) = delete;
  GlobalBuffer& operator=(GlobalBuffer const&) = delete;

  bool contains(void const* address, size_t bytes) const {
    return uintptr_t(address) >= begin && uintptr_t(address) + bytes <= end;
  }

  // The last accesses of one byte, by warp and time. Stamp 0: none.
  struct Cell {
    uint32_t writer, write_stamp;
    uint32_t reader, read_stamp;
  };

  uintptr_t begin, end;
  std::string name;
  bool writable;
  Cell* cells = nullptr;  // of the bytes of a writable buffer
  Traffic reads, writes;
  std::vector<uint64_t> read_sectors, written_sectors;  // bits: touched during this launch
};

enum class GlobalAccess { kLoad, kStore, kAtomic };

// For one launch: a copy of the registered buffers, and what is readable besides them.
void open_global_memory(void const* function, void const* arguments, size_t argument_bytes,
                        bool track_order);
void close_global_memory();  // adds the traffic to the totals

// Checks an access of the current thread. The buffer's index, or -1 for memory that costs nothing
// (arguments, constants). Does not return when the access is out of bounds.
int check_global(void const* address, size_t bytes, GlobalAccess access, void const* site);

GlobalBuffer& global_buffer(int index);
// "name + offset", or the bare address.
struct Place {
  char text[128];
};
Place describe_address(void const* address);

}  // namespace emu
