#include "cuda/family.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "host/error.h"

namespace fa2::cuda {
namespace {

// Kernels for 9.0 have not run on a device yet, so that they run only where they are asked for.
enum class Choice { kAuto, kSm80, kSm90 };
constexpr char const* kChoices[] = {"auto", "sm80", "sm90"};

std::atomic<Choice> choice = Choice::kAuto;

template <class Params>
bool takes_sm90(Params const& params, DeviceInfo const& device) {
  if (choice.load(std::memory_order_relaxed) != Choice::kSm90) return false;
  char const* const reason = sm90::Family::unavailable(device);
  FA2_CHECK(reason == nullptr, "kernels for compute capability 9.0 are asked for, but {}", reason);
  return sm90::not_served(params) == nullptr;
}

// By sm90 or by sm80.
template <class Plan, class Params>
Plan plan_either(bool by_sm90, Params const& params, CudaTarget const& target) {
  auto const plan_by = [&]<class OfFamily>(OfFamily) -> Plan {
    auto const plan = OfFamily::plan(params, target);
    return {plan, plan.workspace_bytes};
  };
  return by_sm90 ? plan_by(sm90::Family()) : plan_by(sm80::Family());
}

FwdPlan plan_paged(FwdParams const& params, CudaTarget const& target) {
  sm80::FwdPlan const split = sm80::Family::plan_beside(params, target);
  if (!sm80::leaves_sequences(split)) return {split, split.workspace_bytes};
  sm90::FwdPlan unsplit = sm90::Family::plan(params, target);
  unsplit.beside = split.rule;
  return {PagedPlan{split, unsplit}, std::max(split.workspace_bytes, unsplit.workspace_bytes)};
}

// By the family, or families, that made the plan.
struct Runner {
  CudaTarget const& target;

  template <class Params, class Plan>
  void operator()(Params const& params, Plan const& plan) const {
    constexpr bool kBySm90 =
        std::is_same_v<Plan, sm90::FwdPlan> || std::is_same_v<Plan, sm90::BwdPlan>;
    std::conditional_t<kBySm90, sm90::Family, sm80::Family>::run(params, plan, target);
  }
  // One after the other, in the same workspace.
  void operator()(FwdParams const& params, PagedPlan const& plan) const {
    (*this)(params, plan.split);
    (*this)(params, plan.unsplit);
  }
};

}  // namespace

std::string to_string(PagedPlan const& plan) {
  std::string const split = to_string(plan.split);
  return message("{}{}{}", split, split.empty() ? "" : "; ", to_string(plan.unsplit));
}

void Family::choose(std::string const& name) {
  for (size_t i = 0; i < std::size(kChoices); ++i) {
    if (name != kChoices[i]) continue;
    choice = Choice(i);
    return;
  }
  throw Error(message("CUDA families are auto, sm80 and sm90, got {}", name));
}

FwdPlan Family::plan(FwdCall const& call, Target const& target) {
  // A cache may look like any keys and values, but sm90 has no splits, which it needs.
  bool const by_sm90 = takes_sm90(call, target.device) && !call.over_cache;
  if (by_sm90 && call.pages.block_table != nullptr) return plan_paged(call, target);
  return plan_either<FwdPlan>(by_sm90, call, target);
}

BwdPlan Family::plan(BwdParams const& params, Target const& target) {
  return plan_either<BwdPlan>(takes_sm90(params, target.device), params, target);
}

sm80::BiasBwdPlan Family::plan(BiasBwdParams const& params, Target const& target) {
  return sm80::Family::plan(params, target);
}

sm80::AppendPlan Family::plan(AppendParams const& params, Target const& target) {
  return sm80::Family::plan(params, target);
}

void Family::run(FwdParams const& params, FwdPlan const& plan, Target const& target) {
  std::visit([&](auto const& by) { Runner{target}(params, by); }, plan.of_family);
}

void Family::run(BwdParams const& params, BwdPlan const& plan, Target const& target) {
  std::visit([&](auto const& by) { Runner{target}(params, by); }, plan.of_family);
}

void Family::run(BiasBwdParams const& params, sm80::BiasBwdPlan const& plan, Target const& target) {
  sm80::Family::run(params, plan, target);
}

void Family::run(AppendParams const& params, sm80::AppendPlan const& plan, Target const& target) {
  sm80::Family::run(params, plan, target);
}

}  // namespace fa2::cuda
