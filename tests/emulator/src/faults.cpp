#include "emu/faults.h"

namespace emu {

uint32_t chosen_fault = 0;
bool faults_met[kMaxFaults];

}  // namespace emu
