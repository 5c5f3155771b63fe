#pragma once

#include <cuda_runtime_api.h>

#include "host/device.h"

namespace fa2 {

// Where a call of a CUDA family runs.
struct CudaTarget {
  DeviceInfo device;
  cudaStream_t stream;
};

}  // namespace fa2
