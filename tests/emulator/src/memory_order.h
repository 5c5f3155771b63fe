#pragma once

// Happens-before between warps of different CTAs: fences, atomics and volatile accesses, as in the
// CUDA memory model. A write is handed over by
//   write; fence; store or atomic on a flag  ->  load or atomic on the flag; fence; read.

#include <cstdint>
#include <vector>

namespace emu {

struct Warp;

// A vector clock over all warps of the grid that holds only those it knows something of: what a
// warp did before a tick, and what some of its lanes did during that tick.
class ForeignClock {
 public:
  bool covers(uint32_t warp, uint32_t tick, uint32_t lane) const {
    for (Entry const& e : entries_) {
      if (e.warp == warp) return tick < e.tick || (tick == e.tick && (e.lanes >> lane & 1));
    }
    return false;
  }
  void raise(uint32_t warp, uint32_t tick, uint32_t lanes);
  void merge(ForeignClock const& other);
  void clear() { entries_.clear(); }
  bool empty() const { return entries_.empty(); }

 private:
  struct Entry {
    uint32_t warp;
    uint32_t tick;
    uint32_t lanes;  // a mask
  };
  std::vector<Entry> entries_;
};

// A thread's own part of the order.
struct ThreadOrder {
  ForeignClock fenced;    // what its last fence covers: handed over by its next flag writes
  ForeignClock observed;  // handed over by the flags that it has read
  ForeignClock acquired;  // of that, what came before its last fence: known to this thread, and to
                          // its warp after they have synchronised
  void const* polled = nullptr;  // the last flag that it read
  uint64_t polled_at = 0;        // Grid::writes_seen at that time
};

// A flag access by the current thread: an atomic, or a volatile access.
void observe_flag(void const* flag);                  // it reads
void publish_flag(void const* flag, bool is_atomic);  // it writes
// The current thread has read `flag`. Where it read the same before and nothing has been written
// since, it waits for somebody to write: it is spinning.
void poll_flag(void const* flag);
void clear_flags();  // before a launch

// The warp's lanes have synchronised: what each of them did and knows is known to all.
void order_lanes(Warp& warp);

}  // namespace emu
