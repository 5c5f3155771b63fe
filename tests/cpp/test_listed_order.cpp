// Unit tests of how long lists of a block mask are cut, and in which order the work comes.

#include <algorithm>
#include <map>
#include <vector>

#include "check.h"
#include "listed_order.h"

namespace {

using namespace fa2;
using namespace fa2::sm80;
using namespace fa2::testing;

// The items of all places. Every place is written, once.
template <class Lists>
std::vector<WorkItem> items_of(WorkOrder<Lists> const& order) {
  size_t const length = size_t(order.length());
  std::vector<WorkItem> items(length);
  std::vector<int> written(length, 0);
  place_all(order, [&](int64_t place, WorkItem const& item) {
    EXPECT(0 <= place && place < order.length()) << "place " << place;
    if (place < 0 || place >= order.length()) return;
    items[size_t(place)] = item;
    ++written[size_t(place)];
  });
  EXPECT(std::all_of(written.begin(), written.end(), [](int n) { return n == 1; }));
  return items;
}

// Every list of every head is somewhere, as a whole or in all of its pieces, which have
// neighbouring slots of their own.
template <class Lists>
void check_items(WorkOrder<Lists> const& order, bool cut) {
  Lists const& lists = order.lists;
  std::map<std::pair<int, int>, std::vector<WorkItem>> pieces;
  std::map<std::pair<int, int>, WorkItem> wholes;
  std::set<int> slots;
  for (WorkItem const& item : items_of(order)) {
    if (!item.exists()) continue;
    if (item.is_piece()) {
      EXPECT(slots.insert(item.slot).second);
      EXPECT(item.slot < order.capacity);
      pieces[{item.unit, item.list}].push_back(item);
    } else {
      EXPECT((wholes.insert({{item.unit, item.list}, item}).second));
    }
  }
  EXPECT_EQ(!pieces.empty(), cut);
  for (int unit = 0; unit < lists.units; ++unit) {
    for (int list = 0; list < lists.lists; ++list) {
      auto& own = pieces[{unit, list}];
      std::sort(own.begin(), own.end(),
                [](WorkItem const& a, WorkItem const& b) { return a.part < b.part; });
      size_t at = 0;
      bool rest = false;
      for (int i = 0; cut && i < lists.masks; ++i) {
        int const m = unit * lists.masks + i, count = pieces_of_list(lists, m, list);
        if (count == 1) rest |= lists.list(m, list).size > 0;
        for (int j = 0; count > 1 && j < lists.heads * count; ++j, ++at) {
          if (at >= own.size()) break;
          WorkItem const& item = own[at];
          EXPECT_EQ(item.part, int(at));
          EXPECT_EQ(item.parts, int(own.size()));
          EXPECT_EQ(item.slot, own[0].slot + int(at));
          EXPECT_EQ(item.head, i * lists.heads + j / count);
          EXPECT_EQ(item.piece, j % count);
          EXPECT_EQ(item.pieces, count);
        }
      }
      EXPECT_EQ(at, own.size());
      auto const whole = wholes.find({unit, list});
      EXPECT_EQ(whole != wholes.end(), own.empty() || rest);
      if (whole == wholes.end()) continue;
      EXPECT_EQ(whole->second.is_stored(), own.empty());
      EXPECT(own.empty() || whole->second.slot == own[0].slot);
      for (WorkItem const& item : own) EXPECT_EQ(item.rest != 0, rest);
    }
  }
}

Rows long_lines(int rows, int cols, int long_row, int long_col) {
  Rows result(static_cast<size_t>(rows));
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) {
      if (row == long_row || col == long_col || (row + col) % 50 == 0) {
        result[size_t(row)].insert(col);
      }
    }
  }
  return result;
}

TEST(rows_are_placed) {
  std::vector<Rows> const masks = {bigbird(260, 2, 1, 3), bigbird(260, 1, 0, 2),
                                   bigbird(260, 0, 3, 0), bigbird(260, 200, 0, 0)};
  for (int block_m : {64, 128}) {
    for (PieceOrder order :
         {PieceOrder::kFirst, PieceOrder::kFirstDown, PieceOrder::kBesideTheList}) {
      for (int mask_heads : {1, 2, 4}) {
        MaskedProblem const x(masks, mask_heads, 4, 2, 260);
        RowLists const lists(x.p, block_m);
        int64_t const capacity = lists.most_entries() / lists.least;
        check_items(WorkOrder<RowLists>{lists, capacity, order}, true);
        check_items(WorkOrder<RowLists>{lists, capacity + 99, order}, true);
        check_items(WorkOrder<RowLists>{lists, 3, order}, false);
      }
    }
  }
}

