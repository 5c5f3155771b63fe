#pragma once

// The gradient of a bias: schedule, main loop, store.

#include "sm80/bias_backward/epilogue.h"
#include "sm80/bias_backward/mainloop.h"

namespace fa2::sm80 {

template <class Element>
struct BiasBwdKernel {
  using Args = BiasBwdArgs;
  using Config = BiasBwdConfig<Element>;
  using Smem = typename Config::Smem;
  static constexpr int kThreads = Config::kThreads;
  static constexpr int kCtasPerSm = kBiasBwdCtasPerSm;
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(BiasBwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    int64_t const index = blockIdx.x / args.pass.splits;
    int32_t const split = blockIdx.x % args.pass.splits;
    if (threadIdx.x == 0) smem.steps.start(args, args.pass.unit(index), split);
    __syncthreads();

    BiasBwdMainloop<Config> mainloop(args, smem);
    mainloop.run();
    BiasBwdEpilogue<Config>::store(args, smem, mainloop, index, split);
  }
};

}  // namespace fa2::sm80
