#pragma once

#include <cstdint>

namespace fa2 {

// What a plan needs to know of a GPU.
struct DeviceInfo {
  int32_t arch;  // compute capability times ten: 80, 90
  int32_t sm_count;
  int32_t smem_per_block;  // bytes a block may opt in to
  int64_t l2_bytes;
};

}  // namespace fa2
