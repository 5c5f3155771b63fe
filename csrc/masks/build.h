#pragma once

// A pattern -> the lists of a BlockMask (core/params.h), in canonical form: no bit outside the
// lengths, no block without a visible pair, full blocks as such, every tile once and in the order
// of first use.

#include <cstdint>
#include <functional>
#include <vector>

#include "masks/chunks.h"
#include "masks/node.h"
#include "masks/tile_set.h"
#include "masks/unknown.h"

namespace fa2::masks {

struct Pattern {
  NodePtr root;
  std::vector<UnknownLeaf*> unknown;  // of the tree, which owns them
};

// Entries and tiles; row_offsets are written where the caller says.
struct Lists {
  struct Entry {
    int32_t col, tile;
  };
  Chunks<Entry> entries;
  TileSet tiles;
};

// Fills the answer to the question of an unknown leaf; called when there is one.
using Answer = std::function<void(size_t leaf, Question& question, Tile* answer)>;

struct Shape {
  Lengths lengths;
  int32_t batch = 1;
  int32_t heads = 1;
};

// row_offsets: (batch, heads, rows + 1).
Lists build(Pattern const& pattern, Shape const& shape, int64_t* row_offsets, Answer const& answer);

}  // namespace fa2::masks
