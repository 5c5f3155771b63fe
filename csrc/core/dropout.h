#pragma once

// The dropout mask as a function of coordinates alone: (seed, offset, batch, head, row, col) give
// 16 random bits, whatever the tile size, the family or the direction. One Philox call serves 8
// columns of one row:
//   key     = seed
//   counter = {row, col_group, batch * num_heads + head, low half of offset ^ high half}
// Columns are grouped so that one call serves the 8 columns that an mma.m16n8k16 lane holds in 4
// neighbouring 8-column fragments: in each block of 32 columns, group t (0..3) holds columns
// 8 j + 2 t + e for j = 0..3, e = 0..1, and column (j, e) takes half e of output word j.

#include "core/macros.h"
#include "core/params.h"
#include "core/philox.h"

namespace fa2 {

inline constexpr int kDropoutColsPerCall = 8;

// An entry is kept iff its 16 bits are below this. At least one value in 65536 is dropped: callers
// treat drop_prob == 0 apart.
FA2_HD uint32_t dropout_keep_threshold(float drop_prob) {
  uint32_t const dropped = uint32_t(double(drop_prob) * 65536.0 + 0.5);
  return dropped == 0 ? 65535u : (dropped >= 65536u ? 0u : 65536u - dropped);
}

FA2_HD uint32_t dropout_col_group(int32_t col) {
  return (uint32_t(col) >> 5) * 4 + ((uint32_t(col) >> 1) & 3);
}

// The random words of the 8 columns in `col_group`; col takes half (col & 1) of word (col >> 3)
// & 3.
FA2_HD PhiloxCounter dropout_words(int64_t seed, int64_t offset, uint32_t batch_head, int32_t row,
                                   uint32_t col_group) {
  uint32_t const stream = uint32_t(offset) ^ uint32_t(uint64_t(offset) >> 32);
  return philox({uint32_t(row), col_group, batch_head, stream}, uint64_t(seed));
}

FA2_HD uint32_t dropout_bits(int64_t seed, int64_t offset, uint32_t batch_head, int32_t row,
                             int32_t col) {
  PhiloxCounter const r = dropout_words(seed, offset, batch_head, row, dropout_col_group(col));
  uint32_t const j = (uint32_t(col) >> 3) & 3;
  uint32_t const word = j == 0 ? r.x : (j == 1 ? r.y : (j == 2 ? r.z : r.w));
  return (word >> (16 * (col & 1))) & 0xffffu;
}

}  // namespace fa2
