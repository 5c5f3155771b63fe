#pragma once

// The forward main loop of one consumer warpgroup: O = softmax(Q K') V for 64 query rows over the
// key tiles that the CTA sees, from the last to the first (FlashAttention-3, algorithm 2).
//
// Two overlaps keep tensor cores busy. Within a warpgroup, the products O += P(n + 1) V(n + 1) run
// during the softmax of S(n). And warpgroups take turns: while the products of one are under way,
// the others compute their softmax.

#include "sm90/forward/scores.h"
#include "sm90/forward/softmax.h"

namespace fa2::sm90 {

enum class Edge { kMasked, kFull };  // key tiles that need a mask, and those that do not

template <class Config>
class FwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using PerRow = typename OverlappedSoftmax::PerRow;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kNumS = Config::kNumS;

  // Where scores are modified, a block mask has all of its steps masked.
  template <Edge kEdge>
  static constexpr bool kModifies = !Config::kPlain && (!Config::kListed || kEdge == Edge::kMasked);

  using KeyTile = typename Config::KeyTile;
  using Position = RingPosition<Config::kStages>;
  using Scores = typename FwdScores<Config>::Scores;
  using Probs = decltype(make_tensor<Element>(OperandLayout<1, Config::kDepthO>{}));

 public:
  using Output = decltype(make_tensor<float>(AccumulatorLayout<1, Config::kNumO>{}));

