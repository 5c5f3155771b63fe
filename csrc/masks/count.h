#pragma once

#include <cstdint>

#include "masks/walk.h"

namespace fa2::masks {

// Visible pairs of each block of queries, of all batches and heads together; no lists are made.
// pairs: (rows,).
void count_pairs(Pattern const& pattern, Shape const& shape, int64_t* pairs, Answer const& answer);

}  // namespace fa2::masks
