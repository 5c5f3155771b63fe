// The CUDA families as a Python module. Importing it needs no driver.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <map>
#include <mutex>

#include "bindings/module.h"
#include "cuda/family.h"
#include "host/error.h"

namespace {

// The current device, asked once.
fa2::DeviceInfo current_device() {
  int device = 0;
  FA2_CUDA_CHECK(cudaGetDevice(&device));
  static std::mutex mutex;
  static std::map<int, fa2::DeviceInfo> known;
  std::lock_guard const lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) found = known.emplace(device, fa2::query_device(device)).first;
  return found->second;
}

// The current device and one of its streams.
struct Cuda {
  static fa2::CudaTarget target(int64_t stream) {
    return {current_device(), reinterpret_cast<cudaStream_t>(stream)};
  }

  using Scope = fa2::bindings::NoScope;

  static void describe(pybind11::dict& info) {
    info["cuda"] = CUDART_VERSION;
    info["archs"] = FA2_CUDA_ARCHS;
  }
};

}  // namespace

PYBIND11_MODULE(_cuda, m) { fa2::bindings::Module<fa2::cuda::Family, Cuda>::define(m); }
