#pragma once

// From the split kernel to an entry of the registry. Included by the generated instances only.

#include "sm80/launch.h"
#include "sm80/registry.h"
#include "sm80/split/kernel.h"

namespace fa2::sm80 {

template <class Config>
void launch_split(FwdParams const& params, FwdPlan const& plan, FwdPlan::Launch const& launch,
                  cudaStream_t stream) {
  SplitArgs const args{
      .problem = params,
      .scales = score_scales<float>(params.softmax_scale, params.score_mod.softcap),
      .group = {params.group()},
      .page_size = {params.pages.block_table != nullptr ? params.pages.page_size : 1},
      .schedule = plan.schedule(launch),
      .partials = launch.partials(params.workspace.data),
  };
  sm80::launch<SplitKernel<Config>>(args, launch.grid, stream);
}

template <class Element, DType kDType, Bucket kBucket, Variant kVariant, TileKind kKind>
constexpr FwdInstance split_instance() {
  using Config = SplitConfig<Element, split_tile(kBucket, kVariant, kKind), kVariant>;
  return {
      {kDType, kBucket, kVariant, kKind}, SplitKernel<Config>::kSmemBytes, &launch_split<Config>};
}

}  // namespace fa2::sm80
