#pragma once

// The split kernel (flash-decoding): as the forward kernel, for few queries and long sequences of
// keys, in pages of any size. The heads of a group share a tile, and so each key that is read; CTAs
// may split the keys of a row, and then leave partial results for the combine kernel.

#include "sm80/forward/mainloop.h"
#include "sm80/split/epilogue.h"

namespace fa2::sm80 {

template <class Config>
struct SplitKernel {
  using Args = SplitArgs;
  using Smem = typename Config::Smem;
  using Element = typename Config::Element;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kThreads = kTile.threads();
  static constexpr int kCtasPerSm = kTile.ctas_per_sm;
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(SplitArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    if (!schedule(args, smem)) return;  // shorter than the longest, or another launch's

    FwdMainloop<Config> mainloop(args, smem);
    bool const sees_keys = smem.work.tiles.begin < smem.work.tiles.end;
    if (sees_keys) {
      load_queries(args, smem.work, smem);
      mainloop.begin();
    }
    if constexpr (Config::kSums) {
      SplitEpilogue<Config> epilogue(args, smem);
      if (sees_keys) sum_splits(mainloop, epilogue, smem.work.sharing, smem.work.cta);
      if (smem.work.cta == 0) epilogue.store_sum();
    } else {
      if (sees_keys) mainloop.run(false_type{});
      SplitEpilogue<Config>(args, smem).store_split(mainloop);
    }
  }

 private:
  CUTE_DEVICE static bool schedule(SplitArgs const& args, Smem& smem) {
    SplitWorkTile const work = split_work_tile(args, blockIdx.x);
    if (work.num_rows == 0) return false;
    if (threadIdx.x == 0) smem.work = work;
    __syncthreads();
    return true;
  }

  CUTE_DEVICE static void sum_splits(FwdMainloop<Config>& mainloop, SplitEpilogue<Config>& epilogue,
                                     Sharing const& sharing, int cta) {
    int const end = sharing.begin(cta + 1);
    CUTE_NO_UNROLL
    for (int split = sharing.begin(cta); split < end; ++split) {
      bool const more = split + 1 < end;
      if constexpr (Config::kKeepsKeys) {
        mainloop.run(more);
      } else {
        mainloop.run(false_type{});
      }
      epilogue.add_split(mainloop, split);
      if (more) mainloop.reset();
      if constexpr (!Config::kKeepsKeys) {
        __syncthreads();  // nobody reads what lies where the keys go
        if (more) mainloop.begin();
      }
    }
  }

  // Zeros beyond the last row and beyond head_dim.
  CUTE_DEVICE static void load_queries(SplitArgs const& args, SplitWorkTile const& work,
                                       Smem& smem) {
    FwdParams const& p = args.problem;
    constexpr int kChunks = kTile.head_dim / 8;  // of 16 bytes, in a row
    auto const* const first = head_ptr<Element const>(p.q, work.batch, work.first_row_q,
                                                      work.head_kv * args.group.divisor);
    CUTE_NO_UNROLL
    for (int i = threadIdx.x; i < kTile.block_m * kChunks; i += kThreads) {
      int const row = i / kChunks, col = i % kChunks * 8;
      bool const inside = work.row_begin + row < work.num_rows && col < p.head_dim;
      int query, in_group;
      args.group(query, in_group, work.row_begin + row);
      int64_t const offset = query * p.q.row_stride + in_group * p.q.head_stride + col;
      auto const& from = *reinterpret_cast<uint128_t const*>(first + (inside ? offset : 0));
      auto& to = reinterpret_cast<uint128_t&>(smem.q[Config::SmemQ::offset(row, col)]);
      SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>::copy(from, to, inside);
    }
    cp_async_fence();
  }
};

}  // namespace fa2::sm80
