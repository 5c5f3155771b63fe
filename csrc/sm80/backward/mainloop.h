#pragma once

// The backward main loop of one CTA: for a block of keys, over the query heads of its group and the
// query tiles that see it (FlashAttention-2, algorithm 2),
//
//   S' = K Q',  P' = exp(S' - lse),  dP' = V dO',  dS' = P' (dP' - D)
//   dV += P' dO,  dK += dS' Q,  dQ += dS K
//
// with everything but dQ transposed.

#include "sm80/backward/copies.h"
#include "sm80/backward/order.h"
#include "sm80/backward/score_pairs.h"
#include "sm80/backward/score_parts.h"
#include "sm80/backward/scores.h"
#include "sm80/backward/spread_grad_q.h"

namespace fa2::sm80 {

template <class Config>
class BwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using OfScores = typename Config::OfScores;
  using OfValues = typename Config::OfValues;
  using SmemP = typename Config::SmemP;
  using Warps = typename Config::Warps;
  using Order = conditional_t<Config::kListed, ListedQueryTiles<Config>, QueryTileRange<Config>>;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr bool kExchange = Config::kExchange;
  static constexpr bool kShared = kTile.shares_scores();
  static constexpr bool kPairs = kTile.pairs_scores();
  // Whether half of a step's dQ is added in the next one: of pairs, where registers allow it.
  static constexpr bool kSpreads = kShared || (kPairs && !Order::kListed);
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  // Lists are looked at behind a barrier. Elsewhere two numbers less live through the step.
  static constexpr bool kAdvancesLate = Order::kListed || kSpreads;

  using Scores = typename BwdScores<Config>::Scores;
  using Slopes = typename BwdScores<Config>::Slopes;
  // P' and dS' of a chunk, as the A operand of dV and dK: depth is queries. Of the warp's own
  // scores, and of the keys that its dK and dV are for.
  using Probs = decltype(make_tensor<Element>(OperandLayout<kM, kNumS / 2>{}));
  using GradOperand = decltype(make_tensor<Element>(OperandLayout<Config::kGradM, kNumS / 2>{}));
  template <class Side>
  using KeyOperand = decltype(make_tensor<Element>(
      OperandLayout<Side::kInRegisters ? kM : 1, Side::kInRegisters ? Side::kDepth : 1>{}));

 public:
  template <class Side>
  using Grad = decltype(make_tensor<float>(AccumulatorLayout<Config::kGradM, Side::kNum>{}));

  CUTE_DEVICE BwdMainloop(BwdArgs const& args, Smem& smem)
      : args_(args), smem_(smem), copies_(args, smem), order_(args, smem), grad_q_(args, smem) {
    clear(grad_k);
    clear(grad_v);
  }

  // Ends with no copy in flight. Some query tile sees the block.
  CUTE_DEVICE void run() {
    order_.begin();
    copies_.copy_keys();
    copies_.seek(order_.tile(), order_.head());
    copies_.copy_queries(order_.tile(), order_.head(), 0);
    if constexpr (OfScores::kInRegisters || OfValues::kInRegisters) keep_keys();

    int stage = 0;
    bool more = true;
    CUTE_NO_UNROLL
    while (more) {
      if constexpr (kShared) {
        more = step_shared();
      } else {
        more = step(stage);
      }
      if constexpr (kTile.stages == 2) stage ^= 1;
    }
    if constexpr (kSpreads) grad_q_.finish();
  }

  Grad<OfScores> grad_k;
  Grad<OfValues> grad_v;

 private:
  struct Nothing {
    CUTE_DEVICE void operator()() const {}
  };

  // One query tile; true if there are more.
  CUTE_DEVICE bool step(int stage) {
    int const m = order_.tile_at_hand(), head = order_.head_at_hand();
    bool more = false;
    if constexpr (!kAdvancesLate) more = order_.advance(m);

    // Q(m) and dO(m) have landed, and nobody reads what the last step left any longer.
    cp_async_wait_group<0>();
    __syncthreads();
    if constexpr (Order::kListed && kTile.stages == 2) more = order_.advance(m);
    if constexpr (kTile.stages == 2) copy_next(more, stage ^ 1);
    own_chunks(m, head, stage);
    __syncthreads();  // dS of all warps is there, and P where it is exchanged
    if constexpr (kExchange) {
      if (order_.has_keys(Warps::key_begin())) {
        CUTE_UNROLL
        for (int r = 1; r < kTile.query_warps; ++r) {
          absorb((Warps::query_warp() + r) % kTile.query_warps, stage);
        }
      }
    }
    if constexpr (kTile.stages == 1) {
      if constexpr (kExchange) __syncthreads();
      if constexpr (kSpreads) grad_q_.end_step();
      if constexpr (kAdvancesLate) more = order_.advance(m);
      copy_next(more, 0);
    }
    GradQSum<Config> const grad_q(args_, smem_);
    if constexpr (kSpreads) {
      grad_q_.add(order_, m, head);
    } else if constexpr (Order::kRereads) {
      grad_q.add(order_, order_.tile_at_hand(), order_.head_at_hand());
    } else {
      grad_q.add(order_, m, head);
    }
    order_.finish();
    return more;
  }

