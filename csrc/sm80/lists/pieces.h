#pragma once

// How long lists of a block mask are cut into pieces, each for a CTA of its own, and in which order
// the CTAs of a launch come. Written once for the kernel that places them (lists/order.h) and for
// tests, which play the order.
//
// Where a list is cut follows from its length and from the number and the mean length of the lists
// of its mask, which is the one of a sequence and head: not from the batch, the number of heads,
// the device or what runs beside it. A list that is not cut is computed as if nothing were.

#include <cstdint>

#include "core/macros.h"

namespace fa2::sm80 {

// Pieces that a mask may be cut into, which bounds the memory of what they leave. Where all lists
// are long, none of them is what a device waits for.
FA2_HD int32_t most_pieces(int32_t lists) { return lists / 2 > 32 ? lists / 2 : 32; }

// Entries that a piece has at least, and twice as many are more than it has. `least` is what a CTA
// of its own is worth.
FA2_HD int32_t piece_size(int64_t mask_entries, int32_t lists, int32_t least) {
  int64_t const most = most_pieces(lists), share = (mask_entries + most - 1) / most;
  return share > least ? int32_t(share) : least;
}

FA2_HD int32_t pieces_of(int64_t entries, int32_t size) {
  return entries < 2 * int64_t(size) ? 1 : int32_t(entries / size);
}

// Entries [piece_begin(i), piece_begin(i + 1)) of a list are those of piece i.
FA2_HD int64_t piece_begin(int64_t entries, int32_t piece, int32_t pieces) {
  return entries * piece / pieces;
}

// Where a list lies among the entries of all.
struct ListSpan {
  int64_t begin;
  int64_t size;
};

// What a CTA works on. A unit is a mask, or those of all query heads of a KV head: what has a
// schedule of its own.
struct alignas(16) WorkItem {
  int32_t list = -1;  // of the unit: a tile of queries or of keys; negative: nothing to do
  int32_t unit = 0;
  int16_t head = 0;    // of a piece: the query head among those of the unit
  int16_t rest = 0;    // whether heads whose lists are not cut leave results too
  int32_t slot = 0;    // of a piece: where its results go; otherwise that of part 0
  int32_t part = -1;   // of a piece: among those of the list, over all heads; otherwise negative
  int32_t parts = 0;   // that are added up; 0: the list is not cut
  int32_t piece = 0;   // of the list of the head
  int32_t pieces = 1;  // of it, all together

  FA2_HD bool exists() const { return list >= 0; }
  FA2_HD bool is_piece() const { return part >= 0; }
  FA2_HD bool is_stored() const { return parts == 0; }  // by the CTA that has it, finished
};

// Of list i of mask m, in `Lists` of WorkOrder.
template <class Lists>
FA2_HD int32_t pieces_of_list(Lists const& lists, int32_t m, int32_t i) {
  return pieces_of(lists.list(m, i).size, piece_size(lists.mask(m).size, lists.lists, lists.least));
}

enum class PieceOrder : int32_t {
  kFirst,          // pieces, then lists from the first to the last
  kFirstDown,      // pieces, then lists from the last to the first
  kBesideTheList,  // lists from the last to the first, each followed by its pieces
};

// The order of the work on `Lists`, which has
//   units, lists (of a unit)
//   masks (of a unit), heads (that share a mask)
//   least                 piece_size()'s
//   mask(m), list(m, i)   the spans of mask m, counted over all units, and of its list i: lists
//                         follow each other
//   in_order(m, i)        whether list i ends where the next begins
//
// A list of n entries has n / size pieces, so there is room for them where the list lies: piece i
// has the place (begin + i * size) / size, which no other piece has. What lies at the other places
// is nothing.
template <class Lists>
struct WorkOrder {
  Lists lists;
  int64_t capacity;  // places for pieces
  PieceOrder order;

  // What precedes a unit's own places.
  struct Unit {
    int32_t index;
    int64_t first;
    int64_t count;  // its places for pieces
    bool cut;       // whether its lists are in order
  };

  FA2_HD int64_t length() const { return int64_t(lists.units) * lists.lists + capacity; }

