#include "masks/unknown.h"

#include <stdexcept>

namespace fa2::masks {

void Question::clear() {
  for (auto* indices : {&batch, &head, &row, &col}) indices->clear();
}

void UnknownLeaf::fill_row(Place const& place, Segments& row) {
  place_ = place;
  row.extend(lengths_.cols(), Seen::kSome);
}

void UnknownLeaf::request_words(int32_t col) {
  question_.batch.push_back(place_.batch);
  question_.head.push_back(place_.head);
  question_.row.push_back(place_.row);
  question_.col.push_back(col);
}

// What was requested may not be wanted any more: another answer decided without it.
void UnknownLeaf::fill_words(int32_t col, Tile& out) {
  while (next_ < question_.size() && !is_next(col)) ++next_;
  if (next_ == question_.size()) throw std::logic_error("pairs were not requested");
  out = answer_[next_];
}

bool UnknownLeaf::is_next(int32_t col) const {
  Place const place{question_.batch[next_], question_.head[next_], question_.row[next_]};
  return place == place_ && question_.col[next_] == col;
}

}  // namespace fa2::masks
