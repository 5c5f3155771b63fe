#include "masks/leaves.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/mask.h"
#include "core/philox.h"

namespace fa2::masks {
namespace {

class WindowLeaf : public Node {
 public:
  WindowLeaf(Lengths const& lengths, Window const& window) : lengths_(lengths), window_(window) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    first_ = place.row * kBlock;
    int32_t const last = std::min(first_ + kBlock, lengths_.seqlen_q) - 1;
    ColRange const of_first = cols_of(first_);
    ColRange const of_last = cols_of(last);
    // Both bounds move right with the query.
    if (of_first.begin < of_last.end) {
      row.extend(std::max(of_first.begin, 0) / kBlock, Seen::kNone);
      if (of_last.begin < of_first.end) {
        by_all_.clear();
        by_all_.extend_by_keys(of_last.begin, of_first.end, lengths_.seqlen_k, true);
        for (Segment const& segment : by_all_) {
          row.extend(segment.end, segment.seen == Seen::kAll ? Seen::kAll : Seen::kSome);
        }
      }
      row.extend(mask_blocks(of_last.end), Seen::kSome);
    }
    row.extend(lengths_.cols(), Seen::kNone);
  }

  void fill_words(int32_t col, Tile& out) override {
    int64_t const key = int64_t(col) * kBlock;
    for (int32_t q = 0; q < kBlock; ++q) {
      ColRange const cols = cols_of(std::min(first_ + q, lengths_.seqlen_q - 1));
      out[q] = bits_between(cols.begin - key, cols.end - key);
    }
  }

 private:
  ColRange cols_of(int32_t query) const {
    return visible_cols(query, lengths_.seqlen_q, lengths_.seqlen_k, window_);
  }

  Lengths lengths_;
  Window window_;
  int32_t first_ = 0;  // query of the row
  Segments by_all_;
};

// What of the kBlock places from `first` on lies in ranges.
uint64_t bits_of_block(Ranges const& ranges, int32_t batch, int32_t first) {
  auto const end = ranges.end(batch);
  auto range = std::partition_point(ranges.begin(batch), end,
                                    [=](Ranges::Range const& r) { return r.end <= first; });
  uint64_t bits = 0;
  for (; range != end && range->begin < first + kBlock; ++range) {
    bits |= bits_between(range->begin - first, range->end - first);
  }
  return bits;
}

class KeysLeaf : public Node {
 public:
  KeysLeaf(Lengths const& lengths, Ranges const& ranges) : lengths_(lengths), ranges_(ranges) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    int32_t const batch = ranges_.batch == 1 ? 0 : place.batch;
    if (batch != batch_) find_row_of(batch);
    row = every_row_;
  }

  void fill_words(int32_t col, Tile& out) override {
    out.fill(bits_of_block(ranges_, batch_, col * kBlock));
  }

 private:
  void find_row_of(int32_t batch) {
    batch_ = batch;
    every_row_.clear();
    for (auto range = ranges_.begin(batch); range != ranges_.end(batch); ++range) {
      every_row_.extend_by_keys(range->begin, range->end, lengths_.seqlen_k, true);
    }
    every_row_.extend(lengths_.cols(), Seen::kNone);
  }

  Lengths lengths_;
  Ranges ranges_;
  int32_t batch_ = -1;
  Segments every_row_;  // of this batch
};

class QueriesLeaf : public Node {
 public:
  QueriesLeaf(Lengths const& lengths, Ranges const& ranges) : lengths_(lengths), ranges_(ranges) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    int32_t const first = place.row * kBlock;
    uint64_t const all = bits_between(0, lengths_.seqlen_q - first);
    queries_ = bits_of_block(ranges_, place.batch, first) & all;
    Seen const seen = queries_ == 0 ? Seen::kNone : queries_ == all ? Seen::kAll : Seen::kSome;
    row.extend(lengths_.cols(), seen);
  }

  void fill_words(int32_t, Tile& out) override {
    for (int32_t q = 0; q < kBlock; ++q) out[q] = (queries_ >> q & 1) != 0 ? kAllBits : 0;
  }

 private:
  Lengths lengths_;
  Ranges ranges_;
  uint64_t queries_ = 0;  // of the row, that see all keys
};

