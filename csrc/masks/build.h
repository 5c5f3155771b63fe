#pragma once

// A pattern -> the lists of a BlockMask (core/params.h), in canonical form: no bit outside the
// lengths, no block without a visible pair, full blocks as such, every tile once and in the order
// of first use.

#include <cstdint>

#include "masks/chunks.h"
#include "masks/tile_set.h"
#include "masks/walk.h"

namespace fa2::masks {

// Entries and tiles; row_offsets are written where the caller says.
struct Lists {
  struct Entry {
    int32_t col, tile;
  };
  Chunks<Entry> entries;
  TileSet tiles;
};

// row_offsets: (batch, heads, rows + 1).
Lists build(Pattern const& pattern, Shape const& shape, int64_t* row_offsets, Answer const& answer);

}  // namespace fa2::masks