  // The same where warps share scores.
  CUTE_DEVICE bool step_shared() {
    int const m = order_.tile_at_hand(), head = order_.head_at_hand();
    cp_async_wait_group<0>();
    __syncthreads();  // Q(m) and dO(m) have landed, and dS of the last step is read
    grad_q_.multiply_scores();
    __syncthreads();
    grad_q_.end_step();
    own_chunks(m, head, 0);
    __syncthreads();  // P and dS of all warps are there
    auto const add_some = grad_q_.begin_step(order_, m, head);
    CUTE_UNROLL
    for (int r = 0; r < kTile.query_warps; ++r) absorb(r, 0, add_some);
    __syncthreads();
    bool const more = order_.advance(m);
    copy_next(more, 0);
    grad_q_.multiply_second_half();
    order_.finish();
    return more;
  }

  // Copies what the order has moved on to.
  CUTE_DEVICE void copy_next(bool more, int stage) {
    if (!more) return;
    order_.fetch();
    if (order_.is_first_of_run()) {
      copies_.seek(order_.tile(), order_.head());
    } else {
      copies_.move_on();
    }
    copies_.copy_queries(order_.tile(), order_.head(), stage);
  }

  // The share of a step that this warp has. Under a block mask it takes the body that its keys
  // need, or none: nobody reads what it leaves out. Warps that share scores have keys of one block.
  CUTE_DEVICE void own_chunks(int m, int head, int stage) {
    if constexpr (!Order::kListed) {
      chunks<false>(m, head, stage);
    } else if (int const tile = order_.mask_tile(); tile == 0) {
      chunks<true>(m, head, stage);
    } else if (kShared || tile != kUnlisted) {
      chunks<false>(m, head, stage);
    }
  }
  template <bool kSimple>
  CUTE_DEVICE void chunks(int m, int head, int stage) {
    CUTE_UNROLL
    for (int c = 0; c < Config::kChunks; ++c) chunk<kSimple>(c, m, head, stage);
  }

  // Of the queries of the warp's chunk c. Simple: all pairs are visible, and scores are not
  // modified.
  template <bool kSimple>
  CUTE_DEVICE void chunk(int c, int m, int head, int stage) {
    int const first_col = chunk_begin(c);
    if constexpr (Order::kRereads) m = order_.tile_at_hand();
    int tile = 0;
    if constexpr (Order::kListed && !kSimple) tile = order_.mask_tile();
    int const first_query = m * kTile.block_m + first_col;
    BwdScores<Config> const on_scores(args_, smem_);
    uint32_t keep = 0;
    if constexpr (Config::kDropout) keep = on_scores.keep_bits(head_of(head), first_query);

    // S' = K Q', P' = exp(S' - lse)
    Scores scores, grad_probs;
    Slopes slopes;
    if constexpr (kPairs) {
      BwdScorePairs<Config>(smem_).multiply(scores, grad_probs, rest_of_grad_q());
    } else {
      clear(scores);
      add_scores(c, stage, scores);
    }
    if constexpr (Config::kModified && !kSimple) {
      on_scores.modify(scores, slopes, head_of(head), first_query);
      if constexpr (kPutsAway) put_away(slopes, c);
    }
    BlockRange const& tiles = smem_.work.tiles;
    if constexpr (Order::kListed) {
      if (!kSimple && (tile > 0 || is_edge(tiles, m))) {
        on_scores.mask_listed(scores, tile, first_query);
      }
    } else {
      if (is_edge(tiles, m)) on_scores.mask(scores, first_query);
    }
    on_scores.exponentiate(scores, smem_.row_stats[stage][0] + first_col);

    // dP' - D = V dO' - D, with dropout on dP' and on what of P' goes on
    float const* const minus_delta = smem_.row_stats[stage][1] + first_col;
    Probs probs, grad_scores;
    if constexpr (Config::kDropout) {
      if constexpr (!kPairs) {
        clear(grad_probs);
        add_grad_probs(c, stage, grad_probs);
      }
      on_scores.drop(keep, grad_probs);
      on_scores.with_values(grad_probs, minus_delta, [](float& dp, float d) { dp += d; });
      Scores kept = make_fragment_like(scores);
      copy(scores, kept);
      on_scores.drop(keep, kept);
      round_to_operand(kept, probs);
    } else if constexpr (kPairs) {
      on_scores.with_values(grad_probs, minus_delta, [](float& dp, float d) { dp += d; });
      round_to_operand(scores, probs);
    } else {
      on_scores.with_values(grad_probs, minus_delta, [](float& dp, float d) { dp = d; });
      add_grad_probs(c, stage, grad_probs);
      round_to_operand(scores, probs);
    }
    if constexpr (kExchange) publish<0>(probs, smem_.probs, c);

    // dS' = P' (dP' - D), times the derivative of the softcap
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) scores(i) *= grad_probs(i);
    if constexpr (Config::kModified && !kSimple) {
      if constexpr (kPutsAway) take_back(slopes, c);
      on_scores.unmodify(scores, slopes);
    }
    round_to_operand(scores, grad_scores);
    publish<1>(grad_scores, smem_.grad_scores(), c);

