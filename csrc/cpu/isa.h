#pragma once

// Instruction-set levels: which one this machine reaches, and which one is in use.

#include <string_view>

#include "cpu/kernels.h"

namespace fa2::cpu {

// Names of the levels, lowest first: "baseline", then on x86-64 "x86-64-v3" (AVX2, FMA, F16C),
// "x86-64-v4" (AVX-512) and "x86-64-v4-bf16" (and its bf16 products).
enum class Isa : int { kBaseline, kX86V3, kX86V4, kX86V4Bf16 };

// The highest level that both this machine and this build have.
Isa highest_isa();

// The level in use: the highest one, or on processors that are slow at bf16 products the one below,
// unless another was set.
Isa active_isa();
char const* isa_name(Isa isa);
char const* isa_name();

// Uses `name` from now on, in every thread. Throws fa2::Error for an unknown level or one that this
// machine does not have.
void set_isa(std::string_view name);

// The kernels of the level in use.
ForwardKernel const& forward_kernel(FwdParams const& params);
BackwardKernel const& backward_kernel(DType dtype);
BiasKernel const& bias_kernel(DType dtype);

}  // namespace fa2::cpu
