#pragma once

// The emulator's own functions, of every Python module whose kernels run in it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "emu/api.h"
#include "emu/faults.h"

namespace fa2::emulated {

inline std::string set_options(std::string const& text) {
  std::string const before = emu::to_string(emu::options());
  emu::set_options(emu::parse_options(text));
  return before;
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

inline void define_emulator(pybind11::module_& m) {
  m.def("set_options", &set_options, pybind11::arg("options"),
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
