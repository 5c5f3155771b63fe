#pragma once

// mbarrier objects of a CTA: in each phase, a number of arrivals, and bytes that bulk copies bring.

#include <cstdint>
#include <string>
#include <vector>

#include "memory_order.h"

namespace emu {

struct Mbarrier {
  uint32_t offset;    // in shared memory
  uint32_t key;       // in clocks
  bool is_live;       // from init to inval
  uint32_t arrivals;  // of a phase
  uint32_t phase;     // the present one, from 0
  uint32_t missing_arrivals;
  int64_t missing_bytes;   // below zero: more have come than are expected as yet
  ForeignClock arrived;    // what those know who have arrived in this phase
  ForeignClock completed;  // ... in those before
};

class Mbarriers {
 public:
  void clear() { all_.clear(); }
  // Of those that are live, or null; `number` stays the same.
  Mbarrier* find(uint32_t offset);
  void make(uint32_t offset, uint32_t arrivals);
  size_t count() const { return all_.size(); }
  uint32_t number_of(Mbarrier const& mbarrier) const { return uint32_t(&mbarrier - all_.data()); }
  Mbarrier& operator[](uint32_t number) { return all_[number]; }
  Mbarrier const& operator[](uint32_t number) const { return all_[number]; }

 private:
  std::vector<Mbarrier> all_;
};

// The one at this offset, which the current thread uses: it is live, and its initialisation comes
// before.
Mbarrier& used_mbarrier(void const* site, uint64_t offset);

// So many bytes have come.
void complete_bytes(void const* site, Mbarrier& mbarrier, uint32_t bytes);

// "mbarrier at shared memory + 8: phase 2, of which 1 of 4 arrivals and 512 bytes are missing".
std::string describe_mbarrier(Mbarrier const& mbarrier);

}  // namespace emu
