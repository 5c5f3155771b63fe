#pragma once

// The dictionary that Python hands over -> FwdCall, AppendParams, BwdParams.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "core/params.h"
#include "host/forward_call.h"

namespace fa2::bindings {

struct ForwardCall {
  FwdCall params;                      // without workspace
  std::optional<AppendParams> append;  // what goes into the cache before
};

// Fields are named in params.cpp. Pointers come as integers, tensors as (data_ptr, batch_stride,
// row_stride, head_stride) in elements, unlimited windows as -1. Throws TypeError for an unknown or
// missing field.
ForwardCall read_forward_call(pybind11::dict const& problem);

// The fields of the forward call and those of the gradients.
BwdParams read_backward_call(pybind11::dict const& problem);

// Those of the forward call, and where the gradients of biases are summed.
BiasBwdParams read_bias_backward_call(pybind11::dict const& problem);

// A window of so many keys to each side, -1 for no bound.
Window window(int64_t left, int64_t right);

}  // namespace fa2::bindings
