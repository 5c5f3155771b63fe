#pragma once

#include <cstdint>
#include <unordered_map>

#include "masks/chunks.h"
#include "masks/tile.h"

namespace fa2::masks {

// Different tiles, numbered in the order in which they come. Number 0 is the tile of all ones.
class TileSet {
 public:
  TileSet();

  int32_t number_of(Tile const& tile);

  Chunks<Tile>& tiles() { return tiles_; }

 private:
  Chunks<Tile> tiles_;
  std::unordered_multimap<uint64_t, int32_t> numbers_;  // by hash
};

}  // namespace fa2::masks
