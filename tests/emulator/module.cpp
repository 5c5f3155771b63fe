// The sm80 family under the emulator as a Python module, with the entry points of the CUDA module
// and the emulator's own. For development and tests.

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "bindings/build_info.h"
#include "bindings/params.h"
#include "emu/api.h"
#include "host/device.h"
#include "host/plan.h"
#include "problem_buffers.h"
#include "sm80/backward.h"
#include "sm80/forward.h"

namespace py = pybind11;

namespace {

// Asked anew: the options may have changed it.
fa2::DeviceInfo emulated_device() { return fa2::query_device(0); }

void forward(py::dict const& problem) {
  fa2::FwdParams const params = fa2::bindings::read_forward_call(problem).params;
  py::gil_scoped_release const release;
  emu::ScopedBuffers const buffers(fa2::emulated::fwd_buffers(params));
  fa2::sm80::forward(params, emulated_device(), nullptr);
}

std::string plan_forward(py::dict const& problem) {
  fa2::FwdParams const params = fa2::bindings::read_fwd_params(problem);
  return to_string(fa2::plan_forward(params, emulated_device()));
}

int64_t backward_workspace(py::dict const& problem) {
  fa2::BwdParams const params = fa2::bindings::read_backward_call(problem).params;
  return fa2::plan_backward(params, emulated_device()).workspace.bytes;
}

void backward(py::dict const& problem) {
  fa2::BwdParams const params = fa2::bindings::read_backward_call(problem).params;
  py::gil_scoped_release const release;
  fa2::DeviceInfo const device = emulated_device();
  int64_t const workspace_bytes = fa2::plan_backward(params, device).workspace.bytes;
  emu::ScopedBuffers const buffers(fa2::emulated::bwd_buffers(params, workspace_bytes));
  fa2::sm80::backward(params, device, nullptr);
}

std::string plan_backward(py::dict const& problem) {
  fa2::BwdParams const params = fa2::bindings::read_bwd_params(problem);
  return to_string(fa2::plan_backward(params, emulated_device()));
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = fa2::bindings::compiler();
  info["cuda"] = CUDART_VERSION;
  info["emulator"] = true;
  return info;
}

std::string set_options(std::string const& text) {
  std::string const before = emu::to_string(emu::options());
  emu::set_options(emu::parse_options(text));
  return before;
}

}  // namespace

PYBIND11_MODULE(_sm80_emulated, m) {
  m.def("forward", &forward, py::arg("problem"),
        "Runs one problem (fields: csrc/bindings/params.cpp) in the emulator; `execution` is "
        "ignored. RuntimeError with a report when the kernel breaks a rule.");
  m.def("plan_forward", &plan_forward, py::arg("problem"),
        "How the emulated device would run the problem (fields as for forward, no `execution`).");
  m.def("backward_workspace", &backward_workspace, py::arg("problem"),
        "Bytes that `workspace` of this problem must have.");
  m.def("backward", &backward, py::arg("problem"),
        "Runs the gradient of one problem in the emulator, as forward does.");
  m.def("plan_backward", &plan_backward, py::arg("problem"),
        "How the emulated device would run the gradient (fields as for backward, no `execution`).");
  m.def("build_info", &build_info);
  m.def("set_options", &set_options, py::arg("options"),
        "Options of the launches to come, as in FLASH_ATTN2_EMULATOR; what is not named gets its "
        "default. Returns those before, in the same form.");
  m.def(
      "counters", [] { return emu::counters().to_map(); },
      "dict[str, float]: counts since the last reset (tests/emulator/README.md).");
  m.def(
      "counters_by_kernel",
      [] {
        std::map<std::string, std::map<std::string, double>> kernels;
        for (auto const& [name, c] : emu::counters_by_kernel()) kernels[name] = c.to_map();
        return kernels;
      },
      "dict[str, dict[str, float]]: the same for each kernel, by the name of its entry function.");
  m.def("reset_counters", &emu::reset_counters);
}