  FA2_HD int64_t places_of_mask(int32_t m) const {
    int64_t const entries = lists.mask(m).size;
    return lists.heads * (entries / piece_size(entries, lists.lists, lists.least));
  }

  FA2_HD bool in_order(int32_t unit, int32_t list) const {
    for (int32_t m = unit * lists.masks; m < (unit + 1) * lists.masks; ++m) {
      if (!lists.in_order(m, list)) return false;
    }
    return true;
  }

  // Calls put(place, item) for a list and for all places of its pieces.
  template <class Put>
  FA2_HD void place(Unit const& unit, int32_t list, Put const& put) const {
    Places const places = places_of(unit, list);
    WorkItem whole;
    whole.list = places.parts > 0 && !places.rest ? -1 : list;
    whole.unit = unit.index;
    whole.slot = int32_t(unit.first + places.before);
    whole.parts = places.parts;
    whole.rest = places.rest;
    put(list_place(unit, list, places.before), whole);
    int64_t at = places.before;
    auto const put_next = [&](WorkItem const& item) {
      put(piece_place(unit, list, at), item);
      ++at;
    };
    if (places.parts > 0) {
      for (int32_t i = 0; i < lists.masks; ++i) {
        int32_t const m = unit.index * lists.masks + i;
        int32_t const pieces = pieces_of_list(lists, m, list);
        for (int32_t j = 0; pieces > 1 && j < lists.heads * pieces; ++j) {
          WorkItem item = whole;
          item.list = list;
          item.head = int16_t(i * lists.heads + j / pieces);
          item.slot = int32_t(unit.first + at);
          item.part = int32_t(at - places.before);
          item.piece = j % pieces;
          item.pieces = pieces;
          put_next(item);
        }
      }
    }
    while (at < places.end) put_next(WorkItem{});
  }

  // The places behind those of all units, which have `used` places for pieces.
  FA2_HD int64_t unused_begin(int64_t used) const {
    return order == PieceOrder::kBesideTheList ? int64_t(lists.units) * lists.lists + used : used;
  }
  FA2_HD int64_t unused_end() const {
    return order == PieceOrder::kBesideTheList ? length() : capacity;
  }

 private:
  // Of a list, in its unit.
  struct Places {
    int64_t before;
    int64_t end;
    int32_t parts;
    bool rest;
  };

  FA2_HD Places places_of(Unit const& unit, int32_t list) const {
    bool const last = list == lists.lists - 1;
    if (!unit.cut) return {0, last ? unit.count : 0, 0, false};
    Places places{0, 0, 0, false};
    for (int32_t i = 0; i < lists.masks; ++i) {
      int32_t const m = unit.index * lists.masks + i;
      ListSpan const mask = lists.mask(m), own = lists.list(m, list);
      int32_t const size = piece_size(mask.size, lists.lists, lists.least);
      int64_t const begin = own.begin - mask.begin;
      places.before += lists.heads * (begin / size);
      places.end += lists.heads * ((last ? mask.size : begin + own.size) / size);
      int32_t const pieces = pieces_of(own.size, size);
      if (pieces > 1) {
        places.parts += lists.heads * pieces;
      } else {
        places.rest |= own.size > 0;
      }
    }
    places.rest &= places.parts > 0;
    return places;
  }

  FA2_HD int64_t list_place(Unit const& unit, int32_t list, int64_t before) const {
    if (order == PieceOrder::kBesideTheList) return down(unit, list + before);
    int32_t const step = order == PieceOrder::kFirst ? list : lists.lists - 1 - list;
    return capacity + int64_t(unit.index) * lists.lists + step;
  }
  FA2_HD int64_t piece_place(Unit const& unit, int32_t list, int64_t at) const {
    return order == PieceOrder::kBesideTheList ? down(unit, list + 1 + at) : unit.first + at;
  }

  // Place `step` of a unit, counted from its last.
  FA2_HD int64_t down(Unit const& unit, int64_t step) const {
    int64_t const all = lists.lists + unit.count;
    return int64_t(unit.index) * lists.lists + unit.first + all - 1 - step;
  }
};

}  // namespace fa2::sm80
