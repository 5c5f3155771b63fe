#pragma once

#include <cstdint>

#include "masks/node.h"

namespace fa2::masks {

// Documents as runs of keys. The first of a batch begins at 0, each ends where the next begins, and
// the last with the keys.
struct Documents {
  int32_t const* starts = nullptr;   // (runs,)
  int32_t const* ids = nullptr;      // (runs,) below 0: of no document
  int64_t const* offsets = nullptr;  // (batch + 1,) into them
  int32_t batch = 1;                 // 1: the same for all
};

// Queries see the keys of the document of the key on whose diagonal they stand.
NodePtr documents(Lengths const& lengths, Documents const& documents);

}  // namespace fa2::masks
