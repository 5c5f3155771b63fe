#pragma once

// The emulated GPU: a grid of CTAs, of which some are in flight; their warps; their threads.

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "access_log.h"
#include "async_copy.h"
#include "emu/api.h"
#include "emu/device.h"
#include "fiber.h"
#include "memory_order.h"
#include "shared_shadow.h"

namespace emu {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr int kMaxWarps = 32;
inline constexpr int kMaxBarriers = 16;
inline constexpr int kSharedBytesMax = 163 << 10;     // of a CTA, A100
inline constexpr int kSharedBytesDefault = 48 << 10;  // without opting in

struct Cta;
struct Warp;

// What a lane is waiting for.
enum class Operation : uint8_t {
  kNone,
  kSyncWarp,
  kShuffle,
  kBallot,
  kLoadMatrix,
  kTransposeMatrix,
  kMma,
  kBarrier,
  kPoll,  // memory that somebody else must change
  kExited,
};

struct Fiber {
  void* stack_pointer;
  Warp* warp;
  int lane;
  uint3 thread_index;
  CopyQueue copies;
  AccessLog log;
  ThreadOrder order;
};

struct Warp {
  Cta* cta;
  int index;              // in the CTA
  uint32_t global_index;  // in the grid
  uint32_t exists;        // lanes, as are the masks that follow
  uint32_t runnable;
  uint32_t waiting;  // at `operation`
  uint32_t exited;
  uint32_t next_lane, lane_stride;  // the order in which lanes run, a permutation

  // Of each waiting lane; all participants must agree on both. `detail` is the mask of a shuffle,
  // the size of an ldmatrix, the id and thread count of a barrier.
  Operation operation[kWarpSize];
  uint32_t detail[kWarpSize];

  // Happens-before. The tick counts the points where the warp's lanes order their memory accesses
  // (__syncwarp, barriers); everything that warp u did before tick known[u] is visible here.
  uint32_t tick;
  uint32_t known[kMaxWarps];
  ForeignClock foreign;  // the same for warps of other CTAs

  bool has_acquired;  // some lane has learnt of foreign writes on its own since
  bool has_log;       // some lane has logged accesses since the warp last converged
  int barrier_result;

  // Operands of the operation that the lanes are waiting at; each lane writes its own place, and
  // reads its result there.
  struct {
    uint64_t value[kWarpSize];
    int source[kWarpSize];
  } shuffle;
  struct {
    bool predicate[kWarpSize];
    uint32_t result[kWarpSize];
  } vote;
  struct {
    void const* row[kWarpSize];
    uint32_t registers[kWarpSize][4];
  } matrix;
  struct {
    alignas(64) uint32_t a[kWarpSize][4];
    uint32_t b[kWarpSize][2];
    float c[kWarpSize][4];
  } mma;

  Fiber lanes[kWarpSize];
};

struct Barrier {
  int threads;  // 0: nobody has arrived
  int arrived;
  uint32_t waiting_warps;
  uint32_t arrived_warps;
  uint32_t known[kMaxWarps];  // what the arrived warps know
  ForeignClock foreign;
  int any, all, count;  // reductions of the predicates
};

struct Cta {
  bool active = false;
  int slot;
  uint3 index;
  uint32_t linear;
  int num_warps;
  int live_threads;
  uint32_t runnable_warps;
  std::vector<Warp> warps;
  Barrier barriers[kMaxBarriers];
  SharedShadow shadow;
  std::vector<char> saved_shared;  // while another CTA is resident
};

class Random {
 public:
  void seed(uint64_t seed) { state_ = 0x9e3779b97f4a7c15ull * (2 * seed + 1); }
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return uint32_t(state_ >> 20);
  }
  uint32_t below(uint32_t n) { return next() % n; }

 private:
  uint64_t state_ = 1;
};

// One launch.
struct Grid {
  Options options;
  Kernel kernel;
  dim3 grid_dim, block_dim;
  int shared_bytes;
  uint32_t switch_threshold;  // of 256: how often a warp gives way after an operation
  Random random;
  void* host_stack_pointer;
  std::vector<Cta> slots;
  Cta* resident;  // whose shared memory is in place
  std::vector<uint3> order;
  size_t started;
  uint64_t writes_seen;  // counts changes of global memory that wake polling threads
  StackArena stacks;
};

extern Grid grid;
extern Fiber* current;  // null while host code runs
extern char* shared_base;
extern Counters totals;

inline Warp& current_warp() { return *current->warp; }
inline Cta& current_cta() { return *current->warp->cta; }

}  // namespace emu
