#pragma once

// Which memory a problem gives to its kernels, from shapes and strides.

#include <cstdint>
#include <vector>

#include "core/params.h"
#include "emu/api.h"

namespace fa2::emulated {

// q, k, v and the optional arrays, read-only; out and lse, written.
std::vector<emu::Buffer> fwd_buffers(FwdParams const& params);

// All of a forward problem, read-only, and the gradients of its results; the gradients of its
// inputs and the workspace, written.
std::vector<emu::Buffer> bwd_buffers(BwdParams const& params, int64_t workspace_bytes);

}  // namespace fa2::emulated
