#pragma once

// From the main backward kernel to an entry of the registry. Included by the generated instances
// only.

#include "sm90/backward/kernel.h"
#include "sm90/launch.h"
#include "sm90/registry.h"

namespace fa2::sm90 {

// `kDType` names `Element` to the host, which knows no device types.
template <class Element, DType kDType, Bucket kBucket, Variant kVariant>
constexpr BwdInstance bwd_instance() {
  using Kernel = BwdKernel<BwdConfig<Element, bwd_tile(kBucket), kVariant>>;
  return {{kDType, kBucket, kVariant}, Kernel::kSmemBytes, &launch<Kernel>};
}

}  // namespace fa2::sm90
