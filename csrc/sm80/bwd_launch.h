#pragma once

// From the backward kernels to entries of the registry. Included by the generated instances only.

#include "sm80/bwd_kernel.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kTile.threads(), Kernel::kTile.ctas_per_sm)
    bwd_entry(__grid_constant__ BwdArgs const args) {
  extern __shared__ __align__(128) char smem[];
  Kernel{}(args, smem);
}

template <class Config>
void launch_bwd(BwdArgs const& args, BwdPlan const& plan, cudaStream_t stream) {
  using Kernel = BwdKernel<Config>;
  launch(&bwd_entry<Kernel>, args, plan.grid, Kernel::kTile.threads(),
         sizeof(typename Config::Smem), stream);
}

// `kDType` names `Element` to the host, which knows no device types.
template <class Element, DType kDType, int kBucket, Variant kVariant, bool kSmall>
constexpr BwdInstance bwd_instance() {
  using Config = BwdConfig<Element, bwd_tile(kBucket, kVariant, kSmall), kVariant>;
  return {{kDType, kBucket, kVariant, kSmall}, sizeof(typename Config::Smem), &launch_bwd<Config>};
}

}  // namespace fa2::sm80
