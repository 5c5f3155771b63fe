#pragma once

// From the forward kernel to an entry of the registry. Included by the generated instances only.

#include "sm90/forward/kernel.h"
#include "sm90/launch.h"
#include "sm90/registry.h"

namespace fa2::sm90 {

// `kDType` names `Element` to the host, which knows no device types.
template <class Element, DType kDType, Bucket kBucket, Variant kVariant, StepKind kSteps>
constexpr FwdInstance fwd_instance() {
  using Config = FwdConfig<Element, fwd_tile(kBucket, kVariant, kSteps), kVariant>;
  using Kernel = FwdKernel<Config>;
  return {{kDType, kBucket, kVariant, kSteps}, Kernel::kSmemBytes, &launch<Kernel>};
}

}  // namespace fa2::sm90
