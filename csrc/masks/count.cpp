#include "masks/count.h"

#include <algorithm>
#include <bit>

namespace fa2::masks {
namespace {

class Counter {
 public:
  Counter(int32_t seqlen_k, int64_t* pairs) : seqlen_k_(seqlen_k), pairs_(pairs) {}

  void begin_list() { row_ = 0; }

  void full(int32_t begin, int32_t end) {
    int64_t const last = std::min(int64_t(end) * kBlock, int64_t(seqlen_k_));
    full_keys_ += last - int64_t(begin) * kBlock;
  }

  void partial(int32_t, Tile const& tile, bool) {
    for (uint64_t const word : tile) partial_pairs_ += std::popcount(word);
  }

  void end_row(int32_t rows) {
    pairs_[row_++] += full_keys_ * rows + partial_pairs_;
    full_keys_ = partial_pairs_ = 0;
  }

 private:
  int32_t seqlen_k_;
  int64_t* pairs_;
  int32_t row_ = 0;
  int64_t full_keys_ = 0;  // of the row, seen by all of its queries
  int64_t partial_pairs_ = 0;
};

}  // namespace

void count_pairs(Pattern const& pattern, Shape const& shape, int64_t* pairs, Answer const& answer) {
  std::fill(pairs, pairs + shape.lengths.rows(), 0);
  Counter counter(shape.lengths.seqlen_k, pairs);
  Walk(pattern, shape, answer, counter).run();
}

}  // namespace fa2::masks
