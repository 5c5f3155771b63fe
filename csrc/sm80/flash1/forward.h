#pragma once

// The forward pass as FlashAttention-1 has it (algorithm 1 of its paper): one CTA for each batch
// and head. The outer loop goes over blocks of keys and values, which stay in shared memory; the
// inner one over all queries, whose output and softmax statistics come from memory and go back
// there once for each block of keys. The warps slice the keys, so each of them has a share of every
// output, and the shares are added up through shared memory in every step.

#include "core/online_softmax.h"
#include "sm80/flash1/common.h"
#include "tile/softmax.h"

namespace fa2::sm80::flash1 {

struct Flash1Forward {
  using Args = flash1::Args;
  static constexpr int kThreads = flash1::kThreads;
  static constexpr int kCtasPerSm = 1;

 private:
  static constexpr int kKeys = kBlockN / kWarps;  // of a warp
  static constexpr int kNumS = kKeys / 8;
  static constexpr int kDepthS = kHeadDim / 16;
  static constexpr int kDepthO = kKeys / 16;
  static constexpr int kNumO = kHeadDim / 8;

  using CopiesQ = CopyShape<kBlockM, kHeadDim, kThreads>;
  using CopiesK = CopyShape<kBlockN, kHeadDim, kThreads>;
  using SmemQ = SmemTile<kBlockM, kHeadDim, CopiesQ::kSmemPad>;
  using SmemK = SmemTile<kBlockN, kHeadDim, CopiesK::kSmemPad>;

  struct Smem {
    alignas(128) Element q[SmemQ::kElements];
    alignas(128) Element k[SmemK::kElements];
    alignas(128) Element v[SmemK::kElements];
    Shares shares;  // of the output
    float max[kWarps][kBlockM];
    float sum[kWarps][kBlockM];
  };

  using Scores = decltype(make_tensor<float>(AccumulatorLayout<1, kNumS>{}));
  using Probs = decltype(make_tensor<Element>(OperandLayout<1, kDepthO>{}));

 public:
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(Args const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    for (int j = 0; j * kBlockN < args.seqlen; ++j) {
      __syncthreads();  // the last step reads the keys before
      load_rows<CopiesK, SmemK>(args, args.k, j * kBlockN, smem.k);
      load_rows<CopiesK, SmemK>(args, args.v, j * kBlockN, smem.v);
      int const first = args.causal ? j * kBlockN / kBlockM : 0;
      for (int i = first; i * kBlockM < args.seqlen; ++i) step(args, smem, j, i);
    }
  }

 private:
  // Queries i against keys j.
  CUTE_DEVICE static void step(Args const& args, Smem& smem, int j, int i) {
    load_rows<CopiesQ, SmemQ>(args, args.q, i * kBlockM, smem.q);
    cp_async_fence();
    cp_async_wait_group<0>();
    __syncthreads();

    Scores scores;
    multiply_qk(smem, scores);
    mask(args, j, i, scores);
    float max[2];
    exchange_max(args, smem, scores, max);
    Probs probs;
    exponentiate(args, smem, scores, max, probs);
    multiply_pv(smem, probs);
    __syncthreads();  // all shares are there
    add_up(args, smem, j, i);
  }

  CUTE_DEVICE static void multiply_qk(Smem& smem, Scores& scores) {
    auto const tSsQ = ldsm_view<SmemQ>(smem.q, LdsmLanes::rows_first(lane()));
    auto const tSsK = ldsm_view<SmemK>(smem.k, LdsmLanes::cols_first(lane()), warp() * kKeys);
    clear(scores);
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      auto tSrQ = make_tensor<Element>(Shape<_8, _1>{});
      load_block<SM75_U32x4_LDSM_N>(tSsQ(0, k), tSrQ(_, 0));
      CUTE_UNROLL
      for (int n = 0; n < kNumS; n += 2) {
        auto tSrK = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(tSsK(n / 2, k), flatten_block(tSrK));
        multiply_blocks<1>(scores, n, tSrQ, tSrK);
      }
    }
  }

