#include "masks/tile_set.h"

#include <stdexcept>

namespace fa2::masks {
namespace {

uint64_t hash_of(Tile const& tile) {
  uint64_t hash = 0;
  for (uint64_t const word : tile) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

TileSet::TileSet() {
  Tile all;
  all.fill(kAllBits);
  number_of(all);
}

int32_t TileSet::number_of(Tile const& tile) {
  uint64_t const hash = hash_of(tile);
  auto const [begin, end] = numbers_.equal_range(hash);
  for (auto known = begin; known != end; ++known) {
    if (tiles_[known->second] == tile) return known->second;
  }
  if (tiles_.size() == INT32_MAX) throw std::length_error("a mask of too many different tiles");
  int32_t const number = static_cast<int32_t>(tiles_.size());
  tiles_.push_back(tile);
  numbers_.emplace(hash, number);
  return number;
}

}  // namespace fa2::masks
