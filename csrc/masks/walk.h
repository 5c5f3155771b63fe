#pragma once

// A pattern, gone through row by row of blocks, for whoever wants to know what is seen.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "masks/node.h"
#include "masks/unknown.h"

namespace fa2::masks {

struct Pattern {
  NodePtr root;
  std::vector<UnknownLeaf*> unknown;  // of the tree, which owns them
};

// Fills the answer to the question of an unknown leaf; called when there is one.
using Answer = std::function<void(size_t leaf, Question& question, Tile* answer)>;

struct Shape {
  Lengths lengths;
  int32_t batch = 1;
  int32_t heads = 1;
};

// What the visitor is told, in the order of batches, heads, rows and columns:
//   begin_list()             the rows of a batch and head follow
//   full(begin, end)         all pairs of the row's blocks [begin, end) inside the lengths are seen
//   partial(col, tile, all)  those of a block; bits outside the lengths are 0. At least one is set;
//                            `all`: they all are
//   end_row(rows)            the row is over, which has so many queries
template <class Visitor>
class Walk {
 public:
  Walk(Pattern const& pattern, Shape const& shape, Answer const& answer, Visitor& visitor)
      : pattern_(pattern), shape_(shape), answer_(answer), visitor_(visitor) {}

  void run() && {
    for (int32_t batch = 0; batch < shape_.batch; ++batch) {
      for (int32_t head = 0; head < shape_.heads; ++head) {
        visitor_.begin_list();
        for (int32_t row = 0; row < shape_.lengths.rows(); ++row) add({batch, head, row});
        finish_waiting();  // before the next list begins
      }
    }
  }

 private:
  // Blocks that the caller is asked for at once, unless a single row has more.
  static constexpr size_t kAtOnce = 2048;

  void add(Place const& place) {
    if (pattern_.unknown.empty()) {
      visit(place);
      return;
    }
    request(place);
    waiting_.push_back(place);
    size_t requested = 0;
    for (UnknownLeaf* leaf : pattern_.unknown) requested += leaf->question().size();
    if (requested >= kAtOnce) finish_waiting();
  }

  void request(Place const& place) {
    pattern_.root->start(place);
    for_each_run([&](int32_t begin, Segment const& segment) {
      if (segment.seen != Seen::kSome) return;
      for (int32_t col = begin; col < segment.end; ++col) pattern_.root->request(col);
    });
  }

  void finish_waiting() {
    for (size_t i = 0; i < pattern_.unknown.size(); ++i) {
      UnknownLeaf& leaf = *pattern_.unknown[i];
      leaf.answer().resize(leaf.question().size());
      if (!leaf.answer().empty()) answer_(i, leaf.question(), leaf.answer().data());
      leaf.read_answer();
    }
    for (Place const& place : waiting_) visit(place);
    waiting_.clear();
    for (UnknownLeaf* leaf : pattern_.unknown) leaf->forget();
  }

  void visit(Place const& place) {
    pattern_.root->start(place);
    int32_t const rows = std::min(shape_.lengths.seqlen_q - place.row * kBlock, kBlock);
    for_each_run([&](int32_t begin, Segment const& segment) {
      if (segment.seen == Seen::kAll) visitor_.full(begin, segment.end);
      if (segment.seen != Seen::kSome) return;
      for (int32_t col = begin; col < segment.end; ++col) visit_partial(col, rows);
    });
    visitor_.end_row(rows);
  }

  void visit_partial(int32_t col, int32_t rows) {
    Tile tile;
    pattern_.root->words(col, tile);
    uint64_t const keys = bits_between(0, shape_.lengths.seqlen_k - int64_t(col) * kBlock);
    uint64_t any = 0;
    bool all = true;
    for (int32_t q = 0; q < kBlock; ++q) {
      uint64_t const inside = q < rows ? keys : 0;
      tile[q] &= inside;
      any |= tile[q];
      all = all && tile[q] == inside;
    }
    if (any != 0) visitor_.partial(col, tile, all);
  }

  template <class Take>
  void for_each_run(Take const& take) {
    int32_t begin = 0;
    for (Segment const& segment : pattern_.root->row()) {
      take(begin, segment);
      begin = segment.end;
    }
  }

  Pattern const& pattern_;
  Shape shape_;
  Answer const& answer_;
  Visitor& visitor_;
  std::vector<Place> waiting_;  // rows that were requested
};

}  // namespace fa2::masks
