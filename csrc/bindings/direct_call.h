#pragma once

// Direct calls of the CPU family, read from the tensors themselves: without dropout, ALiBi and
// sink, of dense tensors that the kernels can read as they are. In that case a tiny call spends
// more time on its preparation in Python than in the kernel.

#include <pybind11/pybind11.h>

#include <optional>

#include "bindings/dlpack.h"
#include "core/params.h"

namespace fa2::bindings {

// Of tensors (q, k, v, out) and options (dropout_p, softmax_scale, causal, window_size, softcap) as
// flash_attn_func takes them: the problem, without lse. Makes all the checks of
// flash_attn2/_impl/checks.py for itself. Nothing if the call is less simple, or wrong: Python
// tells which.
std::optional<FwdParams> read_direct_forward(dlpack::ExchangeApi const& api,
                                             pybind11::tuple const& tensors,
                                             pybind11::tuple const& options);

// Likewise with lse and gradients (grad_out, grad_q, grad_k, grad_v), without workspace.
std::optional<BwdParams> read_direct_backward(dlpack::ExchangeApi const& api,
                                              pybind11::tuple const& tensors, pybind11::handle lse,
                                              pybind11::tuple const& gradients,
                                              pybind11::tuple const& options);

}  // namespace fa2::bindings
