#pragma once

// The backward main loop of one CTA: for a block of keys, over the query heads of its group and the
// query tiles that see it (FlashAttention-2, algorithm 2),
//
//   S' = K Q',  P' = exp(S' - lse),  dP' = V dO',  dS' = P' (dP' - D)
//   dV += P' dO,  dK += dS' Q,  dQ += dS K
//
// with everything but dQ transposed.

#include "sm80/backward/config.h"
#include "tile/scores.h"

namespace fa2::sm80 {

template <class Config>
class BwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using SmemQ = typename Config::SmemQ;
  using SmemKV = typename Config::SmemKV;
  using SmemP = typename Config::SmemP;
  using Copies = typename Config::Copies;
  static constexpr BwdTile kTile = Config::kTile;
  static constexpr bool kExchange = Config::kExchange;
  static constexpr int kM = Config::kM;
  static constexpr int kNumS = Config::kNumS;
  static constexpr int kDepthS = Config::kDepthS;
  static constexpr int kNumKV = Config::kNumKV;
  static constexpr int kMQ = Config::kMQ;
  static constexpr int kNumQ = Config::kNumQ;
  static constexpr bool kListed = Config::kListed;
  static constexpr int kStepsPerBlock = BlockMask::kBlock / kTile.block_m;  // of a block mask

