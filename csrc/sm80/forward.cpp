#include "sm80/forward.h"

#include "host/error.h"
#include "host/plan.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

void forward(FwdParams const& params, DeviceInfo const& device, cudaStream_t stream) {
  if (params.batch == 0 || params.num_heads == 0 || params.seqs_q.max_seqlen == 0) return;
  FwdPlan const plan = plan_forward(params, device);
  FwdInstance const& instance = find_forward(plan.key);
  FA2_CHECK(instance.smem_bytes <= device.smem_per_block,
            "{} needs {} bytes of shared memory a block; the device has {}", to_string(plan.key),
            instance.smem_bytes, device.smem_per_block);
  FA2_CHECK(params.workspace.holds(plan.workspace.bytes),
            "{} splits need a workspace of {} bytes, got {}", plan.num_splits, plan.workspace.bytes,
            params.workspace.bytes);
  instance.launch(params, plan, stream);
  if (plan.num_splits > 1) {
    CombineArgs const args{params, plan.partials(params.workspace.data)};
    find_cache(plan.key.dtype).combine(args, plan.combine_grid, stream);
  }
}

}  // namespace fa2::sm80
