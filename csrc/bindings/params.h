#pragma once

// The dictionary that Python hands over -> FwdParams, AppendParams, BwdParams. Shared by every
// native module.

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/params.h"

namespace fa2::bindings {

struct ForwardCall {
  FwdParams params;
  int64_t execution;  // what the module runs on: a number of threads, or a stream
};

// Fields are named in params.cpp. Pointers come as integers, tensors as (data_ptr, batch_stride,
// row_stride, head_stride) in elements, unlimited windows as -1. Throws TypeError for an unknown or
// missing field.
ForwardCall read_forward_call(pybind11::dict const& problem);

struct AppendCall {
  AppendParams params;
  int64_t execution;
};

AppendCall read_append_call(pybind11::dict const& problem);

struct BackwardCall {
  BwdParams params;
  int64_t execution;
};

// The fields of the forward call and those of the gradients. `workspace` may be missing: to ask for
// its size.
BackwardCall read_backward_call(pybind11::dict const& problem);

// As above for entry points that take no `execution`.
FwdParams read_fwd_params(pybind11::dict const& problem);
BwdParams read_bwd_params(pybind11::dict const& problem);

// A window of so many keys to each side, -1 for no bound.
Window window(int64_t left, int64_t right);

}  // namespace fa2::bindings
