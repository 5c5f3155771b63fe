#pragma once

#include <cstdint>

#include "masks/node.h"

namespace fa2::masks {

// Bytes, 0 or 1, for each pair, in host memory. A stride of 0 where they are the same for all.
struct DenseMask {
  uint8_t const* data = nullptr;
  int64_t batch_stride = 0;
  int64_t head_stride = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

// It is read only in blocks of which some pairs are wanted.
NodePtr dense(Lengths const& lengths, DenseMask const& mask);

}  // namespace fa2::masks
