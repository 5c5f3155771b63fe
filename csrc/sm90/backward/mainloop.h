#pragma once

// The backward main loop of one consumer warpgroup: for 64 of a CTA's keys, over the query heads of
// their group and the query tiles that see the CTA's keys (FlashAttention-2, algorithm 2),
//
//   S' = K Q',  P' = exp(S' - lse),  dP' = V dO',  dS' = P' (dP' - D)
//   dV += P' dO,  dK += dS' Q,  dQ = dS K
//
// with everything but dQ transposed. dS of all keys is in shared memory for dQ, of which the
// warpgroup has a part (backward/grad_q.h). Another warp adds that up (backward/grad_q_sum.h).

#include "sm90/backward/grad_q_part.h"
#include "sm90/backward/scores.h"

namespace fa2::sm90 {

template <class Config>
class BwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using Scores = typename BwdScores<Config>::Scores;
  using Operand = typename BwdScores<Config>::Operand;
  using GradQ = typename GradQPart<Config>::GradQ;
  template <int kNum>
  using Grad = decltype(make_tensor<float>(AccumulatorLayout<1, kNum>{}));

 public:
  CUTE_DEVICE BwdMainloop(BwdArgs const& args, Smem& smem)
      : args_(args.common),
        smem_(smem),
        warpgroup_(__shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0) - 1),
        scores_(args, smem, 64 * warpgroup_),
        grad_q_(args, smem, warpgroup_) {
    clear(grad_k);
    clear(grad_v);
  }

  // Some query tile sees the keys.
  CUTE_DEVICE void run() {
    mbarrier_wait(smem_.keys_full, 0);
    wait_full(smem_.q_ring, at_);
    if constexpr (Config::kListed) {
      run_listed();
    } else {
      run_range();
    }
  }

  Grad<Config::kNumK> grad_k;
  Grad<Config::kNumV> grad_v;

 private:
  CUTE_DEVICE void run_range() {
    BlockRange const tiles = smem_.work.tiles;
    int left = (tiles.end - tiles.begin) * args_.problem.forward.group();
    int m = tiles.begin, head = smem_.work.head_kv * args_.problem.forward.group();
    CUTE_NO_UNROLL
    while (left > 0) {
      --left;
      step(head, m, is_edge(tiles, m), left > 0);
      if (++m == tiles.end) {
        m = tiles.begin;
        ++head;
      }
    }
  }

  // The steps that a block mask lists. Whatever is said of one is there with its Q.
  CUTE_DEVICE void run_listed() {
    bool more;
    do {
      ListedQueryStep const& listed = smem_.steps[at_.stage];
      more = !listed.is_last;
      if (listed.lists(warpgroup_)) {
        step(listed.head, listed.queries.block, listed.queries.tile[warpgroup_] != 0, more);
      } else {
        rest(more);
      }
    } while (more);
  }

  // Of query tile m of a head, whose Q has landed; and whether others follow. At an edge scores are
  // masked one by one.
  CUTE_DEVICE void step(int head, int m, bool edge, bool more) {
    int const stage = at_.stage;
    Scores scores, grad_probs;
    // dP' - D is summed up from -D. Where it is set while products are under way, ptxas waits for
    // them.
    scores_.with_values(grad_probs, smem_.row_stats[stage][1], [](float& dp, float d) { dp = d; });
    pin(grad_probs);
    start_rows_product<typename Config::TileK, typename Config::TileQ>(
        scores, smem_.k, 64 * warpgroup_, smem_.q[stage]);
    wait_full(smem_.grad_out_ring, at_);
    start_rows_product<typename Config::TileV, typename Config::TileGradOut, true>(
        grad_probs, smem_.v, 64 * warpgroup_, smem_.grad_out[stage]);
    uint32_t keep = ~0u;
    if constexpr (Config::kModified) keep = scores_.keep_bits(head, m);
    wait_for_products<1>(scores);

    Operand probs, grad_scores;
    exponentiate(scores, keep, head, m, edge, probs);

    // Here and not later: the loop in it holds the exponentials in front of the wait for the
    // products that they are to overlap with.
    auto next = at_;
    next.advance();
    if (more) wait_full(smem_.q_ring, next);
    wait_for_products<0>(grad_probs);
    if constexpr (Config::kModified) scores_.drop(grad_probs, keep, smem_.row_stats[stage][1]);
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) scores(i) *= grad_probs(i);
    round_to_operand(scores, grad_scores);

    start_cols_product<typename Config::TileGradOut>(grad_v, probs, smem_.grad_out[stage]);
    Element* const shared_grad_scores = smem_.grad_scores[buffer_];
    scores_.store(grad_scores, shared_grad_scores);
    fence_shared_async_proxy();
    named_barrier_sync(Config::kGradScoresThere, 128 * Config::kConsumers);
    buffer_ ^= 1;

    GradQ grad_q;
    if (is_listed_by_all(stage)) {
      grad_q_.start(grad_q, shared_grad_scores);
    } else {
      grad_q_.start_block(grad_q, shared_grad_scores, warpgroup_);
    }
    wait_for_products<1>(grad_v);
    release(smem_.grad_out_ring, stage);
    start_cols_product<typename Config::TileQ>(grad_k, grad_scores, smem_.q[stage]);
    wait_for_products<1>(grad_q);
    grad_q_.hand_over(grad_q);
    wait_for_products<0>(grad_k);
    release(smem_.q_ring, stage);
    at_ = next;
  }

  // A step that lists the keys of the other warpgroup alone: of its dQ this one has a part, too.
  CUTE_DEVICE void rest(bool more) {
    int const stage = at_.stage;
    named_barrier_sync(Config::kGradScoresThere, 128 * Config::kConsumers);
    GradQ grad_q;
    grad_q_.start_block(grad_q, smem_.grad_scores[buffer_], 1 - warpgroup_);
    buffer_ ^= 1;
    auto next = at_;
    next.advance();
    if (more) wait_full(smem_.q_ring, next);
    wait_for_products<0>(grad_q);
    grad_q_.hand_over(grad_q);
    release(smem_.grad_out_ring, stage);
    release(smem_.q_ring, stage);
    at_ = next;
  }

  CUTE_DEVICE bool is_listed_by_all(int stage) const {
    if constexpr (Config::kListed) {
      return smem_.steps[stage].lists(1 - warpgroup_);
    } else {
      return true;
    }
  }

  // Scores become P', or what dS' takes in its place; and that which dV takes.
  CUTE_DEVICE void exponentiate(Scores& scores, uint32_t keep, int head, int m, bool edge,
                                Operand& probs) const {
    typename BwdScores<Config>::Slopes slopes;
    if constexpr (Config::kListed) {
      if (edge) {
        scores_.modify(scores, slopes, head, m);
        scores_.mask_listed(scores, smem_.steps[at_.stage].queries.tile[warpgroup_]);
      }
    } else {
      if constexpr (Config::kModified) scores_.modify(scores, slopes, head, m);
      if (edge) scores_.mask(scores, m);
    }
    scores_.exponentiate(scores, smem_.row_stats[at_.stage][0]);
    if constexpr (Config::kModified) {
      scores_.separate(scores, slopes, keep, probs);
    } else {
      round_to_operand(scores, probs);
    }
  }

  sm80::BwdArgs const& args_;
  Smem& smem_;
  int warpgroup_;  // of the consumers
  BwdScores<Config> scores_;
  GradQPart<Config> grad_q_;
  int buffer_ = 0;                    // of dS
  RingPosition<Config::kStages> at_;  // of Q and dO
};

}  // namespace fa2::sm90
