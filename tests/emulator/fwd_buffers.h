#pragma once

// Which memory a forward problem gives to its kernels.

#include <vector>

#include "core/params.h"
#include "emu/api.h"

namespace fa2::emulated {

// q, k, v, out, lse and the optional arrays, from their shapes and strides.
std::vector<emu::Buffer> fwd_buffers(FwdParams const& params);

}  // namespace fa2::emulated
