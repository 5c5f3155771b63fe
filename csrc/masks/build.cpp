#include "masks/build.h"

#include <utility>

namespace fa2::masks {
namespace {

class Builder {
 public:
  explicit Builder(int64_t* row_offsets) : row_offsets_(row_offsets) {}

  void begin_list() { *row_offsets_++ = num_entries(); }

  void full(int32_t begin, int32_t end) {
    for (int32_t col = begin; col < end; ++col) lists_.entries.push_back({col, 0});
  }

  void partial(int32_t col, Tile const& tile, bool all) {
    lists_.entries.push_back({col, all ? 0 : lists_.tiles.number_of(tile)});
  }

  void end_row(int32_t) { *row_offsets_++ = num_entries(); }

  Lists lists() && { return std::move(lists_); }

 private:
  int64_t num_entries() const { return static_cast<int64_t>(lists_.entries.size()); }

  int64_t* row_offsets_;  // the next one
  Lists lists_;
};

}  // namespace

Lists build(Pattern const& pattern, Shape const& shape, int64_t* row_offsets,
            Answer const& answer) {
  Builder builder(row_offsets);
  Walk(pattern, shape, answer, builder).run();
  return std::move(builder).lists();
}

}  // namespace fa2::masks
