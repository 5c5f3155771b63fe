#pragma once

#include <pybind11/pybind11.h>

namespace fa2::bindings {

// Adds the plans of the sm80 family, as data: they need no CUDA, and say what its kernels move
// (flash_attn2/io).
void define_sm80_plans(pybind11::module_& m);

}  // namespace fa2::bindings