TEST(columns_are_placed) {
  std::vector<Rows> const masks = {long_lines(300, 9, 2, 3), long_lines(300, 9, 0, 8),
                                   bigbird(300, 1, 0, 0), long_lines(300, 9, 4, 0)};
  for (int block_n : {32, 64, 128}) {
    for (PieceOrder order :
         {PieceOrder::kFirst, PieceOrder::kFirstDown, PieceOrder::kBesideTheList}) {
      for (int mask_heads : {1, 2, 4}) {
        MaskedProblem x(masks, mask_heads, 4, 2, 9);
        x.p.seqs_k.max_seqlen -= 40;  // the last half of a block is missing
        Columns const columns(masks, x.p, block_n);
        ColumnLists const lists(x.p, columns.columns, block_n);
        int64_t const capacity = lists.most_entries() / lists.least * lists.heads;
        check_items(WorkOrder<ColumnLists>{lists, capacity, order}, true);
      }
    }
  }
}

TEST(offsets_out_of_order_are_not_cut) {
  std::mt19937 bits(3);
  for (int round = 0; round < 50; ++round) {
    MaskedProblem x({bigbird(200, 2, 1, 3), bigbird(200, 3, 2, 0)}, 2, 4, 2, 200);
    for (int i = 0; i <= round % 7; ++i) {
      int64_t const limits[] = {-1, 0, 7, 100, int64_t(1) << 40, -(int64_t(1) << 62)};
      x.offsets[bits() % x.offsets.size()] = limits[bits() % 6];
    }
    for (int block_m : {64, 128}) {
      for (PieceOrder order : {PieceOrder::kFirstDown, PieceOrder::kBesideTheList}) {
        RowLists const lists(x.p, block_m);
        items_of(WorkOrder<RowLists>{lists, lists.most_entries() / lists.least, order});
      }
    }
  }
}

// In a fixed order of summation a CTA waits for those of later key blocks.
TEST(later_key_blocks_come_first_in_a_fixed_order) {
  std::vector<Rows> const masks = {long_lines(300, 9, 2, 3), long_lines(300, 9, 0, 8),
                                   long_lines(300, 9, 1, 5), long_lines(300, 9, 4, 0)};
  MaskedProblem const x(masks, 4, 4, 2, 9);
  Columns const columns(masks, x.p, 64);
  ColumnLists const lists(x.p, columns.columns, 64);
  std::map<int, int> last;  // of each unit
  for (WorkItem const& item :
       items_of(WorkOrder<ColumnLists>{lists, 100, PieceOrder::kBesideTheList})) {
    if (!item.exists()) continue;
    auto const [at, first] = last.insert({item.unit, item.list});
    EXPECT(first || item.list <= at->second);
    at->second = item.list;
  }
}

TEST(pieces_follow_from_the_list_and_its_mask) {
  EXPECT_EQ(piece_size(0, 10, 64), 64);
  EXPECT_EQ(piece_size(32 * 64, 10, 64), 64);
  EXPECT_EQ(piece_size(32 * 64 + 1, 64, 64), 65);
  EXPECT_EQ(piece_size(32 * 64 + 1, 66, 64), 64);
  EXPECT_EQ(pieces_of(127, 64), 1);
  EXPECT_EQ(pieces_of(128, 64), 2);
  EXPECT_EQ(pieces_of(191, 64), 2);
  EXPECT_EQ(piece_begin(191, 0, 2), 0);
  EXPECT_EQ(piece_begin(191, 1, 2), 95);
  EXPECT_EQ(piece_begin(191, 2, 2), 191);
}

// ---- What a device takes, in steps of the main kernel, of which one takes 2 us of a slot of an
// A100 at head dim 64, forward.

