#pragma once

// The emulator's own functions, of every Python module whose kernels run in it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "emu/api.h"
#include "emu/faults.h"

namespace fa2::emulated {

// Those of a text, which has the last word over the module's own.
inline emu::Options options_of(std::string const& own, std::string const& text) {
  return emu::parse_options(own.empty() || text.empty() ? own + text : own + "," + text);
}

inline std::map<std::string, std::map<std::string, double>> counters_by_kernel() {
  std::map<std::string, std::map<std::string, double>> kernels;
  for (auto const& [name, c] : emu::counters_by_kernel()) kernels[name] = c.to_map();
  return kernels;
}

inline std::vector<uint32_t> faults_met() {
  std::vector<uint32_t> numbers;
  for (uint32_t i = 0; i < emu::kMaxFaults; ++i) {
    if (emu::faults_met[i]) numbers.push_back(i);
    emu::faults_met[i] = false;
  }
  return numbers;
}

// `own`: options that are other by default in this module.
inline void define_emulator(pybind11::module_& m, std::string const& own = "") {
  char const* const from_environment = std::getenv("FLASH_ATTN2_EMULATOR");
  emu::set_options(options_of(own, from_environment == nullptr ? "" : from_environment));
  m.def(
      "set_options",
      [own](std::string const& text) {
        std::string const before = emu::to_string(emu::options());
        emu::set_options(options_of(own, text));
        return before;
      },
      pybind11::arg("options"),
      "Options of the launches to come, as in FLASH_ATTN2_EMULATOR; what is not named gets its "
      "default. Returns those before, in the same form.");
  m.def(
      "counters", [] { return emu::counters().to_map(); },
      "dict[str, float]: counts since the last reset (tests/emulator/README.md).");
  m.def("counters_by_kernel", &counters_by_kernel,
        "dict[str, dict[str, float]]: the same for each kernel, by its name.");
  m.def("reset_counters", &emu::reset_counters);
  m.def("take_runtime_calls", &emu::take_runtime_calls,
        "dict[str, int]: calls of the CUDA runtime since the last call of this function.");
  m.def(
      "choose_fault", [](uint32_t number) { emu::chosen_fault = number; }, pybind11::arg("number"),
      "Of the faults that kernels were built with (tools/mutants); 0: none.");
  m.def("faults_met", &faults_met,
        "Numbers of the faults that kernels came to since the last call.");
}

}  // namespace fa2::emulated