  CUTE_DEVICE FwdMainloop(FwdArgs const& args, Smem& smem)
      : args_(args),
        smem_(smem),
        warpgroup_(__shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0) - 1) {
    // The first turn is that of the first warpgroup.
    if (warpgroup_ == kTile.consumers() - 1) pass_turn();
  }

  CUTE_DEVICE void run(WorkTile const& work) {
    softmax = OverlappedSoftmax();
    scale_ = kEveryStep;
    clear(output);
    BlockRange const tiles = work.tiles;
    if (tiles.begin >= tiles.end) return;

    wait_full(smem_.q_ring, q_at_);
    if constexpr (Config::kListed) {
      run_listed(work);
    } else {
      run_range(work, tiles);
    }
    release(smem_.q_ring, 0);
    q_at_.advance();
    last();
  }

  OverlappedSoftmax softmax;
  Output output;

 private:
  CUTE_DEVICE void run_range(WorkTile const& work, BlockRange const& tiles) {
    int n = tiles.end - 1;
    first(work, n);
    --n;

    // Masked tiles on the right, full ones, masked ones on the left. One masked body serves both
    // edges.
    while (true) {
      CUTE_NO_UNROLL
      for (; n >= tiles.begin && is_edge(tiles, n); --n) step<Edge::kMasked>(work, n);
      if (n < tiles.full_begin) break;
      CUTE_NO_UNROLL
      for (; n >= tiles.full_begin; --n) step<Edge::kFull>(work, n);
    }
  }

  // The same of the steps that a block mask lists. Whatever is said of a step is there with its
  // keys.
  CUTE_DEVICE void run_listed(WorkTile const& work) {
    list_ = args_.queries > BlockMask::kBlock ? warpgroup_ : 0;
    first(work, listed_step());
    bool is_last = listed_step().is_last;
    CUTE_NO_UNROLL
    while (!is_last) {
      step_ = (step_ + 1) % kListedSteps;
      typename Config::Step const& next = listed_step();
      is_last = next.is_last;
      if (!next.masked[list_]) {
        step<Edge::kFull>(work, next);
      } else if (next.parts[list_] != 0) {
        step<Edge::kMasked>(work, next);
      } else {
        pass(work, next);
      }
    }
    step_ = (step_ + 1) % kListedSteps;
  }

  // S and P of the first tile.
  CUTE_DEVICE void first(WorkTile const& work, KeyTile n) {
    Scores scores;
    wait_full(smem_.k_ring, at_);
    start_qk(scores, at_);
    wait_for_products<0>(scores);
    release(smem_.k_ring, at_.stage);
    adjust<Edge::kMasked>(work, scores, n);
    PerRow factor;
    float const scale = raise(softmax.lane_max(scores), scores, factor);
    softmax.exponentiate(scores, scale);
    drop<Edge::kMasked>(work, scores, n);
    wait_for_keys_after(work, n);
    round_to_operand(scores, probs_);
    if constexpr (Config::kListed) listed_parts_ = n.parts[list_];
  }

  // S and P of tile n, whose keys have landed, and O += P V of tile n + 1.
  template <Edge kEdge>
  CUTE_DEVICE void step(WorkTile const& work, KeyTile n) {
    Position const values_at = at_;
    at_.advance();
    Scores scores;
    take_turn();
    start_qk(scores, at_);
    wait_full(smem_.v_ring, values_at);
    start_pv(values_at);
    pass_turn();
    wait_for_products<1>(scores);
    release(smem_.k_ring, at_.stage);

    adjust<kEdge>(work, scores, n);
    PerRow const largest = softmax.lane_max(scores);
    bool const outgrown = __any_sync(0xffffffffu, softmax.outgrown(largest, scale_));
    float scale = scale_;
    PerRow factor;
    fill(factor, 1.f);
    if (__builtin_expect(outgrown, 0)) scale = raise(largest, scores, factor);
    softmax.exponentiate(scores, scale);
    drop<kEdge>(work, scores, n);
    pin(scores);

    // Here and not above: the loop in it holds the exponentials in front of the wait for products,
    // which they are to overlap with. Inside of a block ptxas moves them behind it.
    wait_for_keys_after(work, n);
    wait_for_products<0>(output);
    if (__builtin_expect(outgrown, 0)) scale_rows(output, factor);
    release(smem_.v_ring, values_at.stage);
    round_to_operand(scores, probs_);
    if constexpr (Config::kListed) listed_parts_ = n.parts[list_];
  }

  // The rest of the step before n, of which nothing is listed for the warpgroup.
  CUTE_DEVICE void pass(WorkTile const& work, KeyTile n) {
    Position const values_at = at_;
    at_.advance();
    take_turn();
    wait_full(smem_.v_ring, values_at);
    start_pv(values_at);
    pass_turn();
    release(smem_.k_ring, at_.stage);
    wait_for_keys_after(work, n);
    wait_for_products<0>(output);
    release(smem_.v_ring, values_at.stage);
    listed_parts_ = 0;
  }

  // Of the tile that comes next, if there is one.
  CUTE_DEVICE void wait_for_keys_after(WorkTile const& work, KeyTile n) {
    Position next = at_;
    next.advance();
    if constexpr (Config::kListed) {
      // Exponentials would go past a branch, and past a wait that does not ask for them: here it
      // asks for their sums, none of which is negative. Behind the last keys come the queries,
      // which are there.
      bool const is_last = n.is_last;
      uint32_t const never = __any_sync(0xffffffffu, softmax.sum(0) + softmax.sum(1) < 0.f);
      mbarrier_wait(is_last ? smem_.q_ring.full[0] : smem_.k_ring.full[next.stage],
                    (is_last ? q_at_.parity : next.parity) ^ never);
    } else {
      if (n != work.tiles.begin) wait_full(smem_.k_ring, next);
    }
  }

  // O += P V of the last tile.
  CUTE_DEVICE void last() {
    wait_full(smem_.v_ring, at_);
    start_pv(at_);
    wait_for_products<0>(output);
    release(smem_.v_ring, at_.stage);
    at_.advance();
  }

  CUTE_DEVICE void start_qk(Scores& scores, Position const& at) const {
    start_rows_product<typename Config::TileQ, typename Config::TileK>(
        scores, smem_.q, 64 * warpgroup_, smem_.k[at.stage]);
  }
  CUTE_DEVICE void start_pv(Position const& at) {
    Element const* const values = smem_.v[at.stage];
    constexpr int kParts = Config::kParts;
    if (!Config::kListed || listed_parts_ == (1 << kParts) - 1) {
      start_cols_product<typename Config::TileV>(output, probs_, values);
    } else {
      // Values of keys that are not listed take part in nothing: zero times infinity is not zero.
      start_cols_product<typename Config::TileV>(output, probs_, values, [&](int k) {
        return listed_parts_ >> (k * kParts / Config::kDepthO) & 1;
      });
    }
  }

  // What happens to the scores of a tile before the softmax, and to its probabilities after.
  template <Edge kEdge>
  CUTE_DEVICE void adjust(WorkTile const& work, Scores& scores, KeyTile n) const {
    FwdScores<Config> const on_scores(args_, work);
    if constexpr (kModifies<kEdge>) on_scores.modify(scores, n);
    if constexpr (kEdge == Edge::kMasked) {
      if constexpr (Config::kListed) {
        on_scores.mask_listed(scores, n, list_);
      } else {
        on_scores.mask(scores, n);
      }
    }
  }
  template <Edge kEdge>
  CUTE_DEVICE void drop(WorkTile const& work, Scores& probs, KeyTile n) const {
    if constexpr (kModifies<kEdge>) FwdScores<Config>(args_, work).drop(probs, n);
  }

  CUTE_DEVICE auto const& listed_step() const { return smem_.steps[step_]; }

  // Raises the bases. Returns what is left to multiply the scores by, and the output in `factor`.
  CUTE_DEVICE float raise(PerRow const& largest, Scores& scores, PerRow& factor) {
    PerRow row_max;
    CUTE_UNROLL
    for (int i = 0; i < size(row_max); ++i) row_max(i) = quad_max(largest(i));
    float const usual = args_.scales.plain;
    factor = softmax.raise(row_max, usual);
    bool const large = __any_sync(0xffffffffu, softmax.has_large_base());
    bool const empty = __any_sync(0xffffffffu, softmax.has_empty_row());
    scale_ = large || empty ? kEveryStep : usual;
    if (!large) return usual;
    softmax.fold(scores, usual);
    return 1.f;
  }

  // Named barrier 1 + w: warpgroup w may start its products.
  CUTE_DEVICE void take_turn() const {
    if constexpr (kTile.takes_turns) named_barrier_sync(1 + warpgroup_, 256);
  }
  CUTE_DEVICE void pass_turn() const {
    if constexpr (kTile.takes_turns) {
      int const next = warpgroup_ + 1;
      named_barrier_arrive(1 + (next == kTile.consumers() ? 0 : next), 256);
    }
  }

  FwdArgs const& args_;
  Smem& smem_;
  int warpgroup_;  // of the consumers
  Probs probs_;
  RingPosition<1> q_at_;
  Position at_;        // of K, and one tile later of V
  int list_;           // under a block mask: the one of the warpgroup's queries,
  uint32_t step_ = 0;  // the place of the step that is worked on,
  int listed_parts_;   // and, a bit for each, which parts of the one before are listed

  // While bases are so large that a bit of a rounded product matters, scores are multiplied on
  // their own, in every step, as bases are. Rows that have seen no key are looked at in every step,
  // too.
  static constexpr float kEveryStep = NAN;
  float scale_;
};

}  // namespace fa2::sm90
