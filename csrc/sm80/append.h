#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"

namespace fa2::sm80 {

// Writes new keys and values into a cache, and rotates them and queries.
void append(AppendParams const& params, cudaStream_t stream);

}  // namespace fa2::sm80
