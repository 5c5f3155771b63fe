#pragma once

// Faults that a translated kernel has in it and that are chosen at run time: `emu.fault` of PTX,
// which nvcc never makes (tools/mutants).

#include <cstdint>

namespace emu {

inline constexpr uint32_t kMaxFaults = 1u << 18;

extern uint32_t chosen_fault;        // 0: none
extern bool faults_met[kMaxFaults];  // by number: whether a thread has come to it

inline bool is_chosen_fault(uint32_t number) {
  faults_met[number] = true;
  return number == chosen_fault;
}

}  // namespace emu
