#pragma once

// Tensor maps: how a tensor lies in global memory, and the boxes of it that bulk copies move. What
// a map's 128 bytes hold is the driver's business; here it is this.

#include <cuda.h>

#include <cstdint>
#include <optional>
#include <span>

#include "bulk_box.h"
#include "emu/atomics.h"

namespace emu {

struct TensorMap {
  static constexpr int kMaxRank = 5;

  uint64_t mark;  // tells a map from other bytes
  char* base;
  uint64_t sizes[kMaxRank];    // in elements; the innermost dimension is the first
  uint64_t strides[kMaxRank];  // in bytes
  uint16_t box[kMaxRank];      // in elements
  uint8_t rank;
  uint8_t span_bytes;  // of the swizzle; see swizzled()
  CUtensorMapDataType type;

  uint32_t element_bytes() const { return uint32_t(strides[0]); }
  // As what elements can be added to, if at all.
  std::optional<AtomicType> addition() const;
  // The box whose first element has these coordinates.
  BulkBox box_at(std::span<int const> first) const;
};

// What cuTensorMapEncodeTiled is given.
struct TensorMapArguments {
  CUtensorMapDataType type;
  uint32_t rank;
  void* base;
  uint64_t const* sizes;
  uint64_t const* outer_strides;  // from the second dimension on
  uint32_t const* box;
  uint32_t const* element_strides;
  CUtensorMapInterleave interleave;
  CUtensorMapSwizzle swizzle;
  CUtensorMapFloatOOBfill fill;
};
// Refuses what the driver does (CUDA_ERROR_INVALID_VALUE), and what the emulator does not know
// (CUDA_ERROR_NOT_SUPPORTED).
CUresult encode_tensor_map(TensorMapArguments const& arguments, CUtensorMap* map);

// The map at this address of global memory or of the kernel's arguments.
TensorMap const& tensor_map_at(void const* site, void const* address);

}  // namespace emu
