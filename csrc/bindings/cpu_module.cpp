// The CPU family as a Python module.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/direct_call.h"
#include "bindings/masks.h"
#include "bindings/module.h"
#include "bindings/sm80_plans.h"
#include "cpu/family.h"
#include "cpu/isa.h"
#include "cpu/processor.h"

namespace py = pybind11;

namespace {

using fa2::bindings::dlpack::ExchangeApi;
using fa2::cpu::Family;

// Instruction-set levels that set_isa accepts here, lowest first.
std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (int level = 0; level <= static_cast<int>(fa2::cpu::highest_isa()); ++level) {
    names.emplace_back(fa2::cpu::isa_name(static_cast<fa2::cpu::Isa>(level)));
  }
  return names;
}

// So many threads of this process.
struct Threads {
  static Family::Target target(int64_t num_threads) { return {static_cast<int>(num_threads)}; }

  using Scope = fa2::bindings::NoScope;

  static void describe(py::dict& info) {
    info["isa"] = fa2::cpu::isa_name();
    info["isa_levels"] = isa_levels();
    fa2::cpu::Processor const processor = fa2::cpu::active_processor();
    info["l2_bytes"] = processor.l2_bytes;
    info["wide_l2"] = processor.wide_l2;
  }
};

// Whether the call is direct (bindings/direct_call.h); if not, nothing happens. lse 0: not wanted.
bool forward_direct(py::capsule const& exchange_api, py::tuple const& tensors, int64_t lse,
                    py::tuple const& options, int num_threads) {
  ExchangeApi const* const api = ExchangeApi::of(exchange_api);
  if (api == nullptr) return false;
  std::optional<fa2::FwdParams> params = fa2::bindings::read_direct_forward(*api, tensors, options);
  if (!params) return false;
  py::gil_scoped_release const release;
  std::unique_ptr<float[]> own_lse;
  if (lse == 0) {
    own_lse = std::make_unique_for_overwrite<float[]>(size_t(params->batch) * params->num_heads *
                                                      params->seqs_q.max_seqlen);
  }
  params->lse = lse == 0 ? own_lse.get() : reinterpret_cast<float*>(lse);
  Family::Target const target{num_threads};
  Family::run(*params, Family::plan(*params, target), target);
  return true;
}

bool backward_direct(py::capsule const& exchange_api, py::tuple const& tensors, py::handle lse,
                     py::tuple const& gradients, py::tuple const& options, bool deterministic,
                     int num_threads) {
  ExchangeApi const* const api = ExchangeApi::of(exchange_api);
  if (api == nullptr) return false;
  std::optional<fa2::BwdParams> params =
      fa2::bindings::read_direct_backward(*api, tensors, lse, gradients, options);
  if (!params) return false;
  py::gil_scoped_release const release;
  params->deterministic = deterministic;
  Family::Target const target{num_threads};
  auto const plan = Family::plan(*params, target);
  struct alignas(256) Block {
    std::byte bytes[256];
  };
  auto const workspace = std::make_unique_for_overwrite<Block[]>(
      (plan.workspace_bytes + sizeof(Block) - 1) / sizeof(Block));
  params->workspace = {.data = workspace.get(), .bytes = plan.workspace_bytes};
  Family::run(*params, plan, target);
  return true;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  fa2::bindings::Module<Family, Threads>::define(m);
  m.def("forward_direct", &forward_direct,
        "Runs a direct call (csrc/bindings/direct_call.h) and returns True, or else False.");
  m.def("backward_direct", &backward_direct, "Likewise its gradient.");
  m.def("set_isa", &fa2::cpu::set_isa, py::arg("name"),
        "Uses this instruction-set level from now on.");
  m.def(
      "set_processor",
      [](int32_t l2_bytes, bool wide_l2) { fa2::cpu::set_processor({l2_bytes, wide_l2}); },
      py::arg("l2_bytes"), py::arg("wide_l2"),
      "Sizes of chunks follow such a second-level cache from now on.");
  fa2::bindings::define_masks(m);
  fa2::bindings::define_sm80_plans(m);
}
