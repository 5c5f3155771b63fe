#pragma once

// The backward pass as FlashAttention-1 has it (algorithm 4 of its paper): one CTA for each batch
// and head. The outer loop goes over blocks of keys and values, whose gradients stay in registers;
// the inner one over all queries. Their gradients come from memory and go back there once for each
// block of keys, in float32; O, dO and lse are read as often, and D is computed anew. The warps
// slice the keys, so each of them has a share of every dQ. Scores are transposed, as in
// sm80/backward.

#include "core/score_mod.h"
#include "sm80/flash1/common.h"
#include "tile/fragments.h"
#include "tile/intrinsics.h"

namespace fa2::sm80::flash1 {

struct Flash1Backward {
  using Args = BwdArgs;
  static constexpr int kThreads = flash1::kThreads;
  static constexpr int kCtasPerSm = 1;

 private:
  static constexpr int kKeys = kBwdBlockN / kWarps;  // of a warp
  static constexpr int kM = kKeys / 16;
  static constexpr int kNumS = kBlockM / 8;
  static constexpr int kDepthS = kHeadDim / 16;
  static constexpr int kNumKV = kHeadDim / 8;

  using CopiesQ = CopyShape<kBlockM, kHeadDim, kThreads>;
  using CopiesK = CopyShape<kBwdBlockN, kHeadDim, kThreads>;
  using SmemQ = SmemTile<kBlockM, kHeadDim, CopiesQ::kSmemPad>;
  using SmemK = SmemTile<kBwdBlockN, kHeadDim, CopiesK::kSmemPad>;
  using SmemS = SmemTile<kKeys, kBlockM>;  // dS of a warp

