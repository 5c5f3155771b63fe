#pragma once

// The CUDA families as one, as native modules take it (bindings/module.h): which of them runs a
// call follows from the device, and from the call's heads, options, layout and entry point; where
// that is both, each takes sequences by their own lengths.

#include <string>
#include <variant>

#include "core/params.h"
#include "host/forward_call.h"
#include "host/target.h"
#include "sm80/family.h"
#include "sm90/family.h"

namespace fa2::cuda {

// A varlen call over pages: sequences of few queries have their keys split, and others do not.
struct PagedPlan {
  sm80::FwdPlan split;
  sm90::FwdPlan unsplit;
};

std::string to_string(PagedPlan const& plan);

template <class... OfFamilies>
struct AnyPlan {
  std::variant<OfFamilies...> of_family;
  int64_t workspace_bytes;
};

using FwdPlan = AnyPlan<sm80::FwdPlan, sm90::FwdPlan, PagedPlan>;
using BwdPlan = AnyPlan<sm80::BwdPlan, sm90::BwdPlan>;

template <class... OfFamilies>
std::string to_string(AnyPlan<OfFamilies...> const& plan) {
  return std::visit([](auto const& of_family) { return to_string(of_family); }, plan.of_family);
}

struct Family {
  using Target = CudaTarget;

  // Of all calls to come: "sm80" for all of them, "sm90" wherever that has kernels, or "auto".
  // Throws Error for anything else.
  static void choose(std::string const& name);

  // All throw Error for what cannot be run on the target.
  static FwdPlan plan(FwdCall const& call, Target const& target);
  static BwdPlan plan(BwdParams const& params, Target const& target);
  static sm80::BiasBwdPlan plan(BiasBwdParams const& params, Target const& target);
  static sm80::AppendPlan plan(AppendParams const& params, Target const& target);

  static void run(FwdParams const& params, FwdPlan const& plan, Target const& target);
  static void run(BwdParams const& params, BwdPlan const& plan, Target const& target);
  static void run(BiasBwdParams const& params, sm80::BiasBwdPlan const& plan, Target const& target);
  static void run(AppendParams const& params, sm80::AppendPlan const& plan, Target const& target);
};

}  // namespace fa2::cuda