class RandomLeaf : public Node {
 public:
  RandomLeaf(Lengths const& lengths, RandomBlocks const& blocks)
      : lengths_(lengths),
        blocks_(blocks),
        num_cols_((lengths.seqlen_k + blocks.block - 1) / blocks.block),
        is_chosen_(num_cols_) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    int32_t const scale = blocks_.block / kBlock;
    choose(place.head % blocks_.heads, place.row / scale);
    for (int32_t const col : chosen_) {
      row.extend(std::min(col * scale, lengths_.cols()), Seen::kNone);
      row.extend(std::min((col + 1) * scale, lengths_.cols()), Seen::kAll);
    }
    row.extend(lengths_.cols(), Seen::kNone);
  }

  void fill_words(int32_t, Tile&) override {}  // of no block: none is seen in part

 private:
  // Floyd's way of drawing a subset: every one of this size is equally likely.
  void choose(int32_t head, int32_t row) {
    chosen_.clear();
    int32_t const count = std::min(blocks_.per_row, num_cols_);
    for (int32_t last = num_cols_ - count; last < num_cols_; ++last) {
      int32_t const drawn = draw(head, row, last);
      int32_t const col = is_chosen_[drawn] ? last : drawn;
      is_chosen_[col] = true;
      chosen_.push_back(col);
    }
    std::sort(chosen_.begin(), chosen_.end());
    for (int32_t const col : chosen_) is_chosen_[col] = false;
  }

  // From 0 to last.
  int32_t draw(int32_t head, int32_t row, int32_t last) const {
    PhiloxCounter const random =
        philox({uint32_t(row), uint32_t(last), uint32_t(head), 0}, blocks_.seed);
    return static_cast<int32_t>(uint64_t(random.x) * uint64_t(last + 1) >> 32);
  }

  Lengths lengths_;
  RandomBlocks blocks_;
  int32_t num_cols_;
  std::vector<bool> is_chosen_;  // of num_cols_; all false between rows
  std::vector<int32_t> chosen_;
};

class BlocksLeaf : public Node {
 public:
  BlocksLeaf(Lengths const& lengths, BlockTable const& table) : lengths_(lengths), table_(table) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    int32_t const rows = (lengths_.seqlen_q + table_.block_q - 1) / table_.block_q;
    int32_t const cols = (lengths_.seqlen_k + table_.block_k - 1) / table_.block_k;
    int64_t const batch = table_.batch == 1 ? 0 : place.batch;
    int64_t const head = table_.heads == 1 ? 0 : place.head;
    int64_t const index = (batch * table_.heads + head) * rows + place.row / scale(table_.block_q);
    uint8_t const* const data = table_.data + index * cols;
    for (int32_t col = 0; col < cols;) {
      void const* const other = std::memchr(data + col, data[col] ^ 1, size_t(cols - col));
      int32_t const end =
          other == nullptr ? cols : static_cast<int32_t>(static_cast<uint8_t const*>(other) - data);
      row.extend(std::min(end * scale(table_.block_k), lengths_.cols()),
                 data[col] != 0 ? Seen::kAll : Seen::kNone);
      col = end;
    }
  }

  void fill_words(int32_t, Tile&) override {}  // of no block: none is seen in part

 private:
  static int32_t scale(int32_t block) { return block / kBlock; }

  Lengths lengths_;
  BlockTable table_;
};

}  // namespace

NodePtr window(Lengths const& lengths, Window const& window) {
  return std::make_unique<WindowLeaf>(lengths, window);
}

NodePtr keys(Lengths const& lengths, Ranges const& ranges) {
  return std::make_unique<KeysLeaf>(lengths, ranges);
}

NodePtr queries(Lengths const& lengths, Ranges const& ranges) {
  return std::make_unique<QueriesLeaf>(lengths, ranges);
}

NodePtr random_blocks(Lengths const& lengths, RandomBlocks const& blocks) {
  return std::make_unique<RandomLeaf>(lengths, blocks);
}

NodePtr blocks(Lengths const& lengths, BlockTable const& table) {
  return std::make_unique<BlocksLeaf>(lengths, table);
}

}  // namespace fa2::masks
