#pragma once

// How much of its blocks a row of blocks sees: three values, over runs of blocks.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fa2::masks {

// Of the pairs of a block inside the lengths. kSome is said where it is not known: it may turn out
// to be none or all.
enum class Seen : uint8_t { kNone, kSome, kAll };

struct Segment {
  int32_t end;  // exclusive; begins where the one before ends
  Seen seen;
};

// Neighbours differ.
class Segments {
 public:
  auto begin() const { return segments_.begin(); }
  auto end() const { return segments_.end(); }
  Segment const& operator[](size_t i) const { return segments_[i]; }

  void clear() { segments_.clear(); }

  // How far they reach.
  int32_t reach() const { return segments_.empty() ? 0 : segments_.back().end; }

  // Blocks from their reach to `end`, if there are any.
  void extend(int32_t end, Seen seen) {
    if (end <= reach()) return;
    if (!segments_.empty() && segments_.back().seen == seen) {
      segments_.back().end = end;
    } else {
      segments_.push_back({end, seen});
    }
  }

  // Keys [begin, end) of seqlen_k, behind those of the range before: by all queries of the row, or
  // by some.
  void extend_by_keys(int64_t begin, int64_t end, int32_t seqlen_k, bool by_all);

  bool is_only(Seen seen) const { return segments_.size() == 1 && segments_[0].seen == seen; }

 private:
  std::vector<Segment> segments_;
};

// What is seen of a pair of rows of the same reach. `out` is neither of them.
void intersect(Segments const& a, Segments const& b, Segments& out);
void unite(Segments const& a, Segments const& b, Segments& out);
void invert(Segments const& a, Segments& out);

}  // namespace fa2::masks
