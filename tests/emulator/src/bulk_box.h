#pragma once

// What a bulk copy moves: pieces of global memory that make up one range of shared memory.

#include <cstdint>
#include <vector>

#include "swizzle.h"

namespace emu {

struct BulkPiece {
  char* global;
  uint32_t offset;  // in the range, before the swizzle
  uint32_t bytes;
};

struct BulkBox {
  std::vector<BulkPiece> pieces;
  uint32_t bytes;  // of the range: what no piece fills is zero
  uint32_t span_bytes = kChunkBytes;

  // From global memory to this place, which is aligned to rows of the swizzle, and back.
  void load_to(char* shared, uint32_t place) const;
  std::vector<char> read_from(char const* shared, uint32_t place) const;
};

}  // namespace emu
