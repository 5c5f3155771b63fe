#pragma once

// A pattern, evaluated row by row of blocks: first what is seen of whole blocks, then the pairs of
// those blocks of which some are seen.
//
// A pattern may have parts that only the caller can evaluate (unknown.h). For those, a row is gone
// through twice: request() for each block whose pairs are wanted, then start() again and words().

#include <cstdint>
#include <memory>

#include "masks/segments.h"
#include "masks/tile.h"

namespace fa2::masks {

class Node {
 public:
  virtual ~Node() = default;

  // The row to which all that follows applies.
  void start(Place const& place) {
    row_.clear();
    next_ = 0;
    fill_row(place, row_);
  }
  Segments const& row() const { return row_; }

  // The pairs of block `col`. From one start to the next, cols do not descend. Bits outside the
  // lengths may be anything.
  void words(int32_t col, Tile& out) {
    Seen const seen = at(col);
    if (seen == Seen::kSome) {
      fill_words(col, out);
    } else {
      out.fill(seen == Seen::kAll ? kAllBits : 0);
    }
  }

  // Says that words(col) will be asked for when the row is gone through again.
  void request(int32_t col) {
    if (has_unknown() && at(col) == Seen::kSome) request_words(col);
  }

  virtual bool has_unknown() const { return false; }

 protected:
  virtual void fill_row(Place const& place, Segments& row) = 0;
  virtual void fill_words(int32_t col, Tile& out) = 0;
  virtual void request_words(int32_t) {}

 private:
  Seen at(int32_t col) {
    while (row_[next_].end <= col) ++next_;
    return row_[next_].seen;
  }

  Segments row_;
  size_t next_ = 0;  // the segment of the last col that was asked for
};

using NodePtr = std::unique_ptr<Node>;

}  // namespace fa2::masks
