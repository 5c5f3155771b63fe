#pragma once

// The backward main loop for wide heads, whose dK and dV of 64 keys do not fit the registers of one
// warpgroup: two of them share the keys of a CTA.
//
//   the first one:   S' = K Q',  P' = exp(S' - lse),  dK += dS' Q
//   the second one:  dP' = V dO',  dS' = P' (dP' - D),  dV += P' dO
//
// P' and dS' go from one to the other through shared memory. Of dQ = dS K each has a part. Where
// scores have a softcap or dropout, what dS' takes of P' goes on its own.

#include "sm90/backward/grad_q_part.h"
#include "sm90/backward/scores.h"

namespace fa2::sm90 {

// What both have.
template <class Config>
class BwdPairLoop {
 protected:
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using TileK = typename Config::TileK;
  using TileV = typename Config::TileV;
  using TileQ = typename Config::TileQ;
  using TileGradOut = typename Config::TileGradOut;
  using Scores = typename BwdScores<Config>::Scores;
  using Operand = typename BwdScores<Config>::Operand;
  using GradQ = typename GradQPart<Config>::GradQ;

  CUTE_DEVICE BwdPairLoop(BwdArgs const& args, Smem& smem, int warpgroup)
      : smem_(smem),
        scores_(args, smem, 0),
        grad_q_(args, smem, warpgroup),
        tiles_(smem.work.tiles),
        m_(tiles_.begin),
        head_(smem.work.head_kv * args.common.problem.forward.group()),
        left_((tiles_.end - tiles_.begin) * args.common.problem.forward.group()) {}

  // What is to be known of the step at hand, under a block mask when its Q or dO is there.
  CUTE_DEVICE void look() {
    if constexpr (Config::kListed) left_ = smem_.steps[at_.stage].is_last ? 1 : 2;
  }
  CUTE_DEVICE int tile() const {
    if constexpr (Config::kListed) return smem_.steps[at_.stage].queries.block;
    return m_;
  }
  CUTE_DEVICE int head() const {
    if constexpr (Config::kListed) return smem_.steps[at_.stage].head;
    return head_;
  }

  // To the next step; false if there is none.
  CUTE_DEVICE bool move_on() {
    at_.advance();
    if constexpr (!Config::kListed) {
      if (++m_ == tiles_.end) {
        m_ = tiles_.begin;
        ++head_;
      }
    }
    return --left_ > 0;
  }

  // Of the step at hand.
  CUTE_DEVICE void add_grad_q(GradQ const& grad_q) const {
    if constexpr (Config::kTile.copies_grad_q()) {
      grad_q_.hand_over(grad_q);
    } else {
      static_assert(!Config::kListed);
      grad_q_.add(grad_q, m_, head_);
    }
  }

  Smem& smem_;
  BwdScores<Config> scores_;
  GradQPart<Config> grad_q_;
  BlockRange tiles_;
  int m_, head_;  // of the step at hand
  int left_;      // steps, with that one; under a block mask, whether that is all or more
  RingPosition<Config::kStages> at_;
};

template <class Config>
class BwdKeysLoop : BwdPairLoop<Config> {
  using Base = BwdPairLoop<Config>;
  using Base::at_, Base::grad_q_, Base::head_, Base::left_, Base::m_, Base::scores_, Base::smem_,
      Base::tiles_;
  using typename Base::GradQ, typename Base::Operand, typename Base::Scores, typename Base::TileK,
      typename Base::TileQ;

 public:
  decltype(make_tensor<float>(AccumulatorLayout<1, Config::kNumK>{})) grad;  // dK

  CUTE_DEVICE BwdKeysLoop(BwdArgs const& args, typename Config::Smem& smem) : Base(args, smem, 0) {
    clear(grad);
  }

  // Some query tile sees the keys.
  CUTE_DEVICE void run() {
    mbarrier_wait(smem_.keys_full, 0);
    Scores scores;
    start_scores(scores);
    wait_for_products<0>(scores);
    publish_probs(scores);
    CUTE_NO_UNROLL
    while (left_ > 1) step<true>();
    step<false>();
  }

 private:
  // P' of the step is there. Beside its last products, P' of the next one is computed.
  template <bool kMore>
  CUTE_DEVICE void step() {
    named_barrier_sync(Config::kGradScoresThere, 256);
    GradQ grad_q;
    grad_q_.start(grad_q, smem_.grad_scores[0]);
    wait_for_products<0>(grad_q);
    this->add_grad_q(grad_q);
    auto const at = at_;
    Scores scores;
    if constexpr (kMore) {
      this->move_on();
      start_scores(scores);
    }
    Operand grad_scores;
    scores_.load(grad_scores, smem_.grad_scores[0]);
    start_cols_product<TileQ>(grad, grad_scores, smem_.q[at.stage]);
    if constexpr (kMore) {
      wait_for_products<1>(scores);
      publish_probs(scores);
    }
    wait_for_products<0>(grad);
    release(smem_.q_ring, at.stage);
  }

