#pragma once

// The forward main loop of one CTA: O = softmax(Q K') V over the key tiles that it sees, from the
// last to the first (FlashAttention-2, algorithm 1).

#include "sm80/forward/order.h"
#include "sm80/forward/products.h"
#include "sm80/forward/scores.h"
#include "tile/softmax.h"

namespace fa2::sm80 {

enum class Edge { kMasked, kFull };  // key tiles that need a mask, and those that do not

template <class Config>
class FwdMainloop {
  using Args = typename Config::Args;
  using Smem = typename Config::Smem;
  using Warps = typename Config::Warps;
  using Products = FwdProducts<Config>;
  using Scores = typename Products::Scores;
  using Probs = typename Products::Probs;
  using PerRow = typename RowSoftmax<Config::kM>::PerRow;
  static constexpr FwdTile kTile = Config::kTile;
  static constexpr int kM = Config::kM;
  static constexpr bool kPairs = Config::kPairs;
  static constexpr bool kListed = Config::kListed;
  static constexpr bool kLatents = Config::kLatents;
  // Where scores are modified, a block mask has all of its steps masked.
  template <Edge kEdge>
  static constexpr bool kModifies = Config::kModified && (!kListed || kEdge == Edge::kMasked);

 public:
  using Output = typename Products::Output;

  CUTE_DEVICE FwdMainloop(Args const& args, Smem& smem)
      : args_(args),
        smem_(smem),
        k_stream_(Config::keys(args, smem)),
        v_stream_(Config::values(args, smem)),
        products_(smem),
        scale_(kEveryStep) {
    clear(output);
  }

