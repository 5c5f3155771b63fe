#pragma once

// Copies of boxes from pages.

#include "core/paging.h"
#include "sm90/load_rows.h"

namespace fa2::sm90 {

// A tile of keys or values of one sequence and head, box by box of rows, each on its page and in
// the place where a box of all rows would put them: these begin with multiples of 8 rows, as the
// pattern of swizzles does. Past the sequence's end are zeros, whatever pages hold, and no page is
// looked up.
template <class Tile, class Element>
CUTE_DEVICE void load_paged_rows(TensorMap const& tensor, FwdArgs const& args, uint64_t& full,
                                 Element* to, SequenceRows const& rows) {
  PagedKV const& pages = args.problem.pages;
  int index = rows.begin / pages.page_size;
  int begin = rows.begin - index * pages.page_size;  // of the box, in its page
  CUTE_NO_UNROLL
  for (int row = 0; row < Tile::kRows; row += args.page_box) {
    int const left = rows.length - index * pages.page_size;
    int const page = left > 0 ? page_within(pages, table_entry(pages, rows.batch, index)) : 0;
    int const length = max(0, min(left, pages.page_size));
    load_rows<Tile>(tensor, full, to + row * Tile::kBoxCols, {rows.head, begin, length, 0, page});
    begin += args.page_box;
    if (begin == pages.page_size) {
      begin = 0;
      ++index;
    }
  }
}

}  // namespace fa2::sm90
