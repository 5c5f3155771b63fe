#pragma once

// The order in which chunks of queries add to the gradients of the keys they share. It is fixed, so
// that sums do not depend on how threads run: the chunks of a sequence form a chain from the last
// queries to the first, and each walks over its keys from the last to the first, adding to a block
// of keys only when the chunk before it has left that block. Chunks are started in the order of the
// chain, so the one at the head never waits.

#include <cstdint>

namespace fa2::cpu {

// One link. Its progress is the first key of the blocks that it has left.
class Turn {
 public:
  static constexpr int32_t kNothingLeft = INT32_MAX;
  static constexpr int32_t kAllKeysLeft = 0;
  static constexpr int32_t kSumsReleased = -1;  // the chain's memory may serve another chain

  // `before` is the progress of the previous link, or null.
  Turn(int32_t& own, int32_t* before) : own_(own), before_(before) {}

  // Returns when the previous link's progress has come down to `key`.
  void wait_for(int32_t key) const;
  void leave(int32_t key);
  // Of keys from `key` on, this link adds to none: it has left those that the link before it has.
  // Does not wait.
  void pass(int32_t key);

 private:
  int32_t& own_;
  int32_t* before_;
};

}  // namespace fa2::cpu
