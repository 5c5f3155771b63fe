#pragma once

#include "core/params.h"

namespace fa2::cpu {

// Attention forward on the CPU: writes params.out and params.lse. Takes float16, bfloat16, float32
// and float64, any head_dim up to 256 and any strides with a unit last stride. Uses at most
// `num_threads` OpenMP threads. May be called from several threads at once.
void forward(FwdParams const& params, int num_threads);

}  // namespace fa2::cpu