  // Needs the copy of Q issued, as a group of its own.
  CUTE_DEVICE void begin() {
    int const n = smem_.work.tiles.end - 1;
    k_stream_.template load<Rows::kBounded>(n, keys_from(n));
    if constexpr (kTile.q_in_registers) {
      cp_async_wait_group<1>();  // K may stay on its way
      __syncthreads();
      products_.keep_queries();
    }
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

  // The same with the scores of one tile more: those of tile n are multiplied while the
  // exponentials of tile n + 1 are taken, so that tensor cores have work during them. Ends with no
  // copy in flight.
  CUTE_DEVICE void run_overlapped() {
    BlockRange const& tiles = smem_.work.tiles;
    int n = tiles.end - 1;
    v_stream_.template load<Rows::kBounded>(n, keys_from(n));
    cp_async_wait_group<0>();
    __syncthreads();
    Scores scores;
    products_.multiply_qk(scores);
    __syncthreads();  // nobody reads K(n) any longer
    load_next_keys(n, n > tiles.begin);
    adjust<Edge::kMasked>(scores, n);
    float factor = settle(scores, [] {});

    --n;
    while (true) {
      CUTE_NO_UNROLL
      for (; n >= tiles.begin && is_edge(tiles, n); --n) {
        overlapped_step<Edge::kMasked>(scores, factor, n, n > tiles.begin);
      }

      // Twice the steps that are left, and one more if others follow: one register for both. No
      // full step asks for its number.
      int left = 2 * (n - tiles.full_begin + 1);
      if (left <= 0) break;
      left += tiles.full_begin > tiles.begin ? 1 : 0;
      CUTE_NO_UNROLL
      for (; left > 1; left -= 2) overlapped_step<Edge::kFull>(scores, factor, n, left > 2);
      n = tiles.full_begin - 1;
    }

    Probs probs;
    softmax.exponentiate(scores, factor, probs);
    finish_overlapped(probs, [] {});
  }

  // The same for the steps that a block mask lists. Every warp takes the body that its own rows
  // need; they meet at barriers, of which all bodies have the same. Simple steps have a loop of
  // their own, in which nothing is asked but what comes next.
  CUTE_DEVICE void run_listed() {
    auto steps = listed();
    int at = steps.first();
    int tile = steps[at].tile;
    while (true) {
      CUTE_NO_UNROLL
      for (; tile == 0; ++at) tile = step<Edge::kFull>(at, at + 1);

      if (tile == kNoStep) break;
      begin_step<Edge::kMasked>(at);
      steps.look_ahead(at);
      if (tile == kUnlisted) {
        pass(at);
      } else {
        finish_step<Edge::kMasked>(at, kInQueue);
      }
      at = steps[at].next;
      tile = steps[at].tile;
    }
  }

  // Forgets what was accumulated.
  CUTE_DEVICE void reset() {
    clear(output);
    softmax = RowSoftmax<kM>();
    scale_ = kEveryStep;
  }

  // Combines a number of each row with that of the warp that shares the row. All warps call it.
  template <class Combine>
  CUTE_DEVICE void exchange_rows(PerRow& rows, Combine const& combine) {
    int const lane = lane_index(), row = Warps::row_begin() + lane_row(lane);
    int const warp = Warps::column_warp();
    CUTE_UNROLL
    for (int i = 0; i < size(rows); ++i) {
      if (lane % 4 == 0) smem_.row_exchange[warp][row + RowCoord<kM>{}(i)] = rows(i);
    }
    __syncthreads();
    CUTE_UNROLL
    for (int i = 0; i < size(rows); ++i) {
      rows(i) = combine(rows(i), smem_.row_exchange[1 - warp][row + RowCoord<kM>{}(i)]);
    }
  }

  RowSoftmax<kM> softmax;
  Output output;

 private:
  // What comes after tile n: `next` says whether any does. Of listed steps both are places in the
  // queue, of which the second may have to be looked up, and what is returned is what the next step
  // is to the rows of this warp.
  static constexpr integral_constant<int, -1> kInQueue{};
  template <Edge kEdge, class Next>
  CUTE_DEVICE int step(int n, Next next) {
    begin_step<kEdge>(n);
    return finish_step<kEdge>(n, next);
  }

  template <Edge kEdge>
  CUTE_DEVICE void begin_step(int n) {
    // K(n) has landed and nobody reads V(n + 1) any longer: V(n) streams in behind the scores.
    cp_async_wait_group<0>();
    if constexpr (Config::kCodes) k_stream_.expand();
    __syncthreads();
    if constexpr (!kLatents) load_values<kEdge>(n);
  }

  template <Edge kEdge, class Next>
  CUTE_DEVICE int finish_step(int n, Next next) {
    int follows;
    if constexpr (kLatents) {
      // Nobody reads tile n + 1 any longer: tile n - 1 streams in, in its place, behind all of n.
      products_.turn_to(n);
      follows = load_next_keys(n, next);
    }

    // S = Q K'
    Scores scores;
    products_.multiply_qk(scores);
    adjust<kEdge>(scores, n);

    // V(n) has landed and nobody reads K(n) any longer: K(n - 1) streams in behind the rest.
    float const factor = settle(scores, [&] {
      if constexpr (!kLatents) follows = load_next_keys(n, next);
    });

    // P = exp(S - base), O += P V
    Probs probs;
    if constexpr (Config::kCodes) {
      softmax.exponentiate(scores, factor, probs, on_scores().value_factors());
    } else {
      softmax.exponentiate(scores, factor, probs);
    }
    if constexpr (Config::kDropout) on_scores().drop(probs, key_tile(n));
    products_.multiply_pv(probs, output);
    return follows;
  }

  // S of tile n, P of tile n + 1 and its share of O. `scores` and `factor` are those of tile n + 1,
  // then those of tile n.
  template <Edge kEdge>
  CUTE_DEVICE void overlapped_step(Scores& scores, float& factor, int n, bool more) {
    constexpr int kDepthS = Config::kDepthS, kBlocks = kM * Config::kDepthO;
    Probs probs;
    Scores next;
    products_.multiply_qk(next, [&](int k) {
      CUTE_UNROLL
      for (int i = k * kBlocks / kDepthS; i < (k + 1) * kBlocks / kDepthS; ++i) {
        softmax.exponentiate(scores, factor, probs, i % kM, i / kM);
      }
    });
    // Nobody reads K(n) any longer: K(n - 1) streams in behind O.
    finish_overlapped(probs, [&] { load_next_keys(n, more); });

    copy(next, scores);
    adjust<kEdge>(scores, n);
    // Nor V(n + 1): V(n) streams in behind the next scores.
    factor = settle(scores, [&] { load_values<Edge::kFull>(n); });
  }

  // O += P V. All warps meet before the products, and `load` starts what then may be copied.
  template <class Load>
  CUTE_DEVICE void finish_overlapped(Probs& probs, Load const& load) {
    products_.publish(probs);
    cp_async_wait_group<0>();
    __syncthreads();
    load();
    products_.multiply_published(probs, output);
  }

  // What happens to the scores of a tile before the softmax.
  template <Edge kEdge>
  CUTE_DEVICE void adjust(Scores& scores, int n) const {
    if constexpr (Config::kCodes) on_scores().multiply_by_keys(scores);
    if constexpr (kModifies<kEdge>) on_scores().modify(scores, key_tile(n));
    if constexpr (kEdge == Edge::kMasked) {
      if constexpr (kListed) {
        on_scores().mask_listed(scores, key_tile(n), listed()[n].tile);
      } else {
        on_scores().mask(scores, n);
      }
    }
  }

  // Raises the bases of rows that have outgrown them, and returns what to multiply the scores by.
  // All copies have landed and all warps have met when `load` starts the next one (of latents, one
  // is on its way already).
  template <class Load>
  CUTE_DEVICE float settle(Scores& scores, Load const& load) {
    PerRow const largest = RowSoftmax<kM>::lane_max(scores);
    bool const outgrown = softmax.outgrown(largest, scale_);
    if constexpr (!kLatents) cp_async_wait_group<0>();
    if constexpr (Config::kCodes) v_stream_.expand();
    bool const rescale_now = sync_and_vote(outgrown);
    load();
    float factor = scale_;
    if (__builtin_expect(rescale_now, 0)) factor = rescale(largest, scores);
    return factor;
  }

  // The rest of a listed step whose keys the rows of this warp do not see.
  CUTE_DEVICE void pass(int at) {
    cp_async_wait_group<0>();
    bool const rescale_now = sync_and_vote(false);
    load_next_keys(at, kInQueue);
    // Pairs exchange what their rows have grown to, through a barrier of all.
    if (kPairs && rescale_now) __syncthreads();
  }

  CUTE_DEVICE int key_tile(int n) const {
    if constexpr (kListed) return listed()[n].key_tile;
    return n;
  }

  CUTE_DEVICE int keys_from(int n) const { return smem_.work.seqlen_k - n * kTile.block_n; }

  template <Edge kEdge>
  CUTE_DEVICE void load_values(int n) {
    constexpr Rows kCheck = kEdge == Edge::kMasked ? Rows::kBounded : Rows::kAll;
    if constexpr (kListed) {
      ListedStep const& step = listed()[n];
      v_stream_.template load_after<kCheck>(step.v_jump, keys_from(step.key_tile));
    } else {
      v_stream_.template load<kCheck>(n, keys_from(n));
    }
  }

  CUTE_DEVICE int load_next_keys(int n, bool more) {
    if (more) k_stream_.template load<Rows::kAll>(n - 1, kTile.block_n);
    return 0;
  }
  // Of listed steps.
  CUTE_DEVICE int load_next_keys(int, int next) {
    ListedStep const& step = listed()[next];
    // Only of the last block of keys can the steps be short, and not its first step if it has one.
    constexpr Rows kCheck =
        ListedKeyTiles<Config>::kStepsPerBlock == 1 ? Rows::kAll : Rows::kBounded;
    int const tile = step.tile;
    if (tile != kNoStep) {
      k_stream_.template load_after<kCheck>(step.k_jump, keys_from(step.key_tile));
    }
    return tile;
  }
  CUTE_DEVICE int load_next_keys(int at, decltype(kInQueue)) {
    return load_next_keys(at, listed()[at].next);
  }

  // All warps pass, and meet unless they read latents and share no rows; true where a row of the
  // warp (of the CTA, when warps share rows) has outgrown its base.
  CUTE_DEVICE static bool sync_and_vote(bool outgrown) {
    if constexpr (kPairs) {
      return barrier_or(outgrown);
    } else {
      if constexpr (!kLatents) __syncthreads();
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
    float const usual = on_scores().usual_scale();
    softmax.rescale(row_max, usual, output);
    bool const large = __any_sync(0xffffffffu, softmax.has_large_base());
    bool const empty = __any_sync(0xffffffffu, softmax.has_empty_row());
    scale_ = large || empty ? kEveryStep : usual;
    if (!large) return usual;
    softmax.fold(scores, usual);
    return 1.f;
  }

  CUTE_DEVICE FwdScores<Config> on_scores() const { return {args_, smem_}; }
  CUTE_DEVICE ListedKeyTiles<Config> listed() const { return {args_, smem_}; }

  Args const& args_;
  Smem& smem_;
  typename Config::StreamK k_stream_;
  typename Config::StreamV v_stream_;
  Products products_;

  // While bases are so large that a bit of a rounded product matters, scores are multiplied on
  // their own, in every step, as bases are. Rows that have seen no key are looked at in every step,
  // too.
  static constexpr float kEveryStep = NAN;
  float scale_;
};

}  // namespace fa2::sm80
