#pragma once

#include <pybind11/pybind11.h>

namespace fa2::bindings {

// Adds what builds block masks (csrc/masks) to a module.
void define_masks(pybind11::module_& m);

}  // namespace fa2::bindings
