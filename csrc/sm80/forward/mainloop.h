#pragma once

// The forward main loop of one CTA: O = softmax(Q K') V over the key tiles that it sees, from the
// last to the first (FlashAttention-2, algorithm 1).

#include "sm80/forward/config.h"
#include "tile/scores.h"
#include "tile/softmax.h"

namespace fa2::sm80 {

enum class Edge { kMasked, kFull };  // key tiles that need a mask, and those that do not

template <class Config>
class FwdMainloop {
  using Element = typename Config::Element;
  using Args = typename Config::Args;
  using Smem = typename Config::Smem;
  using SmemQ = typename Config::SmemQ;
  using SmemK = typename Config::StreamK::Smem;
  using SmemV = typename Config::StreamV::Smem;
  using SmemP = typename Config::SmemP;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr bool kPairs = Config::kPairs;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static constexpr int kNumO = Config::kNumO;
  static constexpr int kDepthS = Config::kDepthS;
  static constexpr int kDepthO = Config::kDepthO;
  static constexpr bool kListed = Config::kListed;
  static constexpr int kStepsPerBlock = BlockMask::kBlock / kTile.block_n;  // of a block mask
  // Where scores are modified, a block mask has all of its steps masked.
  template <Edge kEdge>
  static constexpr bool kModifies = Config::kModified && (!kListed || kEdge == Edge::kMasked);

  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumS>{}));
  using Probs = decltype(make_tensor<Element>(OperandLayout<kM, kDepthO>{}));
  using Queries = decltype(make_tensor<Element>(OperandLayout<kM, kDepthS>{}));
  using PerRow = typename RowSoftmax<kM>::PerRow;

 public:
  using Output = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumO>{}));

  CUTE_DEVICE FwdMainloop(Args const& args, Smem& smem)
      : args_(args),
        smem_(smem),
        k_stream_(Config::keys(args, smem)),
        v_stream_(Config::values(args, smem)),
        tSsQ_(ldsm_view<SmemQ>(smem.q, LdsmLanes::rows_first(threadIdx.x % 32), warp_row_begin())),
        tSsK_(ldsm_view<SmemK>(smem.k, LdsmLanes::cols_first(threadIdx.x % 32),
                               column_warp() * kNumS * 8)),
        tOsV_(values_of(smem, column_warp())),
        tOsV_partner_(values_of(smem, 1 - column_warp())),
        tPsP_(ldsm_view<SmemP>(smem.probs + (1 - column_warp()) * kDepthO * SmemP::kSubTile,
                               LdsmLanes::rows_first(threadIdx.x % 32), warp_row_begin())),
        published_(operand_offset<SmemP>(warp_row_begin(), threadIdx.x % 32) +
                   column_warp() * kDepthO * SmemP::kSubTile),
        scale_(kEveryStep) {
    clear(output);
  }

  // Needs the copy of Q issued.
  CUTE_DEVICE void begin() {
    int const n = smem_.work.tiles.end - 1;
    k_stream_.template load<Rows::kBounded>(n, smem_.work.seqlen_k - n * kTile.block_n);
    if constexpr (kTile.q_in_registers) keep_queries();
  }

  // Goes through the tiles of the work, of which the last is on its way. Ends with no copy in
  // flight, unless others follow: then the tile before the first is.
  template <class Follows>
  CUTE_DEVICE void run(Follows others_follow) {
    // Masked tiles on the right, full ones, masked ones on the left. One masked body serves both
    // edges: a copy for each would double the code.
    BlockRange const& tiles = smem_.work.tiles;
    int n = tiles.end - 1;
    while (true) {
      CUTE_NO_UNROLL
      for (; n >= tiles.begin && is_edge(tiles, n); --n) {
        step<Edge::kMasked>(n, n > tiles.begin || others_follow);
      }

      // Counted apart from n, so that the plain variant's loop holds one counter and reads nothing.
      int left = n - tiles.full_begin + 1;
      if (left <= 0) break;
      // Whether no tile comes after that one.
      int const final = tiles.full_begin > tiles.begin || others_follow ? 0 : 1;
      CUTE_NO_UNROLL
      for (; left > 0; --left) step<Edge::kFull>(tiles.full_begin + left - 1, left > final);
      n = tiles.full_begin - 1;
    }
  }

  // The same for the steps that a block mask lists. Every warp takes the body that its own rows
  // need; they meet at barriers, of which all bodies have the same.
  CUTE_DEVICE void run_listed() {
    BlockRange const& tiles = smem_.work.tiles;
    auto const& steps = smem_.steps[0];
    int const list = warp_row_begin() / BlockMask::kBlock;
    CUTE_NO_UNROLL
    for (int i = 0; i < steps.size * kStepsPerBlock; ++i) {
      int const n = listed_tile(i);
      int const tile = steps[i / kStepsPerBlock].tile[list];
      if (tile == kUnlisted) {
        pass(n, i);
      } else if (tile != 0 || is_edge(tiles, n)) {
        step<Edge::kMasked>(n, i);
      } else {
        step<Edge::kFull>(n, i);
      }
    }
  }

  // Forgets what was accumulated.
  CUTE_DEVICE void reset() {
    clear(output);
    softmax = RowSoftmax<kM>();
    scale_ = kEveryStep;
  }

  RowSoftmax<kM> softmax;
  Output output;

  // Column warps split the keys; where they come in pairs, also the columns of O.
  static constexpr int kColumnWarps = kTile.column_warps * kTile.key_warps;
  CUTE_DEVICE static int row_warp() { return warp_index() / kColumnWarps; }
  CUTE_DEVICE static int column_warp() { return warp_index() % kColumnWarps; }
  CUTE_DEVICE static int warp_row_begin() { return row_warp() * 16 * kM; }

 private:
  // What comes after tile n: `next` says whether any does; of listed steps it is the number of this
  // one.
  template <Edge kEdge, class Next>
  CUTE_DEVICE void step(int n, Next next) {
    // K(n) has landed and nobody reads V(n + 1) any longer: V(n) streams in behind the scores.
    cp_async_wait_group<0>();
    __syncthreads();
    load_values<kEdge>(n);
    if constexpr (kListed) look_ahead(next);

    // S = Q K'
    Scores scores;
    multiply_qk(scores);
    if constexpr (kModifies<kEdge>) modify(scores, n);
    if constexpr (kEdge == Edge::kMasked) {
      if constexpr (kListed) {
        mask_listed(scores, next);
      } else {
        mask(scores, n);
      }
    }
    PerRow const largest = RowSoftmax<kM>::lane_max(scores);
    bool const outgrown = softmax.outgrown(largest, scale_);

    // V(n) has landed and nobody reads K(n) any longer: K(n - 1) streams in behind the rest.
    cp_async_wait_group<0>();
    bool const rescale_now = sync_and_vote(outgrown);
    load_next_keys(n, next);

    // P = exp(S - base), O += P V
    float factor = scale_;
    if (__builtin_expect(rescale_now, 0)) factor = rescale(largest, scores);
    Probs probs;
    softmax.exponentiate(scores, factor, probs);
    if constexpr (Config::kDropout) drop(probs, n);
    if constexpr (kPairs) {
      publish(probs);
      multiply_pv(probs, tOsV_);
      named_barrier_sync(1 + row_warp(), 64);
      fetch_partner(probs);
      multiply_pv(probs, tOsV_partner_);
    } else {
      multiply_pv(probs, tOsV_);
    }
  }

  // The share of a warp whose rows do not see the keys of a listed step.
  CUTE_DEVICE void pass(int n, int i) {
    cp_async_wait_group<0>();
    __syncthreads();
    load_values<Edge::kMasked>(n);
    look_ahead(i);
    cp_async_wait_group<0>();
    bool const rescale_now = sync_and_vote(false);
    load_next_keys(n, i);
    // Pairs exchange what their rows have grown to, through a barrier of all.
    if (kPairs && rescale_now) __syncthreads();
  }

  template <Edge kEdge>
  CUTE_DEVICE void load_values(int n) {
    constexpr Rows kCheck = kEdge == Edge::kMasked ? Rows::kBounded : Rows::kAll;
    v_stream_.template load<kCheck>(n, smem_.work.seqlen_k - n * kTile.block_n);
  }

  CUTE_DEVICE void load_next_keys(int n, bool more) {
    if (more) k_stream_.template load<Rows::kAll>(n - 1, kTile.block_n);
  }

  // Of listed steps, of which i is tile n.
  CUTE_DEVICE void load_next_keys(int n, int i) {
    if (i + 1 >= smem_.steps[0].size * kStepsPerBlock) return;
    int const next = listed_tile(i + 1);
    k_stream_.skip(n - 1 - next);
    v_stream_.skip(n - 1 - next);
    // Only of the last block of keys can the steps be short, and not its first step if it has one.
    constexpr Rows kCheck = kStepsPerBlock == 1 ? Rows::kAll : Rows::kBounded;
    k_stream_.template load<kCheck>(next, smem_.work.seqlen_k - next * kTile.block_n);
  }

  // Key tile of listed step i.
  CUTE_DEVICE int listed_tile(int i) const {
    return smem_.steps[0][i / kStepsPerBlock].block * kStepsPerBlock + kStepsPerBlock - 1 -
           i % kStepsPerBlock;
  }

  // Between the barriers of listed step i: all that comes next is known after the second.
  CUTE_DEVICE void look_ahead(int i) {
    auto& steps = smem_.steps[0];
    if (threadIdx.x >= 32 || i + 1 < steps.size * kStepsPerBlock) return;
    steps.fill(RowEntries{args_.problem.block_mask});
  }

  CUTE_DEVICE void keep_queries() {
    cp_async_wait_group<0>();
    __syncthreads();
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) load_queries(k, queries_(_, _, k));
  }

  template <class Fragment>
  CUTE_DEVICE void load_queries(int k, Fragment&& rQ) const {
    CUTE_UNROLL
    for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(tSsQ_(m, k), rQ(_, m));
  }

  CUTE_DEVICE void multiply_qk(Scores& tSrS) const {
    clear(tSrS);
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      auto tSrQ = make_tensor<Element>(Shape<_8, Int<kM>>{});
      if constexpr (kTile.q_in_registers) {
        copy(queries_(_, _, k), tSrQ);
      } else {
        load_queries(k, tSrQ);
      }
      CUTE_UNROLL
      for (int n = 0; n < kNumS; n += 2) {
        auto tSrK = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(tSsK_(n / 2, k), flatten_block(tSrK));
        multiply_blocks<kM>(tSrS, n, tSrQ, tSrK);
      }
    }
  }

  // O += P V, V at the keys of P.
  template <class Values>
  CUTE_DEVICE void multiply_pv(Probs const& tOrP, Values const& tOsV) {
    CUTE_UNROLL
    for (int k = 0; k < kDepthO; ++k) {
      CUTE_UNROLL
      for (int n = 0; n < kNumO; n += 2) {
        auto tOrV = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(tOsV(k, n / 2), flatten_block(tOrV));
        multiply_blocks<kM>(output, n, tOrP(_, _, k), tOrV);
      }
    }
  }

  // Makes powers of two of scores: of raw ones, or of natural ones where `modify` has made these.
  CUTE_DEVICE float usual_scale() const {
    return Config::kModified && !kListed ? kLog2e : args_.scales.plain;
  }

  CUTE_DEVICE int lane_first_row() const {
    return smem_.work.row_begin + warp_row_begin() + lane_row(lane_index());
  }
  CUTE_DEVICE static int warp_first_col(int n) {
    return n * kTile.block_n + column_warp() * kNumS * 8;
  }

  CUTE_DEVICE void modify(Scores& scores, int n) const {
    auto const& work = smem_.work;
    if (kListed && !is_modified(args_.problem.score_mod)) return;
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales);
    } else {
      scale_scores(scores, args_.scales);
    }
    int const first_col = warp_first_col(n) + lane_col(lane_index());
    int const diagonal = work.seqlen_k - work.seqlen_q;
    if constexpr (Config::kPacked) {
      if (args_.problem.score_mod.alibi_slopes != nullptr) {
        add_alibi<kM, kNumS>(scores, lane_first_row(), first_col, diagonal,
                             [&](int row) { return Config::alibi_row(args_, work, row); });
      }
    } else if (work.alibi_slope != 0.f) {
      add_alibi<kM, kNumS>(scores, work.alibi_slope, lane_first_row(), first_col, diagonal);
    }
  }

  CUTE_DEVICE void mask(Scores& scores, int n) const {
    auto const& work = smem_.work;
    mask_scores<kM, kNumS>(scores, lane_first_row(), warp_first_col(n) + lane_col(lane_index()),
                           [&](int row) {
                             int const query = Config::query_of(args_, row);
                             return visible_cols(query, work.seqlen_q, work.seqlen_k, work.window);
                           });
  }

  // Of listed step i, by the bits of its tile and the length of the keys.
  CUTE_DEVICE void mask_listed(Scores& scores, int i) const {
    constexpr int kBlock = BlockMask::kBlock;
    auto const& work = smem_.work;
    auto const& step = smem_.steps[0][i / kStepsPerBlock];
    uint64_t const* words =
        tile_words(args_.problem.block_mask, step.tile[warp_row_begin() / kBlock]);
    int const first_row = warp_row_begin() % kBlock + lane_row(lane_index());
    int const first_col = warp_first_col(listed_tile(i)) + lane_col(lane_index());
    mask_scores_by_bits<kM, kNumS>(
        scores, first_col - step.block * kBlock, work.seqlen_k - first_col,
        [&](int row) { return words == nullptr ? ~uint64_t(0) : words[first_row + row]; });
  }

  CUTE_DEVICE void drop(Probs& probs, int n) const {
    auto const& work = smem_.work;
    DropoutKey const key{work.rng_seed, work.rng_offset,
                         uint32_t(work.batch * args_.problem.num_heads + work.head),
                         args_.keep_below};
    drop_probs<kM, kDepthO>(probs, lane_first_row(), warp_first_col(n), lane_index(), key);
  }

  // All warps pass; true where a row of the warp (of the CTA, when warps share rows) has outgrown
  // its base.
  CUTE_DEVICE static bool sync_and_vote(bool outgrown) {
    if constexpr (kPairs) {
      return barrier_or(outgrown);
    } else {
      __syncthreads();
      return __any_sync(0xffffffffu, outgrown);
    }
  }

  // Returns what is left to multiply the scores by.
  CUTE_DEVICE float rescale(PerRow const& largest, Scores& scores) {
    PerRow row_max;
    CUTE_UNROLL
    for (int i = 0; i < size(row_max); ++i) row_max(i) = quad_max(largest(i));
    if constexpr (kPairs) {
      exchange_rows(row_max, [](float own, float other) { return fmaxf(own, other); });
    }
    float const usual = usual_scale();
    softmax.rescale(row_max, usual, output);
    bool const large = __any_sync(0xffffffffu, softmax.has_large_base());
    bool const empty = __any_sync(0xffffffffu, softmax.has_empty_row());
    scale_ = large || empty ? kEveryStep : usual;
    if (!large) return usual;
    softmax.fold(scores, usual);
    return 1.f;
  }

  // This warp's columns of V, at the keys of a column warp.
  CUTE_DEVICE static auto values_of(Smem& smem, int key_warp) {
    int const first_sub_tile = kPairs ? column_warp() * (kNumO / 2) : 0;
    return ldsm_view<SmemV>(smem.v + first_sub_tile * SmemV::kSubTile,
                            LdsmLanes::rows_first(threadIdx.x % 32), key_warp * kDepthO * 16);
  }

  // P of this warp's keys, for the partner to read.
  CUTE_DEVICE void publish(Probs const& probs) const {
    store_operand<SmemP>(probs, smem_.probs, published_);
  }

  CUTE_DEVICE void fetch_partner(Probs& probs) const {
    CUTE_UNROLL
    for (int k = 0; k < kDepthO; ++k) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(tPsP_(m, k), probs(_, m, k));
    }
  }

 public:
  // Combines a number of each row with that of the warp that shares the row. All warps call it.
  template <class Combine>
  CUTE_DEVICE void exchange_rows(PerRow& rows, Combine const& combine) {
    int const lane = lane_index(), row = warp_row_begin() + lane_row(lane);
    CUTE_UNROLL
    for (int i = 0; i < size(rows); ++i) {
      if (lane % 4 == 0) smem_.row_exchange[column_warp()][row + RowCoord<kM>{}(i)] = rows(i);
    }
    __syncthreads();
    CUTE_UNROLL
    for (int i = 0; i < size(rows); ++i) {
      rows(i) = combine(rows(i), smem_.row_exchange[1 - column_warp()][row + RowCoord<kM>{}(i)]);
    }
  }

 private:
  Args const& args_;
  Smem& smem_;
  typename Config::StreamK k_stream_;
  typename Config::StreamV v_stream_;
  Queries queries_;
  decltype(ldsm_view<SmemQ>(smem_.q, LdsmLanes{})) tSsQ_;
  decltype(ldsm_view<SmemK>(smem_.k, LdsmLanes{})) tSsK_;
  decltype(ldsm_view<SmemV>(smem_.v, LdsmLanes{})) tOsV_, tOsV_partner_;
  decltype(ldsm_view<SmemP>(smem_.probs, LdsmLanes{})) tPsP_;
  int published_;  // where this lane's first probability goes

  // While bases are so large that a bit of a rounded product matters, scores are multiplied on
  // their own, in every step, as bases are. Rows that have seen no key are looked at in every step,
  // too.
  static constexpr float kEveryStep = NAN;
  float scale_;
};

}  // namespace fa2::sm80
