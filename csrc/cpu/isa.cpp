#include "cpu/isa.h"

#include <atomic>

#include "host/error.h"

namespace fa2::cpu {

// One per compilation of level.cpp, and of quantised.cpp.
namespace baseline {
extern LevelKernels const kKernels;
extern ForwardKernel const kQuantisedKernels[kNumCodeTypes];
}  // namespace baseline
#if defined(__x86_64__)
namespace v3 {
extern LevelKernels const kKernels;
extern ForwardKernel const kQuantisedKernels[kNumCodeTypes];
}  // namespace v3
namespace v4 {
extern LevelKernels const kKernels;
extern ForwardKernel const kQuantisedKernels[kNumCodeTypes];
}  // namespace v4
namespace v4_bf16 {
extern LevelKernels const kKernels;
}
#endif

namespace {

#if defined(__x86_64__)

// vdpbf16ps of 32 products takes two cycles on Intel's processors since Sapphire Rapids, which have
// tiles for the purpose; in that time they do 64 products of floats. (Seen on Emerald Rapids, where
// even a single query over many keys is faster by floats.) Cooper Lake has no tiles.
bool is_slow_at_bf16() { return __builtin_cpu_is("intel") && !__builtin_cpu_is("cooperlake"); }

#endif

Isa fastest_isa() {
  Isa const highest = highest_isa();
#if defined(__x86_64__)
  if (highest == Isa::kX86V4Bf16 && is_slow_at_bf16()) return Isa::kX86V4;
#endif
  return highest;
}

struct Level {
  char const* name;
  LevelKernels const& kernels;
  ForwardKernel const* quantised;
};

constexpr Level kLevels[] = {
    {"baseline", baseline::kKernels, baseline::kQuantisedKernels},
#if defined(__x86_64__)
    {"x86-64-v3", v3::kKernels, v3::kQuantisedKernels},
    {"x86-64-v4", v4::kKernels, v4::kQuantisedKernels},
    {"x86-64-v4-bf16", v4_bf16::kKernels, v4::kQuantisedKernels},
#endif
};

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{fastest_isa()};
  return isa;
}

// The kernel for `dtype` of the highest level, up to the one in use, that has one.
template <class Kernel>
Kernel const& highest(Kernel const (LevelKernels::*kernels)[kNumDTypes], DType dtype) {
  int level = static_cast<int>(active_isa());
  auto of_level = [&]() -> Kernel const& {
    return (kLevels[level].kernels.*kernels)[static_cast<int>(dtype)];
  };
  while (of_level().run == nullptr) --level;
  return of_level();
}

}  // namespace

Isa highest_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool const v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c");
  bool const v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4 && __builtin_cpu_supports("avx512bf16")) return Isa::kX86V4Bf16;
  if (v4) return Isa::kX86V4;
  if (v3) return Isa::kX86V3;
#endif
  return Isa::kBaseline;
}

Isa active_isa() { return active(); }

char const* isa_name(Isa isa) { return kLevels[static_cast<int>(isa)].name; }

char const* isa_name() { return isa_name(active_isa()); }

void set_isa(std::string_view name) {
  std::string available;
  for (int i = 0; i <= static_cast<int>(highest_isa()); ++i) {
    if (name == kLevels[i].name) {
      active() = static_cast<Isa>(i);
      return;
    }
    available += std::string(i == 0 ? "" : ", ") + kLevels[i].name;
  }
  FA2_CHECK(false, "instruction-set level '{}' is not available here; available: {}", name,
            available);
}

ForwardKernel const& forward_kernel(FwdParams const& params) {
  CodeType const codes = params.quantised.type;
  if (codes == CodeType::kNone) return highest(&LevelKernels::forward, params.dtype);
  Level const& level = kLevels[static_cast<int>(active_isa())];
  return level.quantised[static_cast<int>(codes) - static_cast<int>(CodeType::kFloat8E4M3)];
}

BackwardKernel const& backward_kernel(DType dtype) {
  return highest(&LevelKernels::backward, dtype);
}

BiasKernel const& bias_kernel(DType dtype) { return highest(&LevelKernels::bias, dtype); }

}  // namespace fa2::cpu
