#pragma once

// From the forward kernel to an entry of the registry. Included by the generated instances only.

#include "sm80/forward/kernel.h"
#include "sm80/launch.h"
#include "sm80/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

template <class Config>
FwdArgs fwd_args(FwdParams const& p, FwdPlan const& plan, FwdPlan::Launch const& launch) {
  using StreamK = typename Config::StreamK;
  using StreamV = typename Config::StreamV;
  constexpr int64_t kElementBytes = sizeof(typename Config::Element);
  return {
      .problem = p,
      .scales = kernel_scales(p),
      .adds_to_scores = adds_to_scores(p.score_mod),
      .k_pass_bytes = p.k.row_stride * StreamK::Copies::kRowsPerPass * kElementBytes,
      .v_pass_bytes = p.v.row_stride * StreamV::Copies::kRowsPerPass * kElementBytes,
      .num_m_blocks = launch.num_m_blocks,
      .section = launch.section,
      .keep_below = dropout_keep_below(p.dropout.drop_prob),
      .inv_keep_prob = float(1 / (1 - p.dropout.drop_prob)),
      .rule = plan.rule,
      .selects = plan.selects(),
      .listed = launch.listed.schedule(p.workspace.data),
      .pieces = launch.pieces(p.workspace.data),
  };
}

template <class Config>
void launch_fwd(FwdParams const& params, FwdPlan const& plan, FwdPlan::Launch const& launch,
                cudaStream_t stream) {
  sm80::launch<FwdKernel<Config>>(fwd_args<Config>(params, plan, launch), launch.grid, stream);
}

// `kDType` names `Element` to the host, which knows no device types.
template <class Element, DType kDType, Bucket kBucket, Variant kVariant, bool kSmall>
constexpr FwdInstance fwd_instance() {
  using Config = FwdConfig<Element, fwd_tile(kBucket, kVariant, kSmall), kVariant>;
  constexpr TileKind kKind = kSmall ? TileKind::kSmall : TileKind::kRegular;
  return {{kDType, kBucket, kVariant, kKind}, FwdKernel<Config>::kSmemBytes, &launch_fwd<Config>};
}

}  // namespace fa2::sm80
