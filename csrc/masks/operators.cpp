#include "masks/operators.h"

#include <algorithm>
#include <utility>

namespace fa2::masks {
namespace {

class Not : public Node {
 public:
  explicit Not(NodePtr operand) : operand_(std::move(operand)) {}

  bool has_unknown() const override { return operand_->has_unknown(); }

 protected:
  void fill_row(Place const& place, Segments& row) override {
    operand_->start(place);
    invert(operand_->row(), row);
  }

  void fill_words(int32_t col, Tile& out) override {
    operand_->words(col, out);
    for (uint64_t& word : out) word = ~word;
  }

  void request_words(int32_t col) override { operand_->request(col); }

 private:
  NodePtr operand_;
};

struct And {
  static constexpr Seen kDecides = Seen::kNone;  // nothing changes it any more
  static constexpr uint64_t kDecidingWord = 0;
  static void rows(Segments const& a, Segments const& b, Segments& out) { intersect(a, b, out); }
  static void word(uint64_t& a, uint64_t b) { a &= b; }
};

struct Or {
  static constexpr Seen kDecides = Seen::kAll;
  static constexpr uint64_t kDecidingWord = kAllBits;
  static void rows(Segments const& a, Segments const& b, Segments& out) { unite(a, b, out); }
  static void word(uint64_t& a, uint64_t b) { a |= b; }
};

template <class Operation>
class Combination : public Node {
 public:
  // Those that the caller evaluates come last: the others may decide without them.
  explicit Combination(std::vector<NodePtr> operands) : operands_(std::move(operands)) {
    auto const known = [](NodePtr const& operand) { return !operand->has_unknown(); };
    auto const unknown = std::stable_partition(operands_.begin(), operands_.end(), known);
    num_known_ = static_cast<size_t>(unknown - operands_.begin());
  }

  bool has_unknown() const override { return num_known_ < operands_.size(); }

 protected:
  // Once it is decided, the other operands do not start: nothing is asked of them in this row.
  void fill_row(Place const& place, Segments& row) override {
    row.extend(kWhole, Operation::kDecides == Seen::kNone ? Seen::kAll : Seen::kNone);
    for (NodePtr const& operand : operands_) {
      operand->start(place);
      Operation::rows(operand->row(), row, other_);
      std::swap(row, other_);
      if (row.is_only(Operation::kDecides)) return;
    }
  }

  void fill_words(int32_t col, Tile& out) override { combine(operands_.size(), col, out); }

  void request_words(int32_t col) override {
    Tile known;
    if (!combine(num_known_, col, known)) return;
    for (size_t i = num_known_; i < operands_.size(); ++i) operands_[i]->request(col);
  }

 private:
  static constexpr int32_t kWhole = INT32_MAX;  // the reach of what no operand has cut yet

  // The first so many operands. False if the others cannot change it.
  bool combine(size_t count, int32_t col, Tile& out) {
    out.fill(~Operation::kDecidingWord);
    Tile tile;
    for (size_t i = 0; i < count; ++i) {
      operands_[i]->words(col, tile);
      for (int32_t q = 0; q < kBlock; ++q) Operation::word(out[q], tile[q]);
      if (all_words_are(out, Operation::kDecidingWord)) return false;
    }
    return true;
  }

  std::vector<NodePtr> operands_;
  size_t num_known_ = 0;
  Segments other_;
};

}  // namespace

NodePtr negation(NodePtr operand) { return std::make_unique<Not>(std::move(operand)); }

NodePtr conjunction(std::vector<NodePtr> operands) {
  return std::make_unique<Combination<And>>(std::move(operands));
}

NodePtr disjunction(std::vector<NodePtr> operands) {
  return std::make_unique<Combination<Or>>(std::move(operands));
}

}  // namespace fa2::masks
