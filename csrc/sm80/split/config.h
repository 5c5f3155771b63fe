#pragma once

// Shared memory of a CTA of the split kernel, and what its rows are.

#include "core/online_softmax.h"
#include "sm80/forward/config.h"
#include "sm80/split/work_tile.h"
#include "tile/code_stream.h"
#include "tile/latent_stream.h"
#include "tile/scores.h"

namespace fa2::sm80 {

template <class Element_, FwdTile kTile_, Variant kVariant_>
struct SplitConfig : FwdConfig<Element_, kTile_, kVariant_> {
  using Base = FwdConfig<Element_, kTile_, kVariant_>;
  using Args = SplitArgs;
  using Element = Element_;
  using Base::kTile, Base::kPadQK, Base::kPadVO, Base::kCodes, Base::kLatents, Base::kPairs;
  static constexpr bool kPacked = true;

  // Scores take all of a factor. Values share theirs with probabilities, which a half would not
  // hold otherwise.
  template <int kCols, int kPad, bool kOfValues>
  using Stream =
      conditional_t<kCodes,
                    CodeStream<Element, kTile.block_n, kCols, kTile.threads(), kPad, kOfValues>,
                    PagedStream<Element, kTile.block_n, kCols, kTile.threads(), kPad>>;
  using Latents = LatentStream<Element, kTile.block_n, kTile.head_dim, kTile.threads(), kPadQK>;
  using StreamK = conditional_t<kLatents, Latents, Stream<kTile.head_dim, kPadQK, false>>;
  using StreamV =
      conditional_t<kLatents, typename Latents::Values, Stream<kTile.head_dim_v, kPadVO, true>>;
  using SmemQ = typename Base::SmemQ;

  // Few rows: a CTA goes from split to split and adds up their results. The first keys of the next
  // one are then in flight already, unless wide heads leave no room for that, or latents, whose
  // buffers take turns.
  static constexpr bool kSums = kTile.block_m == kFewRows;
  static constexpr bool kKeepsKeys = !kLatents && (kTile.head_dim <= 192 || kTile.key_warps == 1);

  // Outputs in float32. The padding keeps pairs of neighbouring rows in different banks.
  static constexpr int kOutStride = kTile.head_dim_v + 8;

  // What each warp found for its rows.
  struct Found {
    alignas(128) float out[kTile.key_warps][kTile.block_m * kOutStride];
    RowState rows[kTile.key_warps][kTile.block_m];
  };

  using K = Element[StreamK::Smem::kElements * (kLatents ? Latents::kBuffers : 1)];
  using V = Element[kLatents ? 0 : StreamV::Smem::kElements];
  using Q = Element[SmemQ::kElements];
  using Factors = float[kCodes ? kTile.block_n : 0];
  using P = Element[kPairs ? Base::SmemP::kElements : 0];
  using RowExchange = float[kPairs ? 2 : 0][kTile.block_m];

  // What may make room for Found: the values of a split that have been read; its keys too; and the
  // queries, when there is no other split.
  struct SmemBesideValues {
    alignas(128) Q q;
    alignas(128) K k;
    union {
      alignas(128) V v;
      Found found;
    };
    alignas(16) P probs;
    RowExchange row_exchange;
    alignas(16) Factors k_factors, v_factors;
    SplitWorkTile work;
  };
  struct SmemBesideKeys {
    alignas(128) Q q;
    union {
      struct {
        alignas(128) K k;
        alignas(128) V v;
      };
      Found found;
    };
    alignas(16) P probs;
    RowExchange row_exchange;
    alignas(16) Factors k_factors, v_factors;
    SplitWorkTile work;
  };
  struct SmemBesideQueries {
    union {
      struct {
        alignas(128) Q q;
        alignas(128) K k;
        alignas(128) V v;
      };
      Found found;
    };
    alignas(16) P probs;
    RowExchange row_exchange;
    alignas(16) Factors k_factors, v_factors;
    SplitWorkTile work;
  };
  using Smem = conditional_t<kSums, conditional_t<kKeepsKeys, SmemBesideValues, SmemBesideKeys>,
                             SmemBesideQueries>;

  CUTE_DEVICE static int query_of(SplitArgs const& args, int row) { return args.group.div(row); }

  CUTE_DEVICE static AlibiRow alibi_row(SplitArgs const& args, SplitWorkTile const& work, int row) {
    int query, in_group;
    args.group(query, in_group, row);
    int32_t const head = work.head_kv * args.group.divisor + in_group;
    return {query, alibi_slope(args.problem.score_mod, work.batch, head)};
  }

  CUTE_DEVICE static StreamK keys(SplitArgs const& args, Smem& smem) {
    FwdParams const& p = args.problem;
    return stream<StreamK>(rows_of(p.k, p.head_dim, args, smem.work), args, p.quantised.k,
                           smem.k_factors, smem, smem.k);
  }
  CUTE_DEVICE static StreamV values(SplitArgs const& args, Smem& smem) {
    if constexpr (kLatents) {
      return {};
    } else {
      FwdParams const& p = args.problem;
      return stream<StreamV>(rows_of(p.v, p.head_dim_v, args, smem.work), args, p.quantised.v,
                             smem.v_factors, smem, smem.v);
    }
  }

 private:
  template <class Stream>
  CUTE_DEVICE static Stream stream(KeyRows const& rows, SplitArgs const& args, Scales const& scales,
                                   float* factors, Smem const& smem, Element* tile) {
    int const last = smem.work.tiles.end - 1;
    if constexpr (kCodes) {
      return {rows, args.problem.quantised.type, scales, factors, last, tile};
    } else {
      return {rows, last, tile};
    }
  }

  CUTE_DEVICE static KeyRows rows_of(TensorRef const& t, int32_t const& width,
                                     SplitArgs const& args, SplitWorkTile const& work) {
    FwdParams const& p = args.problem;
    return {
        t,    p.pages, args.page_size, work.batch, work.first_row_k, work.seqlen_k, work.head_kv,
        width};
  }
};

}  // namespace fa2::sm80
