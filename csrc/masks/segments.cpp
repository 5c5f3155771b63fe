#include "masks/segments.h"

#include <algorithm>

#include "masks/tile.h"

namespace fa2::masks {
namespace {

template <class Combine>
void combine(Segments const& a, Segments const& b, Segments& out, Combine const& combined) {
  out.clear();
  for (auto i = a.begin(), j = b.begin(); i != a.end() && j != b.end();) {
    int32_t const end = std::min(i->end, j->end);
    out.extend(end, combined(i->seen, j->seen));
    if (i->end == end) ++i;
    if (j->end == end) ++j;
  }
}

}  // namespace

void Segments::extend_by_keys(int64_t begin, int64_t end, int32_t seqlen_k, bool by_all) {
  begin = std::max<int64_t>(begin, 0);
  end = std::min<int64_t>(end, seqlen_k);
  if (begin >= end) return;
  auto block_of = [](int64_t key) { return static_cast<int32_t>(key / kBlock); };
  int32_t const last = block_of(end + kBlock - 1);
  extend(block_of(begin), Seen::kNone);
  int32_t const whole_begin = block_of(begin + kBlock - 1);
  int32_t const whole_end = end == seqlen_k ? last : block_of(end);
  if (by_all && whole_begin < whole_end) {
    extend(whole_begin, Seen::kSome);
    extend(whole_end, Seen::kAll);
  }
  extend(last, Seen::kSome);
}

void intersect(Segments const& a, Segments const& b, Segments& out) {
  combine(a, b, out, [](Seen x, Seen y) { return std::min(x, y); });
}

void unite(Segments const& a, Segments const& b, Segments& out) {
  combine(a, b, out, [](Seen x, Seen y) { return std::max(x, y); });
}

void invert(Segments const& a, Segments& out) {
  out.clear();
  for (Segment const& segment : a) {
    bool const ends = segment.seen != Seen::kSome;
    Seen const other = segment.seen == Seen::kNone ? Seen::kAll : Seen::kNone;
    out.extend(segment.end, ends ? other : Seen::kSome);
  }
}

}  // namespace fa2::masks
