#pragma once

// The order in which chunks of queries add to the gradients of the keys they share. It is fixed, so
// that sums do not depend on how threads run: the chunks of a sequence form a chain from the last
// queries to the first, and each walks over its keys from the last to the first, adding to a block
// of keys only when the chunk before it has left that block. Chunks are started in the order of the
// chain, so the one at the head never waits.
//
// A link may have its keys cut into splits, each of which is walked over by itself: they add to
// keys that no other of them adds to, and wait for the link before them alone.

#include <cstdint>

namespace fa2::cpu {

// How far a link has come: for each split of its keys, that of the last keys first, the first key
// of the blocks that it has left there.
struct LinkProgress {
  static constexpr int32_t kNothingLeft = INT32_MAX;
  static constexpr int32_t kAllKeysLeft = 0;
  static constexpr int32_t kSumsReleased = -1;  // the chain's memory may serve another chain

  int32_t* left = nullptr;  // (splits,); null where there is no link
  int32_t splits = 1;
  int32_t split_keys = 0;  // of a split, if there are several

  // The keys [begin, end) of a split; the last one has all that are left.
  int32_t begin_of(int32_t split) const { return (splits - 1 - split) * split_keys; }
  int32_t end_of(int32_t split) const {
    return split == 0 ? INT32_MAX : begin_of(split) + split_keys;
  }
  int32_t split_of(int32_t key) const;

  // The first key of those up to `end` that have all been left.
  int32_t left_below(int32_t end) const;
  void wait_for(int32_t split, int32_t key) const;
};

// One link, or a split of it.
class Turn {
 public:
  Turn(LinkProgress own, int32_t split, LinkProgress before)
      : own_(own), split_(split), before_(before) {}

  // Returns when the previous link has left all of its keys from `key` on, of the split that `key`
  // is in.
  void wait_for(int32_t key) const { before_.wait_for(before_.split_of(key), key); }
  // It adds no more to keys from `key` on. The next link waits for this one alone: of these keys
  // it has left those that the link before it has left, too. Does not wait.
  void leave(int32_t key);
  // Leaves what is left of its keys, when the previous link has.
  void leave_all();

  // What the sums of a chain lie in serves one chain after the other.
  void wait_for_release() const { wait_for_all(LinkProgress::kSumsReleased); }
  void release() { report(LinkProgress::kSumsReleased); }

 private:
  void report(int32_t key);
  void wait_for_all(int32_t key) const;

  LinkProgress const own_;
  int32_t const split_;
  LinkProgress const before_;
};

// What the splits of a chunk share: the memory of their partial results, which serves several
// chunks in turn.
class SplitTurn {
 public:
  // How many splits have left their results, and whether what all need has been prepared.
  struct State {
    int32_t finished = 0;
    int32_t prepared = 0;
  };
  static constexpr int32_t kReleased = INT32_MAX;  // finished, and the memory may serve others

  // `before` is the state of the chunk whose memory it was, or null.
  SplitTurn(State& own, State* before, int32_t split, int32_t num_splits, void* memory)
      : own_(own), before_(before), split_(split), num_splits_(num_splits), memory_(memory) {}

  int32_t split() const { return split_; }
  int32_t num_splits() const { return num_splits_; }
  void* memory() const { return memory_; }

  void wait_for_memory() const;
  // The first split prepares what the others wait for.
  void prepared();
  void wait_until_prepared() const;
  // True for the last one, which may read the results of all.
  bool finish();
  void release();

 private:
  State& own_;
  State* const before_;
  int32_t const split_;
  int32_t const num_splits_;
  void* const memory_;
};

}  // namespace fa2::cpu
