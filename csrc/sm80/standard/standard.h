#pragma once

#include <cuda_runtime_api.h>

#include "sm80/standard/args.h"

namespace fa2::sm80::standard {

// Tiles of C have 128 columns where the factors lie by rows (scores), else 64 (heads).
void product(Form form, ProductArgs const& args, cudaStream_t stream);
void softmax(SoftmaxArgs const& args, cudaStream_t stream);
void softmax_grad(SoftmaxArgs const& args, cudaStream_t stream);

}  // namespace fa2::sm80::standard
