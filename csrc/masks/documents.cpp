#include "masks/documents.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace fa2::masks {
namespace {

class DocumentsLeaf : public Node {
 public:
  DocumentsLeaf(Lengths const& lengths, Documents const& documents)
      : lengths_(lengths), documents_(documents) {}

 protected:
  void fill_row(Place const& place, Segments& row) override {
    int32_t const batch = documents_.batch == 1 ? 0 : place.batch;
    if (batch != batch_) sort_runs_of(batch);
    int32_t const first = place.row * kBlock;
    first_ = lengths_.diagonal(first);
    last_ = lengths_.diagonal(std::min(first + kBlock, lengths_.seqlen_q) - 1);
    bool const one_document = find_seen_runs();
    for (int32_t const run : seen_) {
      row.extend_by_keys(start(run), end(run), lengths_.seqlen_k, one_document);
    }
    row.extend(lengths_.cols(), Seen::kNone);
  }

  // Run by run of the queries, the keys of the same document.
  void fill_words(int32_t col, Tile& out) override {
    int32_t const first_key = col * kBlock;
    int32_t const keys_begin = run_at(first_key);
    out.fill(0);
    for (int32_t of_q = run_at(first_); of_q < num_runs_ && start(of_q) <= last_; ++of_q) {
      if (id(of_q) < 0) continue;
      uint64_t word = 0;
      for (int32_t of_k = keys_begin; of_k < num_runs_ && start(of_k) < first_key + kBlock;
           ++of_k) {
        if (id(of_k) != id(of_q)) continue;
        word |= bits_between(start(of_k) - first_key, end(of_k) - first_key);
      }
      int32_t const begin = std::max(start(of_q) - first_, 0);
      std::fill(out.begin() + begin, out.begin() + std::min(end(of_q) - first_, kBlock), word);
    }
  }

 private:
  int32_t start(int32_t run) const { return starts_[run]; }
  int32_t end(int32_t run) const {
    return run + 1 < num_runs_ ? starts_[run + 1] : lengths_.seqlen_k;
  }
  int32_t id(int32_t run) const { return ids_[run]; }

  // The run of a key; the first one where there is none.
  int32_t run_at(int32_t key) const {
    auto const after = std::upper_bound(starts_, starts_ + num_runs_, key) - starts_;
    return std::max(static_cast<int32_t>(after) - 1, 0);
  }

  // The runs of each document, one document after the other.
  void sort_runs_of(int32_t batch) {
    batch_ = batch;
    int64_t const begin = documents_.offsets[batch];
    starts_ = documents_.starts + begin;
    ids_ = documents_.ids + begin;
    num_runs_ = static_cast<int32_t>(documents_.offsets[batch + 1] - begin);
    by_document_.resize(num_runs_);
    std::iota(by_document_.begin(), by_document_.end(), 0);
    std::stable_sort(by_document_.begin(), by_document_.end(),
                     [&](int32_t a, int32_t b) { return id(a) < id(b); });
  }

  // The runs whose keys some query of the row sees, ascending; whether the queries are of one
  // document.
  bool find_seen_runs() {
    int32_t const first_run = run_at(first_);
    seen_ids_.clear();
    for (int32_t run = first_run; run < num_runs_ && start(run) <= last_; ++run) {
      seen_ids_.push_back(id(run));
    }
    bool const one_document = seen_ids_.size() == 1 && first_ >= 0;
    std::sort(seen_ids_.begin(), seen_ids_.end());
    seen_ids_.erase(std::unique(seen_ids_.begin(), seen_ids_.end()), seen_ids_.end());
    seen_.clear();
    for (int32_t const document : seen_ids_) {
      if (document < 0) continue;
      auto const begin = std::partition_point(by_document_.begin(), by_document_.end(),
                                              [&](int32_t run) { return id(run) < document; });
      auto const end = std::partition_point(begin, by_document_.end(),
                                            [&](int32_t run) { return id(run) == document; });
      seen_.insert(seen_.end(), begin, end);
    }
    std::sort(seen_.begin(), seen_.end());
    return one_document;
  }

  Lengths lengths_;
  Documents documents_;
  int32_t batch_ = -1;
  int32_t const* starts_ = nullptr;
  int32_t const* ids_ = nullptr;
  int32_t num_runs_ = 0;
  std::vector<int32_t> by_document_;

  int32_t first_ = 0;  // diagonals of the queries of the row
  int32_t last_ = 0;
  std::vector<int32_t> seen_ids_;
  std::vector<int32_t> seen_;
};

}  // namespace

NodePtr documents(Lengths const& lengths, Documents const& documents) {
  return std::make_unique<DocumentsLeaf>(lengths, documents);
}

}  // namespace fa2::masks