// A CTA beside its own steps; one that finds nothing to do; the way of what a piece leaves through
// memory, there and back each; a place without a piece, to a CTA that goes from place to place; a
// launch before or after another.
constexpr double kCta = 2, kIdle = 0.5, kLeft = 2, kSkip = 0.25, kLaunch = 3;

// Of a tile's lists merged, from the last block of keys to the first.
int merged_steps(Rows const& rows, WorkItem const& item, int rows_per_list) {
  std::vector<int> merged;
  for (int i = 0; i < rows_per_list; ++i) {
    size_t const row = size_t(item.list * rows_per_list + i);
    if (row < rows.size()) merged.insert(merged.end(), rows[row].begin(), rows[row].end());
  }
  std::sort(merged.begin(), merged.end(), std::greater<>());
  auto const cut_at = [&](int piece) {
    size_t at = size_t(piece_begin(int64_t(merged.size()), piece, item.pieces));
    while (at > 0 && at < merged.size() && merged[at] == merged[at - 1]) ++at;
    return merged.begin() + int64_t(at);
  };
  return int(std::set<int>(cut_at(item.piece), cut_at(item.piece + 1)).size());
}

struct Makespan {
  double time;
  double ideal;

  double ratio() const { return time / ideal; }
};

// For `copies` of the work; steps_of(item) is what a CTA goes through.
template <class Lists, class StepsOf>
Makespan makespan(WorkOrder<Lists> const& order, int copies, int slots, StepsOf const& steps_of) {
  std::vector<double> main, sum;
  double work = order.lists.lists * kCta;
  for (WorkItem const& item : items_of(order)) {
    double const steps = item.exists() ? steps_of(item) : 0;
    double const cost = item.exists() ? steps + kCta + (item.is_piece() ? kLeft : 0) : kIdle;
    main.insert(main.end(), size_t(copies), cost);
    sum.insert(sum.end(), size_t(copies), item.is_piece() ? kLeft : kSkip);
    work += steps;
  }
  if (order.order != PieceOrder::kBesideTheList) sum.resize(size_t(order.capacity * copies));
  return {kLaunch + play(main, slots) + kLaunch + play(sum, slots), work * copies / slots};
}

Makespan forward_makespan(Rows const& rows, int heads, int slots, int block_m, int64_t capacity) {
  MaskedProblem const x({rows}, 1, heads, heads, int(rows.size()));
  RowLists const lists(x.p, block_m);
  return makespan(
      WorkOrder<RowLists>{lists, capacity, PieceOrder::kFirstDown}, heads, slots,
      [&](WorkItem const& item) { return merged_steps(rows, item, lists.rows_per_list); });
}

Makespan backward_makespan(Rows const& rows, int heads, int slots, int block_n, PieceOrder order,
                           int64_t capacity) {
  MaskedProblem const x({rows}, 1, heads, heads, int(rows.size()));
  Columns const columns({rows}, x.p, block_n);
  ColumnLists const lists(x.p, columns.columns, block_n);
  return makespan(WorkOrder<ColumnLists>{lists, capacity, order}, heads, slots,
                  [&](WorkItem const& item) {
                    int64_t const size = lists.list(0, item.list).size;
                    return piece_begin(size, item.piece + 1, item.pieces) -
                           piece_begin(size, item.piece, item.pieces);
                  });
}

// 64k tokens of which 64 are global, 12 heads, on the 2 x 108 slots of an A100.
TEST(long_rows_and_columns_keep_no_device_waiting) {
  Rows const rows = bigbird(1024, 3, 1, 3);
  int64_t entries = 0;
  for (auto const& row : rows) entries += int64_t(row.size());
  int64_t const capacity = entries / 64;
  constexpr double kMost = 1.08;
  for (int block : {64, 128}) {
    Makespan const cut = forward_makespan(rows, 12, 216, block, capacity);
    EXPECT(cut.ratio() < kMost) << cut.ratio();
    EXPECT(forward_makespan(rows, 12, 216, block, 0).ratio() > 1.5);
    for (PieceOrder order : {PieceOrder::kFirst, PieceOrder::kBesideTheList}) {
      Makespan const back = backward_makespan(rows, 12, 216, block, order, capacity);
      EXPECT(back.ratio() < kMost) << back.ratio();
      EXPECT(backward_makespan(rows, 12, 216, block, order, 0).ratio() > 1.25);
    }
  }
}

}  // namespace
