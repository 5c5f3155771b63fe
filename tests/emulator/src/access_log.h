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
  uintptr_t target;   // of a copy, in shared memory
  AccessKind kind;
  uint8_t bytes;         // 0: predicated off
  uint8_t target_bytes;  // of a copy; written even when predicated off, then with zeros
  int16_t buffer;        // index of the global buffer
};

// What one thread has accessed since its warp last converged.
using AccessLog = std::vector<Access>;

// Notes an access of the current thread.
void log_access(Access const& access);

// The warp has converged: the accesses of its lanes at the same instruction, in the same turn, are
// one request.
void count_requests(Warp& warp);

// One access of each of some lanes, in ascending order.
struct LaneAccesses {
  int count = 0;
  int bytes = 0;  // of each
  uint8_t lane[32];
  uintptr_t address[32];

  void add(int lane_index, uintptr_t where, int size) {
    lane[count] = uint8_t(lane_index);
    address[count] = where;
    bytes = size;
    ++count;
  }
};

struct Wavefronts {
  int actual;
  int ideal;
};
Wavefronts wavefronts(LaneAccesses const& accesses);

}  // namespace emu
