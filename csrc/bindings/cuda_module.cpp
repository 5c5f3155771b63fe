// The CUDA families as a Python module. Importing it needs no driver.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <map>
#include <mutex>
#include <string>

#include "bindings/build_info.h"
#include "bindings/params.h"
#include "host/device.h"
#include "host/error.h"
#include "host/plan.h"
#include "sm80/append.h"
#include "sm80/backward.h"
#include "sm80/forward.h"

namespace py = pybind11;

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

void forward(py::dict const& problem) {
  auto const [params, stream] = fa2::bindings::read_forward_call(problem);
  py::gil_scoped_release const release;
  fa2::sm80::forward(params, current_device(), reinterpret_cast<cudaStream_t>(stream));
}

int64_t forward_workspace(py::dict const& problem) {
  fa2::FwdParams const params = fa2::bindings::read_forward_call(problem).params;
  return fa2::plan_forward(params, current_device()).workspace_bytes;
}

void append(py::dict const& problem) {
  auto const [params, stream] = fa2::bindings::read_append_call(problem);
  py::gil_scoped_release const release;
  fa2::sm80::append(params, reinterpret_cast<cudaStream_t>(stream));
}

std::string plan_forward(py::dict const& problem) {
  fa2::FwdParams const params = fa2::bindings::read_fwd_params(problem);
  return to_string(fa2::plan_forward(params, current_device()));
}

int64_t backward_workspace(py::dict const& problem) {
  fa2::BwdParams const params = fa2::bindings::read_backward_call(problem).params;
  return fa2::plan_backward(params, current_device()).workspace.bytes;
}

void backward(py::dict const& problem) {
  auto const [params, stream] = fa2::bindings::read_backward_call(problem);
  py::gil_scoped_release const release;
  fa2::sm80::backward(params, current_device(), reinterpret_cast<cudaStream_t>(stream));
}

std::string plan_backward(py::dict const& problem) {
  fa2::BwdParams const params = fa2::bindings::read_bwd_params(problem);
  return to_string(fa2::plan_backward(params, current_device()));
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = fa2::bindings::compiler();
  info["cuda"] = CUDART_VERSION;
  info["archs"] = FA2_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.def("forward", &forward, py::arg("problem"),
        "Runs one problem (fields: csrc/bindings/params.cpp) on the current device; `execution` "
        "is the stream.");
  m.def("forward_workspace", &forward_workspace, py::arg("problem"),
        "Bytes that `workspace` of this problem must have; 0: none.");
  m.def("append", &append, py::arg("problem"),
        "Appends to a KV cache and rotates (fields: csrc/bindings/params.cpp).");
  m.def("plan_forward", &plan_forward, py::arg("problem"),
        "How the current device would run the problem (fields as for forward, no `execution`).");
  m.def("backward_workspace", &backward_workspace, py::arg("problem"),
        "Bytes that `workspace` of this problem must have.");
  m.def("backward", &backward, py::arg("problem"),
        "Runs the gradient of one problem (fields: csrc/bindings/params.cpp).");
  m.def("plan_backward", &plan_backward, py::arg("problem"),
        "How the current device would run the gradient (fields as for backward, no `execution`).");
  m.def("build_info", &build_info);
}
