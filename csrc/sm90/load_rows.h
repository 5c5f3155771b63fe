#pragma once

// Copies of boxes that bring rows of one sequence and head.

#include "sm90/forward/args.h"
#include "tile/wgmma.h"

namespace fa2::sm90 {

struct SequenceRows {
  int head;
  int begin;          // in the sequence,
  int length;         // that has so many,
  int64_t first_row;  // from this one on
  int batch;
};

// A tile of them, with zeros past the end. Its bytes count at `full`.
template <class Tile, class Element>
CUTE_DEVICE void load_rows(TensorMap const& tensor, uint64_t& full, Element* to,
                           SequenceRows const& rows) {
  bool const ragged = tensor.shift != 0;
  int const row = ragged ? tensor.shift - rows.length + rows.begin : rows.begin;
  int const outer = ragged ? int(rows.first_row) + rows.length : 0;
  CUTE_UNROLL
  for (int i = 0; i < Tile::kBoxes; ++i) {
    load_box(tensor.map, full, to + i * Tile::kBoxElements, i * Tile::kUsedCols, rows.head, row,
             outer, rows.batch * tensor.batch_step);
  }
}

}  // namespace fa2::sm90
