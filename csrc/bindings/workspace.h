#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/params.h"
#include "host/error.h"

namespace fa2::bindings {

// So many bytes from Python's allocate(num_bytes) -> address; none are not asked for. The caller
// does not hold the GIL.
inline Workspace workspace(int64_t num_bytes, pybind11::object const& allocate) {
  constexpr uintptr_t kAlignment = 256;
  if (num_bytes == 0) return {};
  pybind11::gil_scoped_acquire const acquire;
  auto const address = allocate(num_bytes).cast<uintptr_t>();
  FA2_CHECK(address != 0 && address % kAlignment == 0,
            "allocate({}) must return an address that is a multiple of {}, got {}", num_bytes,
            kAlignment, address);
  return {.data = reinterpret_cast<void*>(address), .bytes = num_bytes};
}

}  // namespace fa2::bindings
