#pragma once

// The forward kernel: schedule, main loop, store.

#include "sm80/forward/epilogue.h"
#include "sm80/forward/mainloop.h"

namespace fa2::sm80 {

template <class Config>
struct FwdKernel {
  using Args = FwdArgs;
  using Smem = typename Config::Smem;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kCtasPerSm = kTile.ctas_per_sm;
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(FwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    WorkTile work;
    ListedTile listed;
    if constexpr (Config::kListed) {
      if (!schedule_listed<kTile.block_m, kTile.block_n>(args, blockIdx.x, work, listed)) return;
    } else {
      work = work_tile(args, blockIdx.x, kTile.block_m, kTile.block_n);
    }
    if (work.row_begin >= work.seqlen_q) return;  // shorter than the longest, or another launch's
    if (threadIdx.x == 0) smem.work = work;
    if constexpr (Config::kListed) {
      if (threadIdx.x == 0) smem.listed[0] = listed;
      if (threadIdx.x < 32) {
        start_steps<kTile.block_m, kTile.block_n>(args, work, listed, smem.steps[0],
                                                  smem.work.tiles);
      }
    }
    __syncthreads();

    FwdMainloop<Config> mainloop(args, smem);
    BlockRange const& tiles = Config::kListed ? smem.work.tiles : work.tiles;
    if (tiles.begin < tiles.end) {
      load_queries(args, smem);
      mainloop.begin();
      if constexpr (Config::kListed) {
        mainloop.run_listed();
      } else if constexpr (Config::kOverlaps) {
        mainloop.run_overlapped();
      } else {
        mainloop.run(false_type{});
      }
    }
    if constexpr (Config::kListed) {
      if (smem.listed[0].is_piece()) return FwdEpilogue<Config>::store_piece(args, smem, mainloop);
    }
    FwdEpilogue<Config>::store(args, smem, mainloop);
  }

 private:
  CUTE_DEVICE static void load_queries(FwdArgs const& args, Smem& smem) {
    FwdParams const& p = args.problem;
    using StreamQ = typename Config::StreamQ;
    auto const* rows = head_ptr<typename Config::Element const>(
                           p.q, smem.work.batch, smem.work.first_row_q, smem.work.head) +
                       smem.work.row_begin * p.q.row_stride;
    int64_t const pass_bytes = StreamQ::Copies::kRowsPerPass * p.q.row_stride * sizeof(*rows);
    StreamQ stream(rows, p.q.row_stride, pass_bytes, p.head_dim, 0, smem.q);
    stream.template load<Rows::kBounded>(0, smem.work.seqlen_q - smem.work.row_begin);
  }
};

}  // namespace fa2::sm80
