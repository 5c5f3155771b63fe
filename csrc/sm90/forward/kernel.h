#pragma once

// The forward kernel: a producer and consumer warpgroups, each with the same sequence of work: main
// loop, store.

#include "sm90/forward/epilogue.h"
#include "sm90/forward/mainloop.h"
#include "sm90/forward/producer.h"

namespace fa2::sm90 {

template <class Config>
struct FwdKernel {
  using Args = FwdArgs;
  using Smem = typename Config::Smem;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(FwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    if (threadIdx.x == 0) make_rings(smem);
    __syncthreads();

    if (threadIdx.x < 128) {
      keep_registers<kTile.producer_registers()>();
      if (threadIdx.x < 32 && elect_one()) FwdProducer<Config>(args, smem).run();
    } else {
      take_registers<kTile.consumer_registers()>();
      consume(args, smem);
    }
  }

 private:
  CUTE_DEVICE static void make_rings(Smem& smem) {
    smem.q_ring.init(Config::kConsumerWarps);
    smem.k_ring.init(Config::kConsumerWarps);
    smem.v_ring.init(Config::kConsumerWarps);
    smem.work_ring.init(Config::kConsumerWarps);
    fence_mbarrier_init();
  }

  CUTE_DEVICE static void consume(FwdArgs const& args, Smem& smem) {
    FwdMainloop<Config> mainloop(args, smem);
    RingPosition<2> work_at;
    while (true) {
      wait_full(smem.work_ring, work_at);
      WorkTile const& work = smem.work[work_at.stage];
      if (work.batch < 0) break;
      mainloop.run(work);
      FwdEpilogue<Config>(args, work).store(mainloop);
      release(smem.work_ring, work_at.stage);
      work_at.advance();
    }
  }
};

}  // namespace fa2::sm90
