// The kernels of one instruction-set level over caches of 8 bits, compiled as level.cpp is.

#include "cpu/level/forward.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// In the order of CodeType, from kFloat8E4M3 on.
extern ForwardKernel const kQuantisedKernels[kNumCodeTypes];
ForwardKernel const kQuantisedKernels[kNumCodeTypes] = {
    Forward<Float8E4M3>::kernel(), Forward<Float8E5M2>::kernel(), Forward<Int8>::kernel()};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
