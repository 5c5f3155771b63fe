// The CPU family as a Python module.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/build_info.h"
#include "bindings/params.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

void forward(py::dict const& problem) {
  auto const [params, num_threads] = fa2::bindings::read_forward_call(problem);
  py::gil_scoped_release const release;
  fa2::cpu::forward(params, static_cast<int>(num_threads));
}

int64_t backward_workspace(py::dict const& problem) {
  auto const [params, num_threads] = fa2::bindings::read_backward_call(problem);
  return fa2::cpu::backward_workspace(params, static_cast<int>(num_threads));
}

void backward(py::dict const& problem) {
  auto const [params, num_threads] = fa2::bindings::read_backward_call(problem);
  py::gil_scoped_release const release;
  fa2::cpu::backward(params, static_cast<int>(num_threads));
}

// Instruction-set levels that set_isa accepts here, lowest first.
std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (int level = 0; level <= static_cast<int>(fa2::cpu::detect_isa()); ++level) {
    names.emplace_back(fa2::cpu::isa_name(static_cast<fa2::cpu::Isa>(level)));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = fa2::bindings::compiler();
  info["isa"] = fa2::cpu::isa_name();
  info["isa_levels"] = isa_levels();
  return info;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.def("forward", &forward, py::arg("problem"),
        "Runs one problem (fields: csrc/bindings/params.cpp); `execution` is the thread count.");
  m.def("backward_workspace", &backward_workspace, py::arg("problem"),
        "Bytes that `workspace` of this problem must have.");
  m.def("backward", &backward, py::arg("problem"),
        "Runs the gradient of one problem (fields: csrc/bindings/params.cpp).");
  m.def("set_isa", &fa2::cpu::set_isa, py::arg("name"),
        "Uses this instruction-set level from now on.");
  m.def("build_info", &build_info);
}
