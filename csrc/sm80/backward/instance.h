#pragma once

// From the backward kernels to entries of the registry. Included by the generated instances only.

#include "sm80/backward/kernel.h"
#include "sm80/launch.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

// `kDType` names `Element` to the host, which knows no device types.
template <class Element, DType kDType, Bucket kBucket, Variant kVariant, bool kSmall>
constexpr BwdInstance bwd_instance() {
  using Kernel = BwdKernel<BwdConfig<Element, bwd_tile(kBucket, kVariant, kSmall), kVariant>>;
  constexpr TileKind kKind = kSmall ? TileKind::kSmall : TileKind::kRegular;
  return {{kDType, kBucket, kVariant, kKind}, Kernel::kSmemBytes, &launch<Kernel>};
}

}  // namespace fa2::sm80
