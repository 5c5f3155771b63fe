#pragma once

// What changes as one SM runs, and what is counted.

#include <utility>

#include "program.h"

namespace sm {

inline constexpr int kPartitions = 4;

// Why a warp does not issue. From kResult on, one for each unit whose result it waits for.
enum class Reason {
  kEmpty,
  kBarrier,
  kStall,  // what its last instruction's control bits ask for
  kCopies,
  kTensorBusy,
  kFloatBusy,
  kIntegerBusy,
  kSpecialQueue,
  kMemoryQueue,
  kNotSelected,
  kResult,
};
inline constexpr std::array kReasonNames = {
    "empty",      "barrier",      "fixed latency", "copies",       "tensor busy",
    "float busy", "integer busy", "special queue", "memory queue", "not selected"};
inline constexpr int kReasons = int(Reason::kResult) + kUnits;
static_assert(kReasonNames.size() == size_t(Reason::kResult));

inline std::string reason_name(int reason) {
  int const unit = reason - int(Reason::kResult);
  return unit < 0 ? kReasonNames[reason] : std::string("result of ") + kUnitNames[unit];
}

struct Warp {
  bool live = false;
  int cta = 0, slot = 0, partition = 0;
  size_t part = 0, at = 0;  // of the CTA's parts, and of that part's path
  int repetition = 0;
  Cycle ready = 0;
  Cycle copies_done = 0;
  int pending[kScoreboards] = {};
  Unit pending_unit[kScoreboards] = {};
  bool at_barrier = false;
  int barrier_warps = 0;
  int64_t barriers = 0;
  Cycle age = 0;
};

struct Partition {
  std::vector<int> warps;
  Cycle tensor = 0, floats = 0, integers = 0, uniform = 0, special = 0, memory = 0;  // free from
  double registers = 0;
  int memory_queue = 0, special_queue = 0;
  int last = kNone;  // the warp that issued last
  bool yielded = false;
};

// What is over at some time: an entry of a queue, or what a scoreboard counts.
struct Event {
  enum Kind { kMemoryQueue, kSpecialQueue, kScoreboard };
  Cycle time;
  Kind kind;
  int index;  // of the partition, or of the warp
  int scoreboard = 0;
  int64_t life = 0;  // of the warp: another CTA's has other scoreboards
  bool operator<(Event const& other) const { return time > other.time; }
};

struct Result {
  Cycle cycles = 0;
  int64_t issued = 0, register_reads = 0;
  Cycle shared_busy = 0;
  Cycle busy[kUnits] = {};
  Cycle waits[kReasons] = {};                      // of warps
  std::vector<std::pair<Cycle, Cycle>> cta_times;  // begin, end
};

}  // namespace sm