  CUTE_DEVICE void start_scores(Scores& scores) {
    wait_full(smem_.q_ring, at_);
    this->look();
    start_rows_product<TileK, TileQ>(scores, smem_.k, 0, smem_.q[at_.stage]);
  }

  CUTE_DEVICE void publish_probs(Scores& scores) const {
    typename BwdScores<Config>::Slopes slopes;
    uint32_t keep = ~0u;
    if constexpr (Config::kModified) keep = scores_.keep_bits(this->head(), this->tile());
    if constexpr (Config::kListed) {
      int const mask_tile = smem_.steps[at_.stage].queries.tile[0];
      if (mask_tile != 0) {
        scores_.modify(scores, slopes, this->head(), this->tile());
        scores_.mask_listed(scores, mask_tile);
      }
    } else {
      if constexpr (Config::kModified) scores_.modify(scores, slopes, head_, m_);
      if (is_edge(tiles_, m_)) scores_.mask(scores, m_);
    }
    scores_.exponentiate(scores, smem_.row_stats[at_.stage][0]);
    Operand probs;
    if constexpr (Config::kModified) {
      scores_.separate(scores, slopes, keep, probs);
      if (scores_.has_weights()) publish_weights(scores, keep);
    } else {
      round_to_operand(scores, probs);
    }
    scores_.store(probs, smem_.probs);
    named_barrier_arrive(Config::kProbsThere, 256);
  }

  // What dS' takes of P', of which the sign says what is dropped.
  CUTE_DEVICE void publish_weights(Scores& scores, uint32_t keep) const {
    scores_.mark(scores, keep);
    Operand weights;
    round_to_operand(scores, weights);
    scores_.store(weights, smem_.weights);
  }
};

template <class Config>
class BwdValuesLoop : BwdPairLoop<Config> {
  using Base = BwdPairLoop<Config>;
  using Base::at_, Base::grad_q_, Base::scores_, Base::smem_;
  using typename Base::GradQ, typename Base::Operand, typename Base::Scores;
  using typename Base::TileGradOut, typename Base::TileV;

 public:
  decltype(make_tensor<float>(AccumulatorLayout<1, Config::kNumV>{})) grad;  // dV

  CUTE_DEVICE BwdValuesLoop(BwdArgs const& args, typename Config::Smem& smem)
      : Base(args, smem, 1) {
    clear(grad);
  }

  CUTE_DEVICE void run() {
    mbarrier_wait(smem_.keys_full, 0);
    do step();
    while (this->move_on());
  }

 private:
  CUTE_DEVICE void step() {
    int const stage = at_.stage;
    wait_full(smem_.grad_out_ring, at_);
    this->look();
    Scores grad_probs;
    scores_.with_values(grad_probs, smem_.row_stats[stage][1],
                        [](float& dp, float minus_delta) { dp = minus_delta; });
    pin(grad_probs);
    start_rows_product<TileV, TileGradOut, true>(grad_probs, smem_.v, 0, smem_.grad_out[stage]);
    named_barrier_sync(Config::kProbsThere, 256);
    Operand probs, weights, grad_scores;
    scores_.load(probs, smem_.probs);
    bool const has_weights = Config::kModified && scores_.has_weights();
    if (has_weights) scores_.load(weights, smem_.weights);
    wait_for_products<0>(grad_probs);
    if (has_weights) {
      weigh(grad_probs, weights, smem_.row_stats[stage][1]);
    } else {
      multiply(grad_probs, probs);
    }
    round_to_operand(grad_probs, grad_scores);
    start_cols_product<TileGradOut>(grad, probs, smem_.grad_out[stage]);
    scores_.store(grad_scores, smem_.grad_scores[0]);
    fence_shared_async_proxy();
    named_barrier_sync(Config::kGradScoresThere, 256);

    GradQ grad_q;
    grad_q_.start(grad_q, smem_.grad_scores[0]);
    wait_for_products<1>(grad);
    release(smem_.grad_out_ring, stage);
    wait_for_products<0>(grad_q);
    this->add_grad_q(grad_q);
  }

  CUTE_DEVICE static void multiply(Scores& grad_probs, Operand const& probs) {
    CUTE_UNROLL
    for (int k = 0; k < size<2>(probs); ++k) {
      CUTE_UNROLL
      for (int i = 0; i < 8; ++i) {
        grad_probs(make_coord(i % 2, i / 2 % 2), 0, 2 * k + i / 4) *= float(probs(i, 0, k));
      }
    }
  }

  // The same by what dS' takes of P' instead.
  CUTE_DEVICE static void weigh(Scores& grad_probs, Operand const& weights,
                                float const* minus_delta) {
    CUTE_UNROLL
    for (int n = 0; n < size<2>(grad_probs); ++n) {
      float2 const dropped = BwdScores<Config>::of_lane(minus_delta, n);
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        float const weight = weights(n % 2 * 4 + i, 0, n / 2);
        float& dp = grad_probs(make_coord(i % 2, i / 2), 0, n);
        if (signbit(weight)) dp = i % 2 == 0 ? dropped.x : dropped.y;
        dp *= fabsf(weight) / BwdScores<Config>::kWeightScale;
      }
    }
  }
};

}  // namespace fa2::sm90