  CUTE_DEVICE static void mask(Args const& args, int j, int i, Scores& scores) {
    int const first_row = i * kBlockM + lane_row(lane());
    int const first_col = j * kBlockN + warp() * kKeys + lane_col(lane());
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int r = 0; r < size<0>(s); ++r) {
      int const row = first_row + RowCoord<1>{}(r);
      int const end = args.causal ? min(row + 1, args.seqlen) : args.seqlen;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(s); ++c) {
        if (first_col + ColCoord<kNumS>{}(c) >= end) s(r, c) = -INFINITY;
      }
    }
  }

  // The largest score of this lane's rows over the keys of all warps, as a power of two.
  CUTE_DEVICE static void exchange_max(Args const& args, Smem& smem, Scores& scores,
                                       float (&max)[2]) {
    auto const largest = RowSoftmax<1>::lane_max(scores);
    int const row = lane_row(lane());
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const own = fmaxf(quad_max(largest(r)) * args.scale_log2, kEmptyBase);
      if (lane() % 4 == 0) smem.max[warp()][row + 8 * r] = own;
    }
    __syncthreads();
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) max[r] = max_of_warps(smem, row + 8 * r);
  }

  CUTE_DEVICE static float max_of_warps(Smem const& smem, int row) {
    float max = smem.max[0][row];
    CUTE_UNROLL
    for (int w = 1; w < kWarps; ++w) max = fmaxf(max, smem.max[w][row]);
    return max;
  }

  CUTE_DEVICE static void exponentiate(Args const& args, Smem& smem, Scores& scores,
                                       float const (&max)[2], Probs& probs) {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float sum = 0.f;
      CUTE_UNROLL
      for (int c = 0; c < size<1>(s); ++c) {
        s(r, c) = exp2_approx(fmaf(s(r, c), args.scale_log2, -max[r]));
        sum += s(r, c);
      }
      sum = quad_sum(sum);
      if (lane() % 4 == 0) smem.sum[warp()][lane_row(lane()) + 8 * r] = sum;
    }
    round_to_operand(scores, probs);
  }

  // This warp's share of P V, for all to read.
  CUTE_DEVICE static void multiply_pv(Smem& smem, Probs const& tOrP) {
    auto const tOsV = ldsm_view<SmemK>(smem.v, LdsmLanes::rows_first(lane()), warp() * kKeys);
    Shares::Fragment share;
    clear(share);
    CUTE_UNROLL
    for (int k = 0; k < kDepthO; ++k) {
      CUTE_UNROLL
      for (int n = 0; n < kNumO; n += 2) {
        auto tOrV = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(tOsV(k, n / 2), flatten_block(tOrV));
        multiply_blocks<1>(share, n, tOrP(_, _, k), tOrV);
      }
    }
    smem.shares.store(share);
  }

  // O of these queries, from the blocks of keys so far and from this one. A row is 8 threads.
  CUTE_DEVICE static void add_up(Args const& args, Smem& smem, int j, int i) {
    int const thread = threadIdx.x, row = thread / 8, query = i * kBlockM + row;
    bool const exists = query < args.seqlen;
    int64_t const at = int64_t(blockIdx.x) * args.seqlen + query;  // (pair, query)
    bool const done = j == last_key_block(args, i, kBlockN);

    RowState const here = state_of_warps(smem, row);
    RowState const before =
        j > 0 && exists ? RowState{args.max[at], args.sum[at]} : RowState{kEmptyBase, 0.f};
    RowState const after = merge(before, here, DeviceExp2{});
    // Outputs so far are normalised, as the paper has them.
    float const of_before = before.sum * exp2_approx(before.base - after.base) / after.sum;
    float const of_here = exp2_approx(here.base - after.base) / after.sum;
    CUTE_UNROLL
    for (int part = 0; part < 2 && exists; ++part) {
      int const col = thread % 8 * 4 + 32 * part;
      Four out = smem.shares.sum(row, col);
      Four* const kept = reinterpret_cast<Four*>(args.sums + at * kHeadDim + col);
      Four const old = j == 0 ? Four{} : *kept;
      CUTE_UNROLL
      for (int e = 0; e < 4; ++e) out[e] = old[e] * of_before + out[e] * of_here;
      if (done) {
        store_rounded(args.out, row_offset(args, query) + col, out);
      } else {
        *kept = out;
      }
    }
    __syncwarp();  // all threads of a row have read its state
    if (exists && thread % 8 == 0) store_state(args, at, after, done);
  }

  CUTE_DEVICE static RowState state_of_warps(Smem const& smem, int row) {
    float sum = 0.f;
    float const max = max_of_warps(smem, row);
    CUTE_UNROLL
    for (int w = 0; w < kWarps; ++w) sum += smem.sum[w][row];
    return {max, sum};
  }

  CUTE_DEVICE static void store_state(Args const& args, int64_t at, RowState state, bool done) {
    if (done) {
      args.lse[at] = row_lse(state);
    } else {
      args.max[at] = state.base;
      args.sum[at] = state.sum;
    }
  }
};

}  // namespace fa2::sm80::flash1
