#pragma once

// The swizzles of shared memory that bulk copies of tensors write and wgmma reads.

#include <cstdint>

namespace emu {

inline constexpr uint32_t kChunkBytes = 16;  // that stay together

// Where what would lie at `offset` lies, with spans of 32, 64 or 128 bytes whose chunks change
// places from row to row; with a span of one chunk, none does.
inline uint32_t swizzled(uint32_t offset, uint32_t span_bytes) {
  return offset ^ (offset >> 3 & (span_bytes - kChunkBytes));
}

}  // namespace emu
