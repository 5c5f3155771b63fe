#pragma once

// Which steps a backward CTA takes under a block mask: for each query head of its group the blocks
// of queries that list any of its keys, from the first to the last. The lists by keys are those
// that sm80's kernels derive (sm80/lists/columns.h).

#include "sm80/backward/work_tile.h"

namespace fa2::sm90 {

// A step, handed from the producer to all others in shared memory, with Q.
struct ListedQueryStep {
  sm80::ListedQueries queries;  // `tile` has an index for each of the CTA's blocks of keys
  int32_t head;
  int32_t is_last;

  CUTE_DEVICE bool lists(int block) const { return queries.tile[block] != sm80::kUnlisted; }
  // In a fixed order of summation, the additions that it counts for: blocks of the mask.
  CUTE_DEVICE int turns() const { return int(lists(0)) + int(lists(1)); }
};

// By one thread: what is left of the lists of a CTA.
class ListedQueryWalk {
 public:
  // False: nothing is listed.
  CUTE_DEVICE bool start(sm80::BwdArgs const& args, sm80::BwdWorkTile const& work) {
    return seek(args, work, work.head_kv * args.problem.forward.group());
  }

  // Says what the next step is, which there must be.
  CUTE_DEVICE void take(sm80::BwdArgs const& args, sm80::BwdWorkTile const& work,
                        ListedQueryStep& step) {
    step.queries = args.workspace.columns.entries[rest_.begin];
    step.head = head_;
    ++rest_.begin;
    bool const more = rest_.begin < rest_.end || seek(args, work, head_ + 1);
    step.is_last = !more;
  }

 private:
  // Goes to `first_head`, or to the next one of the group that has steps; false: there is none.
  CUTE_DEVICE bool seek(sm80::BwdArgs const& args, sm80::BwdWorkTile const& work, int first_head) {
    FwdParams const& p = args.problem.forward;
    int const end_head = (work.head_kv + 1) * p.group();
    CUTE_NO_UNROLL
    for (head_ = first_head; head_ < end_head; ++head_) {
      rest_ = args.workspace.columns.column(p, work.batch, head_, work.list);
      if (rest_.begin < rest_.end) return true;
    }
    return false;
  }

  ListedEntries rest_;  // of the head
  int head_;
};

}  // namespace fa2::sm90
