#include "masks/build.h"

namespace fa2::masks {
namespace {

// Blocks that the caller is asked for at once, unless a single row has more.
constexpr size_t kAtOnce = 2048;

class Builder {
 public:
  Builder(Pattern const& pattern, Shape const& shape, int64_t* row_offsets, Answer const& answer)
      : pattern_(pattern), shape_(shape), row_offsets_(row_offsets), answer_(answer) {}

  Lists run() && {
    for (int32_t batch = 0; batch < shape_.batch; ++batch) {
      for (int32_t head = 0; head < shape_.heads; ++head) {
        *row_offsets_++ = num_entries();
        for (int32_t row = 0; row < shape_.lengths.rows(); ++row) add({batch, head, row});
        finish_waiting();  // before the next list begins
      }
    }
    return std::move(lists_);
  }

 private:
  void add(Place const& place) {
    if (pattern_.unknown.empty()) {
      list(place);
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
    for_each_block(Seen::kSome, [&](int32_t col, Seen) { pattern_.root->request(col); });
  }

  void finish_waiting() {
    for (size_t i = 0; i < pattern_.unknown.size(); ++i) {
      UnknownLeaf& leaf = *pattern_.unknown[i];
      leaf.answer().resize(leaf.question().size());
      if (!leaf.answer().empty()) answer_(i, leaf.question(), leaf.answer().data());
      leaf.read_answer();
    }
    for (Place const& place : waiting_) list(place);
    waiting_.clear();
    for (UnknownLeaf* leaf : pattern_.unknown) leaf->forget();
  }

  void list(Place const& place) {
    pattern_.root->start(place);
    rows_inside_ = shape_.lengths.seqlen_q - place.row * kBlock;
    for_each_block(Seen::kNone, [&](int32_t col, Seen seen) {
      if (seen == Seen::kAll) {
        lists_.entries.push_back({col, 0});
      } else {
        list_partial(col);
      }
    });
    *row_offsets_++ = num_entries();
  }

  void list_partial(int32_t col) {
    Tile tile;
    pattern_.root->words(col, tile);
    uint64_t const keys_inside = bits_between(0, shape_.lengths.seqlen_k - int64_t(col) * kBlock);
    uint64_t any = 0;
    bool all = true;
    for (int32_t q = 0; q < kBlock; ++q) {
      uint64_t const inside = q < rows_inside_ ? keys_inside : 0;
      tile[q] &= inside;
      any |= tile[q];
      all = all && tile[q] == inside;
    }
    if (any != 0) lists_.entries.push_back({col, all ? 0 : lists_.tiles.number_of(tile)});
  }

  // visit(col, seen) of the blocks of the row: of kSome only, or of all that are not kNone.
  template <class Visit>
  void for_each_block(Seen which, Visit const& visit) {
    int32_t col = 0;
    for (Segment const& segment : pattern_.root->row()) {
      bool const wanted =
          which == Seen::kSome ? segment.seen == Seen::kSome : segment.seen != Seen::kNone;
      for (; wanted && col < segment.end; ++col) visit(col, segment.seen);
      col = segment.end;
    }
  }

  int64_t num_entries() const { return static_cast<int64_t>(lists_.entries.size()); }

  Pattern const& pattern_;
  Shape shape_;
  int64_t* row_offsets_;  // the next one
  Answer const& answer_;
  Lists lists_;
  std::vector<Place> waiting_;  // rows that were requested
  int32_t rows_inside_ = 0;     // queries from the first of the row to the last of all
};

}  // namespace

Lists build(Pattern const& pattern, Shape const& shape, int64_t* row_offsets,
            Answer const& answer) {
  return Builder(pattern, shape, row_offsets, answer).run();
}

}  // namespace fa2::masks
