#pragma once

// The backward main loop of one consumer warpgroup: for 64 of a CTA's keys, over the query heads of
// their group and the query tiles that see the CTA's keys (FlashAttention-2, algorithm 2),
//
//   S' = K Q',  P' = exp(S' - lse),  dP' = V dO',  dS' = P' (dP' - D)
//   dV += P' dO,  dK += dS' Q,  dQ = dS K
//
// with everything but dQ transposed. dS of all keys is in shared memory for dQ, of which the
// warpgroup has a part (backward/grad_q.h). Another warp adds that up (backward/grad_q_sum.h).

#include "sm90/backward/config.h"
#include "tile/scores.h"

namespace fa2::sm90 {

template <class Config>
class BwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr int kNumS = Config::kNumS;

  using Scores = decltype(make_tensor<float>(AccumulatorLayout<1, kNumS>{}));
  using Probs = decltype(make_tensor<Element>(OperandLayout<1, Config::kDepth>{}));
  using GradQ = decltype(make_tensor<float>(AccumulatorLayout<1, Config::kNumQ>{}));

 public:
  template <int kNum>
  using Grad = decltype(make_tensor<float>(AccumulatorLayout<1, kNum>{}));

  CUTE_DEVICE BwdMainloop(BwdArgs const& args, Smem& smem)
      : args_(args.common),
        smem_(smem),
        warpgroup_(__shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0) - 1),
        thread_(int(threadIdx.x) % 128) {
    clear(grad_k);
    clear(grad_v);
  }

  // Of the lane's first row among the CTA's keys.
  CUTE_DEVICE static int lane_first_row() {
    return (warp_index() - 4) * 16 + lane_row(lane_index());
  }

  // Some query tile sees the keys.
  CUTE_DEVICE void run() {
    BlockRange const tiles = smem_.work.tiles;
    int left = (tiles.end - tiles.begin) * args_.problem.forward.group();
    int m = tiles.begin;
    mbarrier_wait(smem_.keys_full, 0);
    wait_full(smem_.q_ring, at_);
    CUTE_NO_UNROLL
    while (left > 0) {
      --left;
      step(m, is_edge(tiles, m), left > 0);
      if (++m == tiles.end) m = tiles.begin;
    }
  }

  Grad<Config::kNumK> grad_k;
  Grad<Config::kNumV> grad_v;

 private:
  // Of query tile m, whose Q has landed; and whether others follow.
  CUTE_DEVICE void step(int m, bool edge, bool more) {
    int const stage = at_.stage;
    Scores scores, grad_probs;
    // dP' - D is summed up from -D. Where it is set while products are under way, ptxas waits for
    // them.
    with_values(grad_probs, smem_.row_stats[stage][1], [](float& dp, float d) { dp = d; });
    pin(grad_probs);
    start_rows_product<typename Config::TileK, typename Config::TileQ>(
        scores, smem_.k, 64 * warpgroup_, smem_.q[stage]);
    wait_full(smem_.grad_out_ring, at_);
    start_rows_product<typename Config::TileV, typename Config::TileGradOut, true>(
        grad_probs, smem_.v, 64 * warpgroup_, smem_.grad_out[stage]);
    wait_for_products<1>(scores);

    if (edge) mask(scores, m);
    float const scale = args_.scales.plain;
    with_values(scores, smem_.row_stats[stage][0],
                [scale](float& s, float lse) { s = exp2_approx(fmaf(s, scale, -lse)); });
    pin(scores);
    Probs probs, grad_scores;
    round_to_operand(scores, probs);

    // Here and not later: the loop in it holds the exponentials in front of the wait for the
    // products that they are to overlap with.
    auto next = at_;
    next.advance();
    if (more) wait_full(smem_.q_ring, next);
    wait_for_products<0>(grad_probs);
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) scores(i) *= grad_probs(i);
    round_to_operand(scores, grad_scores);

    start_cols_product<typename Config::TileGradOut>(grad_v, probs, smem_.grad_out[stage]);
    Element* const shared_grad_scores = smem_.grad_scores[buffer_];
    store_grad_scores(grad_scores, shared_grad_scores);
    fence_shared_async_proxy();
    named_barrier_sync(Config::kGradScoresThere, 128 * Config::kConsumers);
    buffer_ ^= 1;

    GradQ grad_q;
    start_grad_q(grad_q, shared_grad_scores);
    wait_for_products<1>(grad_v);
    release(smem_.grad_out_ring, stage);
    start_cols_product<typename Config::TileQ>(grad_k, grad_scores, smem_.q[stage]);
    wait_for_products<1>(grad_q);
    hand_over(grad_q);
    wait_for_products<0>(grad_k);
    release(smem_.q_ring, stage);
    at_ = next;
  }

  // Calls combine(score, value) for each score, with the value of its query.
  template <class Combine>
  CUTE_DEVICE void with_values(Scores& scores, float const* values, Combine const& combine) const {
    auto s = row_col_view(scores);
    int const first = lane_col(thread_ % 32);
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const pair = reinterpret_cast<float2 const&>(values[8 * n + first]);
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        combine(s(half, 2 * n), pair.x);
        combine(s(half, 2 * n + 1), pair.y);
      }
    }
  }

  CUTE_DEVICE void mask(Scores& scores, int m) const {
    sm80::BwdWorkTile const& work = smem_.work;
    Window const window = mirrored(args_.problem.forward.window);
    mask_scores<1, kNumS>(scores, work.col_begin + lane_first_row(),
                          m * BwdTile::kBlockM + lane_col(lane_index()), [&](int key) {
                            ColRange queries =
                                cols_around(key - work.diagonal, work.seqlen_q, window);
                            if (key >= work.seqlen_k) queries.end = 0;
                            return queries;
                          });
  }

  // dS' as it stands, in which queries lie side by side.
  CUTE_DEVICE void store_grad_scores(Probs& grad_scores, Element* tile) const {
    using Tile = typename Config::TileGradScores;
    auto const packed = recast<uint32_t>(grad_scores);  // ((row half, column half), 1, 16 columns)
    int const key = 64 * warpgroup_ + thread_ / 32 * 16 + thread_ % 16;
    int const half = thread_ % 32 / 16;
    uint32_t const begin = shared_address(tile);
    CUTE_UNROLL
    for (int k = 0; k < Config::kDepth; ++k) {
      uint32_t const words[4] = {packed(0, 0, k), packed(1, 0, k), packed(2, 0, k),
                                 packed(3, 0, k)};
      store_matrices(begin + Tile::place_of(key, 16 * k + 8 * half), words);
    }
  }

  CUTE_DEVICE void start_grad_q(GradQ& grad_q, Element const* grad_scores) const {
    using TileK = typename Config::TileK;
    start_transposed_product<typename Config::TileGradScores, TileK>(grad_q, grad_scores, smem_.k,
                                                                     warpgroup_);
  }

  // To the warp that adds it up.
  CUTE_DEVICE void hand_over(GradQ const& grad_q) const {
    constexpr GradQLayout layout = Config::kGradQ;
    named_barrier_sync(Config::kGradQEmpty + warpgroup_, Config::kGradQThreads);
    float* const to = smem_.grad_q + warpgroup_ * layout.part_size() + layout.offset(0, thread_);
    CUTE_UNROLL
    for (int j = 0; j < Config::kNumQ; ++j) {
      reinterpret_cast<float4&>(to[layout.offset(8 * j, 0)]) =
          make_float4(grad_q(0, 0, j), grad_q(1, 0, j), grad_q(2, 0, j), grad_q(3, 0, j));
    }
    fence_shared_async_proxy();
    named_barrier_arrive(Config::kGradQFull + warpgroup_, Config::kGradQThreads);
  }

  sm80::BwdArgs const& args_;
  Smem& smem_;
  int warpgroup_;                     // of the consumers
  int thread_;                        // of the warpgroup
  int buffer_ = 0;                    // of dS
  RingPosition<Config::kStages> at_;  // of Q and dO
};

}  // namespace fa2::sm90
