#pragma once

#include "core/params.h"

namespace fa2::cpu {

// Writes new keys and values into a cache, and rotates them and queries.
void append(AppendParams const& params, int num_threads);

}  // namespace fa2::cpu
