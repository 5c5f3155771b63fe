#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"
#include "host/device.h"

namespace fa2::sm80 {

// Launches the gradient of exact attention (FlashAttention-2, algorithm 2) on `stream`. Tensors are
// float16 or bfloat16 with rows aligned to 16 bytes; `workspace` has plan_backward's size.
void backward(BwdParams const& params, DeviceInfo const& device, cudaStream_t stream);

}  // namespace fa2::sm80
