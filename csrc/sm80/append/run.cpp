#include "sm80/family.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

AppendPlan Family::plan(AppendParams const& params, Target const&) {
  find_append(params.dtype);
  return plan_append(params);
}

void Family::run(AppendParams const& params, AppendPlan const& plan, Target const& target) {
  if (plan.grid == 0) return;
  find_append(params.dtype).launch({params, plan.rows}, plan.grid, target.stream);
}

}  // namespace fa2::sm80