    if constexpr (!kShared) {
      multiply_queries<OfValues>(grad_v, probs, smem_.grad_out[stage], first_col);
      multiply_queries<OfScores>(grad_k, grad_scores, smem_.q[stage], first_col);
    }
  }

  // What comes between the products of a pair.
  CUTE_DEVICE auto rest_of_grad_q() const {
    if constexpr (kSpreads) {
      return grad_q_.template rest<OfScores::kDepth>();
    } else {
      return Nothing();
    }
  }

  // Of the step at hand, which is for `head`.
  CUTE_DEVICE int head_of(int head) const {
    if constexpr (Order::kRereads) return order_.head_at_hand();
    return head;
  }

  CUTE_DEVICE static int chunk_begin(int c) { return Warps::query_begin() + c * kTile.chunk; }

  // Between the two, slopes lie where dS' will: registers are scarce there. Twins would have the
  // same place.
  static constexpr bool kPutsAway = Order::kListed && !kShared;
  CUTE_DEVICE void put_away(Slopes const& slopes, int c) const {
    if (args_.scales.has_softcap) publish<0>(as_operand(slopes), smem_.grad_scores(), c);
  }
  CUTE_DEVICE void take_back(Slopes& slopes, int c) const {
    if (!args_.scales.has_softcap) return;
    auto operand = as_operand(slopes);
    load_operand<SmemP>(operand, chunk_of(smem_.grad_scores(), c), operand_place());
  }
  // In whatever order.
  template <class Tensor>
  CUTE_DEVICE static auto as_operand(Tensor& slopes) {
    return make_tensor(slopes.data(), OperandLayout<kM, kNumS / 2>{});
  }

  // ---- S' and dP'

  CUTE_DEVICE void keep_keys() {
    cp_async_wait_group<0>();
    __syncthreads();
    if constexpr (OfScores::kInRegisters) keep<OfScores>(smem_.k, keys_);
    if constexpr (OfValues::kInRegisters) keep<OfValues>(smem_.v, values_);
  }

  template <class Side>
  CUTE_DEVICE void keep(Element* tile, KeyOperand<Side>& held) const {
    CUTE_UNROLL
    for (int k = 0; k < Side::kDepth; ++k) load_keys<Side>(tile, k, held(_, _, k));
  }

  template <class Side, class Fragment>
  CUTE_DEVICE void load_keys(Element* tile, int k, Fragment&& rA) const {
    auto const sA = ldsm_view<typename Side::SmemKeys>(tile, LdsmLanes::rows_first(Warps::lane()),
                                                       Warps::key_begin());
    CUTE_UNROLL
    for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
  }

  // acc += S', or dP', of the queries of the warp's chunk c.
  CUTE_DEVICE void add_scores(int c, int stage, Scores& acc) const {
    if constexpr (kShared) {
      BwdScoreParts<Config>(smem_).add_scores(chunk_begin(c), acc);
    } else {
      multiply_keys<OfScores>(smem_.k, keys_, smem_.q[stage], c, acc);
    }
  }
  CUTE_DEVICE void add_grad_probs(int c, int stage, Scores& acc) const {
    if constexpr (kShared) {
      BwdScoreParts<Config>(smem_).add_grad_probs(chunk_begin(c), acc);
    } else {
      multiply_keys<OfValues>(smem_.v, values_, smem_.grad_out[stage], c, acc);
    }
  }

  // acc += A B' of K and Q, or of V and dO, at the queries of the warp's chunk c.
  template <class Side>
  CUTE_DEVICE void multiply_keys(Element* keys, KeyOperand<Side> const& held, Element* queries,
                                 int c, Scores& acc) const {
    auto const sB = ldsm_view<typename Side::SmemQueries>(
        queries, LdsmLanes::cols_first(Warps::lane()), Warps::query_begin());
    CUTE_UNROLL
    for (int k = 0; k < Side::kDepth; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      if constexpr (Side::kInRegisters) {
        copy(held(_, _, k), rA);
      } else {
        load_keys<Side>(keys, k, rA);
      }
      CUTE_UNROLL
      for (int n = 0; n < kNumS; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(sB(c * kNumS / 2 + n / 2, k), flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA, rB);
      }
    }
  }

  // ---- dV += P' dO and dK += dS' Q

  // acc += A B at the queries from first_query on; this warp's columns, with what comes between
  // their blocks.
  template <class Side, class Between = Nothing>
  CUTE_DEVICE void multiply_queries(Grad<Side>& acc, GradOperand const& rA, Element* queries,
                                    int first_query, Between const& between = {}) const {
    using SmemQ = typename Side::SmemQueries;
    auto const sB =
        ldsm_view<SmemQ>(queries + Warps::column_warp() * (Side::kNum / 2) * SmemQ::kSubTile,
                         LdsmLanes::rows_first(Warps::lane()), first_query);
    CUTE_UNROLL
    for (int k = 0; k < kNumS / 2; ++k) {
      CUTE_UNROLL
      for (int n = 0; n < Side::kNum; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<Config::kGradM>(acc, n, rA(_, _, k), rB);
        between();
      }
    }
  }

  // The share of dK and dV that comes from the queries of a query warp.
  template <class Between = Nothing>
  CUTE_DEVICE void absorb(int other, int stage, Between const& between = {}) {
    CUTE_UNROLL
    for (int c = 0; c < Config::kChunks; ++c) {
      int const first_query = other * Warps::kQueries + c * kTile.chunk;
      GradOperand rA;
      fetch(smem_.probs, first_query, rA);
      multiply_queries<OfValues>(grad_v, rA, smem_.grad_out[stage], first_query, between);
      fetch(smem_.grad_scores(), first_query, rA);
      multiply_queries<OfScores>(grad_k, rA, smem_.q[stage], first_query, between);
    }
  }

  CUTE_DEVICE static void fetch(Element* tile, int first_query, GradOperand& rA) {
    auto const sA = ldsm_view<SmemP>(tile + first_query / 16 * SmemP::kSubTile,
                                     LdsmLanes::rows_first(Warps::lane()), Warps::grad_key_begin());
    CUTE_UNROLL
    for (int k = 0; k < size<2>(rA); ++k) {
      CUTE_UNROLL
      for (int m = 0; m < size<1>(rA); ++m) {
        load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m, k));
      }
    }
  }

  // P' or dS' of this warp's chunk, for all to read. Of twins one writes it.
  template <int kTwin, class Fragment>
  CUTE_DEVICE static void publish(Fragment const& fragment, Element* tile, int c) {
    if (kShared && Warps::twin() != kTwin) return;
    store_operand<SmemP>(fragment, chunk_of(tile, c), operand_place());
  }
  CUTE_DEVICE static Element* chunk_of(Element* tile, int c) {
    return tile + chunk_begin(c) / 16 * SmemP::kSubTile;
  }
  CUTE_DEVICE static int operand_place() {
    return operand_offset<SmemP>(Warps::key_begin(), Warps::lane());
  }

  BwdArgs const& args_;
  Smem& smem_;
  BwdCopies<Config> copies_;
  Order order_;
  SpreadGradQ<Config> grad_q_;  // where it is spread
  KeyOperand<OfScores> keys_;
  KeyOperand<OfValues> values_;
};

}  // namespace fa2::sm80
