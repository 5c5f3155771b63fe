#pragma once

// The main loop of a CTA: over the tiles of scores of its walk,
//
//   S = Q K',  P = exp(S - lse),  dP = dO V',  sums += P (dP - D)

#include "sm80/bias_backward/scores.h"

namespace fa2::sm80 {

template <class Config>
class BiasBwdMainloop {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using SmemRows = typename Config::SmemRows;
  using Copies = typename Config::Copies;
  static constexpr int kM = Config::kM;
  static constexpr int kN = Config::kN;

 public:
  using Scores = typename BiasScores<Config>::Scores;

  CUTE_DEVICE BiasBwdMainloop(BiasBwdArgs const& args, Smem& smem)
      : args_(args),
        smem_(smem),
        chunks_(chunks_of(args.problem.forward.head_dim)),
        all_chunks_(even(chunks_ + chunks_of(args.problem.forward.head_dim_v))) {
    clear(sums);
  }

  // Ends with no copy in flight.
  CUTE_DEVICE void run() {
    int slot = 0;
    if (smem_.steps.tiles[slot].exists()) load(slot, 0);
    CUTE_NO_UNROLL
    while (smem_.steps.tiles[slot].exists()) {
      step(slot);
      slot ^= 1;
    }
  }

  Scores sums;

 private:
  CUTE_DEVICE void step(int slot) {
    Scores scores, grad_probs;
    clear(scores);
    clear(grad_probs);
    CUTE_NO_UNROLL
    for (int i = 0; i < chunks_; ++i) {
      load_behind(slot, i);
      multiply(i, scores);
    }
    CUTE_NO_UNROLL
    for (int i = chunks_; i < all_chunks_; ++i) {
      load_behind(slot, i);
      multiply(i, grad_probs);
    }
    BiasWorkTile const& tile = smem_.steps.tiles[slot];
    BiasScores<Config> const apply(args_);
    apply.modify(scores, tile);
    apply.mask(scores, tile);
    if (args_.keep_below != kKeepAll) apply.drop(grad_probs, tile);
    add(scores, grad_probs, tile);
  }

  // ---- chunks of rows: of Q and K, and after these of dO and V

  CUTE_DEVICE static int chunks_of(int width) {
    return (width + Config::kChunk - 1) / Config::kChunk;
  }

  // Chunks take turns in two stages, from one tile to the next, too: a last one may be all zeros.
  CUTE_DEVICE static int even(int chunks) { return (chunks + 1) / 2 * 2; }

  // Waits for chunk i of a tile, and starts the copy of what follows it. The first barrier of a
  // step is behind all that was read of the tile before; what one thread finds then is seen after
  // the next.
  CUTE_DEVICE void load_behind(int slot, int i) {
    cp_async_wait_group<0>();
    __syncthreads();  // and nobody reads the chunk before any longer
    if (i == 0 && threadIdx.x == 0) smem_.steps.seek(args_.problem.forward, slot ^ 1);
    if (i + 1 < all_chunks_) {
      load(slot, i + 1);
    } else if (smem_.steps.tiles[slot ^ 1].exists()) {
      load(slot ^ 1, 0);
    }
  }

  CUTE_DEVICE void load(int slot, int i) {
    FwdParams const& p = args_.problem.forward;
    BiasWorkTile const& tile = smem_.steps.tiles[slot];
    bool const first = i < chunks_;
    int const col = (first ? i : i - chunks_) * Config::kChunk;
    int const cols = (first ? p.head_dim : p.head_dim_v) - col;
    auto& stage = smem_.stages[i % 2];
    TensorRef const& queries = first ? p.q : args_.problem.grad_out;
    TensorRef const& keys = first ? p.k : p.v;
    load_rows(head_ptr<Element const>(queries, tile.batch, tile.first_row_q, tile.head) +
                  tile.row_begin * queries.row_stride + col,
              queries.row_stride, tile.seqlen_q - tile.row_begin, cols, stage.queries);
    load_rows(head_ptr<Element const>(keys, tile.batch, tile.first_row_k, tile.head / p.group()) +
                  tile.col_begin * keys.row_stride + col,
              keys.row_stride, tile.seqlen_k - tile.col_begin, cols, stage.keys);
    cp_async_fence();
  }

  CUTE_DEVICE static void load_rows(Element const* from, int64_t row_stride, int rows, int cols,
                                    Element* to) {
    int const thread = thread_index();
    from += Copies::row(thread) * row_stride + Copies::col(thread);
    copy_tile<Copies, SmemRows>(reinterpret_cast<char const*>(from),
                                row_stride * Copies::kRowsPerPass * int64_t(sizeof(Element)), rows,
                                cols, to);
  }

  CUTE_DEVICE void multiply(int i, Scores& acc) {
    auto& stage = smem_.stages[i % 2];
    auto const sA = ldsm_view<SmemRows>(stage.queries, LdsmLanes::rows_first(lane_index()),
                                        BiasScores<Config>::warp_row_begin());
    auto const sB = ldsm_view<SmemRows>(stage.keys, LdsmLanes::cols_first(lane_index()));
    CUTE_UNROLL
    for (int k = 0; k < Config::kDepth; ++k) {
      auto rA = make_tensor<Element>(Shape<_8, Int<kM>>{});
      CUTE_UNROLL
      for (int m = 0; m < kM; ++m) load_block<SM75_U32x4_LDSM_N>(sA(m, k), rA(_, m));
      CUTE_UNROLL
      for (int n = 0; n < kN; n += 2) {
        auto rB = make_tensor<Element>(Shape<_4, _2>{});
        load_block<SM75_U32x4_LDSM_N>(sB(n / 2, k), flatten_block(rB));
        multiply_blocks<kM>(acc, n, rA, rB);
      }
    }
  }

  // ---- sums

  // Rows that attend to nothing add nothing, even where 0 times what is there would be NaN.
  CUTE_DEVICE void add(Scores& scores, Scores& grad_probs, BiasWorkTile const& tile) {
    FwdParams const& p = args_.problem.forward;
    int64_t const at = lse_index(p, tile.batch, tile.first_row_q, tile.head);
    auto s = row_col_view(scores), dp = row_col_view(grad_probs), total = row_col_view(sums);
    CUTE_UNROLL
    for (int i = 0; i < 2 * kM; ++i) {
      int const row = BiasScores<Config>::first_row(tile) + RowCoord<kM>{}(i);
      float const lse = row < tile.seqlen_q ? args_.row_lse[at + row] : INFINITY;
      if (lse == INFINITY) continue;
      float const minus_delta = args_.row_minus_delta[at + row];
      CUTE_UNROLL
      for (int j = 0; j < 2 * kN; ++j) {
        float const prob = exp2_approx(fmaf(s(i, j), kLog2e, -lse));
        total(i, j) = fmaf(prob, dp(i, j) + minus_delta, total(i, j));
      }
    }
  }

  BiasBwdArgs const& args_;
  Smem& smem_;
  int const chunks_;      // of Q and K,
  int const all_chunks_;  // and with those of dO and V
};

}  // namespace fa2::sm80
