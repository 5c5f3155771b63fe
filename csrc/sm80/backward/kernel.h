#pragma once

// The main backward kernel: schedule, main loop, store.

#include "sm80/backward/epilogue.h"
#include "sm80/backward/mainloop.h"

namespace fa2::sm80 {

template <class Config>
struct BwdKernel {
  using Args = BwdArgs;
  using Smem = typename Config::Smem;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kCtasPerSm = kTile.ctas_per_sm;
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(BwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    int const index = schedule_index(args, smem);
    BwdWorkTile work;
    ListedColumn column;
    if constexpr (Config::kListed) {
      if (!schedule_listed<kTile.block_n, kTile.block_m>(args, index, work, column)) return;
    } else {
      work = bwd_work_tile(args, index, kTile.block_n, kTile.block_m);
    }
    if (work.col_begin >= work.seqlen_k) return;  // a shorter sequence of a packed batch
    if (threadIdx.x == 0) {
      smem.work = work;
      if constexpr (Config::kListed) smem.steps[0].start(args, work, column);
    }
    __syncthreads();

    BwdMainloop<Config> mainloop(args, smem);
    if (sees_queries(work, smem)) mainloop.run();
    if constexpr (Config::kListed) {
      ListedColumn const& own = smem.steps[0].column;
      if (!own.is_stored()) return BwdEpilogue<Config>::store_piece(args, own.slot, mainloop);
    }
    BwdEpilogue<Config>::store(args, smem, mainloop);
  }

 private:
  CUTE_DEVICE static bool sees_queries(BwdWorkTile const& work, Smem const& smem) {
    if constexpr (Config::kListed) {
      return smem.steps[0].heads[0] >= 0;
    } else {
      return work.tiles.begin < work.tiles.end;
    }
  }

  // In a fixed order of summation a CTA waits for others, so those must have started before it:
  // places in the schedule are handed out as CTAs start.
  CUTE_DEVICE static int schedule_index(BwdArgs const& args, Smem& smem) {
    if (args.workspace.semaphores == nullptr) return blockIdx.x;
    if (threadIdx.x == 0) smem.index = atomicAdd(args.workspace.ticket, 1);
    __syncthreads();
    return smem.index;
  }
};

}  // namespace fa2::sm80
