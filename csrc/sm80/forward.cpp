#include "sm80/forward.h"

#include "host/error.h"
#include "host/plan_parts.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

void forward(FwdParams const& problem, DeviceInfo const& device, cudaStream_t stream) {
  FwdParams const params = runnable(problem);
  if (params.batch == 0 || params.num_heads == 0 || params.seqs_q.max_seqlen == 0) return;
  FwdPlan const plan = plan_forward(params, device);
  FA2_CHECK(params.workspace.holds(plan.workspace_bytes),
            "splits need a workspace of {} bytes, got {}", plan.workspace_bytes,
            params.workspace.bytes);
  for (FwdPlan::Launch const& launch : plan.launches()) {
    FwdInstance const& instance = find_forward(launch.key);
    FA2_CHECK(instance.smem_bytes <= device.smem_per_block,
              "{} needs {} bytes of shared memory a block; the device has {}",
              to_string(launch.key), instance.smem_bytes, device.smem_per_block);
  }
  for (FwdPlan::Launch const& launch : plan.launches()) {
    find_forward(launch.key).launch(params, plan, launch, stream);
    if (launch.combine_grid == 0) continue;
    CombineArgs const args{params, plan.schedule(launch), launch.partials(params.workspace.data),
                           launch.combine_queries};
    find_cache(launch.key.dtype).combine(args, launch.combine_grid, stream);
  }
}

}  // namespace fa2::sm80
