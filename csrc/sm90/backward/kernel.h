#pragma once

// The main backward kernel, a CTA for each key block: a warp that loads, consumer warpgroups, and,
// where these do not do it themselves, a warp that adds dQ up.

#include "sm90/backward/epilogue.h"
#include "sm90/backward/grad_q_sum.h"
#include "sm90/backward/mainloop.h"
#include "sm90/backward/pair_mainloop.h"
#include "sm90/backward/producer.h"

namespace fa2::sm90 {

template <class Config>
struct BwdKernel {
  using Args = BwdArgs;
  using Smem = typename Config::Smem;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(BwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    if (threadIdx.x == 0) {
      make_rings(smem);
      smem.work = sm80::bwd_work_tile(args.common, schedule_index(args.common), kTile.block_n,
                                      BwdTile::kBlockM);
      if constexpr (Config::kListed) {
        bool const any = smem.walk[0].start(args.common, smem.work);
        smem.work.tiles = {0, 0, 0, any ? 1 : 0};
      }
    }
    __syncthreads();
    sm80::BwdWorkTile const& work = smem.work;
    if (work.col_begin >= work.seqlen_k) return;  // a shorter sequence of a packed batch
    bool const is_seen = work.tiles.begin < work.tiles.end;

    if (threadIdx.x < 128) {
      keep_registers<BwdTile::kProducerRegisters>();
      if (is_seen) produce(args, smem);
    } else {
      take_registers<BwdTile::kConsumerRegisters>();
      consume(args, smem, is_seen);
    }
  }

 private:
  CUTE_DEVICE static void make_rings(Smem& smem) {
    mbarrier_init(smem.keys_full, 1);
    smem.q_ring.init(Config::kReaders);
    smem.grad_out_ring.init(Config::kReaders);
    fence_mbarrier_init();
  }

  CUTE_DEVICE static void consume(BwdArgs const& args, Smem& smem, bool is_seen) {
    BwdEpilogue<Config> const epilogue(args, smem.work);
    if constexpr (!kTile.shares_keys()) {
      BwdMainloop<Config> mainloop(args, smem);
      if (is_seen) mainloop.run();
      epilogue.store_keys(mainloop.grad_k);
      epilogue.store_values(mainloop.grad_v);
    } else if (threadIdx.x < 256) {
      BwdKeysLoop<Config> loop(args, smem);
      if (is_seen) loop.run();
      epilogue.store_keys(loop.grad);
    } else {
      BwdValuesLoop<Config> loop(args, smem);
      if (is_seen) loop.run();
      epilogue.store_values(loop.grad);
    }
  }

  // In a fixed order of summation a CTA waits for others, so those must have started before it:
  // places in the schedule are handed out as CTAs start.
  CUTE_DEVICE static int schedule_index(sm80::BwdArgs const& args) {
    return args.workspace.semaphores == nullptr ? int(blockIdx.x)
                                                : atomicAdd(args.workspace.ticket, 1);
  }

  CUTE_DEVICE static void produce(BwdArgs const& args, Smem& smem) {
    if (warp_index() == 0) {
      if (elect_one()) BwdProducer<Config>(args, smem).run();
    } else if (kTile.copies_grad_q() && warp_index() == 1) {
      GradQSum<Config>(args, smem).run();
    }
  }
};

}  // namespace fa2::sm90
