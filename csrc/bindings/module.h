#pragma once

// A native module, written once for every family of kernels.
//
// The family plans and runs problems: Family::plan(params, target) and
// Family::run(params, plan, target) for FwdParams, BwdParams, BiasBwdParams and AppendParams, and
// to_string of its plans, whose workspace_bytes says what memory the call must be given. One that
// is several in one has Family::choose(name), and plans a FwdCall. The platform says where a call
// runs and what surrounds it:
//
//   static Family::Target target(int64_t execution);   what Python's `execution` stands for
//   struct Scope { explicit Scope(Params const&); };   for all of them: lives while kernels run
//   static void describe(py::dict&);                   adds to build_info
//
// Nothing is written before all plans are made and all memory is there: a call that fails has
// changed nothing.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/build_info.h"
#include "bindings/params.h"
#include "bindings/workspace.h"

namespace fa2::bindings {

// Nothing surrounds the kernels.
struct NoScope {
  template <class Params>
  explicit NoScope(Params const&) {}
};

template <class Family, class Platform>
struct Module {
  using Scope = typename Platform::Scope;

  static void forward(pybind11::dict const& problem, int64_t execution,
                      pybind11::object const& allocate) {
    auto [params, append] = read_forward_call(problem);
    pybind11::gil_scoped_release const release;
    auto const target = Platform::target(execution);
    auto const plan = Family::plan(params, target);
    std::optional<decltype(Family::plan(*append, target))> append_plan;
    if (append) append_plan = Family::plan(*append, target);
    params.workspace = workspace(plan.workspace_bytes, allocate);
    if (append) {
      Scope const scope(*append);
      Family::run(*append, *append_plan, target);
    }
    Scope const scope(params);
    Family::run(params, plan, target);
  }

  static void backward(pybind11::dict const& problem, int64_t execution,
                       pybind11::object const& allocate) {
    run(read_backward_call(problem), execution, allocate);
  }

  static void bias_backward(pybind11::dict const& problem, int64_t execution,
                            pybind11::object const& allocate) {
    run(read_bias_backward_call(problem), execution, allocate);
  }

  template <class Params>
  static void run(Params params, int64_t execution, pybind11::object const& allocate) {
    pybind11::gil_scoped_release const release;
    auto const target = Platform::target(execution);
    auto const plan = Family::plan(params, target);
    params.workspace = workspace(plan.workspace_bytes, allocate);
    Scope const scope(params);
    Family::run(params, plan, target);
  }

  static std::string plan_forward(pybind11::dict const& problem, int64_t execution) {
    return to_string(Family::plan(read_forward_call(problem).params, Platform::target(execution)));
  }

  static std::string plan_backward(pybind11::dict const& problem, int64_t execution) {
    return to_string(Family::plan(read_backward_call(problem), Platform::target(execution)));
  }

  static std::string plan_bias_backward(pybind11::dict const& problem, int64_t execution) {
    return to_string(Family::plan(read_bias_backward_call(problem), Platform::target(execution)));
  }

  static pybind11::dict build_info() {
    pybind11::dict info;
    info["compiler"] = compiler();
    Platform::describe(info);
    return info;
  }

  static void define(pybind11::module_& m) {
    using pybind11::arg;
    m.def("forward", &forward, arg("problem"), arg("execution"), arg("allocate"),
          "Runs one problem (fields: csrc/bindings/params.cpp), after its append where it has one. "
          "`execution` is the number of threads, or the stream. If memory is needed, "
          "allocate(num_bytes) is called once, before anything is written, and returns the address "
          "of so many bytes, aligned to 256, that stay until the kernels have run.");
    m.def("backward", &backward, arg("problem"), arg("execution"), arg("allocate"),
          "Runs the gradient of one problem, as forward does.");
    m.def("plan_forward", &plan_forward, arg("problem"), arg("execution"),
          "How forward would run the problem, in words.");
    m.def("plan_backward", &plan_backward, arg("problem"), arg("execution"),
          "How backward would run the gradient, in words.");
    m.def("bias_backward", &bias_backward, arg("problem"), arg("execution"), arg("allocate"),
          "Adds the gradients of biases to sums, as backward runs.");
    m.def("plan_bias_backward", &plan_bias_backward, arg("problem"), arg("execution"),
          "How bias_backward would run, in words.");
    m.def("build_info", &build_info);
    if constexpr (requires { &Family::choose; }) {
      m.def("choose_family", &Family::choose, arg("name"),
            "Which kernels run the calls to come: sm80 for all of them, sm90 wherever that family "
            "has any, or auto.");
    }
  }
};

}  // namespace fa2::bindings