  using Scores = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumS>{}));
  // P' and dS' of a chunk, as the A operand of dV and dK: depth is queries.
  using Probs = decltype(make_tensor<Element>(OperandLayout<kM, kNumS / 2>{}));
  // Derivative of the softcap at each score.
  using Slopes = decltype(make_tensor<half_t>(AccumulatorLayout<kM, kNumS>{}));
  using GradQ = decltype(make_tensor<float>(AccumulatorLayout<kMQ, kNumQ>{}));
  template <bool kHeld>
  using KeyOperand =
      decltype(make_tensor<Element>(OperandLayout<kHeld ? kM : 1, kHeld ? kDepthS : 1>{}));

 public:
  using GradKV = decltype(make_tensor<float>(AccumulatorLayout<kM, kNumKV>{}));

  CUTE_DEVICE BwdMainloop(BwdArgs const& args, Smem& smem) : args_(args), smem_(smem) {
    clear(grad_k);
    clear(grad_v);
  }

  // Ends with no copy in flight. Some query tile sees the block.
  CUTE_DEVICE void run() {
    if constexpr (kListed) {
      entry_ = 0;
      look_at_block(0);
    } else {
      m_ = smem_.work.tiles.begin;
      head_ = smem_.work.head_kv * args_.problem.forward.group();
    }
    copy_keys();
    seek_queries(m_, head_);
    copy_queries(m_, head_, 0);
    if constexpr (kTile.k_in_registers || kTile.v_in_registers) keep_keys();

    int stage = 0;
    bool more = true;
    CUTE_NO_UNROLL
    while (more) {
      more = step(stage);
      if constexpr (kTile.stages == 2) stage ^= 1;
    }
  }

  GradKV grad_k, grad_v;

  // Addresses that follow from these may stay in registers; thread_index() and lane_index() are
  // read anew, for what must not.
  CUTE_DEVICE static int lane() { return int(threadIdx.x) % 32; }
  CUTE_DEVICE static int warp() { return int(threadIdx.x) / 32; }
  CUTE_DEVICE static int key_warp() { return warp() % kTile.key_warps; }
  CUTE_DEVICE static int query_warp() { return warp() / kTile.key_warps; }
  CUTE_DEVICE static int warp_key_begin() { return key_warp() * 16 * kM; }

 private:
  // One query tile; true if there are more.
  CUTE_DEVICE bool step(int stage) {
    int const m = tile_at_hand(), head = head_at_hand();
    bool more = false;
    if constexpr (!kListed) more = next_step(m);

    // Q(m) and dO(m) have landed, and nobody reads what the last step left any longer.
    cp_async_wait_group<0>();
    __syncthreads();
    if constexpr (kListed && kTile.stages == 2) more = next_listed_step(m);
    if constexpr (kTile.stages == 2) copy_next(more, stage ^ 1);

    CUTE_UNROLL
    for (int c = 0; c < Config::kChunks; ++c) chunk(c, m, head, stage);
    __syncthreads();  // dS of all warps is there, and P where it is exchanged
    if constexpr (kExchange) {
      CUTE_UNROLL
      for (int r = 1; r < kTile.query_warps; ++r) {
        absorb((query_warp() + r) % kTile.query_warps, stage);
      }
    }
    if constexpr (kTile.stages == 1) {
      if constexpr (kExchange) __syncthreads();
      if constexpr (kListed) more = next_listed_step(m);
      copy_next(more, 0);
    }
    if constexpr (kReread) {
      add_grad_q(tile_at_hand(), head_at_hand());
    } else {
      add_grad_q(m, head);
    }
    if constexpr (kListed) entry_ += kStepsPerBlock == 1 || m_ % kStepsPerBlock == 0;
    return more;
  }

  // Moves on from tile m.
  CUTE_DEVICE bool next_step(int m) {
    BwdWorkTile const& work = smem_.work;
    m_ = m + 1;
    if (m_ == work.tiles.end) {
      m_ = work.tiles.begin;
      ++head_;
    }
    return head_ < (work.head_kv + 1) * args_.problem.forward.group();
  }

  // The same under a block mask, behind a barrier. What is fetched here has landed at the next.
  CUTE_DEVICE bool next_listed_step(int m) {
    if (kStepsPerBlock == 1 || m % kStepsPerBlock == 0) {
      if (threadIdx.x == 0) {
        smem_.steps[0].fetch(args_, smem_.work, entry_ + ListedSteps::kAhead);
      }
      if (kStepsPerBlock > 1 && (m + 1) * kTile.block_m < smem_.work.seqlen_q) {
        m_ = m + 1;
        return true;
      }
    }
    look_at_block(entry_ + 1);
    return head_ >= 0;
  }

  CUTE_DEVICE void look_at_block(int entry) {
    m_ = listed(entry).block * kStepsPerBlock;
    head_ = smem_.steps[0].heads[entry % ListedSteps::kSlots];
  }

  // What a step works on. Read anew where it is used, it occupies no registers between.
  static constexpr bool kReread = kListed && kStepsPerBlock == 1 && kTile.stages == 1;
  CUTE_DEVICE int tile_at_hand() const { return kReread ? listed(entry_).block : m_; }
  CUTE_DEVICE int head_at_hand() const {
    return kReread ? smem_.steps[0].heads[entry_ % ListedSteps::kSlots] : head_;
  }

  CUTE_DEVICE ListedQueries const& listed(int entry) const {
    return smem_.steps[0].queries[entry % ListedSteps::kSlots];
  }

  // ---- global memory to shared memory

  CUTE_DEVICE void copy_keys() {
    FwdParams const& p = args_.problem.forward;
    copy_key_rows(p.k, smem_.k);
    copy_key_rows(p.v, smem_.v);
  }

  CUTE_DEVICE void copy_key_rows(TensorRef const& t, Element* tile) const {
    using CopiesKV = typename Config::CopiesKV;
    BwdWorkTile const& work = smem_.work;
    int const thread = thread_index();
    Element const* const from =
        head_ptr<Element const>(t, work.batch, work.first_row_k, work.head_kv) +
        (work.col_begin + CopiesKV::row(thread)) * t.row_stride + CopiesKV::col(thread);
    copy_tile<CopiesKV, SmemKV>(reinterpret_cast<char const*>(from),
                                t.row_stride * CopiesKV::kRowsPerPass * int64_t(sizeof(Element)),
                                work.seqlen_k - work.col_begin, args_.problem.forward.head_dim,
                                tile);
  }

  // Points the sources of Q and dO at a query tile of a head.
  CUTE_DEVICE void seek_queries(int m, int head) {
    q_source_ = query_rows(args_.problem.forward.q, m, head);
    grad_out_source_ = query_rows(args_.problem.grad_out, m, head);
  }

  CUTE_DEVICE char const* query_rows(TensorRef const& t, int m, int head) const {
    BwdWorkTile const& work = smem_.work;
    int const thread = thread_index();
    int64_t const row = int64_t(m) * kTile.block_m + Copies::row(thread);
    return reinterpret_cast<char const*>(
        head_ptr<Element const>(t, work.batch, work.first_row_q, head) + row * t.row_stride +
        Copies::col(thread));
  }

  // Copies tile (head_, m_), which follows the one that was copied last.
  CUTE_DEVICE void copy_next(bool more, int stage) {
    if (!more) return;
    if (kListed || m_ == smem_.work.tiles.begin) {
      seek_queries(m_, head_);
    } else {
      q_source_ += args_.q_tile_bytes;
      grad_out_source_ += args_.grad_out_tile_bytes;
    }
    copy_queries(m_, head_, stage);
  }

  CUTE_DEVICE void copy_queries(int m, int head, int stage) const {
    int const rows = smem_.work.seqlen_q - m * kTile.block_m;
    int const head_dim = args_.problem.forward.head_dim;
    copy_tile<Copies, SmemQ>(q_source_, args_.q_pass_bytes, rows, head_dim, smem_.q[stage]);
    copy_tile<Copies, SmemQ>(grad_out_source_, args_.grad_out_pass_bytes, rows, head_dim,
                             smem_.grad_out[stage]);
    int const thread = thread_index();
    if (thread < kTile.block_m / 2) {  // 16 bytes each
      float const* const stats =
          args_.workspace.row_stats + int64_t(tile_index(m, head)) * (2 * kTile.block_m);
      SM80_CP_ASYNC_CACHEGLOBAL<uint128_t>::copy(
          reinterpret_cast<uint128_t const*>(stats)[thread],
          reinterpret_cast<uint128_t*>(smem_.row_stats[stage])[thread]);
    }
    cp_async_fence();
  }

  CUTE_DEVICE int tile_index(int m, int head) const {
    return head * args_.workspace.tiles_per_head + smem_.work.first_tile + m;
  }

  // ---- scores and their gradients

  CUTE_DEVICE void keep_keys() {
    cp_async_wait_group<0>();
    __syncthreads();
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      if constexpr (kTile.k_in_registers) load_keys(smem_.k, k, keys_(_, _, k));
      if constexpr (kTile.v_in_registers) load_keys(smem_.v, k, values_(_, _, k));
    }
  }

  template <class Fragment>
  CUTE_DEVICE void load_keys(Element* tile, int k, Fragment&& rA) const {
    auto const sA = ldsm_view<SmemKV>(tile, LdsmLanes::rows_first(lane()), warp_key_begin());
    CUTE_UNROLL
    for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
  }

  // acc += A B' of K and Q, or of V and dO, at the queries of the warp's chunk c.
  template <bool kHeld, class Held>
  CUTE_DEVICE void multiply_keys(Element* keys, Held const& held, Element* queries, int c,
                                 Scores& acc) const {
    auto const sB = ldsm_view<SmemQ>(queries, LdsmLanes::cols_first(lane()),
                                     query_warp() * Config::kWarpQueries);
    CUTE_UNROLL
    for (int k = 0; k < kDepthS; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      if constexpr (kHeld) {
        copy(held(_, _, k), rA);
      } else {
        load_keys(keys, k, rA);
      }
      CUTE_UNROLL
      for (int n = 0; n < kNumS; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(sB(c * kNumS / 2 + n / 2, k), flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA, rB);
      }
    }
  }

  CUTE_DEVICE void chunk(int c, int m, int head, int stage) {
    BwdWorkTile const& work = smem_.work;
    int const first_col = query_warp() * Config::kWarpQueries + c * kTile.chunk;

    int const first_query = m * kTile.block_m + first_col;
    int tile = 0;
    if constexpr (kListed) {
      tile = listed(entry_).tile[key_list()];
      if (tile == kUnlisted) return pass(c);
    }
    uint32_t keep = 0;
    if constexpr (Config::kDropout) keep = keep_bits(head, first_query);

    // S' = K Q', P' = exp(S' - lse)
    Scores scores;
    Slopes slopes;
    clear(scores);
    multiply_keys<kTile.k_in_registers>(smem_.k, keys_, smem_.q[stage], c, scores);
    if constexpr (Config::kModified) modify(scores, slopes, head, first_query);
    if constexpr (kListed) {
      if (tile != 0 || is_edge(work.tiles, m)) mask_listed(scores, tile, first_query);
    } else {
      if (is_edge(work.tiles, m)) mask(scores, first_query);
    }
    exponentiate(scores, smem_.row_stats[stage][0] + first_col);

    // dP' - D = V dO' - D, with dropout on dP' and on what of P' goes on
    Scores grad_probs;
    float const* const minus_delta = smem_.row_stats[stage][1] + first_col;
    Probs probs, grad_scores;
    if constexpr (Config::kDropout) {
      clear(grad_probs);
      multiply_keys<kTile.v_in_registers>(smem_.v, values_, smem_.grad_out[stage], c, grad_probs);
      drop(keep, grad_probs);
      with_values(grad_probs, minus_delta, [](float& dp, float d) { dp += d; });
      Scores kept = make_fragment_like(scores);
      copy(scores, kept);
      drop(keep, kept);
      round_to_operand(kept, probs);
    } else {
      with_values(grad_probs, minus_delta, [](float& dp, float d) { dp = d; });
      multiply_keys<kTile.v_in_registers>(smem_.v, values_, smem_.grad_out[stage], c, grad_probs);
      round_to_operand(scores, probs);
    }
    if constexpr (kExchange) publish(probs, smem_.probs, c);

    // dS' = P' (dP' - D), times the derivative of the softcap
    CUTE_UNROLL
    for (int i = 0; i < size(scores); ++i) scores(i) *= grad_probs(i);
    if constexpr (Config::kModified) {
      if (args_.scales.has_softcap) {
        CUTE_UNROLL
        for (int i = 0; i < size(scores); ++i) scores(i) *= float(slopes(i));
      }
    }
    round_to_operand(scores, grad_scores);
    publish(grad_scores, smem_.grad_scores(), c);

    multiply_queries(grad_v, probs, smem_.grad_out[stage], first_col);
    multiply_queries(grad_k, grad_scores, smem_.q[stage], first_col);
  }

  // Of keys that no query of the step sees.
  CUTE_DEVICE void pass(int c) const {
    Probs none;
    clear(none);
    if constexpr (kExchange) publish(none, smem_.probs, c);
    publish(none, smem_.grad_scores(), c);
  }

  // Which of the lists of a step this warp's keys have.
  CUTE_DEVICE static int key_list() {
    return kTile.block_n > BlockMask::kBlock ? warp_key_begin() / BlockMask::kBlock : 0;
  }

  CUTE_DEVICE void mask_listed(Scores& scores, int tile, int first_query) const {
    constexpr int kBlock = BlockMask::kBlock;
    int const first_key = lane_first_key();
    // Of each word the half that has the warp's keys.
    auto const* halves =
        reinterpret_cast<uint32_t const*>(tile_words(args_.problem.forward.block_mask, tile));
    if (halves != nullptr) {
      halves += 2 * (first_query % kBlock + lane_col(lane_index())) + first_key % kBlock / 32;
    }
    mask_transposed_scores_by_bits<kM, kNumS>(
        scores, first_key % 32, smem_.work.seqlen_k - first_key,
        [&](int query) { return halves == nullptr ? ~0u : halves[2 * query]; });
  }

  CUTE_DEVICE int lane_first_key() const {
    return smem_.work.col_begin + warp_key_begin() + lane_row(lane_index());
  }

  // Softcap with its derivative, and ALiBi.
  CUTE_DEVICE void modify(Scores& scores, Slopes& slopes, int head, int first_query) const {
    FwdParams const& p = args_.problem.forward;
    if (kListed && !is_modified(p.score_mod)) return;
    if (args_.scales.has_softcap) {
      cap_scores(scores, args_.scales, slopes);
    } else {
      scale_scores(scores, args_.scales);
    }
    float const slope = alibi_slope(p.score_mod, smem_.work.batch, head);
    if (slope != 0.f) {
      add_alibi<kM, kNumS>(scores, slope, lane_first_key(), first_query + lane_col(lane_index()),
                           smem_.work.seqlen_q - smem_.work.seqlen_k);
    }
  }

  CUTE_DEVICE void mask(Scores& scores, int first_query) const {
    BwdWorkTile const& work = smem_.work;
    Window const& window = args_.problem.forward.window;
    mask_scores<kM, kNumS>(
        scores, lane_first_key(), first_query + lane_col(lane_index()),
        [&](int col) { return visible_rows(col, work.seqlen_q, work.seqlen_k, window); });
  }

  // Fused: the product of a finite score may be infinite, and so may lse be as a power of two.
  CUTE_DEVICE void exponentiate(Scores& scores, float const* lse) const {
    float const scale = Config::kModified && !kListed ? kLog2e : args_.scales.plain;
    with_values(scores, lse, [&](float& s, float l) { s = exp2_approx(fmaf(s, scale, -l)); });
  }

  // Calls combine(score, value) for each score, with the value of its query.
  template <class Combine>
  CUTE_DEVICE static void with_values(Scores& scores, float const* values, Combine const& combine) {
    CUTE_UNROLL
    for (int n = 0; n < kNumS; ++n) {
      float2 const pair = reinterpret_cast<float2 const&>(values[8 * n + lane_col(lane_index())]);
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) {
        CUTE_UNROLL
        for (int half = 0; half < 2; ++half) {
          auto s = scores(make_coord(_, half), m, n);
          combine(s(0), pair.x);
          combine(s(1), pair.y);
        }
      }
    }
  }

  CUTE_DEVICE uint32_t keep_bits(int head, int first_query) const {
    BwdWorkTile const& work = smem_.work;
    DropoutKey const key{work.rng_seed, work.rng_offset,
                         uint32_t(work.batch * args_.problem.forward.num_heads + head),
                         args_.keep_below};
    int const lane = lane_index();
    return transposed_keep_bits<kM, kNumS>(work.col_begin + warp_key_begin(),
                                           first_query + lane_col(lane), lane, key);
  }

  CUTE_DEVICE static void drop(uint32_t keep, Scores& scores) {
    auto s = row_col_view(scores);
    CUTE_UNROLL
    for (int j = 0; j < 2 * kNumS; ++j) {
      CUTE_UNROLL
      for (int i = 0; i < 2 * kM; ++i) {
        if ((keep >> (j * 2 * kM + i) & 1) == 0) s(i, j) = 0.f;
      }
    }
  }

  // ---- dV += P' dO and dK += dS' Q

  // acc += A B at the queries from first_query on; this warp's columns.
  CUTE_DEVICE void multiply_queries(GradKV& acc, Probs const& rA, Element* queries,
                                    int first_query) const {
    auto const sB = ldsm_view<SmemQ>(queries + query_warp() * (kNumKV / 2) * SmemQ::kSubTile,
                                     LdsmLanes::rows_first(lane()), first_query);
    CUTE_UNROLL
    for (int k = 0; k < kNumS / 2; ++k) {
      CUTE_UNROLL
      for (int n = 0; n < kNumKV; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA(_, _, k), rB);
      }
    }
  }

  // The share of dK and dV that comes from the queries of another query warp.
  CUTE_DEVICE void absorb(int other, int stage) {
    CUTE_UNROLL
    for (int c = 0; c < Config::kChunks; ++c) {
      int const first_query = other * Config::kWarpQueries + c * kTile.chunk;
      Probs rA;
      fetch(smem_.probs, first_query, rA);
      multiply_queries(grad_v, rA, smem_.grad_out[stage], first_query);
      fetch(smem_.grad_scores(), first_query, rA);
      multiply_queries(grad_k, rA, smem_.q[stage], first_query);
    }
  }

  CUTE_DEVICE static void fetch(Element* tile, int first_query, Probs& rA) {
    auto const sA = ldsm_view<SmemP>(tile + first_query / 16 * SmemP::kSubTile,
                                     LdsmLanes::rows_first(lane()), warp_key_begin());
    CUTE_UNROLL
    for (int k = 0; k < size<2>(rA); ++k) {
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m, k));
    }
  }

  // P' or dS' of this warp's chunk, for all to read.
  CUTE_DEVICE static void publish(Probs const& fragment, Element* tile, int c) {
    int const first_query = query_warp() * Config::kWarpQueries + c * kTile.chunk;
    store_operand<SmemP>(fragment, tile + first_query / 16 * SmemP::kSubTile,
                         operand_offset<SmemP>(warp_key_begin(), lane()));
  }

  // ---- dQ += dS K

  CUTE_DEVICE void add_grad_q(int m, int head) const {
    GradQ acc;
    clear(acc);
    multiply_grad_scores(acc);

    int const tile = tile_index(m, head);
    float* const sums = args_.workspace.grad_q + int64_t(tile) * Config::kGradQ.size() +
                        warp() * Config::kGradQ.warp_size() + lane();
    bool const ordered = args_.workspace.semaphores != nullptr;
    if (ordered) await_turn(m, tile);
    CUTE_UNROLL
    for (int i = 0; i < size<1>(acc); ++i) {
      CUTE_UNROLL
      for (int j = 0; j < size<2>(acc); ++j) {
        CUTE_UNROLL
        for (int e = 0; e < 4; ++e) red_add(sums + ((i * kNumQ + j) * 4 + e) * 32, acc(e, i, j));
      }
    }
    if (ordered) {
      __syncthreads();
      if (threadIdx.x == 0) {
        red_release_add(args_.workspace.semaphores + tile, turns_taken());
      }
    }
  }

  CUTE_DEVICE void multiply_grad_scores(GradQ& acc) const {
    constexpr int kRowWarps = Config::kGradQ.row_warps();
    int const row_warp = warp() % kRowWarps, col_warp = warp_index() / kRowWarps;
    auto const sA = ldsm_view<SmemP>(smem_.grad_scores() + row_warp * kMQ * SmemP::kSubTile,
                                     LdsmLanes::cols_first(lane()));
    auto const sB = ldsm_view<SmemKV>(smem_.k + col_warp * (kNumQ / 2) * SmemKV::kSubTile,
                                      LdsmLanes::rows_first(lane_index()));
    CUTE_UNROLL
    for (int k = 0; k < kTile.block_n / 16; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kMQ>>{});
      CUTE_UNROLL
      for (int i = 0; i < kMQ; ++i) load_block<SM75_U16x8_LDSM_T>(sA(k, i), rA(_, i));
      CUTE_UNROLL
      for (int n = 0; n < kNumQ; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U16x8_LDSM_T>(sB(k, n / 2), flatten_block(rB));
        multiply_blocks<kMQ>(acc, n, rA, rB);
      }
    }
  }

  // How many additions to tile m come before this one.
  CUTE_DEVICE int turn(int m) const {
    BwdWorkTile const& work = smem_.work;
    int const row_begin = m * kTile.block_m;
    BlockRange const blocks =
        block_range(row_begin, min(row_begin + kTile.block_m, work.seqlen_q), work.seqlen_q,
                    work.seqlen_k, args_.problem.forward.window, kTile.block_n);
    return blocks.end - 1 - work.block;
  }

  // The same under a block mask, counted in its blocks, or in halves of them where these are the
  // CTA's.
  CUTE_DEVICE int listed_turn() const {
    int const later = listed(entry_).later;
    if constexpr (kTile.block_n >= BlockMask::kBlock) return later;
    return 2 * later + int(has_second_half());
  }

  CUTE_DEVICE int turns_taken() const {
    if constexpr (!kListed) {
      return 1;
    } else if constexpr (kTile.block_n < BlockMask::kBlock) {
      return smem_.work.block % 2 == 0 && !has_second_half() ? 2 : 1;
    } else {
      ListedQueries const& queries = listed(entry_);
      return int(queries.tile[0] != kUnlisted) + int(queries.tile[1] != kUnlisted);
    }
  }

  // Whether this is the first half of a block, and another CTA has the second.
  CUTE_DEVICE bool has_second_half() const {
    BwdWorkTile const& work = smem_.work;
    return work.block % 2 == 0 && work.col_begin + kTile.block_n < work.seqlen_k;
  }

  // Key blocks add to a tile from the last that sees it to the first.
  CUTE_DEVICE void await_turn(int m, int tile) const {
    if (threadIdx.x == 0) {
      int const before = kListed ? listed_turn() : turn(m);
      while (load_acquire(args_.workspace.semaphores + tile) != before) {
      }
    }
    __syncthreads();
  }

  BwdArgs const& args_;
  Smem& smem_;
  char const* q_source_;
  char const* grad_out_source_;
  int m_, head_;
  int entry_;  // under a block mask: the block of queries of this step
  KeyOperand<kTile.k_in_registers> keys_;
  KeyOperand<kTile.v_in_registers> values_;
};

}  // namespace fa2::sm80
