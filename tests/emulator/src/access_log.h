#pragma once

// From the accesses of single threads to the requests of warps: sectors and bank conflicts.

#include <cstdint>
#include <vector>

namespace emu {

struct Warp;

enum class AccessKind : uint8_t {
  kSharedLoad,
  kSharedStore,
  kGlobalLoad,
  kGlobalStore,
  kCopyAsync,
};

struct Access {
  void const* site;   // the instruction
  uintptr_t address;  // of a copy, the source
  uintptr_t target;   // of a copy
  AccessKind kind;
  uint8_t bytes;   // 0: predicated off
  int16_t buffer;  // index of the global buffer
};

// What one thread has accessed since its warp last converged.
using AccessLog = std::vector<Access>;

// Notes an access of the current thread.
void log_access(Access const& access);

// The warp has converged: the accesses of its lanes at the same instruction, in the same turn, are
// one request.
void count_requests(Warp& warp);

// Wavefronts of one request of `bytes` for each of the addresses; both results.
struct Wavefronts {
  int actual;
  int ideal;
};
Wavefronts wavefronts(uintptr_t const* addresses, int count, int bytes);

}  // namespace emu
