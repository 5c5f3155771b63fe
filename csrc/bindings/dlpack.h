#pragma once

// As much of DLPack's C interface, version 1, as it takes to look at a tensor (almost) without a
// call into Python: the layout of its structures, and the table of functions that a tensor type
// publishes as
// `__dlpack_c_exchange_api__` (torch.Tensor does from torch 2.10 on).

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace fa2::bindings::dlpack {

struct Device {
  int32_t type;
  int32_t index;
};
inline constexpr int32_t kCpu = 1;

struct ElementType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
inline constexpr uint8_t kFloat = 2;
inline constexpr uint8_t kBFloat = 4;

// Owns nothing: shape and strides (in elements) are those of the object that it describes.
struct Tensor {
  void* memory;
  Device device;
  int32_t ndim;
  ElementType element;
  int64_t const* shape;
  int64_t const* strides;
  uint64_t byte_offset;

  void* data() const { return static_cast<char*>(memory) + byte_offset; }
};

struct ExchangeApi {
  uint32_t major_version;
  uint32_t minor_version;
  ExchangeApi const* older;
  void (*unused[3])();
  // Returns 0, or -1 with a Python exception.
  int (*describe)(void* object, Tensor* tensor);

  // The table of a published capsule, or null if it has none of version 1.
  static ExchangeApi const* of(pybind11::capsule const& capsule) {
    void* const newest = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (newest == nullptr) throw pybind11::error_already_set();
    auto const* api = static_cast<ExchangeApi const*>(newest);
    while (api != nullptr && api->major_version != 1) api = api->older;
    return api;
  }

  // Nothing if there is no memory with the tensor's elements to look at.
  std::optional<Tensor> look_at(pybind11::handle tensor) const {
    Tensor description;
    if (describe(tensor.ptr(), &description) != 0) {
      PyErr_Clear();
      return std::nullopt;
    }
    return has_memory(tensor, description) ? std::optional(description) : std::nullopt;
  }

 private:
  // Tensors of zeros, wrappers of other tensors and freed ones have elements without memory, and
  // their offset for an address. No offset is as large as kSurelyMemory; the address of a real
  // tensor may be smaller, but hardly ever is, and then Python knows.
  static bool has_memory(pybind11::handle tensor, Tensor const& description) {
    constexpr uintptr_t kSurelyMemory = uintptr_t{1} << 40;
    if (reinterpret_cast<uintptr_t>(description.data()) >= kSurelyMemory) return true;
    int64_t const* const end = description.shape + description.ndim;
    if (std::find(description.shape, end, 0) != end) return true;
    try {
      return tensor.attr("untyped_storage")().attr("data_ptr")().cast<uintptr_t>() != 0;
    } catch (pybind11::error_already_set const&) {
      return false;
    }
  }
};

}  // namespace fa2::bindings::dlpack
