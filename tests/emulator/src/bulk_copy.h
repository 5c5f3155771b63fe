#pragma once

// cp.async.bulk: copies of whole ranges, and of boxes of tensors, by units that see memory through
// a proxy of their own.

#include <cstdint>
#include <optional>
#include <vector>

#include "bulk_box.h"
#include "emu/atomics.h"

namespace emu {

// From global to shared memory; an mbarrier counts its bytes.
struct BulkLoad {
  void const* site;
  BulkBox box;
  uint32_t target;     // offset in shared memory
  uint32_t mbarrier;   // its number
  bool moved = false;  // early: the data is there, though nobody may rely on it
};

// From shared to global memory, in groups of the thread.
struct BulkStore {
  void const* site;
  BulkBox box;
  uint32_t source;                // offset in shared memory
  std::optional<AtomicType> sum;  // of what is added to the target, element for element
  uint32_t group = 0;
  bool has_read = false;        // the source may be written again
  bool moved = false;           // early: the target has it, though nobody may rely on it
  std::vector<char> data = {};  // of the source, once read
};

class BulkStoreQueue {
 public:
  void start(BulkStore store) {
    store.group = groups_;
    stores_.push_back(std::move(store));
  }
  void commit() { ++groups_; }
  // Completes the stores of all groups but the last `pending` committed ones; or only their
  // reading.
  void wait(int pending, bool reading_only);
  // The thread ends.
  void end();
  void clear() {
    stores_.clear();
    groups_ = 0;
  }

 private:
  std::vector<BulkStore> stores_;  // oldest first
  uint32_t groups_ = 0;            // committed so far
};

// Lands one of the loads into the current CTA's shared memory that an mbarrier counts, any one;
// false where none is in flight.
bool land_a_load(uint32_t mbarrier);

// One after another until `enough()`.
template <class Enough>
void land_loads_of(uint32_t mbarrier, Enough enough) {
  while (!enough() && land_a_load(mbarrier)) continue;
}

// The current CTA ends: nothing may be on its way to its shared memory.
void check_loads_have_landed();

}  // namespace emu
