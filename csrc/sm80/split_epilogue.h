#pragma once

// Merges what the warps of a CTA found for a row, and stores the result: finished, or as a part.

#include "sm80/fwd_mainloop.h"
#include "sm80/split_smem.h"

namespace fa2::sm80 {

template <class Config>
struct SplitEpilogue {
  using Element = typename Config::Element;
  using Mainloop = FwdMainloop<Config>;
  using Smem = typename Config::Smem;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;

  CUTE_DEVICE static void store(SplitArgs const& args, Smem& smem, Mainloop& mainloop) {
    __syncthreads();  // all keys have been read
    stage(smem, mainloop);
    __syncthreads();
    constexpr int kChunks = kTile.head_dim_v / kChunk;
    for (int i = thread_index(); i < kTile.block_m * kChunks; i += kTile.threads()) {
      int const row = i / kChunks, col = i % kChunks * kChunk;
      if (smem.work.row_begin + row < smem.work.num_rows && col < args.problem.head_dim) {
        store_chunk(args, smem, row, col);
      }
    }
  }

 private:
  static constexpr int kChunk = 4;  // 16 bytes of float32
  using Chunk = cutlass::AlignedArray<float, kChunk>;

  // A warp's sums and outputs, relative to its own bases.
  CUTE_DEVICE static void stage(Smem& smem, Mainloop& mainloop) {
    int const lane = lane_index(), warp = Mainloop::column_warp();
    int const first_row = Mainloop::warp_row_begin() + lane_row(lane);
    auto& softmax = mainloop.softmax;
    auto const o = row_col_view(mainloop.output);
    CUTE_UNROLL
    for (int i = 0; i < size(softmax.sum); ++i) {
      int const row = first_row + RowCoord<kM>{}(i);
      float const sum = quad_sum(softmax.sum(i));
      if (lane % 4 == 0) smem.rows[warp][row] = {softmax.base(i), sum};
      CUTE_UNROLL
      for (int j = 0; j < size<1>(o); j += 2) {
        int const col = ColCoord<Config::kNumO>{}(j) + lane_col(lane);
        cutlass::AlignedArray<float, 2> pair;
        pair[0] = o(i, j);
        pair[1] = o(i, j + 1);
        *reinterpret_cast<decltype(pair)*>(&smem.out[warp][row * Config::kOutStride + col]) = pair;
      }
    }
  }

  CUTE_DEVICE static void store_chunk(SplitArgs const& args, Smem const& smem, int row, int col) {
    FwdParams const& p = args.problem;
    SplitWorkTile const& work = smem.work;
    int query, in_group;
    args.group(query, in_group, work.row_begin + row);
    int const head = work.head_kv * args.group.divisor + in_group;

    RowState state = smem.rows[0][row];
    CUTE_UNROLL
    for (int w = 1; w < kTile.key_warps; ++w) {
      state = merge(state, smem.rows[w][row], DeviceExp2{});
    }
    bool const last = args.partials.num_splits == 1;
    if (last && p.sink != nullptr) state = merge_sink(state, p.sink[head], DeviceExp2{});
    Chunk out = merged_outputs(smem, row, col, state);
    int64_t const index = lse_index(p, work.batch, work.first_row_q, head) + query;
    if (last) {
      Element* const rows = head_ptr<Element>(p.out, work.batch, work.first_row_q, head);
      store_as<Element>(out, rows + query * p.out.row_stride + col);
      if (col == 0) p.lse[index] = row_lse(state);
    } else {
      int64_t const part = work.split * args.partials.rows + index;
      if (state.sum != 0.f) store_as<float>(out, args.partials.out + part * p.head_dim + col);
      if (col == 0) args.partials.lse[part] = row_lse(state);
    }
  }

  // Normalised, the sum over the warps that split the keys.
  CUTE_DEVICE static Chunk merged_outputs(Smem const& smem, int row, int col, RowState state) {
    Chunk out{};
    CUTE_UNROLL
    for (int w = 0; w < kTile.key_warps; ++w) {
      float const factor = row_scale(state) * exp2_approx(smem.rows[w][row].base - state.base);
      auto const part =
          *reinterpret_cast<Chunk const*>(&smem.out[w][row * Config::kOutStride + col]);
      CUTE_UNROLL
      for (int i = 0; i < kChunk; ++i) out[i] += factor * part[i];
    }
    return out;
  }

  template <class T>
  CUTE_DEVICE static void store_as(Chunk const& chunk, T* to) {
    cutlass::AlignedArray<T, kChunk> values;
    CUTE_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] = T(chunk[i]);
    *reinterpret_cast<cutlass::AlignedArray<T, kChunk>*>(to) = values;
  }
};

}  // namespace fa2::sm80
