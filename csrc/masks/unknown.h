#pragma once

// Parts of a pattern that only the caller can evaluate: user functions, masks on another device.

#include <cstdint>
#include <vector>

#include "masks/node.h"

namespace fa2::masks {

// Blocks whose pairs are wanted, in the order of places and cols.
struct Question {
  std::vector<int32_t> batch, head, row, col;

  size_t size() const { return col.size(); }
  void clear();
};

class UnknownLeaf : public Node {
 public:
  explicit UnknownLeaf(Lengths const& lengths) : lengths_(lengths) {}

  bool has_unknown() const override { return true; }

  // What was requested since the last answer; the answer to it, a tile for each.
  Question& question() { return question_; }
  std::vector<Tile>& answer() { return answer_; }

  // Rows that are gone through from now on read the answer, or request again.
  void read_answer() { next_ = 0; }
  void forget() { question_.clear(); }

 protected:
  void fill_row(Place const& place, Segments& row) override;
  void fill_words(int32_t col, Tile& out) override;
  void request_words(int32_t col) override;

 private:
  bool is_next(int32_t col) const;

  Lengths lengths_;
  Place place_;
  Question question_;
  std::vector<Tile> answer_;
  size_t next_ = 0;
};

}  // namespace fa2::masks
