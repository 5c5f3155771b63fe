// The CPU family as a Python module.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/build_info.h"
#include "bindings/params.h"
#include "bindings/plain_call.h"
#include "cpu/append.h"
#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

using fa2::bindings::dlpack::ExchangeApi;

void forward(py::dict const& problem) {
  auto const [params, num_threads] = fa2::bindings::read_forward_call(problem);
  py::gil_scoped_release const release;
  fa2::cpu::forward(params, static_cast<int>(num_threads));
}

// Whether the call is plain (bindings/plain_call.h); if not, nothing happens. lse 0: not wanted.
bool forward_plain(py::capsule const& exchange_api, py::tuple const& tensors, int64_t lse,
                   py::tuple const& options, int num_threads) {
  ExchangeApi const* const api = ExchangeApi::of(exchange_api);
  if (api == nullptr) return false;
  std::optional<fa2::FwdParams> params = fa2::bindings::read_plain_forward(*api, tensors, options);
  if (!params) return false;
  py::gil_scoped_release const release;
  std::unique_ptr<float[]> own_lse;
  if (lse == 0) {
    own_lse = std::make_unique_for_overwrite<float[]>(size_t(params->batch) * params->num_heads *
                                                      params->seqs_q.max_seqlen);
  }
  params->lse = lse == 0 ? own_lse.get() : reinterpret_cast<float*>(lse);
  fa2::cpu::forward(*params, num_threads);
  return true;
}

bool backward_plain(py::capsule const& exchange_api, py::tuple const& tensors, py::handle lse,
                    py::tuple const& gradients, py::tuple const& options, bool deterministic,
                    int num_threads) {
  ExchangeApi const* const api = ExchangeApi::of(exchange_api);
  if (api == nullptr) return false;
  std::optional<fa2::BwdParams> params =
      fa2::bindings::read_plain_backward(*api, tensors, lse, gradients, options);
  if (!params) return false;
  py::gil_scoped_release const release;
  params->deterministic = deterministic;
  int64_t const bytes = fa2::cpu::backward_workspace(*params, num_threads);
  struct alignas(256) Block {
    std::byte bytes[256];
  };
  auto const workspace =
      std::make_unique_for_overwrite<Block[]>((bytes + sizeof(Block) - 1) / sizeof(Block));
  params->workspace = {.data = workspace.get(), .bytes = bytes};
  fa2::cpu::backward(*params, num_threads);
  return true;
}

void append(py::dict const& problem) {
  auto const [params, num_threads] = fa2::bindings::read_append_call(problem);
  py::gil_scoped_release const release;
  fa2::cpu::append(params, static_cast<int>(num_threads));
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
  m.def("forward_plain", &forward_plain,
        "Runs a plain call (csrc/bindings/plain_call.h) and returns True, or else False.");
  m.def("backward_plain", &backward_plain, "Likewise its gradient.");
  m.def("append", &append, py::arg("problem"),
        "Appends to a KV cache and rotates (fields: csrc/bindings/params.cpp).");
  m.def("backward_workspace", &backward_workspace, py::arg("problem"),
        "Bytes that `workspace` of this problem must have.");
  m.def("backward", &backward, py::arg("problem"),
        "Runs the gradient of one problem (fields: csrc/bindings/params.cpp).");
  m.def("set_isa", &fa2::cpu::set_isa, py::arg("name"),
        "Uses this instruction-set level from now on.");
  m.def("build_info", &build_info);
}
