#include "cuda/family.h"

#include <atomic>

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

}  // namespace

std::string to_string(FwdPlan const& plan) {
  return std::visit([](auto const& of_family) { return to_string(of_family); }, plan.of_family);
}

std::string to_string(BwdPlan const& plan) {
  return std::visit([](auto const& of_family) { return to_string(of_family); }, plan.of_family);
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
  if (takes_sm90(call, target.device) && !call.over_cache) {
    sm90::FwdPlan const plan = sm90::Family::plan(call, target);
    return {plan, plan.workspace_bytes};
  }
  sm80::FwdPlan const plan = sm80::Family::plan(call, target);
  return {plan, plan.workspace_bytes};
}

BwdPlan Family::plan(BwdParams const& params, Target const& target) {
  if (takes_sm90(params, target.device)) {
    sm90::BwdPlan const plan = sm90::Family::plan(params, target);
    return {plan, plan.workspace_bytes};
  }
  sm80::BwdPlan const plan = sm80::Family::plan(params, target);
  return {plan, plan.workspace_bytes};
}

sm80::BiasBwdPlan Family::plan(BiasBwdParams const& params, Target const& target) {
  return sm80::Family::plan(params, target);
}

sm80::AppendPlan Family::plan(AppendParams const& params, Target const& target) {
  return sm80::Family::plan(params, target);
}

void Family::run(FwdParams const& params, FwdPlan const& plan, Target const& target) {
  if (auto const* const of_sm90 = std::get_if<sm90::FwdPlan>(&plan.of_family)) {
    sm90::Family::run(params, *of_sm90, target);
  } else {
    sm80::Family::run(params, std::get<sm80::FwdPlan>(plan.of_family), target);
  }
}

void Family::run(BwdParams const& params, BwdPlan const& plan, Target const& target) {
  if (auto const* const of_sm90 = std::get_if<sm90::BwdPlan>(&plan.of_family)) {
    sm90::Family::run(params, *of_sm90, target);
  } else {
    sm80::Family::run(params, std::get<sm80::BwdPlan>(plan.of_family), target);
  }
}

void Family::run(BiasBwdParams const& params, sm80::BiasBwdPlan const& plan, Target const& target) {
  sm80::Family::run(params, plan, target);
}

void Family::run(AppendParams const& params, sm80::AppendPlan const& plan, Target const& target) {
  sm80::Family::run(params, plan, target);
}

}  // namespace fa2::cuda