  struct Smem {
    alignas(128) Element q[SmemQ::kElements];
    alignas(128) Element grad_out[SmemQ::kElements];
    alignas(128) Element k[SmemK::kElements];
    alignas(128) Element v[SmemK::kElements];
    alignas(128) Element grad_scores[kWarps][SmemS::kElements];
    Shares grad_q;
    float lse[kBlockM];  // as powers of two
    float delta[kBlockM];
  };

  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumS>{}));
  using Probs = decltype(make_tensor<Element>(OperandLayout<kM, kNumS / 2>{}));
  using GradKV = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumKV>{}));

 public:
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(Args const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    flash1::Args const& problem = args.forward;
    for (int j = 0; j * kBwdBlockN < problem.seqlen; ++j) {
      __syncthreads();  // gradients of the keys before are stored from where these go
      load_rows<CopiesK, SmemK>(problem, problem.k, j * kBwdBlockN, smem.k);
      load_rows<CopiesK, SmemK>(problem, problem.v, j * kBwdBlockN, smem.v);
      GradKV grad_k, grad_v;
      clear(grad_k);
      clear(grad_v);
      int const first = problem.causal ? j * kBwdBlockN / kBlockM : 0;
      for (int i = first; i * kBlockM < problem.seqlen; ++i) {
        step(args, smem, j, i, grad_k, grad_v);
      }
      store_gradients(args, smem, j, grad_k, grad_v);
    }
  }

 private:
  // Queries i against keys j.
  CUTE_DEVICE static void step(Args const& args, Smem& smem, int j, int i, GradKV& grad_k,
                               GradKV& grad_v) {
    flash1::Args const& problem = args.forward;
    load_rows<CopiesQ, SmemQ>(problem, problem.q, i * kBlockM, smem.q);
    load_rows<CopiesQ, SmemQ>(problem, args.grad_out, i * kBlockM, smem.grad_out);
    cp_async_fence();
    cp_async_wait_group<0>();
    __syncthreads();
    row_stats(args, smem, i);
    __syncthreads();

    Scores scores, grad_probs;
    multiply_keys(smem.k, smem.q, scores);
    multiply_keys(smem.v, smem.grad_out, grad_probs);
    Probs probs, grad_scores;
    differentiate(problem, smem, j, i, scores, grad_probs, probs, grad_scores);
    multiply_queries(grad_v, probs, smem.grad_out);
    multiply_queries(grad_k, grad_scores, smem.q);
    share_grad_q(smem, grad_scores);
    __syncthreads();  // all shares are there
    add_up(args, smem, j, i);
  }

  // lse and D = sum(dO * O) of each row; 8 threads have a row. Rows past the end have no
  // probability.
  CUTE_DEVICE static void row_stats(Args const& args, Smem& smem, int i) {
    flash1::Args const& problem = args.forward;
    int const row = threadIdx.x / 8, col = threadIdx.x % 8 * 8, query = i * kBlockM + row;
    bool const exists = query < problem.seqlen;
    float sum = 0.f;
    if (exists) {
      using Eight = cutlass::AlignedArray<Element, 8>;
      auto const* const out = static_cast<Element const*>(problem.out) + row_offset(problem, query);
      Eight const o = *reinterpret_cast<Eight const*>(out + col);
      Eight const g = *reinterpret_cast<Eight const*>(smem.grad_out + SmemQ::offset(row, col));
      CUTE_UNROLL
      for (int e = 0; e < 8; ++e) sum += float(o[e]) * float(g[e]);
    }
    CUTE_UNROLL
    for (int distance = 1; distance < 8; distance *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if (threadIdx.x % 8 != 0) return;
    int64_t const at = int64_t(blockIdx.x) * problem.seqlen + query;
    smem.lse[row] = exists ? problem.lse[at] * kLog2e : INFINITY;
    smem.delta[row] = sum;
  }

  // acc = K Q' or V dO', this warp's keys.
  CUTE_DEVICE static void multiply_keys(Element* keys, Element* queries, Scores& acc) {
    auto const sA = ldsm_view<SmemK>(keys, LdsmLanes::rows_first(lane()), warp() * kKeys);
    auto const sB = ldsm_view<SmemQ>(queries, LdsmLanes::cols_first(lane()));
    clear(acc);
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
      auto rB = make_tensor<Element>(Shape<_4, _2>{});
      load_block<SM75_U32x4_LDSM_N>(sB(0, k), flatten_block(rB));
      multiply_blocks<kM>(acc, 0, rA, rB);
    }
  }

  // P' = exp(S' - lse), dS' = P' (dP' - D)
  CUTE_DEVICE static void differentiate(flash1::Args const& problem, Smem const& smem, int j, int i,
                                        Scores& scores, Scores& grad_probs, Probs& probs,
                                        Probs& grad_scores) {
    int const first_key = j * kBwdBlockN + warp() * kKeys + lane_row(lane());
    auto s = row_col_view(scores);
    auto g = row_col_view(grad_probs);
    CUTE_UNROLL
    for (int c = 0; c < size<1>(s); ++c) {
      int const row = lane_col(lane()) + ColCoord<kNumS>{}(c);
      float const lse = smem.lse[row], delta = smem.delta[row];
      CUTE_UNROLL
      for (int r = 0; r < size<0>(s); ++r) {
        bool const hidden = problem.causal && first_key + RowCoord<kM>{}(r) > i * kBlockM + row;
        s(r, c) = hidden ? 0.f : exp2_approx(fmaf(s(r, c), problem.scale_log2, -lse));
        g(r, c) = s(r, c) * (g(r, c) - delta);
      }
    }
    round_to_operand(scores, probs);
    round_to_operand(grad_probs, grad_scores);
  }

  // acc += P' dO or dS' Q
  CUTE_DEVICE static void multiply_queries(GradKV& acc, Probs const& rA, Element* queries) {
    auto const sB = ldsm_view<SmemQ>(queries, LdsmLanes::rows_first(lane()));
    CUTE_UNROLL
    for (int n = 0; n < kNumKV; n += 2) {
      auto rB = make_tensor<Element>(Shape<_4, _2>{});
      load_block<SM75_U16x8_LDSM_T>(sB(0, n / 2), flatten_block(rB));
      multiply_blocks<kM>(acc, n, rA(_, _, 0), rB);
    }
  }

  // dS K of this warp's keys. dS is turned over by way of shared memory.
  CUTE_DEVICE static void share_grad_q(Smem& smem, Probs const& grad_scores) {
    Element* const tile = smem.grad_scores[warp()];
    store_operand<SmemS>(grad_scores, tile, operand_offset<SmemS>(0, lane()));
    __syncwarp();
    auto const sA = ldsm_view<SmemS>(tile, LdsmLanes::cols_first(lane()));
    auto const sB = ldsm_view<SmemK>(smem.k, LdsmLanes::rows_first(lane()), warp() * kKeys);
    Shares::Fragment share;
    clear(share);
    CUTE_UNROLL
    for (int k = 0; k < kM; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, _1>{});
      load_block<SM75_U16x8_LDSM_T>(sA(k, 0), rA(_, 0));
      CUTE_UNROLL
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<1>(share, n, rA, rB);
      }
    }
    smem.grad_q.store(share);
  }

  // dQ of these queries, from the blocks of keys so far and from this one.
  CUTE_DEVICE static void add_up(Args const& args, Smem const& smem, int j, int i) {
    flash1::Args const& problem = args.forward;
    int const row = threadIdx.x / 8, query = i * kBlockM + row;
    if (query >= problem.seqlen) return;
    bool const done = j == last_key_block(problem, i, kBwdBlockN);
    int64_t const at = int64_t(blockIdx.x) * problem.seqlen + query;  // (pair, query)
    CUTE_UNROLL
    for (int part = 0; part < 2; ++part) {
      int const col = threadIdx.x % 8 * 4 + 32 * part;
      Four grad = smem.grad_q.sum(row, col);
      Four* const kept = reinterpret_cast<Four*>(problem.sums + at * kHeadDim + col);
      Four const old = j == 0 ? Four{} : *kept;
      CUTE_UNROLL
      for (int e = 0; e < 4; ++e) grad[e] = old[e] + grad[e] * args.softmax_scale;
      if (done) {
        store_rounded(args.grad_q, row_offset(problem, query) + col, grad);
      } else {
        *kept = grad;
      }
    }
  }

  CUTE_DEVICE static void store_gradients(Args const& args, Smem& smem, int j, GradKV& grad_k,
                                          GradKV& grad_v) {
    CUTE_UNROLL
    for (int i = 0; i < size(grad_k); ++i) grad_k(i) *= args.softmax_scale;
    __syncthreads();  // the last step is done with the keys
    stage(grad_k, smem.k);
    stage(grad_v, smem.v);
    __syncthreads();
    store_rows(args.forward, args.grad_k, j, smem.k);
    store_rows(args.forward, args.grad_v, j, smem.v);
  }

  CUTE_DEVICE static void stage(GradKV const& grad, Element* tile) {
    auto rounded = make_tensor<Element>(OperandLayout<kM, kNumKV / 2>{});
    round_to_operand(grad, rounded);
    store_operand<SmemK>(rounded, tile, operand_offset<SmemK>(warp() * kKeys, lane()));
  }

  CUTE_DEVICE static void store_rows(flash1::Args const& problem, void* grad, int j,
                                     Element const* tile) {
    int const row = CopiesK::row(threadIdx.x), col = CopiesK::col(threadIdx.x);
    Element* const to =
        static_cast<Element*>(grad) + row_offset(problem, j * kBwdBlockN + row) + col;
    store_tile<CopiesK, SmemK, CopiesK::kPasses>(tile, row, col, to,
                                                 int64_t(problem.heads) * kHeadDim,
                                                 problem.seqlen - j * kBwdBlockN, kHeadDim);
  }
};

}  // namespace fa2::sm80::flash1
