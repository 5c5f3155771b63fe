#pragma once

#include <cuda_runtime_api.h>

#include "sm80/flash1/args.h"

namespace fa2::sm80::flash1 {

void forward(Args const& args, cudaStream_t stream);
void backward(BwdArgs const& args, cudaStream_t stream);

}  // namespace fa2::sm80::flash1
